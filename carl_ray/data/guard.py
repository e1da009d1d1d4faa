"""Readers of videos with a child process that may hang or crash. No Ray here.

this process (no torch) ── request ▶ child (no torch either): fetch ▶ decode ▶ augment, or crop ── arrays ▶ this process
"""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from collections.abc import Iterator
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from pydantic import TypeAdapter

from carl_ray.config import Config
from carl_ray.data.child import MEMORY, Array, BadVideoError, Child, Values, keep_memory, open_channel
from carl_ray.data.keypoints import NUM_JOINTS
from carl_ray.data.sample import SampleSpec, arrays_of, load_task_bytes, views_of
from carl_ray.objectives.base import ViewTensors
from carl_ray.objectives.views import AugmentConfig, Follows

if TYPE_CHECKING:  # pyarrow.parquet is a fifth of what a child takes to start
    from carl_ray.data.manifest import StreamVideo
    from carl_ray.data.video_file import AnySource


UNEXPECTED = "reading failed"
"""Prefix of the reject reason of a video whose reading raised an unexpected exception."""

_COUNT_LIMITS = 10
"""Time limit of counting as a multiple of `data.time_limit`: it decodes the whole video for one value."""
_SPEC = TypeAdapter(SampleSpec)
_AUGMENT = TypeAdapter(AugmentConfig)
_LONGEST_SIDE = 1 << 16  # pixels
_FULL_SIZE_FRAMES = 8
"""Largest chunk to decode where frames are not resized: 64 of 3840 x 2160 would take 1.6 GB."""


class ViewReader(Child):
    """Reader of the views of a video, made in a child process."""

    def __init__(self, code: str = "from carl_ray.data.guard import answer_views; answer_views()") -> None:
        super().__init__(code)

    def read(self, video: StreamVideo, epoch: int, spec: SampleSpec) -> dict[str, ViewTensors[np.ndarray]]:
        """The result of `carl_ray.data.make_views.make_views` for a video.

        Args:
            video: Row of the manifest, with the columns of the spec.
            epoch: Epoch of the run.
            spec: Of the run's samples.

        Raises:
            BadVideoError: the video cannot be read, takes longer than `data.time_limit` seconds or more than 2 GiB of
                memory beside what its task reserves, or its decoder crashed.
            RunError: a retry may succeed: the storage refuses, fails or takes too long, or the process was killed
                or stopped from outside or could not be started.
        """
        given: dict[str, Any] = dict(video)
        columns = {
            name: None
            if given.get(name) is None
            else np.atleast_1d(np.asarray(given[name], np.int64)).tolist()
            for name in spec.columns
        }
        keypoints = video.get("keypoints")
        arguments = {
            "video_id": video["video_id"],
            "num_video_frames": video["num_frames"],
            "frame_step": float(video["frame_step"]),
            "epoch": epoch,
            "spec": _SPEC.dump_python(spec, mode="json"),
            "verified": video["verified"],
            "columns": columns,
            "key_frames": video.get("key_frames"),
            "keypoints": None if keypoints is None else b64encode(keypoints.tobytes()).decode(),
        }
        expected = {name: Array(*found) for name, found in spec.array_types.items()}
        memory = load_task_bytes(spec) + MEMORY
        (arrays,) = self.ask(video["uri"], arguments, expected, seconds=spec.data.time_limit, memory=memory)
        views = views_of(arrays, spec)
        for view in spec.views:
            of_frames, mask = views[view.name].columns, views[view.name].mask
            known = all(np.isin(of_frames[name], [-1, *(columns[name] or [])]).all() for name in columns)
            if not (known and (mask.any(1).all() or isinstance(view.span, Follows))):
                raise BadVideoError("the decoder sent labels that the video does not have, or no frames")
        return views


class FrameReader(Child):
    """Reader of all frames of a video, decoded in a child process."""

    def __init__(self, code: str = "from carl_ray.data.guard import answer_frames; answer_frames()") -> None:
        super().__init__(code)

    def read(
        self,
        source: bytes | str,
        num_frames: int,
        config: Config,
        *,
        chunk_frames: int,
        short_side: int | None = None,
        copies_of: str | None = None,
        whole: bool = False,
    ) -> Iterator[UInt8[np.ndarray, "*copies chunk height width 3"]]:
        """Yield the chunks of `iterate_frames`, cropped to squares unless `whole`; one is decoded ahead.

        Close the iterator to stop early, which ends the process.

        Args:
            source: The content of a video file, or its path or URI.
            num_frames: How many frames it has.
            config: Of the run: decoder, time limit, frame stride, and the side S of the squares
                (`augment.image_size`).
            chunk_frames: Frames of a chunk; the last one may have fewer.
            short_side: As for `iterate_frames`.
            copies_of: Id of the video: yield the clean squares and their augmented copies (`make_copies`), stacked.
            whole: Yield whole frames.

        Returns:
            Chunks, in order: the central S x S pixels of each frame, or the whole frame if a side is shorter. If the
            decoder hangs or dies, the previous chunk may be lost as well.

        Raises:
            BadVideoError: while iterating: as `ViewReader.read`, with the time limit for each chunk, without
                the time until the chunk is requested.
            RunError: while iterating: as `ViewReader.read`.
        """
        arguments: dict[str, object] = {
            "num_frames": num_frames,
            "chunk_frames": chunk_frames,
            "short_side": short_side,
            "image_size": _LONGEST_SIDE if whole else config.augment.image_size,
            "decoder": config.data.decoder,
            "frame_stride": config.data.frame_stride,
        }
        copies: tuple[int, ...] = ()
        if copies_of is not None:
            copies = (1 + (config.augment.copies or 0),)
            arguments |= {"key": (config.training.seed, copies_of)}
            arguments |= {"augment": _AUGMENT.dump_python(config.augment, mode="json")}
        # As decoded (16:9), and cut.
        chunk = (1 + sum(copies)) * chunk_frames * config.augment.image_size**2 * 25 // 9 * 3
        memory = 2 * chunk + MEMORY
        sides = range(1, _LONGEST_SIDE)
        expected = {"frames": Array("|u1", (*copies, range(1, chunk_frames + 1), sides, sides, 3))}
        num_taken = missing = math.ceil(num_frames / config.data.frame_stride)
        for fields in self.ask(
            source, arguments, expected, seconds=config.data.time_limit, memory=memory, values=None
        ):
            missing -= fields["frames"].shape[-4]
            if missing < 0:
                break
            yield fields["frames"]
        if missing:
            raise BadVideoError(f"the decoder sent {num_taken - missing} of {num_taken} frames")

    def count(self, source: bytes | str, config: Config) -> int:
        """Count the frames that decode, within ten times `data.time_limit`.

        Raises:
            BadVideoError, RunError: as `ViewReader.read`.
        """
        seconds = _COUNT_LIMITS * config.data.time_limit
        (fields,) = self.ask(source, {}, {"num_frames": int}, seconds=seconds)
        return int(fields["num_frames"])


def answer_views() -> None:
    """Main function of the child process of a `ViewReader`."""
    serve = open_channel()
    keep_memory()
    import cv2

    from carl_ray.data import make_views

    cv2.setNumThreads(1)  # its threads, started at large images, would count against the memory limit

    def views(source: AnySource, spec: dict[str, Any], keypoints: str | None, **arguments: Any) -> Values:
        found = None if keypoints is None else np.frombuffer(b64decode(keypoints), np.float16)
        arguments["keypoints"] = None if found is None else found.reshape(-1, NUM_JOINTS, 3)
        yield arrays_of(make_views.make_views(source, spec=_SPEC.validate_python(spec), **arguments))

    serve(views)


def answer_frames() -> None:
    """Main function of the child process of a `FrameReader`."""
    serve = open_channel()
    keep_memory()
    from carl_ray.data import decode

    def frames(source: AnySource, **arguments: Any) -> Values:
        if not arguments:
            video = decode.open_source(source)
            # Of a range, the frames are known; whether they decode, the reader sees.
            yield {"num_frames": video.num_frames or decode.probe_video(video, verify=True).num_frames}
            return
        size, chunk_frames = arguments.pop("image_size"), arguments.pop("chunk_frames")
        full_size = arguments["short_side"] is None
        key, augment = arguments.pop("key", None), arguments.pop("augment", None)
        if key is not None:
            from carl_ray.data.make_views import make_copies

            drawn = _AUGMENT.validate_python(augment)
            for chunk in decode.iterate_frames(source, chunk_frames=chunk_frames, **arguments):
                yield {"frames": make_copies(chunk, tuple(key), drawn)}
            return
        at_once = math.gcd(chunk_frames, _FULL_SIZE_FRAMES) if full_size else chunk_frames
        chunks = decode.iterate_frames(source, chunk_frames=at_once, **arguments)
        squares = map(_central_square, chunks, repeat(size))  # holds no chunk while the next one is made
        while group := [*islice(squares, chunk_frames // at_once)]:
            yield {"frames": group[0] if len(group) == 1 else np.concatenate(group)}
            group.clear()

    serve(frames)


def _central_square(
    frames: UInt8[np.ndarray, "n height width 3"], size: int
) -> UInt8[np.ndarray, "n height_cut width_cut 3"]:
    """Crop to the central square, contiguous; whole frames if one side is shorter.

    Half of an odd difference is rounded down, but to even where the shorter side has exactly `size` pixels, as
    `carl_ray.data.augment_tensors.center_view` rounds.
    """
    extents = frames.shape[1:3]
    if min(extents) < size:
        return frames
    is_larger = min(extents) > size
    top, left = ((side - size) // 2 if is_larger else round((side - size) / 2) for side in extents)
    return np.ascontiguousarray(frames[:, top : top + size, left : left + size])
