"""Write a trained encoder as a folder to share: weights, config, model card.

    python -m carl_ray.export_model RUN --out FOLDER
    python -m carl_ray.export_model RUN --out FOLDER --evaluation RUN/evaluation --onnx
    python -m carl_ray.export_model RUN --push hf://OWNER/NAME --license apache-2.0
    python -m carl_ray.export_model

Writes model.safetensors (the encoder), config.json and README.md with the metrics and controls of an evaluation.
`carl_ray.load_encoder` and every option --checkpoint read the folder, and hf://OWNER/NAME once --push has uploaded it.
Without arguments it takes the newest demo run.
"""

from __future__ import annotations

import json

from carl_ray import storage
from carl_ray.errors import UserError, one_line_errors
from carl_ray.model.pretrained import check_hub_name, push_to_hub
from carl_ray.options import OptionParser, print_next
from carl_ray.training.checkpoint import checkpoint_at, default_run


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit status 0 only when all files are written."""
    with one_line_errors():
        parser = OptionParser(prog="python -m carl_ray.export_model", description=__doc__)
        add = parser.add_argument
        add("run", nargs="?", metavar="RUN", help="a run folder (its latest) or one checkpoint")
        add("--out", metavar="FOLDER", help="path or URI of the folder")
        add(
            "--evaluation",
            metavar="URI",
            help="folder that `evaluate` wrote [RUN/evaluation, where there is one]",
        )
        add(
            "--onnx", action="store_true", help="also backbone.onnx and temporal.onnx, checked in onnxruntime"
        )
        add("--license", metavar="ID", help="of the weights, for the model card, such as mit")
        add(
            "--push",
            metavar="hf://OWNER/NAME",
            help="upload to the Hugging Face hub; a new repository is private",
        )
        options = parser.parse_args(arguments)
        if options.push is not None:
            check_hub_name(options.push)
        outs = [uri for uri in (options.out, options.push) if uri is not None]
        if options.run is None and not outs:
            run = default_run("RUN and --out")
            outs = [storage.join(run, "model")]
        elif options.run is None or not outs:
            raise UserError(f"{'RUN' if outs else '--out'} missing: RUN goes together with --out or --push")
        else:
            run = options.run
        checkpoint = checkpoint_at(run)
        document = _metrics(run, options.evaluation)
        # Imported late: mistakes answer at once.
        from carl_ray.report.exported_model import exported_files
        from carl_ray.training.checkpoint import load_encoder

        name = storage.absolute(outs[-1]).rstrip("/").rpartition("/")[2]
        files = exported_files(name, checkpoint, document, options.license)
        if options.onnx:
            from carl_ray.model.onnx import onnx_files

            files |= onnx_files(load_encoder(checkpoint), checkpoint.config.augment.image_size)
        for file_name, content in files.items():
            print(f"{file_name:<20}{len(content) / 2**20:.2f} MiB")
        for out in outs:
            if out == options.push:
                print(f"commit: {push_to_hub(out, files)}")
            else:
                for file_name, content in files.items():
                    storage.write_bytes(storage.join(out, file_name), content)
            print(f"model: {storage.public_uri(out)}")
        print_next("embed", "--checkpoint", outs[-1], "--manifest", "MANIFEST", "--out", "EMBEDDINGS")


def _metrics(run: str, evaluation: str | None) -> dict[str, object] | None:
    if evaluation is None and storage.is_on_hub(run):
        return None  # Encoders alone are there.
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
