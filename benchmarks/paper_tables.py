"""The paper's ablation tables at reduced size: the config values each row changes, and the paper's numbers.

All rows start from the config of one preset, so that they share videos, plan, stream, length of training and
evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

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


_UNPLACED = {"model.positions": "none"}
_POSITIONS = (
    "An encoder that knows positions can lower losses within one view (Shuffle-and-Learn, TCN) or between videos (TCC, "
    "LAV, GTA) without a look at the frames; one without positions cannot."
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
    supervised = zip(("0.1", "0.5", "1"), _FRACTIONS, ("24.51", "48.75", "60.37"), strict=True)
    for share, column, number in supervised:
        rows.append(
            Row(
                f"supervised, {100 * float(share):g} %",
                {"objective.name": "supervised", "data.train_fraction": share},
                {column: number},
                {column: "phase_classification"},
            )
        )
    return Table(
        "Frames of a view, and supervision, by share of the labels (paper: table 11, FineGym99)",
        tuple(rows),
        _FRACTIONS,
        f"T = {num_frames}",
        "The paper's T are 80 to 480 frames; here they are the same shares of the preset's T. Crops lengthen with T, "
        "as in the paper, and the batch stays. A supervised row trains its encoder and its probe on the same share of "
        "the videos of each action.",
    )


def _grid() -> Table:
    """SCL and the contrastive baseline over variance and temperature."""
    temperatures, variances = ("0.07", "0.1", "0.3"), ("1", "4", "10", "25")
    return Table(
        "SCL and the contrastive baseline over variance and temperature",
        (
            *(
                Row(
                    f"contrastive, tau {tau}",
                    {"objective.name": "contrastive", "objective.temperature": tau},
                )
                for tau in temperatures
            ),
            *(
                Row(
                    f"SCL, variance {variance}, tau {tau}",
                    {"objective.variance": variance, "objective.temperature": tau},
                )
                for variance in variances
                for tau in temperatures
            ),
        ),
        METRICS,
        "contrastive, tau 0.1",
        "",
    )


def _rates() -> Table:
    """Variance in frames of each video against variance in one unit of time, over videos of two rates."""
    return Table(
        "Variance in frames and in seconds, every other video at half its frame rate",
        tuple(
            Row(
                f"{name}, variance {variance}",
                {"objective.variance": variance, "data.features": corpus},
            )
            for name, corpus in (("frames", "mixed-frames"), ("seconds", "mixed-seconds"))
            for variance in ("1", "10", "25")
        ),
        METRICS,
        "seconds, variance 10",
        "Squared frames of the faster videos; `frames` counts those of each video itself.",
    )


def finegym_table(table: Table) -> Table:
    """A table with the linear probe, which the paper's classification on FineGym is, alone."""

    def named(columns: Mapping[str, str]) -> dict[str, str]:
        return {_on_finegym(column): value for column, value in columns.items()}

    rows = tuple(
        replace(row, paper=named(row.paper), reads=named({c: _on_finegym(m) for c, m in row.reads.items()}))
        for row in table.rows
    )
    metrics = tuple(m for m in map(_on_finegym, table.metrics) if m.startswith("linear_probe"))
    return replace(table, rows=rows, metrics=metrics)


def _on_finegym(metric: str) -> str:
    return metric.replace("phase_classification", "linear_probe")


def pretrained_table(table: Table) -> Table:
    """A table of backbone blocks for the demo, with a pretrained backbone: its own is random."""
    options = {
        "model.backbone": "efficientnet_lite0",
        "model.weights": "pretrained",
        "model.pooling": "average",
        "augment.image_size": "96",
        "data.short_side": "112",
    }
    rows = tuple(replace(row, options={**options, **row.options}) for row in table.rows)
    note = "EfficientNet-Lite0 at 96 pixels stands for the ResNet; its last stages for the blocks."
    return replace(table, rows=rows, note=note)


def frozen_table(table: Table) -> Table:
    """The rows of a table that a frozen backbone's features allow."""
    rows = tuple(
        row
        for row in table.rows
        if row.options.get("model.temporal_encoder") != "c3d" and "model.learnable" not in row.options
    )
    return replace(table, rows=rows)


TABLES: dict[str, Table] = {
    "grid": _grid(),
    "rates": _rates(),
    "5": Table(
        "Temporal encoders (paper: table 5, PennAction)",
        (
            Row("ResNet only", {"model.temporal_encoder": "none"}, paper_numbers("68.63", ".296", ".440")),
            Row("ResNet + C3D", {"model.temporal_encoder": "c3d"}, paper_numbers("83.96", ".705", ".778")),
            Row("ResNet + Transformer", {}, paper_numbers("93.07", ".918", ".985")),
        ),
        METRICS,
        "ResNet + Transformer",
        "Six convolutions stand for the ResNet.",
    ),
    "6": Table(
        "Layers of the Transformer (paper: table 6, PennAction)",
        (
            Row("0 layers", {"model.num_layers": "0"}),
            Row("1 layer", {"model.num_layers": "1"}, paper_numbers("92.15", ".909", ".985")),
            Row("2 layers", {"model.num_layers": "2"}, paper_numbers("92.61", ".913", ".990")),
            Row("3 layers", {"model.num_layers": "3"}, paper_numbers("93.07", ".918", ".985")),
            Row("4 layers", {"model.num_layers": "4"}, paper_numbers("92.81", ".910", ".990")),
        ),
        METRICS,
        "3 layers",
        "The paper has no row with 0 layers, which leave the positions and no mixing of frames.",
    ),
    "7": Table(
        "Learnable blocks of the backbone (paper: table 7, PennAction)",
        (
            Row("none", {"model.learnable": "none"}, paper_numbers("90.63", ".907", ".994")),
            Row("block 5", {"model.learnable": "block5"}, paper_numbers("93.07", ".918", ".985")),
            Row("block 4+5", {"model.learnable": "block4+5"}, paper_numbers("92.98", ".919", ".989")),
            Row("all", {"model.learnable": "all"}),
        ),
        METRICS,
        "block 5",
        "",
    ),
    "8": Table(
        "Other methods on the same encoder (paper: table 8, PennAction)",
        (
            Row("TCN", {"objective.name": "tcn"}, paper_numbers("86.31", ".898", ".832")),
            Row("TCN, no positions", {"objective.name": "tcn", **_UNPLACED}),
            Row("TCC", {"objective.name": "tcc"}, paper_numbers("86.35", ".899", ".980")),
            Row("TCC, no positions", {"objective.name": "tcc", **_UNPLACED}),
            Row("SCL", {}, paper_numbers("93.07", ".918", ".985")),
            Row("SCL, no positions", _UNPLACED),
        ),
        METRICS,
        "SCL",
        _POSITIONS,
    ),
    "9": Table(
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
    ),
    "10": Table(
        "Temporal augmentation (paper: table 10, FineGym99, classification)",
        (
            Row("alpha 1", {"views.max_crop_ratio": "1"}, {"phase_classification": "36.72"}),
            Row("alpha 1.5, beta 20 %, random", _SHORT, {"phase_classification": "41.75"}),
            Row("alpha 2", {"views.max_crop_ratio": "2"}, {"phase_classification": "39.03"}),
            Row("alpha 3", {"views.max_crop_ratio": "3"}),
            Row("even sampling", _SHORT | {"views.sampling": "even"}, {"phase_classification": "38.44"}),
            Row("beta 0 %", _SHORT | {"views.min_overlap": "0"}, {"phase_classification": "38.15"}),
            Row("beta 50 %", _SHORT | {"views.min_overlap": "0.5"}, {"phase_classification": "39.14"}),
            Row("beta 80 %", _SHORT | {"views.min_overlap": "0.8"}, {"phase_classification": "37.94"}),
            Row("beta 100 %", _SHORT | {"views.min_overlap": "1"}, {"phase_classification": "35.53"}),
        ),
        METRICS,
        "alpha 1.5, beta 20 %, random",
        "The paper's crops are shorter than most actions of the demo, whose alpha is therefore 3.",
    ),
    "11": frames_table(32),
    "13": Table(
        "One positive against a Gaussian of them (paper: table 13, PennAction)",
        (
            Row(
                "contrastive baseline",
                {"objective.name": "contrastive"},
                paper_numbers("88.05", ".898", ".891"),
            ),
            Row("SCL", {}, paper_numbers("93.07", ".918", ".985")),
        ),
        METRICS,
        "SCL",
        "",
    ),
    "unlabelled": Table(
        "Every objective without labels, on the same encoder (not in the paper)",
        (
            Row("Shuffle-and-Learn", {"objective.name": "shuffle_and_learn"}),
            Row("Shuffle-and-Learn, no positions", {"objective.name": "shuffle_and_learn", **_UNPLACED}),
            Row("TCN", {"objective.name": "tcn"}),
            Row("TCN, no positions", {"objective.name": "tcn", **_UNPLACED}),
            Row("contrastive baseline", {"objective.name": "contrastive"}),
            Row("SCL, no positions", _UNPLACED),
            Row("SCL", {}),
            Row("SCL, variance 1", {"objective.variance": "1"}),
        ),
        METRICS,
        "SCL",
        _POSITIONS,
    ),
    "labelled": Table(
        "Every objective on pairs of videos of the same label, on the same encoder (not in the paper)",
        (
            Row("SCL (no labels)", {}),
            Row("TCC", {"objective.name": "tcc"}),
            Row("TCC, no positions", {"objective.name": "tcc", **_UNPLACED}),
            Row("LAV", {"objective.name": "lav"}),
            Row("LAV, no positions", {"objective.name": "lav", **_UNPLACED}),
            Row("GTA", {"objective.name": "gta"}),
            Row("GTA, no positions", {"objective.name": "gta", **_UNPLACED}),
            Row("weakly supervised CARL", {"objective.name": "weak_scl"}),
        ),
        METRICS,
        "SCL (no labels)",
        _POSITIONS,
    ),
}
"""The tables by the name that the command takes."""
