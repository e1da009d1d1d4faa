#!/usr/bin/env bash
# What one GPU does with this package, in 12 minutes at most: one JSON. Python 3.11 or later, torch 2.11, torchvision
# 0.26; neither Ray nor a network. Options are those of `python -m benchmarks.gpu --help`.
#
#     bash benchmarks/gpu.sh --out gpu.json
#     WHEELS=wheels bash benchmarks/gpu.sh --out gpu.json
#     bash benchmarks/gpu.sh --device cpu --tiny
#
# WHEELS: a folder of wheels for packages that the machine lacks, 4.7 MB, made elsewhere with
#
#     pip download -d wheels --only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64 \
#         'pydantic>=2.11' 'jaxtyping>=0.3' 'pytest>=8.3'
#
# They are unpacked into a temporary folder; nothing is installed. PyArrow and OpenCV are too large for that: without
# them stand-ins are imported, which no part on a GPU calls.
set -euo pipefail
python=${PYTHON:-python3}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
if [[ -n ${WHEELS:-} ]]; then
    for wheel in "$WHEELS"/*.whl; do
        "$python" -m zipfile -e "$wheel" "$unpacked"
    done
fi
PYTHONPATH=$PWD:$unpacked${PYTHONPATH:+:$PYTHONPATH} "$python" -m benchmarks.gpu "$@"
