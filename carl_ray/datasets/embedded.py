"""The embedded data sets: videos of a preset, rendered and indexed once, with their labels."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from carl_ray import storage
from carl_ray.datasets import choreography, scenes
from carl_ray.datasets.rendered import Renderer
from carl_ray.progress import ProgressLine

_DEMO = "demo"
RENDERERS: dict[str, Renderer[Any]] = {
    _DEMO: choreography.RENDERER,
    "clips_demo": scenes.RENDERER,
    "csvr_demo": scenes.RENDERER,
}
"""Of the videos of a preset, by its name."""


def has_embedded(preset: str) -> bool:
    """Whether a preset has rendered videos."""
    return preset in RENDERERS


def embedded_manifest(preset: str = _DEMO) -> str:
    """Default path of the manifest of a preset's rendered videos; the file need not exist yet."""
    return str(RENDERERS[preset].default_folder() / "manifest.parquet")


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
    folder = RENDERERS[preset].ensure_rendered(on_video=ProgressLine("rendered"))
    out = out or embedded_manifest(preset)
    manifest, rejects = index_folder(str(folder), out, RENDERERS[preset].read_labels(folder), verify=verify)
    return storage.public_uri(out), manifest, rejects
