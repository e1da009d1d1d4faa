"""A video with the embeddings of its frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int


@dataclass(frozen=True, kw_only=True)
class EmbeddedVideo:
    """The embeddings of all frames of one video, its metadata and its labels."""

    video_id: str
    uri: str
    timestamps: Float[np.ndarray, " frames"]
    """float64: frame index times the manifest's `frame_step`, the unit of the loss; not seconds."""
    embeddings: Float[np.ndarray, "frames width"]
    """H, not normalised; float32 whatever the precision of the file."""
    untrained: Float[np.ndarray, "frames width"] | None = None
    """H of the untrained encoder."""
    frozen: Float[np.ndarray, "frames D"] | None = None
    """Windows of features of the frozen backbone, reduced, where a run was trained on such features."""
    backwards: Float[np.ndarray, "clips width"] | None = None
    """Vectors of ten clips played backwards, at the places of `clip_probe.even_clips`; None: not embedded."""
    untrained_backwards: Float[np.ndarray, "clips width"] | None = None
    """The same by the untrained encoder."""
    content_hash: str = ""
    """Hash of the embedded file, as in the manifest."""
    split: str | None = None
    label: str | None = None
    group: str | None = None
    """Videos of one group must not be on both sides of a hold-out; None: it is its own."""
    frame_labels: Int[np.ndarray, " frames"] | None = None
    """int32; -1 for frames without one."""
    phase_names: list[str] | None = None
    """Name of each frame label; None where they have none."""
    progress: Float[np.ndarray, " frames"] | None = None
    """float32: true completed share of the action, 0 to 1."""
    fps: float | None = None
    """Average frame rate, frames per second."""
    frame_times: Float64[np.ndarray, " frames"] | None = None
    """Seconds from the first frame to each; None where they are index / `fps`."""
    predicted: list[str] | None = None
    """The five most probable labels by the run's own classifier, the most probable first; None without one, and for
    videos that it was trained on."""

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def phases(self) -> Int[np.ndarray, " frames"]:
        """int32: `frame_labels`, all -1 where there are none."""
        return np.full(len(self), -1, np.int32) if self.frame_labels is None else self.frame_labels

    @property
    def seconds(self) -> Float[np.ndarray, " frames"] | None:
        """float64: seconds since the first frame; None where the rate is unknown."""
        if self.frame_times is not None:
            return self.frame_times
        return np.arange(len(self)) / self.fps if self.fps else None

    def centered(self) -> EmbeddedVideo:
        """The video with each kind of embeddings minus its mean."""
        arrays: dict[str, Any] = {"untrained": self.untrained, "frozen": self.frozen}
        arrays = {
            name: None if array is None else array - array.mean(axis=0) for name, array in arrays.items()
        }
        return replace(self, embeddings=self.embeddings - self.embeddings.mean(axis=0), **arrays)

    def phase_name(self, phase: int) -> str | None:
        """Name of a frame label, `phase 2` where they have no names; None for -1."""
        if phase < 0:
            return None
        return f"phase {phase}" if self.phase_names is None else self.phase_names[phase]


def phase_names(videos: Sequence[EmbeddedVideo], num_phases: int) -> list[str]:
    """Names of the phases of videos of one action."""
    named = next((video for video in videos if video.phase_names is not None), None)
    names = [f"phase {phase}" for phase in range(num_phases)] if named is None else named.phase_names or []
    return [*names, *(f"phase {phase}" for phase in range(len(names), num_phases))][:num_phases]
