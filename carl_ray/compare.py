"""Several evaluations in one table, with their controls and the paper's numbers beside.

    python -m carl_ray.compare EVALUATION EVALUATION --out table.md

EVALUATION is a folder that `python -m carl_ray.evaluate` wrote; its preset says which numbers of the paper stand
beside: those of table 14 for kinetics400 (no tuning) and kinetics400_to_penn_action (tuned).
"""

from __future__ import annotations

import argparse
import json

from carl_ray import storage
from carl_ray.errors import UserError, one_line_errors
from carl_ray.options import OptionParser
from carl_ray.report.comparison import comparison


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; leaves with status 0 only when the table is written."""
    with one_line_errors():
        options = _parse(arguments)
        table = comparison([_read(folder) for folder in options.evaluations])
        storage.write_bytes(options.out, table.encode())
        print(table)
        print(f"table: {storage.public_uri(options.out)}")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = OptionParser(
        prog="python -m carl_ray.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("evaluations", nargs="+", metavar="EVALUATION", help="folder with a metrics.json")
    parser.add_argument("--out", required=True, metavar="FILE", help="for the table, as Markdown")
    return parser.parse_args(arguments)


def _read(folder: str) -> dict[str, object]:
    uri = storage.join(folder, "metrics.json")
    try:
        document = json.loads(storage.read_bytes(uri))
    except ValueError:
        document = None
    if not isinstance(document, dict) or not {"trained", "origin", "bootstrap"} <= document.keys():
        raise UserError(f"{storage.public_uri(uri)}: not one that `python -m carl_ray.evaluate` wrote")
    return document


if __name__ == "__main__":
    main()
