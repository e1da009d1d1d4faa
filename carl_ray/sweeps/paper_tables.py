"""Tables 9 and 10 of the paper, and table 11 for any T: the changed config values and the reported numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PAPER_COLUMNS = ("phase_classification", "phase_progression", "kendalls_tau")
"""The metrics of most tables of the paper."""
METRICS = (*PAPER_COLUMNS, "average_precision_at_5", "alignment_error")
"""The columns of the tables measured here."""
_FRACTIONS = ("phase_classification_10", "phase_classification_50", "phase_classification")
_SHORT = {"views.max_crop_ratio": "1.5"}


@dataclass(frozen=True)
class Row:
    """One row of a table of the paper."""

    name: str
    """The paper's name, unique in the table."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Config values that differ from the common config, by `section.field`."""
    paper: Mapping[str, str] = field(default_factory=dict)
    """The paper's numbers as printed, by metric."""
    reads: Mapping[str, str] = field(default_factory=dict)
    """If not empty, the only columns the row has, with the metric of the run that each is read from."""


@dataclass(frozen=True)
class Table:
    """A table of the paper, or one of the same form."""

    title: str
    rows: tuple[Row, ...]
    metrics: tuple[str, ...]
    """Its columns."""
    reference: str
    """Name of the row that the others are compared with."""
    note: str
    """Differences from the paper's table besides size, data and pretraining."""


def paper_numbers(*numbers: str) -> dict[str, str]:
    """The paper's numbers by metric, in the order of `PAPER_COLUMNS`."""
    return dict(zip(PAPER_COLUMNS, numbers, strict=True))


TABLE_9 = Table(
    "Temperature and variance (paper: table 9, PennAction)",
    tuple(
        Row(
            f"tau {temperature}, variance {variance}",
            {"objective.temperature": temperature, "objective.variance": variance},
            paper_numbers(*numbers),
        )
        for temperature, variance, numbers in (
            ("0.1", "1", ("92.95", ".903", ".963")),
            ("0.1", "25", ("92.03", ".922", ".993")),
            ("1", "10", ("91.57", ".889", ".993")),
            ("0.3", "10", ("92.13", ".903", ".992")),
            ("0.1", "10", ("93.07", ".918", ".985")),
        )
    ),
    METRICS,
    "tau 0.1, variance 10",
    "The variance is in squared frames, of videos with other rates and lengths than the paper's.",
)
TABLE_10 = Table(
    "Temporal augmentation (paper: table 10, FineGym99, classification)",
    (
        Row("alpha 1", {"views.max_crop_ratio": "1"}, {"phase_classification": "36.72"}),
        Row("alpha 1.5, beta 20 %, random", _SHORT, {"phase_classification": "41.75"}),
        Row("alpha 2", {"views.max_crop_ratio": "2"}, {"phase_classification": "39.03"}),
        Row("alpha 3 (demo)", {}),
        Row("even sampling", _SHORT | {"views.sampling": "even"}, {"phase_classification": "38.44"}),
        Row("beta 0 %", _SHORT | {"views.min_overlap": "0"}, {"phase_classification": "38.15"}),
        Row("beta 50 %", _SHORT | {"views.min_overlap": "0.5"}, {"phase_classification": "39.14"}),
        Row("beta 80 %", _SHORT | {"views.min_overlap": "0.8"}, {"phase_classification": "37.94"}),
        Row("beta 100 %", _SHORT | {"views.min_overlap": "1"}, {"phase_classification": "35.53"}),
    ),
    METRICS,
    "alpha 1.5, beta 20 %, random",
    "The paper's crops are shorter than most actions of the demo, whose alpha is therefore 3.",
)


def frames_table(num_frames: int) -> Table:
    """Table 11 for a preset with T = `num_frames`, the paper's T (80 to 480) scaled from its 240."""
    numbers = {
        1 / 3: ("27.10", "32.78", "34.02"),
        2 / 3: ("30.28", "36.46", "38.06"),
        1.0: ("33.53", "39.89", "41.75"),
        2.0: ("31.46", "37.92", "39.45"),
    }
    rows = []
    for ratio, paper in numbers.items():
        count = max(2, round(ratio * num_frames))
        options = {} if ratio == 1 else {"model.num_frames": str(count)}
        rows.append(Row(f"T = {count}", options, dict(zip(_FRACTIONS, paper, strict=True))))
    return Table(
        "Frames of a view, by share of the labels (paper: table 11, FineGym99)",
        tuple(rows),
        _FRACTIONS,
        f"T = {num_frames}",
        "The paper's T are 80 to 480 frames; here they are the same shares of the preset's T. Crops lengthen with T, "
        "as in the paper.",
    )
