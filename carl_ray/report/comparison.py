"""Several documents of metrics.json become one table, each beside the paper's numbers and its own controls."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from carl_ray.evaluation.metrics import VARIANTS
from carl_ray.report.tables import metric_rows, paper_numbers


def comparison(documents: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with a row for each document, one for each of its controls and one for the paper's numbers.

    Its columns are the metrics that the paper has for one of the documents; their intervals are those of metrics.json.

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
        for variant in VARIANTS:
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
    table = [header, ["---"] * len(header), *lines]
    level = documents[0]["bootstrap"]["level"]
    return (
        "\n".join(f"| {' | '.join(cells)} |" for cells in table)
        + f"\n\nIn brackets the {level:.0%} bootstrap interval over test videos ("
        + ", ".join(str(document["test"]["videos"]) for document in documents)
        + "). *untrained*: the same encoder before any training on videos; *positions*: the sine-cosine code alone; "
        + "*chance*: random vectors. They know nothing of another seed of training.\n"
    )


def _plain(text: str) -> str:
    """A text that comes from a file, as one that Markdown neither takes for HTML nor ends a cell at."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", r"\|")
