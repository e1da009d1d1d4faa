"""The paper's ablation tables at reduced size: the config values each row changes, and the paper's numbers.

All rows start from the demo's config, so that they share videos, plan, stream, length of training and evaluation.
"""

from __future__ import annotations

from dataclasses import replace

from carl_ray.sweeps.paper_tables import METRICS, TABLE_9, TABLE_10, Row, Table, frames_table, paper_numbers

_UNPLACED = {"model.positions": "none"}
_POSITIONS = (
    "An encoder that knows positions can lower losses within one view (Shuffle-and-Learn, TCN) or between videos (TCC, "
    "LAV, GTA) without a look at the frames; one without positions cannot."
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
            Row("3 layers", {}, paper_numbers("93.07", ".918", ".985")),
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
            Row("all", {}),
        ),
        METRICS,
        "block 5",
        "The paper's frozen blocks are pretrained, ours are random: another question is asked.",
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
    "9": TABLE_9,
    "10": TABLE_10,
    "11": _with_supervised(frames_table(32)),
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
