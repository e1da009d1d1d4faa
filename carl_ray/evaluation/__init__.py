"""The metrics of SPEC section 5: pure functions on lists of arrays, one array a video.

Imported lazily, since they need torch, SciPy and scikit-learn: a command's help must not wait for these.
"""

import importlib
from typing import Any

_MODULES = {
    "alignment_error": "alignment",
    "average_precision_at_k": "retrieval",
    "kendalls_tau": "kendall",
    "linear_probe": "probes",
    "phase_classification": "probes",
    "phase_progression": "probes",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
