"""The embedded data sets: videos of a preset, rendered and indexed once, with their labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from carl_ray import storage
from carl_ray.datasets import choreography, scenes
from carl_ray.progress import ProgressLine


@dataclass(frozen=True)
class _Rendered:
    config: Any
    default_folder: Callable[[Any], Path]
    ensure_rendered: Callable[..., Path]
    read_labels: Callable[[Path], pa.Table]


_DEMO = "demo"
_RENDERED = {
    _DEMO: _Rendered(
        choreography.ChoreographyConfig(),
        choreography.default_folder,
        choreography.ensure_rendered,
        choreography.read_labels,
    ),
    "clips_demo": _Rendered(
        scenes.ScenesConfig(), scenes.default_folder, scenes.ensure_rendered, scenes.read_labels
    ),
}
"""By the preset that is trained on them."""


def has_embedded(preset: str) -> bool:
    """Whether a preset has rendered videos."""
    return preset in _RENDERED


def embedded_manifest(preset: str = _DEMO) -> str:
    """Default path of the manifest of a preset's rendered videos; the file need not exist yet."""
    rendered = _RENDERED[preset]
    return str(rendered.default_folder(rendered.config) / "manifest.parquet")


def index_embedded(
    out: str | None = None, *, preset: str = _DEMO, verify: bool = False
) -> tuple[str, pa.Table, pa.Table]:
    """Index the rendered videos of a preset on Ray: URI of the manifest, manifest, rejects.

    Args:
        out: Where to write the manifest; None: beside the videos.
        preset: Which; one without videos of its own has those of the demo.
        verify: Decode every frame.
    """
    # Lazy import: it imports FFmpeg.
    from carl_ray.data.scan import index_folder

    preset = preset if has_embedded(preset) else _DEMO
    rendered = _RENDERED[preset]
    folder = rendered.ensure_rendered(on_video=ProgressLine("rendered"))
    out = out or embedded_manifest(preset)
    manifest, rejects = index_folder(str(folder), out, rendered.read_labels(folder), verify=verify)
    return storage.public_uri(out), manifest, rejects
