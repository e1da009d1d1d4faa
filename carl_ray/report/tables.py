"""Tables of metrics.json: values, intervals, verdicts, and what they come to in words.

`metric_rows` makes the rows; the terminal's table, the report's and those of `carl_ray.compare` show them.

A verdict requires disjoint intervals: the trained encoder is `better` (or `worse`) than a control when its whole
interval lies on the better (worse) side of the control's, and the two values are shown differently. There is none
where the value is not meaningful: an R² below 0, or a metric that needs phases in one order where a phase returns.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any, Literal

from carl_ray.evaluation.controls import CONTROLS, VARIANTS, shown_variants
from carl_ray.evaluation.probes import LABEL_FRACTIONS
from carl_ray.evaluation.task import Metric, MetricEntry
from carl_ray.evaluation.tasks import METRICS, TASKS, metric_of

Verdict = Literal["better", "worse", "overlap", "unknown"]
_FEWEST_LABELLED = 10


@dataclass(frozen=True)
class Cell:
    """One metric of one variant."""

    value: str
    interval: str
    """Low to high; empty where there is none."""
    verdict: Verdict
    """Of a control: how the trained encoder compares with it. Of the trained encoder: `better` where it is better than
    every control, otherwise `unknown`."""

    def __str__(self) -> str:
        return f"{self.value} [{self.interval.replace(' to ', ', ')}]" if self.interval else self.value


@dataclass(frozen=True)
class Row:
    """One metric of all variants."""

    metric: Metric
    cells: Mapping[str, Cell | None]
    """By variant; None where the variant was not evaluated."""
    note: str
    """A caveat; empty where there is none."""

    @property
    def title(self) -> str:
        """The metric's display name."""
        return self.metric.title


def metric_rows(document: Mapping[str, Any], names: Sequence[str]) -> list[Row]:
    """A row for each of the named metrics that the document has.

    Args:
        document: metrics.json, or the entry of one action in it.
        names: Metrics, in the order of the rows.
    """
    rows = []
    for name in names:
        if name not in document["trained"]:
            continue
        metric = metric_of(name, document)
        entries: dict[str, Any] = {variant: (document.get(variant) or {}).get(name) for variant in VARIANTS}
        note = _note(metric, document)
        verdicts: dict[str, Verdict] = {
            control: "unknown" if note else _verdict(metric, entries["trained"], entries[control])
            for control in CONTROLS
            if entries[control] is not None
        }
        best = bool(verdicts) and all(verdict == "better" for verdict in verdicts.values())
        verdicts["trained"] = "better" if best else "unknown"
        cells = {
            variant: None if entry is None else _cell(metric, entry, verdicts[variant])
            for variant, entry in entries.items()
        }
        rows.append(Row(metric, cells, note))
    return rows


def _is_trained(document: Mapping[str, Any]) -> bool:
    return document.get("origin", {}).get("step") != 0


def shown_name(document: Mapping[str, Any], variant: str) -> str:
    """Name of a variant in tables: the encoder that is measured may have had no training."""
    return "encoder" if variant == "trained" and not _is_trained(document) else variant


def summary(document: Mapping[str, Any]) -> str:
    """One sentence: whether training was worth it, against the best control.

    It rests on the metrics that may decide (`Metric.decides`), are meaningful here and have a control: on the first
    one that is better than its best control, unless another is worse.
    """
    found: dict[Verdict, list[tuple[str, str]]] = {}
    for row in metric_rows(document, metric_names(document)):
        entries = {variant: (document.get(variant) or {}).get(row.metric.name) for variant in VARIANTS}
        values = {
            name: entry["value"] for name, entry in entries.items() if entry and entry["value"] is not None
        }
        if not row.metric.decides or row.note or "trained" not in values or len(values) < 2:
            continue
        trained = values.pop("trained")
        best = (max if row.metric.higher_is_better else min)(values, key=values.__getitem__)
        cell = row.cells[best]
        assert cell is not None
        unit = " %" if row.metric.is_share else ""
        numbers = (
            f"{row.metric.words} is {_text(row.metric, trained)}{unit} with the encoder and "
            f"{_text(row.metric, values[best])}{unit} with the best control ({best})"
        )
        found.setdefault(cell.verdict, []).append((row.metric.words, numbers))
    others = ", ".join(words for words, _ in found.get("overlap", []))
    if found and not _is_trained(document):
        return f"Without training: {next(iter(found.values()))[0][1]}."
    if found and 0 < (count := document.get("test", {}).get("labelled_videos", 0)) < _FEWEST_LABELLED:
        # Bootstraps of a handful of videos are too narrow.
        return (
            f"Too few test videos with labels to say whether training was worth it ({count}, expected at least "
            f"{_FEWEST_LABELLED}): {next(iter(found.values()))[0][1]}."
        )
    if "worse" in found:
        return f"Training was not worth it: {found['worse'][0][1]}, and the intervals do not overlap."
    if "better" in found:
        rest = f"; {others} shows no difference" if others else ""
        return f"Training was worth it: {found['better'][0][1]}, and the intervals do not overlap{rest}."
    if "overlap" in found:
        return (
            f"These videos do not show that training was worth it: {found['overlap'][0][1]}, within chance."
        )
    if found:
        return f"Too few test videos to say whether training was worth it: {found['unknown'][0][1]}."
    entries = {variant: (document.get(variant) or {}).get("label_free") for variant in VARIANTS}
    score = ", ".join(
        f"{_text(METRICS['label_free'], e['value'])} {shown_name(document, name)}"
        for name, e in entries.items()
        if e
    )
    question = "Whether training was worth it" if _is_trained(document) else "How good the embeddings are"
    said = f"{question} cannot be said without frame labels; label a few videos to find out"
    return f"{said}. The score without labels, higher is better: {score}." if score else f"{said}."


def metrics_text(document: Mapping[str, Any]) -> str:
    """The terminal's table of a document of metrics.json, and what it comes to."""
    variants = shown_variants(document)
    rows = [["", *(shown_name(document, variant) for variant in variants), ""]]
    for row in metric_rows(document, metric_names(document)):
        cells = [str(row.cells[v] or ("not embedded" if document.get(v) is None else "–")) for v in variants]
        rows.append([row.title, *cells, row.note])
    return "\n".join(
        [text_table(rows), *not_run_lines(document), *document.get("warnings", []), summary(document)]
    )


def not_run_lines(document: Mapping[str, Any]) -> list[str]:
    """A sentence on the tasks that lack each need."""
    by_need: dict[str, list[str]] = {}
    for task, need in document.get("not_run", {}).items():
        by_need.setdefault(need, []).append(TASKS[task].metrics[0].words if task in TASKS else task)
    return [f"Not measured without {need}: {', '.join(words)}." for need, words in by_need.items()]


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
    order = list(METRICS)
    names = [name for name in document["trained"] if not _same_videos(document, name)]
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def _same_videos(document: Mapping[str, Any], name: str) -> str:
    """The next larger label fraction if it selects the same videos, else empty."""
    fitted = document.get("fitted_videos")
    for suffix, larger in pairwise(LABEL_FRACTIONS):
        if fitted and suffix and name.endswith(suffix) and name.removesuffix(suffix) in METRICS:
            return f"{100 * LABEL_FRACTIONS[larger]:g} %" if fitted[suffix] == fitted[larger] else ""
    return ""


def _note(metric: Metric, document: Mapping[str, Any]) -> str:
    returning, value = document.get("videos_with_returning_phases"), document["trained"][metric.name]["value"]
    if value is None:
        return ""
    if metric.needs_one_order and returning:
        return f"not meaningful: a phase comes back in {returning:,} of the test videos"
    if metric.no_skill is not None and value < metric.no_skill:
        return "below 0: worse than predicting the mean"
    return ""


def action_metric_names(document: Mapping[str, Any]) -> list[str]:
    """Metrics of the table by action, a subset of `metric_names`."""
    return [name for name in metric_names(document) if metric_of(name, document).by_action]


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


def _verdict(metric: Metric, trained: MetricEntry, control: MetricEntry) -> Verdict:
    """Verdict on two entries of a metric; `overlap` where both are shown as the same number."""
    found = compare(trained, control, lower_is_better=not metric.higher_is_better)
    same = _text(metric, trained["value"]) == _text(metric, control["value"])
    return "overlap" if same and found in ("better", "worse") else found


def left_out_lines(document: Mapping[str, Any]) -> list[str]:
    """A line for each reason of omission and metric, with its count."""
    lines = []
    if document.get("not_embedded"):
        lines.append(f"All metrics: {counted(document['not_embedded'], 'videos that could not be embedded')}")
    lines += [
        f"{metric_of(name, document).words}: no row of its own, for it takes the same videos as {share}"
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
            if len(set(by_variant.values())) > 1:
                shown = ", ".join(f"{count:,} ({variant})" for variant, count in by_variant.items())
                text = f"{shown} {reason.replace('_', ' ')}"
            else:
                text = counted(next(iter(by_variant.values())), reason.replace("_", " "))
            lines.append(f"{metric_of(name, document).words}: {text}")
    return lines


def counted(count: int, plural: str) -> str:
    """A number and its noun: "1 test video", "1,234 videos without labels"."""
    singular = re.sub(r"(boundar)ies\b|(video|frame|pair|action|step|phase)s\b", _singular, plural, count=1)
    return f"{count:,} {singular if count == 1 else plural}"


def _singular(match: re.Match[str]) -> str:
    return f"{match[1]}y" if match[1] else match[2]


def mean_text(metric: Metric, entries: Sequence[MetricEntry | None]) -> str:
    """Mean and deviation of a metric's values in several documents.

    "undefined" where one of them says so, "–" where one has no such metric.
    """
    values = [entry["value"] for entry in entries if entry is not None and entry["value"] is not None]
    if len(values) < len(entries):
        return "–" if None in entries else "undefined"
    return f"{_text(metric, fmean(values))} ± {_text(metric, stdev(values))}"


def _cell(metric: Metric, entry: MetricEntry, verdict: Verdict) -> Cell:
    if entry["value"] is None:
        return Cell("undefined", "", verdict)
    value, low, high = (_text(metric, end) for end in (entry["value"], entry["low"], entry["high"]))
    has_interval = entry["low"] is not None and entry["high"] is not None
    return Cell(value, f"{low} to {high}" if has_interval else "", verdict)


def _text(metric: Metric, value: float | None) -> str:
    if value is None:
        return ""
    if metric.least_shown is not None and value < metric.least_shown:
        return f"< {metric.least_shown:g}".replace("-", "−")
    return (f"{100 * value:.1f}" if metric.is_share else f"{value:.3f}").replace("-", "−")
