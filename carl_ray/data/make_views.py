"""Make the augmented views of a video. No Ray here, and torch only for YUV or without the compiled part.

    bytes ─ decode the needed frames once ▶ for each clip: crop, resize, flip, colour ▶ ViewTensors (NumPy)

The views are a pure function of (seed, epoch, video) and the spec.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int64, UInt8

from carl_ray.data.augment import AugmentParameters, change_colors, draw_parameters, resize_crop
from carl_ray.data.decode import DecodeError, read_frames
from carl_ray.data.keypoints import keypoints_in_view
from carl_ray.data.randomness import COPY_EPOCH, ViewNumber, sample_generator, view_key
from carl_ray.data.sample import SampleSpec, at_frames, draw_clips, draw_copies
from carl_ray.data.video_file import AnySource
from carl_ray.data.views import ViewIndices
from carl_ray.objectives.base import ViewTensors
from carl_ray.objectives.views import AugmentConfig, KeyFrame, ViewSpec

_LOGGER = logging.getLogger(__name__)

_Drawn = dict[str, tuple[ViewIndices, ...]]


def make_views(
    source: AnySource,
    video_id: str,
    num_video_frames: int,
    frame_step: float,
    epoch: int,
    spec: SampleSpec,
    *,
    verified: bool = False,
    columns: Mapping[str, Sequence[int] | None] | None = None,
    key_frames: Sequence[int] | None = None,
    keypoints: Float[np.ndarray, "frames 17 3"] | None = None,
) -> dict[str, ViewTensors[np.ndarray]]:
    """The augmented views of one video in one epoch (paper, section 3.2), by name.

    The union of all views' frames is decoded once, resized while decoding.

    Args:
        source: The file's content, or its path, URI or address.
        video_id: `video_id` of the manifest; with the run's seed and the epoch it determines every draw.
        num_video_frames: Frames of the video.
        frame_step: Timestamp of frame i is i * frame_step.
        epoch: Epoch of the run.
        spec: Of the run's samples.
        verified: Every frame was decoded once to count them: the decoder may rely on it.
        columns: Of each column of the spec the value of every frame, -1 for none; None where the video has none.
        key_frames: Indices of the key frames, as in the manifest; None where they are not known.
        keypoints: x and y (parts of the frame) and score of COCO's joints in every frame; None: no valid ones.

    Raises:
        DecodeError: the video cannot be read.
    """
    asked, drawn, needed, decoded = _decode(
        source, video_id, num_video_frames, epoch, spec, verified, key_frames
    )
    height, width = decoded.shape[1:3]
    views = {}
    for view in spec.views:
        own = drawn[view.name]
        draws = _draw(view, spec, (height, width), (spec.seed, epoch, video_id))
        corners = [(d.left, d.top, d.left + d.width, d.top + d.height) for d in draws]
        boxes, flips = np.array(corners) / (width, height, width, height), np.array([d.flip for d in draws])
        views[view.name] = ViewTensors(
            timestamps=np.stack([clip.frame_indices * float(frame_step) for clip in own]),
            mask=np.stack([clip.frame_mask for clip in own]),
            parameters=np.stack([draw.to_vector() for draw in draws]),
            boxes=boxes,
            flips=flips,
            spans=np.array([clip.crop for clip in asked[view.name]]) * float(frame_step),
            pixels=_augmented(decoded, needed, own, view, draws),
            keypoints=keypoints_in_view(keypoints, own, boxes, flips) if view.keypoints else None,
            columns={
                name: np.stack([at_frames(clip, (columns or {}).get(name)) for clip in own])
                for name in spec.columns
            },
        )
    return views


def _decode(
    source: AnySource,
    video_id: str,
    num_video_frames: int,
    epoch: int,
    spec: SampleSpec,
    verified: bool,
    key_frames: Sequence[int] | None,
) -> tuple[_Drawn, _Drawn, Int64[np.ndarray, " needed"], UInt8[np.ndarray, "needed h w 3"]]:
    """The clips of each view as drawn first and as decoded, where a key frame fails with another one; their frames."""
    asked: _Drawn = {}
    failures: dict[bytes, DecodeError] = {}  # By the frames that were asked for.
    for attempt in range(3 if any(isinstance(view.span, KeyFrame) for view in spec.views) else 1):
        arguments = video_id, num_video_frames, epoch, spec, key_frames, attempt
        drawn = {view.name: draw_clips(view, *arguments) for view in spec.views}
        asked = asked or drawn
        clips = [clip for view in drawn.values() for clip in view]
        needed = np.unique(np.concatenate([clip.frame_indices[clip.frame_mask] for clip in clips]))
        if needed.tobytes() in failures:
            continue
        try:
            num_frames = num_video_frames if verified else None
            size, decoder = spec.data.short_side, spec.data.decoder
            decoded = read_frames(source, needed, short_side=size, decoder=decoder, num_frames=num_frames)
            if attempt:
                _LOGGER.warning("%s: a key frame does not decode; another frame is shown", video_id)
            return asked, drawn, needed, decoded
        except DecodeError as error:
            failures[needed.tobytes()] = error
    raise next(iter(failures.values()))


def _draw(
    view: ViewSpec, spec: SampleSpec, size: tuple[int, int], key: tuple[int, int, str]
) -> list[AugmentParameters]:
    """The spatial draw of each clip of a view, for decoded frames of this height and width."""
    count, view = view.count, spec.drawn_as(view)
    copies = draw_copies(view, key[2], key[1], key[0])
    if copies is not None:
        return [copy_parameters(copy, *size, (key[0], key[2]), view.augment) for copy in copies[:count]]
    numbers = range(ViewNumber.FIRST, ViewNumber.FIRST + count)
    generators = (sample_generator(*key, view_key(view.name, number)) for number in numbers)
    return [draw_parameters(view.augment, *size, rng) for rng in generators]


def _augmented(
    decoded: UInt8[np.ndarray, "needed height width 3"],
    needed: Int64[np.ndarray, " needed"],
    clips: Sequence[ViewIndices],
    view: ViewSpec,
    draws: Sequence[AugmentParameters],
) -> UInt8[np.ndarray, "n time *frame"]:
    """Pixels of the clips of a view, zeros where masked."""
    augment = view.augment
    pixels = np.zeros((view.count, view.num_frames, *view.frame_shape), dtype=np.uint8)
    for number, (clip, parameters) in enumerate(zip(clips, draws, strict=True)):
        if not clip.frame_mask.any():
            continue  # It follows a clip at the end of the video.
        places = np.searchsorted(needed, clip.frame_indices[clip.frame_mask])
        # Into the output array without a copy if it has this layout: new pages are slow.
        whole = clip.frame_mask.all() and augment.pixels == "rgb"
        size = augment.image_size
        frames = pixels[number] if whole else np.empty((len(places), size, size, 3), np.uint8)
        resize_crop(decoded, parameters, places, frames)
        if augment.color_on == "workers":
            change_colors(frames, parameters)
        if not whole:
            pixels[number, clip.frame_mask] = _packed(frames) if augment.pixels == "yuv420" else frames
    return pixels


def _packed(frames: UInt8[np.ndarray, "n size size 3"]) -> UInt8[np.ndarray, "n packed"]:
    # Import torch lazily: it takes most of the time and memory that a decoding child starts with.
    import torch

    from carl_ray.data.pixels import to_yuv420

    return to_yuv420(torch.from_numpy(frames))


def copy_parameters(
    copy: int, height: int, width: int, key: tuple[int, str], augment: AugmentConfig
) -> AugmentParameters:
    """The fixed draw of a copy of a video, from 1; 0 are the clean frames: the central square.

    Args:
        copy: Its number.
        height: Of the decoded frames.
        width: Of the decoded frames.
        key: Seed of the run and id of the video.
        augment: Of the view.
    """
    if copy:
        seed, video_id = key
        return draw_parameters(augment, height, width, sample_generator(seed, COPY_EPOCH, video_id, copy))
    size = augment.image_size
    top, left = (round((side - size) / 2) for side in (height, width))
    return AugmentParameters(top, left, size, size, False, False, (0, 1, 2, 3), 1, 1, 1, 0, False, 0)


def make_copies(
    frames: UInt8[np.ndarray, "n height width 3"], key: tuple[int, str], augment: AugmentConfig
) -> UInt8[np.ndarray, "copies n size size 3"]:
    """The clean view of decoded frames, whose shorter side is `image_size`, and its `augment.copies` fixed draws."""
    size, num_copies = augment.image_size, 1 + (augment.copies or 0)
    made = np.empty((num_copies, len(frames), size, size, 3), np.uint8)
    for copy in range(num_copies):
        parameters = copy_parameters(copy, frames.shape[1], frames.shape[2], key, augment)
        resize_crop(frames, parameters, np.arange(len(frames)), made[copy])
        change_colors(made[copy], parameters)
    return made
