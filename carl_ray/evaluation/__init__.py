"""Metrics of the paper (section 4) on lists of arrays, one array for each video.

Imported lazily, because torch, SciPy and scikit-learn would delay every command's --help.
"""

import importlib
from typing import Any

_MODULES = {
    "alignment_error": "alignment",
    "average_precision_at_k": "retrieval",
    "direction_of_time": "direction",
    "kendalls_tau": "kendall",
    "linear_probe": "frame_classes",
    "linear_probe_of_clips": "recognition",
    "nearest_neighbours": "recognition",
    "phase_classification": "classification",
    "phase_progression": "progression",
    "retrieval_of_videos": "recognition",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
