"""Tables of metrics.json: values, intervals, verdicts, the paper's numbers.

`metric_rows` makes the rows; the terminal's table, the report's and those of `carl_ray.compare` show them.

A verdict requires disjoint intervals: the trained encoder is `better` (or `worse`) than a control when its whole
interval lies on the better (worse) side of the control's. There is none where the value is not meaningful: an R² below
0, or a metric that needs phases in one order where a phase returns.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from carl_ray.evaluation.metrics import (
    LABEL_FRACTIONS,
    LOWER_IS_BETTER,
    NEEDS_ONE_ORDER,
    VARIANTS,
    MetricEntry,
)

Verdict = Literal["better", "worse", "overlap", "unknown"]

CONTROLS = VARIANTS[1:]

_TITLES = {
    "phase_classification": "phase classification (%)",
    "phase_classification_50": "phase classification, 50 % of the labels (%)",
    "phase_classification_10": "phase classification, 10 % of the labels (%)",
    "linear_probe": "linear probe (%)",
    "linear_probe_50": "linear probe, 50 % of the labels (%)",
    "linear_probe_10": "linear probe, 10 % of the labels (%)",
    "phase_progression": "phase progression (R²)",
    "kendalls_tau": "Kendall's tau",
    "average_precision_at_5": "AP@5 (%)",
    "average_precision_at_10": "AP@10 (%)",
    "average_precision_at_15": "AP@15 (%)",
    "alignment_error": "alignment error (lower is better)",
}
_UNDEFINED = "undefined"
_NO_SKILL = {"phase_progression": 0.0}
"""Value of a constant prediction: the trained encoder is not better than any control below it."""
LEAST_SHOWN = {"phase_progression": -1.0}
"""Smaller values are shown as "< −1": an R² of −300,000 says no more than that the prediction failed."""
_COLUMNS = {
    "videos_without_progress": "progress",
    "videos_without_labels": "frame_labels",
    "test_videos_without_labels": "frame_labels of test videos",
    "train_videos_without_labels": "frame_labels of training videos",
    "test_videos_without_phase": "frame_labels of test videos",
    "train_videos_without_phase": "frame_labels of training videos",
    "actions_without_training_videos": "training videos",
}
"""Missing data that an undefined metric names, by what it left out."""
_BY_ACTION = (
    "phase_classification",
    "phase_progression",
    "kendalls_tau",
    "average_precision_at_5",
    "alignment_error",
    "linear_probe",
)


@dataclass(frozen=True)
class PaperNumbers:
    """The paper's numbers for a preset."""

    title: str
    numbers: Mapping[str, str]
    """By metric, as printed in the paper."""


_PENN_ACTION = PaperNumbers(
    "CARL on PennAction (tables 1 and 2)",
    {
        "phase_classification": "93.07",
        "phase_progression": "0.918",
        "kendalls_tau": "0.985",
        "average_precision_at_5": "92.28",
        "average_precision_at_10": "92.10",
        "average_precision_at_15": "91.82",
    },
)
_PAPER = {
    "penn_action": _PENN_ACTION,
    "pouring": PaperNumbers(
        "CARL on Pouring (table 4)",
        {"phase_classification": "93.73", "phase_progression": "0.935", "kendalls_tau": "0.992"},
    ),
    "finegym99": PaperNumbers(
        "CARL on FineGym99 (tables 3 and 11)",
        {"linear_probe": "41.75", "linear_probe_50": "39.89", "linear_probe_10": "33.53"},
    ),
    "finegym288": PaperNumbers("CARL on FineGym288 (table 3)", {"linear_probe": "35.23"}),
    "kinetics400": PaperNumbers(
        "CARL, Kinetics-400 → PennAction, no tuning (table 14)",
        {"phase_classification": "91.9", "phase_progression": "0.903", "kendalls_tau": "0.949"},
    ),
    "kinetics400_to_penn_action": PaperNumbers(
        "CARL, Kinetics-400 → PennAction, tuned (table 14)",
        {"phase_classification": "93.9", "phase_progression": "0.908", "kendalls_tau": "0.977"},
    ),
}


def paper_numbers(preset: str) -> tuple[PaperNumbers, bool]:
    """The paper's numbers for a preset, and whether they are of its data.

    The paper has none for the rendered videos of the demo (`demo`), which get those of PennAction for orientation.
    """
    found = _PAPER.get(preset)
    return (_PENN_ACTION, False) if found is None else (found, True)


@dataclass(frozen=True)
class Cell:
    """One metric of one variant."""

    value: str
    interval: str
    """Low to high; of an undefined value the missing column; empty where there is neither."""
    verdict: Verdict
    """Of a control: how the trained encoder compares with it. Of the trained encoder: `better` where it is better than
    every control, otherwise `unknown`."""

    def __str__(self) -> str:
        if not self.interval:
            return self.value
        if self.value == _UNDEFINED:
            return f"{self.value} ({self.interval})"
        return f"{self.value} [{self.interval.replace(' to ', ', ')}]"


@dataclass(frozen=True)
class Row:
    """One metric of all variants."""

    title: str
    cells: Mapping[str, Cell | None]
    """By variant; None where the variant was not evaluated."""
    paper: str
    note: str
    """A caveat; empty where there is none."""


def metric_rows(document: Mapping[str, Any], names: Sequence[str], preset: str | None = None) -> list[Row]:
    """A row for each of the named metrics that the document has.

    Args:
        document: metrics.json, or the entry of one action in it.
        names: Metrics, in the order of the rows.
        preset: Adds the paper's numbers for it; None: no such numbers.
    """
    numbers = {} if preset is None else paper_numbers(preset)[0].numbers
    rows = []
    for name in names:
        if name not in document["trained"]:
            continue
        entries: dict[str, Any] = {variant: (document.get(variant) or {}).get(name) for variant in VARIANTS}
        note = _note(name, document)
        verdicts: dict[str, Verdict] = {
            control: "unknown"
            if note
            else compare(entries["trained"], entries[control], lower_is_better=name in LOWER_IS_BETTER)
            for control in CONTROLS
            if entries[control] is not None
        }
        best = bool(verdicts) and all(verdict == "better" for verdict in verdicts.values())
        verdicts["trained"] = "better" if best else "unknown"
        cells = {
            variant: None if entry is None else _cell(name, entry, verdicts[variant])
            for variant, entry in entries.items()
        }
        rows.append(Row(title_of(name), cells, numbers.get(name, ""), note))
    return rows


def metrics_text(document: Mapping[str, Any]) -> str:
    """The terminal's table of a document of metrics.json."""
    rows = [["", *VARIANTS, ""]]
    for row in metric_rows(document, metric_names(document)):
        cells = [row.cells[variant] for variant in VARIANTS]
        rows.append([row.title, *("not embedded" if cell is None else str(cell) for cell in cells), row.note])
    return text_table(rows)


def text_table(rows: Sequence[Sequence[str]], *, right_aligned: Collection[int] = ()) -> str:
    """Rows of cells as lines of text with aligned columns.

    Args:
        rows: Each with the same number of cells.
        right_aligned: Columns whose cells end at the same place; the others begin there.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right_aligned else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def metric_names(document: Mapping[str, Any]) -> list[str]:
    """Metrics of a document in display order, without duplicate label fractions."""
    order = list(_TITLES)
    names = [name for name in document["trained"] if not _same_videos(document, name)]
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def _same_videos(document: Mapping[str, Any], name: str) -> str:
    """The next larger label fraction if it selects the same videos, else empty."""
    fitted = document.get("fitted_videos")
    for suffix, larger in pairwise(LABEL_FRACTIONS):
        if fitted and name in (f"phase_classification{suffix}", f"linear_probe{suffix}"):
            return f"{100 * LABEL_FRACTIONS[larger]:g} %" if fitted[suffix] == fitted[larger] else ""
    return ""


def _note(name: str, document: Mapping[str, Any]) -> str:
    returning, value = document.get("videos_with_returning_phases"), document["trained"][name]["value"]
    if value is None:
        return ""
    if name in NEEDS_ONE_ORDER and returning:
        return f"not meaningful: a phase comes back in {returning:,} of the test videos"
    if value < _NO_SKILL.get(name, -math.inf):
        return "below 0: worse than predicting the mean"
    return ""


def action_metric_names(document: Mapping[str, Any]) -> list[str]:
    """Metrics of the table by action, a subset of `metric_names`."""
    return [name for name in metric_names(document) if name in _BY_ACTION]


def compare(
    trained: Mapping[str, Any], control: Mapping[str, Any], *, lower_is_better: bool = False
) -> Verdict:
    """Verdict on two entries of a metric by their intervals."""
    ends = [trained["low"], trained["high"], control["low"], control["high"]]
    if any(end is None for end in ends):
        return "unknown"
    above, below = trained["low"] > control["high"], trained["high"] < control["low"]
    if not above and not below:
        return "overlap"
    return "better" if above != lower_is_better else "worse"


def left_out_lines(document: Mapping[str, Any]) -> list[str]:
    """A line for each reason of omission and metric, with its count."""
    lines = []
    if document.get("not_embedded"):
        lines.append(f"All metrics: {document['not_embedded']:,} videos that could not be embedded")
    lines += [
        f"{title_of(name, whole=True)}: no row of its own, for it takes the same videos as {share}"
        for name in document["trained"]
        if (share := _same_videos(document, name))
    ]
    for name in metric_names(document):
        counts: dict[str, dict[str, int]] = {}
        for variant in VARIANTS:
            for reason, count in ((document.get(variant) or {}).get(name) or {}).get("left_out", {}).items():
                counts.setdefault(reason, {})[variant] = count
        for reason, by_variant in counts.items():
            if not any(by_variant.values()):
                continue
            different = len(set(by_variant.values())) > 1
            text = (
                ", ".join(f"{count:,} ({variant})" for variant, count in by_variant.items())
                if different
                else f"{next(iter(by_variant.values())):,}"
            )
            lines.append(f"{title_of(name, whole=True)}: {text} {reason.replace('_', ' ')}")
    return lines


def title_of(name: str, *, whole: bool = False) -> str:
    """Display name of a metric; `whole`: without its unit, for use in a sentence."""
    title = _TITLES.get(name, name.replace("_", " "))
    return title.partition(" (")[0] if whole else title


def _cell(name: str, entry: MetricEntry, verdict: Verdict) -> Cell:
    if entry["value"] is None:
        column = next(
            (column for key, column in _COLUMNS.items() if entry.get("left_out", {}).get(key)), None
        )
        return Cell(_UNDEFINED, "" if column is None else f"no {column}", verdict)
    value, low, high = (_text(name, end) for end in (entry["value"], entry["low"], entry["high"]))
    has_interval = entry["low"] is not None and entry["high"] is not None
    return Cell(value, f"{low} to {high}" if has_interval else "", verdict)


def _text(name: str, value: float | None) -> str:
    if value is None:
        return ""
    least = LEAST_SHOWN.get(name)
    if least is not None and value < least:
        return f"< {least:g}".replace("-", "−")
    text = f"{100 * value:.1f}" if "(%)" in title_of(name) else f"{value:.3f}"
    return text.replace("-", "−")
