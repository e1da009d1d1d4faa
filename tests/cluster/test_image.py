"""The image of the nodes: pinned, without compilers, with the package, and the one that the KubeRay files name.

Docker is not needed: what its steps install is read from the Dockerfile and compared with the package's own needs.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import carl_ray

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
STEPS = [step for step in DOCKERFILE.replace("\\\n", " ").splitlines() if step and not step.startswith("#")]


def pins() -> dict[str, str]:
    lines = [line for line in (CLUSTER / "requirements.txt").read_text().splitlines() if line[0] != "#"]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_the_pins_are_what_the_package_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = pins()
    for requirement in map(Requirement, project["dependencies"]):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement
    for name in ("raycluster", "rayjob"):
        (spec,) = yaml.safe_load_all((CLUSTER / "kuberay" / f"{name}.yaml").read_text())
        assert spec["spec"].get("rayClusterSpec", spec["spec"])["rayVersion"] == pinned["ray"]


def test_it_has_the_package_and_no_compiler() -> None:
    bases = [step.split()[1] for step in STEPS if step.startswith("FROM")]
    assert bases == ["python:${PYTHON}-bookworm", "python:${PYTHON}-slim-bookworm"]
    (version,) = re.findall(r"^ARG PYTHON=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"3\.12\.\d+", version)
    (packages,) = re.findall(r"apt-get install --yes --no-install-recommends (.*?) &&", " ".join(STEPS))
    assert packages.split() == ["wget"]
    copied = [word for step in STEPS if step.startswith("COPY") for word in step.split()[1:-1]]
    assert all((ROOT / word).exists() for word in copied if not word.startswith(("--from", "/")))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"pyproject.toml", "setup.py", project["readme"], *project["license-files"], "carl_ray"} <= set(
        copied
    )
    last = STEPS[max(n for n, step in enumerate(STEPS) if step.startswith("FROM")) :]
    assert [step.split()[1] for step in last if step.startswith("USER")] == ["ray"]


def test_every_step_that_installs_takes_pinned_wheels_or_this_package() -> None:
    found = (re.search(r"pip install ([^&]*)", step) for step in STEPS if step.startswith("RUN"))
    first, second = (set(install[1].split()) for install in found if install)
    assert {"--only-binary=:all:", "-r", "/build/requirements.txt"} <= first
    assert second == {"--no-deps", "--no-build-isolation", "/build"}
    assert "setuptools" in pins(), "what builds the package without isolation"


def test_the_nodes_use_it() -> None:
    """Training on CUDA, the rest without; the tags are those that the README's command pushes."""
    readme = (CLUSTER / "README.md").read_text()
    for device in ("cpu", "cuda"):
        assert f"/carl_ray:{carl_ray.__version__}-{device} --push ." in readme
        assert f"REGISTRY/carl_ray:{carl_ray.__version__}-{device} ." in DOCKERFILE
    for name in ("raycluster", "rayjob"):
        spec = yaml.safe_load((CLUSTER / "kuberay" / f"{name}.yaml").read_text())["spec"]
        cluster = spec.get("rayClusterSpec", spec)
        groups = {"head": cluster["headGroupSpec"]} | {g["groupName"]: g for g in cluster["workerGroupSpecs"]}
        images = {g: group["template"]["spec"]["containers"][0]["image"] for g, group in groups.items()}
        tag = f"REGISTRY/carl_ray:{carl_ray.__version__}"
        assert images == {"head": f"{tag}-cpu", "data": f"{tag}-cpu", "train": f"{tag}-cuda"}
