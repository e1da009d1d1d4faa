"""The metrics of SPEC section 5: pure functions on lists of arrays, one array a video.

They are imported lazily, since they need torch, SciPy and scikit-learn: a command's help must not wait for these.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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


def __getattr__(name: str) -> Any:
    """Import a metric from its module at first use."""
    if name in __all__:
        for module in ("alignment", "kendall", "probes", "retrieval"):
            found = getattr(importlib.import_module(f"{__name__}.{module}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
