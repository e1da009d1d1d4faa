"""Labels of whole videos by the classifier that a run of `clip_classes` trained.

The mean of the softmax over ten even clips, or two where a clip spans the video, and three crops of each: the two ends
and the middle of the longer side, seven eighths of the shorter one.

Legend: K classes, C width of a vector, T frames of a clip, S pixels of the encoder's input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from carl_ray import storage
from carl_ray.config import Config
from carl_ray.data.augment import AugmentParameters
from carl_ray.data.augment_tensors import apply_geometry
from carl_ray.data.guard import BadVideoError, FrameReader
from carl_ray.data.views import ViewIndices, clip_at, even_whole
from carl_ray.errors import RunError, UserError, note
from carl_ray.model.clips import ClipEncoder
from carl_ray.model.features import normalize
from carl_ray.objectives.clips import ClipClassification
from carl_ray.training.checkpoint import EXPORTED, Checkpoint, checkpoint_tensors, run_of
from carl_ray.training.run_videos import VIDEOS, recorded_labels

_NUM_CLIPS = 10
_CROP = 7 / 8  # of the shorter side
_CHUNK_FRAMES = 64
_MOST_PREDICTED = 5
_HEAD = "objective.classifier."


@dataclass(frozen=True)
class Classifier:
    """The linear layer of a run of the objective `clip_classes`."""

    labels: tuple[str, ...]
    """Of the classes, in their order."""
    weight: Float[Tensor, "K C"]
    bias: Float[Tensor, " K"]
    seen: frozenset[tuple[str, str]]
    """Id and content hash of the videos that it was trained on, which get no prediction."""


def trained_classifier(checkpoint: Checkpoint) -> Classifier | None:
    """The classifier of a checkpoint; None without one, with a note where only its labels are unknown.

    Raises:
        UserError: the record of the run's videos does not fit the classifier.
        RunError: a file is damaged, or the store refuses or fails.
    """
    if checkpoint.config.objective.name != "clip_classes" or EXPORTED in checkpoint.hashes:
        return None
    run_dir = run_of(checkpoint.uri)
    record = storage.join(run_dir or checkpoint.uri, VIDEOS)
    if run_dir is None or not storage.exists(record):
        note(f"warning: {storage.public_uri(record)} names the classes, and is not there: no predictions")
        return None
    labels, seen = recorded_labels(run_dir)
    tensors = checkpoint_tensors(checkpoint)
    weight, bias = (tensors[_HEAD + name] for name in ("weight", "bias"))
    if len(labels) != len(weight):
        raise UserError(
            f"{storage.public_uri(record)}: expected the training videos of the classifier, with {len(weight)} labels, "
            f"got {len(labels)}: restore the file of the run"
        )
    return Classifier(tuple(labels), weight, bias, frozenset(seen))


def even_clips(num_video_frames: int, num_frames: int, stride: int) -> list[ViewIndices]:
    """Ten clips from the first to the last place where one fits; of a short video each place once.

    Args:
        num_video_frames: Frames of the video.
        num_frames: T.
        stride: Of a clip; smaller, but at least 1, in a video that is shorter.
    """
    stride = max(1, min(stride, num_video_frames // num_frames))
    last = max(0, num_video_frames - num_frames * stride)
    starts = np.unique(np.linspace(0, last, _NUM_CLIPS).round().astype(int))
    return [clip_at(int(start), stride, num_video_frames, num_frames) for start in starts]


def whole_clips(num_video_frames: int, num_frames: int) -> list[ViewIndices]:
    """Two clips over the whole video, of different frames where a part has two; one of a video without other frames."""
    places = (0.25, 0.75) if num_video_frames > num_frames else (0.0,)
    return [even_whole(num_video_frames, num_frames, place) for place in places]


class Predictor:
    """Predicts the classes of whole videos, which are decoded in a child process.

    Args:
        encoder: In evaluation mode; moved to `device`.
        classifier: Of its run.
        config: Of this run.
        device: Where it computes.
        bf16: Matrix products in bfloat16.

    Attributes:
        classifier: As given.
    """

    def __init__(
        self,
        encoder: ClipEncoder,
        classifier: Classifier,
        config: Config,
        device: torch.device,
        *,
        bf16: bool = False,
    ) -> None:
        self.classifier, self._encoder, self._bf16 = classifier, encoder.to(device), bf16
        self._weight, self._bias = classifier.weight.to(device), classifier.bias.to(device)
        self._config, self._device, self._reader = config, device, FrameReader()
        assert isinstance(config.objective, ClipClassification.Options)
        self._spans_video = config.objective.span == "video"

    def embed(
        self, videos: Sequence[tuple[bytes | str, int]]
    ) -> Iterator[list[np.ndarray] | BadVideoError | RunError]:
        """The five most probable classes of some videos, the most probable first.

        Args:
            videos: Content, path or URI, and number of frames.

        Yields:
            A list of one int64 array; for a video that cannot be read a `BadVideoError`, for one that another try may
            read a `RunError`.
        """
        for video in videos:
            try:
                chances = self.probabilities(*video)
            except (BadVideoError, RunError) as error:
                yield error
            else:
                yield [np.argsort(-chances, kind="stable")[:_MOST_PREDICTED]]

    def probabilities(self, source: bytes | str, num_frames: int) -> Float64[np.ndarray, " K"]:
        """Mean of the softmax over the clips and crops of a video.

        Raises:
            BadVideoError: the video cannot be read.
            RunError: another try may read it.
        """
        encoder, size = self._encoder, self._config.augment.image_size
        taken = -(-num_frames // self._config.data.frame_stride)
        if self._spans_video:
            clips = whole_clips(taken, encoder.num_frames)
        else:
            clips = even_clips(taken, encoder.num_frames, encoder.stride)
        needed = np.unique(np.concatenate([clip.frame_indices for clip in clips]))
        frames = self._read(source, num_frames, needed, round(size / _CROP))
        chances = []
        for clip in clips:
            crops = torch.stack(list(_crops(frames[np.searchsorted(needed, clip.frame_indices)], size)))
            mask = torch.from_numpy(clip.frame_mask).expand(crops.shape[:2]).to(self._device)
            pixels = normalize(crops.to(self._device), encoder.backbone.mean, encoder.backbone.std)
            with torch.inference_mode():
                with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
                    vectors = encoder(pixels, mask).clip.float()
                chances.append((vectors @ self._weight.T + self._bias).softmax(-1).double())
        found: np.ndarray = torch.cat(chances).mean(0).cpu().numpy()
        return found

    def _read(
        self, source: bytes | str, num_frames: int, needed: Int64[np.ndarray, " needed"], short_side: int
    ) -> UInt8[np.ndarray, "needed height width 3"]:
        kept, start = [], 0
        for chunk in self._reader.read(
            source, num_frames, self._config, chunk_frames=_CHUNK_FRAMES, short_side=short_side, whole=True
        ):
            kept.append(chunk[needed[(needed >= start) & (needed < start + len(chunk))] - start])
            start += len(chunk)
        return np.concatenate(kept)


def _crops(frames: UInt8[np.ndarray, "T height width 3"], size: int) -> Iterator[UInt8[Tensor, "T S S 3"]]:
    """Three squares of the frames, along their longer side."""
    height, width = frames.shape[1:3]
    side = round(_CROP * min(height, width))
    for place in (0, 0.5, 1):
        down, along = (place, 0.5) if height > width else (0.5, place)
        top, left = round(down * (height - side)), round(along * (width - side))
        square = AugmentParameters(top, left, side, side, False, False, (0, 1, 2, 3), 1, 1, 1, 0, False, 0)
        yield apply_geometry(frames, square, size)
