"""Names of the metrics, their protocols and controls, without the arithmetic: cheap to import."""

from __future__ import annotations

from typing import Literal

Protocol = Literal["phases", "finegym"]
"""`phases`: phase classification, progression, tau, AP@K, alignment error, by action. `finegym`: the linear probe
over the classes of all videos together."""

VARIANTS = ("trained", "untrained", "positions", "chance")
"""The encoder and its controls, as metrics.json names them."""

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
"""Metrics that mean something only where no phase of a video comes back."""
LABEL_FRACTIONS = {"_10": 0.1, "_50": 0.5, "": 1.0}
"""Shares of the labelled training videos that probes are fitted to, by the suffix of the metric's name."""


def protocol_of(preset: str) -> Protocol:
    """The protocol that the paper evaluates a preset's data with."""
    return "finegym" if preset.startswith("finegym") else "phases"


def stride_of(preset: str) -> int:
    """Every how many frames tau, AP@K and the alignment error look at (SPEC section 5), by preset."""
    penn_action = {"penn_action": 2, "kinetics400": 2, "kinetics400_to_penn_action": 2}
    return {**penn_action, "pouring": 5}.get(preset, 1)
