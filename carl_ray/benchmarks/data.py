"""What a core does on the way from a file to two views, stage by stage, beside the least it can do. Free of Ray.

All stages take the same draws (a video in an epoch), one stage after the other draw by draw, so that whatever else
the machine does meets all of them alike. Rates are frames of views (2 T a pair) per CPU second of this process with
one thread; the contents of the files are in memory. The decode-only limit is the least that can be done: decode from
the first frame that a view needs to the last, and convert only the needed ones to RGB with a short side of
`augment.image_size`.

Legend: T frames of a view, S x S pixels.
"""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeVar

import av
import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image

from carl_ray import options
from carl_ray.benchmarks import pil
from carl_ray.benchmarks.table import Table
from carl_ray.benchmarks.videos import Video, kinds, long_enough
from carl_ray.config import Config
from carl_ray.data.augment import AugmentParameters, apply_color, apply_geometry
from carl_ray.data.decode import DecodeError, Decoder, read_frames
from carl_ray.data.sample import ViewPair, make_view_pair
from carl_ray.errors import UserError

T = TypeVar("T")

NUM_DRAWS = 6
"""Pairs of views that are measured, unless the folder holds more videos."""
_MOST_VIDEOS = 24
LIMIT = "decode-only limit"
"""Name of that row."""
_ALONE = "alone"
PIL, PIL_ALONE = "per-frame PIL pipeline", f"PIL augmentation {_ALONE}"
"""Names of those rows, with Pillow's own blur; the multiples are of these."""
_PIL_ROWS: tuple[tuple[str, pil.Blur], ...] = ((PIL, "pillow"), ("… torchvision's blur", "torchvision"))
_PIL_ALONE_ROWS: tuple[tuple[str, pil.Blur], ...] = (
    (PIL_ALONE, "pillow"),
    (f"… {_ALONE}, torchvision's blur", "torchvision"),
)
_AUGMENTATION_ROWS: tuple[tuple[str, Literal["exact", "matrix"]], ...] = (
    (f"augmentation {_ALONE}", "exact"),
    (f"… {_ALONE}, colour as a matrix", "matrix"),
)
# Pillow takes seconds for a pair: it augments one frame of so many, which counts for all of them.
_PIL_STRIDE = 16

VARIANTS: tuple[tuple[str, dict[str, str]], ...] = (
    ("+ views and geometry", {"augment.color_on": "trainer"}),
    ("… as YUV 4:2:0", {"augment.color_on": "trainer", "augment.pixels": "yuv420"}),
    ("+ colour and blur", {"augment.color_on": "workers"}),
    ("… colour as a matrix", {"augment.color_on": "workers", "augment.color": "matrix"}),
)
"""Ways to make the views: the row's name, and the fields in which the configuration differs."""


@dataclass(frozen=True, eq=False)
class Draw:
    """A video in an epoch, and what its views take."""

    video: Video
    content: bytes
    """Of the file."""
    epoch: int
    pair: ViewPair

    @property
    def num_frames(self) -> int:
        """Frames of both views, without padding."""
        return int(self.pair.frame_mask.sum())

    @property
    def needed(self) -> Int64[np.ndarray, " needed"]:
        """Indices of the frames that either view takes, ascending."""
        return np.unique(self.pair.timestamps[self.pair.frame_mask]).astype(np.int64)

    def places(self, view: int) -> Int64[np.ndarray, " time"]:
        """Where the frames of a view are among the needed ones."""
        return np.searchsorted(self.needed, self.pair.timestamps[view, self.pair.frame_mask[view]])

    def parameters(self, view: int) -> AugmentParameters:
        """The augmentation of a view."""
        return AugmentParameters.from_vector(self.pair.color[view])


def measure(videos: Sequence[Video], config: Config, on_progress: Callable[[str], None]) -> list[Table]:
    """The rate of each stage, and the bytes of a pair at each hop.

    Args:
        videos: Those that are shorter than T are left out.
        config: The run.
        on_progress: Called with a line now and then.

    Raises:
        UserError: no video is long enough, or one cannot be read.
    """
    long, notes = long_enough(videos, config.model.num_frames)
    if len(long) > _MOST_VIDEOS:
        long = [long[at] for at in np.linspace(0, len(long) - 1, _MOST_VIDEOS).astype(int)]
        notes.append(f"{_MOST_VIDEOS} videos of the folder, evenly taken")
    num_draws = -(-NUM_DRAWS // len(long)) * len(long)
    frames = 0
    seconds: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    hops: Counter[str] = Counter()
    with one_thread():
        for number in range(num_draws):
            draw = make_draw(long[number % len(long)], number // len(long), config)
            if number == 0:
                on_progress("data: warming up")
                _our_stages(draw, config)
            ours, decoded = _our_stages(draw, config)
            measured = ours | _augmentations(draw, decoded, config)
            frames += draw.num_frames
            seconds.update({stage: spent.seconds for stage, spent in measured.items()})
            sizes.update({stage: spent.num_bytes for stage, spent in measured.items()})
            hops.update(_hops(draw, decoded, config))
            on_progress(
                f"data: {number + 1}/{num_draws} {draw.video.path.name}, "
                f"{draw.num_frames / measured[LIMIT].seconds:,.0f} frames/s at the limit"
            )
    title = f"data: {num_draws} pairs of views of {kinds(long)}, one core, frames of views per CPU second"
    rates = {stage: frames / spent for stage, spent in seconds.items()}
    megabytes = {stage: size / num_draws / 1e6 for stage, size in sizes.items()}
    rows = [
        (hop, f"{size / num_draws / 1e6:.1f}", f"{size / hops['shipped']:.2f}") for hop, size in hops.items()
    ]
    return [
        rate_table(title, rates, megabytes, notes),
        Table(
            "bytes of a pair of views at each hop",
            ("hop", "MB", "of what is shipped"),
            rows,
            ["compressed file: the whole of it, whatever part is decoded", "MB: a million bytes"],
        ),
    ]


def rate_table(
    title: str, rates: Mapping[str, float], megabytes: Mapping[str, float], notes: Sequence[str]
) -> Table:
    """The table of stages, each as a share of the limit and as a multiple of Pillow.

    Args:
        title: Of the table.
        rates: Frames a second of each stage, `LIMIT`, `PIL` and `PIL_ALONE` among them.
        megabytes: What a pair is when it leaves the stage; 0 where nothing is kept.
        notes: More lines below it.
    """
    rows = [
        (
            stage,
            f"{rate:,.0f}",
            f"{rate / rates[LIMIT]:.2f}",
            f"{rate / rates[PIL_ALONE if _ALONE in stage else PIL]:.1f}",
            f"{megabytes[stage]:.1f}" if megabytes[stage] else "-",
        )
        for stage, rate in rates.items()
    ]
    return Table(
        title,
        ("stage", "frames/s", "of the limit", "x PIL", "MB a pair"),
        rows,
        [
            "the limit: from the first needed frame to the last, only the needed ones to RGB at the size of the view",
            f"PIL: every frame of the file up to the last needed one to RGB; one of {_PIL_STRIDE} augmented, counted "
            "for all",
            f"{_ALONE}: of frames already decoded; x PIL compares it with Pillow's alone",
            "torchvision's blur: what torchvision.transforms does to Pillow's images; Pillow's own is approximate",
            *notes,
        ],
    )


def decode_limit(videos: Sequence[Video], config: Config, num_draws: int) -> float:
    """Frames of views per CPU second that one core decodes and converts, and nothing else.

    Args:
        videos: All at least as long as a view.
        config: The run.
        num_draws: Pairs of views to take the mean over.
    """
    frames, spent = 0, 0.0
    with one_thread():
        for number in range(num_draws):
            draw = make_draw(videos[number % len(videos)], number // len(videos), config)
            frames += draw.num_frames
            spent += _timed(partial(_read, draw, config.augment.image_size))[1]
    return frames / spent


def make_draw(video: Video, epoch: int, config: Config) -> Draw:
    """A video in an epoch of the run.

    Raises:
        UserError: the video cannot be read.
    """
    content = video.path.read_bytes()
    try:
        # The trainer's colour: the same draws in half the time.
        geometry = options.overridden(config, {"augment.color_on": "trainer"})
        return Draw(video, content, epoch, _pair(video, content, epoch, geometry))
    except DecodeError as error:
        raise UserError(f"{video.path}: expected a video: {error}") from None


@dataclass(frozen=True)
class _Spent:
    """On one pair of views at one stage."""

    seconds: float
    """Of CPU."""
    num_bytes: int = 0
    """That the frames have when they leave it."""


def _our_stages(draw: Draw, config: Config) -> tuple[dict[str, _Spent], np.ndarray]:
    """What the stages of the run take for one draw, and the needed frames as the run reads them."""
    timestamps = _timestamps(draw.content, draw.video.num_frames)
    first, last = int(draw.needed[0]), int(draw.needed[-1])
    _, decoding = _timed(partial(decode, draw.content, timestamps, first, last))
    least, limit = _timed(partial(_read, draw, config.augment.image_size))
    decoded, reading = _timed(partial(_read, draw, config.data.short_side, config.data.decoder))
    spent = {
        "decode": _Spent(decoding),
        LIMIT: _Spent(limit, least.nbytes),
        "as the run reads them": _Spent(reading, decoded.nbytes),
    }
    for label, overrides in VARIANTS:
        variant = options.overridden(config, overrides)
        pair, seconds = _timed(partial(_pair, draw.video, draw.content, draw.epoch, variant))
        spent[label] = _Spent(seconds, pair.frames.nbytes)
    return spent, decoded


def _augmentations(draw: Draw, decoded: np.ndarray, config: Config) -> dict[str, _Spent]:
    """What Pillow takes for one draw, and the augmentation alone both ways."""
    full, decoding = _timed(partial(_decode_all, draw.content, draw.needed))
    size = config.augment.image_size
    num_bytes = 4 * draw.num_frames * 3 * size**2
    pipelines = {
        label: _Spent(decoding + _pil_seconds(draw, full, config, blur, tensors=True), num_bytes)
        for label, blur in _PIL_ROWS
    }
    ours = {
        label: _Spent(_timed(partial(_augment, draw, decoded, size, color))[1])
        for label, color in _AUGMENTATION_ROWS
    }
    alone = {
        label: _Spent(_pil_seconds(draw, decoded, config, blur, tensors=False))
        for label, blur in _PIL_ALONE_ROWS
    }
    return pipelines | ours | alone


def _pair(video: Video, content: bytes, epoch: int, config: Config) -> ViewPair:
    return make_view_pair(content, video.path.name, video.num_frames, 1.0, epoch, config, verified=True)


def _read(
    draw: Draw, short_side: int, decoder: Decoder = "pyav"
) -> UInt8[np.ndarray, "needed height width 3"]:
    return read_frames(
        draw.content,
        draw.needed,
        short_side=short_side,
        decoder=decoder,
        num_frames=draw.video.num_frames,
    )


def _augment(draw: Draw, decoded: np.ndarray, image_size: int, color: Literal["exact", "matrix"]) -> None:
    for view in range(2):
        parameters = draw.parameters(view)
        geometry = apply_geometry(decoded, parameters, image_size, draw.places(view))
        apply_color(geometry, parameters, color)


def _pil_seconds(draw: Draw, frames: np.ndarray, config: Config, blur: pil.Blur, *, tensors: bool) -> float:
    """CPU seconds that Pillow would take for all frames of both views."""
    scale = min(frames.shape[1:3]) / config.data.short_side
    total = 0.0
    for view in range(2):
        parameters = scaled(draw.parameters(view), scale, frames.shape[1], frames.shape[2])
        places = draw.places(view)
        taken = places[::_PIL_STRIDE]
        begin = time.process_time()
        for place in taken:
            image = pil.augment(Image.fromarray(frames[place]), parameters, config.augment.image_size, blur)
            if tensors:
                pil.to_tensor(image)
        total += (time.process_time() - begin) * len(places) / len(taken)
    return total


def scaled(parameters: AugmentParameters, scale: float, height: int, width: int) -> AugmentParameters:
    """The same crop of frames that are `scale` times as large, height x width pixels, to the nearest pixel."""
    top, left = round(parameters.top * scale), round(parameters.left * scale)
    return replace(
        parameters,
        top=top,
        left=left,
        height=min(round(parameters.height * scale), height - top),
        width=min(round(parameters.width * scale), width - left),
    )


def decode(content: bytes, timestamps: Sequence[int] | None, first: int, last: int) -> int:
    """Decodes from the key frame before a frame to another one and keeps nothing; how many frames came out.

    Args:
        content: Of the file.
        timestamps: Of all frames, ascending; None: decoding starts at the first frame of the file.
        first: Index of the first needed frame.
        last: Index of the last one.
    """
    count = 0
    with av.open(io.BytesIO(content)) as container:
        stream = _stream(container)
        if timestamps is not None:
            container.seek(timestamps[first], stream=stream)
        for frame in container.decode(stream):
            count += 1
            if count > last or (timestamps is not None and frame.pts == timestamps[last]):
                break
    return count


def _timestamps(content: bytes, num_frames: int) -> list[int] | None:
    """Of every packet, ascending; None where `read_frames` would not seek either."""
    with av.open(io.BytesIO(content)) as container:
        stream = _stream(container)
        found = [packet.pts for packet in container.demux(stream) if packet.size]
        seeking = stream.codec_context.name in ("h264", "hevc") and None not in found
        return sorted(found) if seeking and len(found) == num_frames else None


def _decode_all(
    content: bytes, needed: Int64[np.ndarray, " needed"]
) -> UInt8[np.ndarray, "needed height width 3"]:
    """Every frame from the start to the last needed one as RGB of its own size; the needed ones are kept."""
    wanted = set(needed.tolist())
    frames = []
    with av.open(io.BytesIO(content)) as container:
        for index, frame in enumerate(container.decode(_stream(container))):
            pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
            if index in wanted:
                frames.append(pixels)
            if index == needed[-1]:
                break
    return np.stack(frames)


def _stream(container: av.container.InputContainer) -> av.video.VideoStream:
    cover = av.stream.Disposition.attached_pic
    stream = next(stream for stream in container.streams.video if not stream.disposition & cover)
    stream.codec_context.thread_count = 1
    return stream


def _hops(draw: Draw, decoded: np.ndarray, config: Config) -> dict[str, int]:
    """Bytes of one pair at each hop."""
    return {
        "compressed file": len(draw.content),
        "needed frames, decoded": decoded.nbytes,
        "shipped": draw.pair.frames.nbytes,
        "float32 on the device": 4 * 2 * config.model.num_frames * 3 * config.augment.image_size**2,
    }


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    begin = time.process_time()
    result = work()
    return result, time.process_time() - begin


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch's own arithmetic, as a decoding task of one CPU has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
