"""The encoder of clips: a backbone of clips, or of single frames, without a module over time.

Legend: N clips, T frames of a clip, C channels of the backbone, (t, h, w) cells of a map; t divides T.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from carl_ray.config import Config
from carl_ray.errors import UserError
from carl_ray.layers.heads import real_cells
from carl_ray.model.backbone import Backbone, build_backbone

_CLIPS_PER_SPAN = 4
"""Clips of a whole video overlap: one begins each fourth of the span of a clip."""


class EncodedClips(NamedTuple):
    """Output of `ClipEncoder`."""

    maps: Float[Tensor, "N C t h w"]
    """Zeros for clips without frames."""
    clip: Float[Tensor, "N C"]
    """Mean over the cells of which at least half of the frames are real; float32 or better."""


class ClipEncoder(nn.Module):
    """Maps and a vector of each clip.

    A backbone of single frames has cells of one frame.

    Args:
        config: Of the run: `model`, and the stride of evaluation in `views`.

    Attributes:
        backbone: With random weights; of the dynamic stream where there are two.
        static_backbone: Of the static stream, where it has one of its own.
        width: C; of two streams that of both, of which the first half is the dynamic one's.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.backbone = build_backbone(config.model)
        self.static_backbone: Backbone | None = None
        self.has_streams = config.model.clip_streams != "one"
        if config.model.clip_streams == "two":
            self.static_backbone = build_backbone(config.model)
        self.width = self.backbone.channels * (1 + self.has_streams)
        self.sees_difference = config.model.clip_input == "difference"
        self.num_frames = config.model.num_frames
        self.stride = sum(config.views.stride) // 2

    def forward(
        self,
        frames: Float[Tensor, "N T 3 height width"],
        mask: Bool[Tensor, "N T"],
        *,
        static_alone: bool = False,
    ) -> EncodedClips:
        """Encode clips; padded frames, which follow the real ones, count as the last of these.

        Args:
            frames: Normalised by the backbone's mean and deviation; padded ones may hold anything.
            mask: True where a frame is real.
            static_alone: Maps and vectors of the static stream only, half as wide.
        """
        (real,) = mask.any(1).nonzero(as_tuple=True)
        last = mask[real].sum(1, keepdim=True) - 1
        places = torch.arange(mask.shape[1], device=mask.device).minimum(last)
        seen = frames[real[:, None], places]
        streams = []
        if not static_alone:
            streams.append(_maps(self.backbone, _differences(seen) if self.sees_difference else seen))
        if self.has_streams:
            streams.append(_maps(self.static_backbone or self.backbone, seen))
        maps = torch.cat(streams, 1)
        scattered = maps.new_zeros(len(mask), *maps.shape[1:]).index_copy(0, real, maps)
        weights = real_cells(mask, maps.shape[2]).to(maps.dtype)[:, None, :, None, None]
        wide = scattered.to(torch.promote_types(maps.dtype, torch.float32))
        area = maps.shape[3] * maps.shape[4]
        clip = (wide * weights).sum((2, 3, 4)) / (area * weights.sum((2, 3, 4))).clamp(min=1)
        return EncodedClips(scattered, clip)

    @torch.no_grad()
    def frame_features(
        self, chunks: Iterable[Float[Tensor, "chunk 3 height width"]], *, backwards: bool = False
    ) -> Iterator[Float[Tensor, "chunk C"]]:
        """Vectors of the clips around the frames of one video, in chunks of frames.

        Clips of T frames at the stride of evaluation begin each fourth of their span, and at the last place. A frame
        has the vector of the clip whose middle it is, between two of them the weighted mean, before the first middle
        and after the last that clip's.

        Args:
            chunks: The normalised frames, in order.
            backwards: Play each clip backwards, at its place.

        Yields:
            Rows for as many frames as are known after a chunk, which may be none.
        """
        span = self.num_frames * self.stride
        hop = max(1, span // _CLIPS_PER_SPAN)
        waiting: Tensor | None = None
        first = done = 0  # Number of the first frame that waits, and of rows.
        made: list[tuple[float, Tensor]] = []  # Middle and vector of the last two clips.
        start = 0
        for chunk in chunks:
            waiting = chunk if waiting is None else torch.cat([waiting, chunk])
            ready: list[Tensor] = []
            starts = range(start, first + len(waiting) - span + 1, hop)
            clips = self._clips(waiting, [s - first for s in starts], self.stride, backwards)
            for begin, clip in zip(starts, clips, strict=True):
                made.append((begin + span / 2, clip))
                rows = _between(made, done, int(made[-1][0]) + 1)
                ready, done, start = [*ready, rows], done + len(rows), begin + hop
                del made[:-1]
            kept = max(0, start - hop - first)  # The last clip of the video begins after the one before.
            waiting, first = waiting[kept:], first + kept
            yield torch.cat(ready) if ready else chunk.new_zeros(0, self.width)
        if waiting is None:
            return
        num_frames = first + len(waiting)
        stride = min(self.stride, max(1, num_frames // self.num_frames))
        start = max(0, num_frames - self.num_frames * stride)
        middle = start + self.num_frames * stride / 2
        if not made or middle > made[-1][0]:
            made.append((middle, self._clips(waiting, [start - first], stride, backwards)[0]))
        yield _between(made, done, num_frames)

    def _clips(
        self, frames: Tensor, starts: Sequence[int], stride: int, backwards: bool
    ) -> Float[Tensor, "clips C"]:
        """Vectors of the clips that begin with these of some frames."""
        if not starts:
            return frames.new_zeros(0, self.width)
        begin = torch.tensor(starts, device=frames.device)[:, None]
        order = torch.arange(self.num_frames, device=frames.device)
        mask = begin + stride * order < len(frames)
        if backwards:  # What is real; padding stays at the end.
            order = (mask.sum(1, keepdim=True) - 1 - order).clamp(min=0)
        clips: Tensor = self(frames[(begin + stride * order).clamp(max=len(frames) - 1)], mask).clip
        return clips

    def embed_features(self, features: Float[Tensor, "T C"]) -> Float[Tensor, "T C"]:
        """The features themselves: there is no module over time."""
        return features


def _differences(frames: Float[Tensor, "N T 3 height width"]) -> Float[Tensor, "N T 3 height width"]:
    change = 2 * frames.diff(dim=1)
    return torch.cat([change, change[:, -1:]], 1)


def _maps(backbone: Backbone, frames: Float[Tensor, "N T 3 height width"]) -> Float[Tensor, "N C t h w"]:
    if backbone.kind == "clip":
        maps = backbone(frames.transpose(1, 2))
    else:
        maps = backbone(frames.flatten(0, 1))
        if maps.ndim == 4:
            maps = maps.unflatten(0, frames.shape[:2]).transpose(1, 2)
    if maps.ndim != 5 or frames.shape[1] % maps.shape[2]:
        shape = " x ".join(map(str, maps.shape[1:]))
        raise UserError(
            f"model.backbone: {backbone.name} makes {shape} of {frames.shape[1]} frames; expected maps (C, t, h, w) "
            "with a number of frames (model.num_frames) that t divides"
        )
    return maps


def _between(made: list[tuple[float, Tensor]], start: int, stop: int) -> Float[Tensor, "rows C"]:
    """Rows of frames `start` to `stop`, by the one or two clips around them."""
    middles, vectors = [middle for middle, _ in made], torch.stack([vector for _, vector in made])
    places = torch.arange(start, stop, dtype=vectors.dtype, device=vectors.device)
    share = ((places - middles[0]) / max(middles[-1] - middles[0], 1)).clamp(0, 1)[:, None]
    return vectors[0] * (1 - share) + vectors[-1] * share
