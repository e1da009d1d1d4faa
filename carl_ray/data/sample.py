"""A sample: the views of one video in a step, and its row in an Arrow table. No Ray and no torch here.

Everything follows from the `ViewSpec`s of the objective: arrays, Arrow columns, what a decoding process may answer,
bytes in memory.

Legend: n clips of a view, T frames of a clip, C channels of features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from carl_ray.config import Config, DataConfig, Motion
from carl_ray.data.key_frames import choose_key_frames
from carl_ray.data.keypoints import NUM_JOINTS
from carl_ray.data.randomness import ViewNumber, sample_generator, view_key
from carl_ray.data.views import ViewIndices, clip_at, sample_clips, sample_views, sample_whole
from carl_ray.objectives.base import ViewTensors
from carl_ray.objectives.views import Follows, KeyFrame, Stride, ViewSpec, Whole

NUM_PARAMETERS = 16
"""Length of `AugmentParameters.to_vector`."""

_SMALL_BYTES, _MOST_ROWS = 2 * 2**20, 8
"""Of decoded frames and sample, below which a video shares a loading task; how many share one."""

ArrayTypes = dict[str, tuple[str, tuple[int, ...]]]
"""NumPy dtype and shape of arrays by name."""


@dataclass(frozen=True)
class SampleSpec:
    """Everything that a sample depends on beside its video and the epoch; without the code of the objective."""

    seed: int
    """Of the run."""
    views: tuple[ViewSpec, ...]
    columns: tuple[str, ...]
    """Columns of the manifest that are read at the frames of the views."""
    data: DataConfig
    centered: bool = False
    """As `model.centered`; features alone."""
    motion: Motion = "none"
    """As `model.motion`; features alone."""

    def drawn_as(self, view: ViewSpec) -> ViewSpec:
        """The view whose spatial draw a view has: the one it follows, or itself."""
        if not isinstance(view.span, Follows):
            return view
        for other in self.views:
            if other.name == view.span.view and not isinstance(other.span, Follows):
                return other
        raise ValueError(
            f"view {view.name} follows {view.span.view!r}, which is not a view with a place of its own"
        )

    @property
    def array_types(self) -> ArrayTypes:
        """Of the arrays of all views by `VIEW.NAME`, as the columns of a row."""
        return {
            f"{spec.name}.{name}": found
            for spec in self.views
            for name, found in _array_types(spec, self.columns).items()
        }


def sample_spec(config: Config) -> SampleSpec:
    """The spec of a run's samples."""
    return SampleSpec(
        config.training.seed,
        config.view_specs,
        config.objective.columns,
        config.data,
        config.model.centered,
        config.model.motion,
    )


def draw_clips(
    view: ViewSpec,
    video_id: str,
    num_video_frames: int,
    epoch: int,
    spec: SampleSpec,
    key_frames: Sequence[int] | None = None,
    attempt: int = 0,
) -> tuple[ViewIndices, ...]:
    """The frames of each clip of a view, of every `data.frame_stride`-th frame of the video; a key frame may be any.

    At the second attempt, a key frame is the one after that of the first; at the third, it is an even one.
    """
    stride, span = spec.data.frame_stride, view.span
    rng = sample_generator(spec.seed, epoch, video_id, view_key(view.name, ViewNumber.SHARED))
    taken = math.ceil(num_video_frames / stride)
    clips: tuple[ViewIndices, ...]
    if isinstance(span, KeyFrame):
        policy = "even" if attempt == 2 else span.policy
        candidates, _ = choose_key_frames(key_frames, num_video_frames, policy)
        place = (int(rng.integers(len(candidates))) + attempt % 2) % len(candidates)
        return (clip_at(int(candidates[place]), 1, num_video_frames, 1),)
    if isinstance(span, Follows):
        followed, *_ = draw_clips(spec.drawn_as(view), video_id, num_video_frames, epoch, spec, key_frames)
        clips = (clip_at(math.ceil(followed.crop[1] / stride), span.stride, taken, view.num_frames),)
    elif isinstance(span, Stride):
        strides = span.low, span.high
        clips = sample_clips(taken, view.num_frames, strides, view.count, rng, reserve=span.reserve)
    elif isinstance(span, Whole):
        clips = tuple(sample_whole(taken, view.num_frames, rng) for _ in range(view.count))
    else:
        clips = sample_views(
            taken,
            view.num_frames,
            max_crop_ratio=span.max_crop_ratio,
            min_overlap=span.min_overlap,
            sampling=span.sampling,
            crop=span.crop,
            rng=rng,
        )
    return tuple(
        ViewIndices(
            clip.frame_indices * stride, clip.frame_mask, (clip.crop[0] * stride, clip.crop[1] * stride)
        )
        for clip in clips[: view.count]
    )


def draw_copies(view: ViewSpec, video_id: str, epoch: int, seed: int) -> tuple[int, ...] | None:
    """The copy that each clip of a view shows, different ones of 0 (clean) to `augment.copies`.

    None where every clip has a draw of its own.
    """
    copies = view.augment.copies
    if copies is None:
        return None
    if copies == 0:
        return (0,) * view.count
    first, second = (
        sample_generator(seed, epoch, video_id, view_key(view.name, number))
        for number in (ViewNumber.FIRST, ViewNumber.SECOND)
    )
    shown = int(first.integers(copies + 1))
    return (shown, (shown + 1 + int(second.integers(copies))) % (copies + 1))[: view.count]


def at_frames(clip: ViewIndices, values: Sequence[int] | None) -> Int64[np.ndarray, " time"]:
    """Values of a column at the frames of a clip; -1 where there is none, and at padded places.

    Args:
        clip: The frames.
        values: Of every frame of the video, or the one of all.
    """
    if values is None:
        return np.full(len(clip.frame_indices), -1, np.int64)
    of_frames = np.asarray(values, np.int64)
    return np.where(clip.frame_mask, of_frames if len(of_frames) == 1 else of_frames[clip.frame_indices], -1)


def _array_types(spec: ViewSpec, columns: tuple[str, ...]) -> ArrayTypes:
    frames = (spec.count, spec.num_frames)
    types = {
        "timestamps": ("<f8", frames),
        "mask": ("|b1", frames),
        "parameters": ("<f8", (spec.count, NUM_PARAMETERS)),
        "boxes": ("<f8", (spec.count, 4)),
        "flips": ("|b1", (spec.count,)),
        "spans": ("<f8", (spec.count, 2)),
        **{f"columns.{name}": ("<i8", frames) for name in columns},
    }
    if spec.keypoints:
        types["keypoints"] = ("<f4", (*frames, NUM_JOINTS, 3))
    if spec.features is None:
        return types | {"pixels": ("|u1", (*frames, *spec.frame_shape))}
    return types | {"features": ("<f2", (*frames, spec.features))}


def views_of(arrays: Mapping[str, np.ndarray], spec: SampleSpec) -> dict[str, ViewTensors[np.ndarray]]:
    """The views whose arrays have the names of `SampleSpec.array_types`."""
    return {
        view.name: ViewTensors.from_arrays(
            {name: arrays[f"{view.name}.{name}"] for name in _array_types(view, spec.columns)}
        )
        for view in spec.views
    }


def arrays_of(views: Mapping[str, ViewTensors[np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of views; `views_of` undoes it."""
    return {f"{view}.{name}": array for view, held in views.items() for name, array in held.arrays().items()}


def masked_views(spec: SampleSpec) -> dict[str, ViewTensors[np.ndarray]]:
    """The views of a video without frames."""
    types = spec.array_types.items()
    return views_of(
        {name: np.full(shape, -1 if ".columns." in name else 0, dtype) for name, (dtype, shape) in types},
        spec,
    )


@dataclass(frozen=True)
class Sample:
    """A video of a step: one row of the stream."""

    row: int
    """Of the plan."""
    step: int
    epoch: int
    video_id: str | None
    """None where the row has no video."""
    error: str | None
    """Why the video could not be read."""
    views: Mapping[str, ViewTensors[np.ndarray]] | None
    """By name; None where there is no video, or it could not be read."""

    def to_arrow(self, spec: SampleSpec) -> pa.Table:
        """A table of one row with the arrays' bytes, without a copy; null without views."""
        columns = {name: pa.array([getattr(self, name)], pa.int64()) for name in ("row", "step", "epoch")}
        columns |= {name: pa.array([getattr(self, name)], pa.string()) for name in ("video_id", "error")}
        arrays = {} if self.views is None else arrays_of(self.views)
        for name in spec.array_types:
            if not arrays:
                columns[name] = pa.nulls(1, pa.large_binary())
                continue
            array = np.ascontiguousarray(arrays[name])
            offsets = pa.py_buffer(np.array([0, array.nbytes], dtype=np.int64))
            buffers = [None, offsets, pa.py_buffer(array.reshape(-1))]
            columns[name] = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, buffers)
        return pa.table(columns)

    @classmethod
    def from_arrow(cls, table: pa.Table, index: int, spec: SampleSpec) -> Sample:
        """The sample in a row of such a table; its arrays are read-only views of the table's memory."""
        position = {
            name: table[name][index].as_py() for name in ("row", "step", "epoch", "video_id", "error")
        }
        arrays = {}
        for name, (dtype, shape) in spec.array_types.items():
            # Arrow's scalars are copies.
            (value,) = table.column(name).slice(index, 1).chunks
            if value.null_count:
                return cls(**position, views=None)
            _, offsets, data = value.buffers()
            first, stop = np.frombuffer(offsets, np.int64)[value.offset : value.offset + 2]
            arrays[name] = np.frombuffer(data, np.uint8)[first:stop].view(dtype).reshape(shape)
        return cls(**position, views=views_of(arrays, spec))


def sample_bytes(spec: SampleSpec) -> int:
    """Bytes of the pixels or features of one sample, as shipped."""
    return sum(
        math.prod(shape) * np.dtype(dtype).itemsize
        for name, (dtype, shape) in spec.array_types.items()
        if name.endswith((".pixels", ".features"))
    )


def load_task_bytes(spec: SampleSpec) -> int:
    """Memory of a loading task: two interpreters, the decoded frames of a video, its samples."""
    return 480 * 2**20 + 2 * (_decoded_bytes(spec) + max(_SMALL_BYTES * _MOST_ROWS, sample_bytes(spec)))


def rows_per_task(spec: SampleSpec, batch_size: int, num_workers: int) -> int:
    """Rows that one loading task reads into one block: several of few bytes, since a task of Ray's costs 20 ms of CPU.

    Where the workers' shares of a step are equal, these are whole blocks, so that each worker gets the rows that it
    would get one by one.

    Args:
        spec: Of the run's samples.
        batch_size: Videos of a step.
        num_workers: Most workers that share it.
    """
    if batch_size % num_workers or _decoded_bytes(spec) + sample_bytes(spec) > _SMALL_BYTES:
        return 1
    share = batch_size // num_workers
    return max(size for size in range(1, _MOST_ROWS + 1) if share % size == 0)


def _decoded_bytes(spec: SampleSpec) -> int:
    """Bytes of a video's decoded frames (16:9)."""
    num_frames = sum(view.count * view.num_frames for view in spec.views if view.features is None)
    return num_frames * spec.data.short_side**2 * 16 // 9 * 3
