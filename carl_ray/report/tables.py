"""The document of metrics.json becomes rows of text: values, intervals, verdicts, the paper's numbers beside.

A verdict is given only where intervals do not overlap: the trained encoder is `better` (or `worse`) than a
control when its whole interval lies on the better (worse) side of the control's. None is given where the value means
nothing: an R² below 0, or metrics that need phases in one order where a phase comes back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from carl_ray.evaluation.metrics import LABEL_FRACTIONS, LOWER_IS_BETTER, NEEDS_ONE_ORDER, VARIANTS

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
"""Below this, the trained encoder is worse than a constant: no win over any control."""
LEAST_SHOWN = {"phase_progression": -1.0}
"""What is below is shown as "< −1": an R² of −300,000 says no more than that nothing was predicted."""
_COLUMNS = {
    "videos_without_progress": "progress",
    "videos_without_labels": "frame_labels",
    "test_videos_without_labels": "frame_labels of test videos",
    "train_videos_without_labels": "frame_labels of training videos",
    "test_videos_without_phase": "frame_labels of test videos",
    "train_videos_without_phase": "frame_labels of training videos",
    "actions_without_training_videos": "training videos",
}
"""What of the manifest is missing where a metric that left out such things is undefined."""
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
    """What the paper reports for a run: metric to the number as printed there."""

    title: str
    numbers: Mapping[str, str]


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
    """The paper's numbers for a preset, and whether they are of the data that the preset is for.

    The paper has none for the embedded videos (`demo`): PennAction's stand there, for orientation.
    """
    found = _PAPER.get(preset)
    return (_PENN_ACTION, False) if found is None else (found, True)


@dataclass(frozen=True)
class Cell:
    """One metric of one variant."""

    value: str
    interval: str
    """Low to high, or of what is undefined the column that is missing; empty where there is none."""
    verdict: Verdict
    """Of a control: how the trained encoder compares with it. Of the trained encoder: `better` where it is
    better than every control that there is, otherwise `unknown`."""

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
    """By variant; none where the variant was not evaluated."""
    paper: str
    note: str
    """What to know before reading it; empty where there is nothing."""


def metric_rows(document: Mapping[str, Any], names: Sequence[str], preset: str | None = None) -> list[Row]:
    """A row for each metric that the document has of those named.

    Args:
        document: metrics.json, or the entry of one action in it.
        names: Metrics, in the order of the rows.
        preset: Whose numbers of the paper stand beside; none where not given.
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


def metric_names(document: Mapping[str, Any]) -> list[str]:
    """The metrics to show of a document, in order; of label fractions that take the same videos the largest."""
    order = list(_TITLES)
    names = [name for name in document["trained"] if not _same_videos(document, name)]
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def _same_videos(document: Mapping[str, Any], name: str) -> str:
    """The next larger share of the labels where it takes the same videos as a metric's own, otherwise nothing."""
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
    """Those of `metric_names` that the table by action shows."""
    return [name for name in metric_names(document) if name in _BY_ACTION]


def compare(
    trained: Mapping[str, Any], control: Mapping[str, Any], *, lower_is_better: bool = False
) -> Verdict:
    """How the trained encoder compares with a control: two entries with `low` and `high`, None if undefined."""
    ends = [trained["low"], trained["high"], control["low"], control["high"]]
    if any(end is None for end in ends):
        return "unknown"
    above, below = trained["low"] > control["high"], trained["high"] < control["low"]
    if not above and not below:
        return "overlap"
    return "better" if above != lower_is_better else "worse"


def left_out_lines(document: Mapping[str, Any]) -> list[str]:
    """A line for each thing that a metric left out, with how often; the counts of zero are dropped."""
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
    """What a metric is called wherever it is shown; `whole` without its unit, as part of a sentence."""
    title = _TITLES.get(name, name.replace("_", " "))
    return title.partition(" (")[0] if whole else title


def _cell(name: str, entry: Mapping[str, Any], verdict: Verdict) -> Cell:
    if entry["value"] is None:
        column = next(
            (column for key, column in _COLUMNS.items() if entry.get("left_out", {}).get(key)), None
        )
        return Cell(_UNDEFINED, "" if column is None else f"no {column}", verdict)
    value, low, high = (_text(name, entry[key]) for key in ("value", "low", "high"))
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
