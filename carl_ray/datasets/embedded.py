"""The embedded data set: the choreography videos, rendered and indexed once, with their labels."""

from __future__ import annotations

import pyarrow as pa

from carl_ray import storage
from carl_ray.datasets import choreography
from carl_ray.progress import ProgressLine


def embedded_manifest() -> str:
    """Default path of the manifest of the rendered videos of the demo; the file need not exist yet."""
    return str(choreography.default_folder(choreography.ChoreographyConfig()) / "manifest.parquet")


def index_embedded(out: str | None = None, *, verify: bool = False) -> tuple[str, pa.Table, pa.Table]:
    """Index the rendered videos of the demo on Ray: URI of the manifest, manifest, rejects.

    Args:
        out: Where to write the manifest; None: beside the videos.
        verify: Decode every frame.
    """
    # Lazy import: it imports FFmpeg.
    from carl_ray.data.scan import index_folder

    folder = choreography.ensure_rendered(on_video=ProgressLine("rendered"))
    out = out or embedded_manifest()
    manifest, rejects = index_folder(str(folder), out, choreography.read_labels(folder), verify=verify)
    return storage.public_uri(out), manifest, rejects
