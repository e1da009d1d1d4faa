"""Export embeddings as features for temporal action localisation with G-TAD.

    python -m carl_ray.export --embeddings EMBEDDINGS --out FOLDER
    python -m carl_ray.export --embeddings EMBEDDINGS --out FOLDER --format csv
    python -m carl_ray.export

Writes `<video name>.h5` for each video, with the data set `<video name>`, 100 snippets x width, float32, as the
ActivityNet code of G-TAD reads with `--feature_path FOLDER/ --feat_dim WIDTH`; with `--format csv`,
`<video name>.csv` as BSN and BMN read. The video name is the last part of the video id without its suffix. Called
again, it writes only missing files. Without arguments it takes the newest demo run.
"""

from __future__ import annotations

import argparse
import typing

from carl_ray import storage
from carl_ray.errors import UserError, one_line_errors
from carl_ray.evaluation.localization import Format, export_features
from carl_ray.options import OptionParser, print_next
from carl_ray.progress import ProgressLine
from carl_ray.training.checkpoint import default_run


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit status 0 only when all files are written."""
    with one_line_errors():
        parser = OptionParser(
            prog="python -m carl_ray.export",
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument(
            "--embeddings", metavar="URI", help="folder that `python -m carl_ray.embed` wrote"
        )
        parser.add_argument("--out", metavar="FOLDER", help="path or URI for the files")
        parser.add_argument(
            "--length", type=int, default=100, metavar="N", help="snippets a video (default 100)"
        )
        parser.add_argument(
            "--format", choices=typing.get_args(Format), default="hdf5", help="of the files (default hdf5)"
        )
        options = parser.parse_args(arguments)
        embeddings, out = options.embeddings, options.out
        if embeddings is None and out is None:
            run = default_run("--embeddings and --out")
            embeddings, out = storage.join(run, "embeddings"), storage.join(run, "localization")
        elif embeddings is None or out is None:
            missing = "--embeddings" if embeddings is None else "--out"
            raise UserError(f"{missing} missing: --embeddings and --out go together")
        result = export_features(
            embeddings,
            out,
            length=options.length,
            file_format=options.format,
            on_video=ProgressLine("exported"),
        )
        print(f"videos written: {result.num_written}")
        print(f"there before:   {result.num_kept}")
        print(f"features:       {storage.public_uri(out)}")
        print_next("search", "--embeddings", embeddings, "--out", "sheet.png")


if __name__ == "__main__":
    main()
