"""Compare evaluations in one table, with their controls and the paper's numbers.

    python -m carl_ray.compare EVALUATION EVALUATION --out table.md
    python -m carl_ray.compare EVALUATION EVALUATION EVALUATION --mean --out table.md

EVALUATION is a folder that `python -m carl_ray.evaluate` wrote; its preset selects the paper's numbers, those of table
14 for kinetics400 (no tuning) and kinetics400_to_penn_action (tuned). With --mean the table has every metric that all
evaluations share, and its mean: over the splits of a data set, or over seeds.
"""

from __future__ import annotations

import argparse
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from carl_ray import storage
from carl_ray.errors import UserError, one_line_errors
from carl_ray.evaluation.controls import shown_variants
from carl_ray.evaluation.tasks import metric_of
from carl_ray.options import OptionParser
from carl_ray.paper import paper_numbers
from carl_ray.report.tables import mean_text, metric_names, metric_rows


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit status 0 only when the table is written."""
    with one_line_errors():
        options = _parse(arguments)
        documents = [_read(folder) for folder in options.evaluations]
        table = averages(documents) if options.mean else comparison(documents)
        storage.write_bytes(options.out, table.encode())
        print(table)
        print(f"table: {storage.public_uri(options.out)}")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = OptionParser(prog="python -m carl_ray.compare", description=__doc__)
    parser.add_argument("evaluations", nargs="+", metavar="EVALUATION", help="folder with a metrics.json")
    parser.add_argument("--out", required=True, metavar="FILE", help="for the table, as Markdown")
    parser.add_argument(
        "--mean", action="store_true", help="mean and deviation of every metric that all share"
    )
    options = parser.parse_args(arguments)
    folders = [storage.absolute(uri) for uri in options.evaluations]
    if options.mean and (len(folders) < 2 or len(set(folders)) < len(folders)):
        raise UserError("--mean: expected at least two evaluations in different folders")
    return options


def _read(folder: str) -> dict[str, Any]:
    uri = storage.join(folder, "metrics.json")
    try:
        document = json.loads(storage.read_bytes(uri))
    except ValueError:
        document = None
    if not isinstance(document, dict) or not {"trained", "origin", "bootstrap"} <= document.keys():
        raise UserError(f"{storage.public_uri(uri)}: not one that `python -m carl_ray.evaluate` wrote")
    return document


def comparison(documents: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of evaluations, their controls and the paper's numbers.

    Its columns are the metrics that the paper reports for any of the documents.

    Args:
        documents: Of metrics.json, at least one.
    """
    numbers = [paper_numbers(document["origin"]["preset"]) for document in documents]
    names = list(dict.fromkeys(name for paper, _ in numbers for name in paper.numbers))
    lines: list[list[str]] = []
    titles: dict[str, str] = {}
    for document, (paper, same_data) in zip(documents, numbers, strict=True):
        present = [name for name in names if name in document["trained"]]
        rows = dict(zip(present, metric_rows(document, present), strict=True))
        titles |= {name: row.title for name, row in rows.items()}
        origin = document["origin"]
        for variant in shown_variants(document):
            first = (
                f"**{_plain(origin['preset'])}**, step {origin['step']:,}"
                if variant == "trained"
                else f"… *{variant}*"
            )
            cells = []
            for name in names:
                cell = rows[name].cells[variant] if name in rows else None
                cells.append(str(cell) if cell else "–")
            lines.append([first, *cells])
        said = paper.title if same_data else f"{paper.title}, other data"
        lines.append([f"… paper: {said}", *(paper.numbers.get(name, "–") for name in names)])
    header = ["", *(titles.get(name, name) for name in names)]
    level = documents[0]["bootstrap"]["level"]
    return (
        f"{_markdown([header, *lines])}\n\nIn brackets the {level:.0%} bootstrap interval over test videos ("
        + ", ".join(str(document["test"]["videos"]) for document in documents)
        + "). *untrained*: the same encoder before any training on videos; *positions*: the sine-cosine code alone; "
        + "*chance*: random vectors. They know nothing of another seed of training.\n"
    )


def averages(documents: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of every metric that all evaluations have: each value, the mean, and those of the controls.

    Args:
        documents: Of metrics.json, at least two.

    Raises:
        UserError: they are of different presets or protocols, or have no metric in common.
    """
    for name, values in (
        ("preset", [document["origin"]["preset"] for document in documents]),
        ("protocol", [document.get("protocol") for document in documents]),
    ):
        if len(set(values)) > 1:
            raise UserError(f"--mean: expected evaluations of one {name}, got {', '.join(map(str, values))}")
    names = [name for name in metric_names(documents[0]) if all(name in d["trained"] for d in documents)]
    if not names:
        raise UserError("--mean: the evaluations have no metric in common")
    variants = [v for v in shown_variants(documents[0]) if all(document.get(v) for document in documents)]
    numbers = [str(number) for number in range(1, len(documents) + 1)]
    titles = ["mean" if variant == "trained" else f"mean, *{variant}*" for variant in variants]
    lines = [["", *numbers, *titles]]
    for name in names:
        metric = metric_of(name, documents[0])
        entries = {variant: [document[variant].get(name) for document in documents] for variant in variants}
        rows = [row for document in documents for row in metric_rows(document, [name])]
        note = next((f" ({row.note})" for row in rows if row.note), "")
        cells = [str(row.cells["trained"]) for row in rows]
        means = [mean_text(metric, of_one) for of_one in entries.values()]
        lines.append([metric.title + note, *cells, *means])
    level = documents[0]["bootstrap"]["level"]
    videos = ", ".join(f"{document['test']['videos']:,}" for document in documents)
    origins = "\n".join(
        f"- {number}: {_plain(origin['preset'])}, step {origin['step']:,}, {_plain(origin.get('checkpoint', ''))}"
        for number, origin in zip(numbers, [document["origin"] for document in documents], strict=True)
    )
    return (
        f"{_markdown(lines)}\n\n{origins}\n\n"
        f"In brackets the {level:.0%} bootstrap interval over test videos ({videos}); ± is the deviation of the "
        f"{len(documents)} evaluations.\n"
    )


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    header, *rows = lines
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])


def _plain(text: str) -> str:
    """The text escaped for a cell of a Markdown table."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", r"\|")


if __name__ == "__main__":
    main()
