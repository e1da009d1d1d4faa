"""Names of metrics, protocols and controls; imports nothing heavy."""

from __future__ import annotations

from typing import Literal, TypedDict

Protocol = Literal["phases", "finegym"]
"""`phases`: phase classification, progression, tau, AP@K, alignment error, by action. `finegym`: one linear probe for
the classes of all videos."""


class MetricEntry(TypedDict):
    """A metric of a variant in metrics.json; None where undefined."""

    value: float | None
    low: float | None
    high: float | None
    left_out: dict[str, int]
    """Numbers of what was undefined or missing, by name."""


VARIANTS = ("trained", "untrained", "positions", "chance")
"""Trained encoder and controls, as named in metrics.json."""

PHASE_METRICS = (
    "phase_classification_10",
    "phase_classification_50",
    "phase_classification",
    "phase_progression",
    "kendalls_tau",
    "average_precision_at_5",
    "average_precision_at_10",
    "average_precision_at_15",
    "alignment_error",
)
FINEGYM_METRICS = ("linear_probe_10", "linear_probe_50", "linear_probe")
LOWER_IS_BETTER = frozenset({"alignment_error"})
NEEDS_ONE_ORDER = frozenset({"phase_progression", "kendalls_tau", "alignment_error"})
"""Metrics that are meaningful only if no phase of a video returns."""
LABEL_FRACTIONS = {"_10": 0.1, "_50": 0.5, "": 1.0}
"""Fractions of the labelled training videos that probes are fitted to, by the suffix of the metric's name."""


def protocol_of(preset: str) -> Protocol:
    """The paper's protocol for the data of a preset."""
    return "finegym" if preset.startswith("finegym") else "phases"


def stride_of(preset: str) -> int:
    """Stride of tau, AP@K and alignment error by preset (paper, section 4)."""
    penn_action = {"penn_action": 2, "kinetics400": 2, "kinetics400_to_penn_action": 2}
    return {**penn_action, "pouring": 5}.get(preset, 1)
