"""Frame-wise action representations from long, unlabelled videos: CARL (Chen et al., CVPR 2022) on Ray.

The names in `__all__` are the public Python API. They are imported lazily (PEP 562), so that `import carl_ray` and
every command's --help load neither torch nor Ray.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from carl_ray import errors

if TYPE_CHECKING:
    from carl_ray.config import Config
    from carl_ray.data.scan import build_manifest
    from carl_ray.evaluation.corpus import embed_corpus
    from carl_ray.evaluation.embeddings import Embeddings
    from carl_ray.evaluation.inference import load_encoder
    from carl_ray.fitting import fit
    from carl_ray.presets import preset
    from carl_ray.report.evaluation import evaluate_embeddings

__version__ = "0.1.0"

__all__ = [
    "Config",
    "Embeddings",
    "__version__",
    "build_manifest",
    "embed_corpus",
    "evaluate_embeddings",
    "fit",
    "load_encoder",
    "preset",
]

_MODULES = {
    "Config": "carl_ray.config",
    "Embeddings": "carl_ray.evaluation.embeddings",
    "build_manifest": "carl_ray.data.scan",
    "embed_corpus": "carl_ray.evaluation.corpus",
    "evaluate_embeddings": "carl_ray.report.evaluation",
    "fit": "carl_ray.fitting",
    "load_encoder": "carl_ray.evaluation.inference",
    "preset": "carl_ray.presets",
}
"""Where each name is defined; `TYPE_CHECKING` above has the same for type checkers."""

# `python -m carl_ray.COMMAND` imports this package first, while sys.argv[0] is still "-m". Programs that import the
# package keep their own signal handlers.
if sys.argv[:1] == ["-m"]:
    errors.handle_signals()


def __getattr__(name: str) -> Any:
    """Import a public name from its module at first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Names of the module, those not imported yet included."""
    return sorted({*globals(), *__all__})
