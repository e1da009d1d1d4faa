"""Write a trained encoder as a folder to share: weights, config, model card.

    python -m carl_ray.export_model RUN --out FOLDER
    python -m carl_ray.export_model RUN --out FOLDER --evaluation RUN/evaluation --onnx
    python -m carl_ray.export_model

Writes model.safetensors (the encoder), config.json and README.md with the metrics and controls of an evaluation.
`carl_ray.load_encoder` and every option --checkpoint read the folder, and hf://OWNER/NAME once it is uploaded there.
Without arguments it takes the newest demo run.
"""

from __future__ import annotations

import argparse
import json

from carl_ray import storage
from carl_ray.errors import UserError, one_line_errors
from carl_ray.options import OptionParser, print_next
from carl_ray.training.checkpoint import checkpoint_at, default_run


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit status 0 only when all files are written."""
    with one_line_errors():
        parser = OptionParser(
            prog="python -m carl_ray.export_model",
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument(
            "run", nargs="?", metavar="RUN", help="a run folder (its latest) or one checkpoint"
        )
        parser.add_argument("--out", metavar="FOLDER", help="path or URI of the folder")
        parser.add_argument(
            "--evaluation",
            metavar="URI",
            help="folder that `evaluate` wrote [RUN/evaluation, where there is one]",
        )
        parser.add_argument(
            "--onnx", action="store_true", help="also backbone.onnx and temporal.onnx, checked in onnxruntime"
        )
        options = parser.parse_args(arguments)
        if options.run is None and options.out is None:
            run = default_run("RUN and --out")
            out = storage.join(run, "model")
        elif options.run is None or options.out is None:
            raise UserError(f"{'RUN' if options.run is None else '--out'} missing: RUN and --out go together")
        else:
            run, out = options.run, options.out
        checkpoint = checkpoint_at(run)
        document = _metrics(run, options.evaluation)
        # Imported late: mistakes answer at once.
        from carl_ray.report.exported_model import exported_files
        from carl_ray.training.checkpoint import load_encoder

        name = storage.absolute(out).rstrip("/").rpartition("/")[2]
        files = exported_files(name, checkpoint, document)
        if options.onnx:
            from carl_ray.model.onnx import onnx_files

            files |= onnx_files(load_encoder(checkpoint), checkpoint.config.augment.image_size)
        for file_name, content in files.items():
            storage.write_bytes(storage.join(out, file_name), content)
            print(f"{file_name:<20}{len(content) / 2**20:.2f} MiB")
        print(f"model: {storage.public_uri(out)}")
        print_next("embed", "--checkpoint", out, "--manifest", "MANIFEST", "--out", "EMBEDDINGS")


def _metrics(run: str, evaluation: str | None) -> dict[str, object] | None:
    uri = storage.join(evaluation or storage.join(run, "evaluation"), "metrics.json")
    if not storage.is_file(uri):
        if evaluation is not None:
            raise UserError(
                f"{storage.public_uri(uri)}: no such file; `python -m carl_ray.evaluate` writes it"
            )
        return None
    document: dict[str, object] = json.loads(storage.read_bytes(uri))
    return document


if __name__ == "__main__":
    main()
