"""The metrics of SPEC section 5: pure functions on lists of arrays, one array a video."""

from carl_ray.evaluation.alignment import alignment_error
from carl_ray.evaluation.kendall import kendalls_tau
from carl_ray.evaluation.probes import linear_probe, phase_classification, phase_progression
from carl_ray.evaluation.retrieval import average_precision_at_k

__all__ = [
    "alignment_error",
    "average_precision_at_k",
    "kendalls_tau",
    "linear_probe",
    "phase_classification",
    "phase_progression",
]
