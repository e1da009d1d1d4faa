"""What the paper says of the data set of a preset: how it is evaluated, and the numbers it reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PROTOCOLS: dict[str, tuple[str, ...]] = {
    "phases": ("phase_classification", "phase_progression", "kendalls_tau", "retrieval", "alignment_error"),
    "finegym": ("linear_probe",),
    "clips": ("recognition", "clip_probe"),
}
"""Names of the evaluation tasks (`carl_ray.evaluation.tasks`) of each protocol of section 4.1, and of whole videos."""


def protocol_of(preset: str) -> str:
    """The protocol for the data of a preset, one of `PROTOCOLS`."""
    if preset.startswith(("clips", "regions", "csvr")):
        return "clips"
    return "finegym" if preset.startswith("finegym") else "phases"


def stride_of(preset: str) -> int:
    """Stride of tau, AP@K and alignment error by preset (section 4.1)."""
    penn_action = {"penn_action": 2, "kinetics400": 2, "kinetics400_to_penn_action": 2}
    return {**penn_action, "pouring": 5}.get(preset, 1)


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
# The full texts of the papers that `regions` and `csvr` read were not at hand: those of another method, from its
# README.
_IIC = PaperNumbers(
    "another method: IIC on UCF101 (R3D, from its README)",
    {
        "video_recall_at_1": "34.6",
        "video_recall_at_5": "53.0",
        "video_recall_at_10": "62.3",
        "video_recall_at_20": "71.7",
        "video_recall_at_50": "82.4",
    },
)
_PAPER = {
    "regions_ucf101": _IIC,
    "csvr_ucf101": _IIC,
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

    The paper has none for the rendered videos of the demo (`demo`), which get those of PennAction for orientation;
    other presets of clips get those of `regions_ucf101`.
    """
    found = _PAPER.get(preset)
    if found is not None:
        return found, True
    return (_IIC if protocol_of(preset) == "clips" else _PENN_ACTION), False
