"""The rows of the paper's ablation tables at reduced size: what each row changes, and what the paper reports.

Every row starts from one config, the demo's, so all rows of a table see the same videos, plan, stream, length of
training and evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

_COLUMNS = ("phase_classification", "phase_progression", "kendalls_tau")


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    name: str
    """As the paper names it; unique in its table."""
    options: Mapping[str, str] = field(default_factory=dict)
    """What differs from the common config, as `section.field`."""
    paper: Mapping[str, str] = field(default_factory=dict)
    """The paper's numbers, as printed there, by metric."""
    reads: Mapping[str, str] = field(default_factory=dict)
    """Where a column is to be read from another metric of the run: that metric by column, and no other column."""


@dataclass(frozen=True)
class Table:
    """One table of the paper, or one that the paper lacks."""

    title: str
    rows: tuple[Row, ...]
    metrics: tuple[str, ...]
    """What its columns are."""
    reference: str
    """Name of the row that the others are compared with."""
    note: str
    """What differs from the paper's table besides size, data and pretraining."""


def _paper(*numbers: str) -> dict[str, str]:
    return dict(zip(_COLUMNS, numbers, strict=True))


_METRICS = (*_COLUMNS, "average_precision_at_5", "alignment_error")
_FRACTIONS = ("phase_classification_10", "phase_classification_50", "phase_classification")

_UNPLACED = {"model.positions": "none"}
_POSITIONS = (
    "An encoder that knows positions can lower losses within one view (Shuffle-and-Learn, TCN) or between videos (TCC, "
    "LAV, GTA) without a look at the frames; one without positions cannot."
)
_SHORT = {"views.max_crop_ratio": "1.5"}


def frames_table(num_frames: int) -> Table:
    """Table 11 for a preset with so many frames a view: the paper's T as shares of it, alpha as it is.

    The paper's 80 to 480 frames are a third to twice its 240.
    """
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


def _with_supervised(table: Table) -> Table:
    """Table 11 with its rows of supervised training."""
    rows = tuple(
        Row(
            f"supervised, {name} %",
            {"objective.name": "supervised", "data.train_fraction": share},
            {column: paper},
            {column: "phase_classification"},
        )
        for name, share, column, paper in (
            ("10", "0.1", "phase_classification_10", "24.51"),
            ("50", "0.5", "phase_classification_50", "48.75"),
            ("100", "1", "phase_classification", "60.37"),
        )
    )
    return replace(
        table,
        title="Frames of a view, and supervision, by share of the labels (paper: table 11, FineGym99)",
        rows=(*table.rows, *rows),
        note=f"{table.note} A supervised row trains its encoder and its probe on the same share of the videos of each "
        "action.",
    )


TABLES: dict[str, Table] = {
    "5": Table(
        "Temporal encoders (paper: table 5, PennAction)",
        (
            Row("ResNet only", {"model.temporal_encoder": "none"}, _paper("68.63", ".296", ".440")),
            Row("ResNet + C3D", {"model.temporal_encoder": "c3d"}, _paper("83.96", ".705", ".778")),
            Row("ResNet + Transformer", {}, _paper("93.07", ".918", ".985")),
        ),
        _METRICS,
        "ResNet + Transformer",
        "Six convolutions stand for the ResNet.",
    ),
    "6": Table(
        "Layers of the Transformer (paper: table 6, PennAction)",
        (
            Row("0 layers", {"model.num_layers": "0"}),
            Row("1 layer", {"model.num_layers": "1"}, _paper("92.15", ".909", ".985")),
            Row("2 layers", {"model.num_layers": "2"}, _paper("92.61", ".913", ".990")),
            Row("3 layers", {}, _paper("93.07", ".918", ".985")),
            Row("4 layers", {"model.num_layers": "4"}, _paper("92.81", ".910", ".990")),
        ),
        _METRICS,
        "3 layers",
        "The paper has no row with 0 layers, which leave the positions and no mixing of frames.",
    ),
    "7": Table(
        "Learnable blocks of the backbone (paper: table 7, PennAction)",
        (
            Row("none", {"model.learnable": "none"}, _paper("90.63", ".907", ".994")),
            Row("block 5", {"model.learnable": "block5"}, _paper("93.07", ".918", ".985")),
            Row("block 4+5", {"model.learnable": "block4+5"}, _paper("92.98", ".919", ".989")),
            Row("all", {}),
        ),
        _METRICS,
        "block 5",
        "The paper's frozen blocks are pretrained, ours are random: another question is asked.",
    ),
    "8": Table(
        "Other methods on the same encoder (paper: table 8, PennAction)",
        (
            Row("TCN", {"objective.name": "tcn"}, _paper("86.31", ".898", ".832")),
            Row("TCN, no positions", {"objective.name": "tcn", **_UNPLACED}),
            Row("TCC", {"objective.name": "tcc"}, _paper("86.35", ".899", ".980")),
            Row("TCC, no positions", {"objective.name": "tcc", **_UNPLACED}),
            Row("SCL", {}, _paper("93.07", ".918", ".985")),
            Row("SCL, no positions", _UNPLACED),
        ),
        _METRICS,
        "SCL",
        _POSITIONS,
    ),
    "9": Table(
        "Temperature and variance (paper: table 9, PennAction)",
        tuple(
            Row(
                f"tau {temperature}, variance {variance}",
                {"objective.temperature": temperature, "objective.variance": variance},
                _paper(*numbers),
            )
            for temperature, variance, numbers in (
                ("0.1", "1", ("92.95", ".903", ".963")),
                ("0.1", "25", ("92.03", ".922", ".993")),
                ("1", "10", ("91.57", ".889", ".993")),
                ("0.3", "10", ("92.13", ".903", ".992")),
                ("0.1", "10", ("93.07", ".918", ".985")),
            )
        ),
        _METRICS,
        "tau 0.1, variance 10",
        "The variance is in squared frames, of videos with other rates and lengths than the paper's.",
    ),
    "10": Table(
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
        _METRICS,
        "alpha 1.5, beta 20 %, random",
        "Views of the paper's length of crop are shorter than most actions here, which is why the demo has alpha 3.",
    ),
    "11": _with_supervised(frames_table(32)),
    "13": Table(
        "One positive against a Gaussian of them (paper: table 13, PennAction)",
        (
            Row("contrastive baseline", {"objective.name": "contrastive"}, _paper("88.05", ".898", ".891")),
            Row("SCL", {}, _paper("93.07", ".918", ".985")),
        ),
        _METRICS,
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
        _METRICS,
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
        _METRICS,
        "SCL (no labels)",
        _POSITIONS,
    ),
}
"""The tables by the name that the command takes."""
