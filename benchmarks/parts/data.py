"""What a core does on the way from a file to two views, stage by stage, beside the least it can do. Free of Ray.

All stages take the same draws (a video in an epoch), one stage after the other draw by draw, so that whatever else
the machine does meets all of them alike. Rates are frames of views (2 T a pair) per CPU second of this process with
one thread; the contents of the files are in memory. The decode-only limit is the least that can be done: decode from
the key frame before the first frame that a view needs to the last one needed, and convert only the needed ones to RGB
with a short side of `augment.image_size`. It is a loop of its own, which trusts the file; so is Pillow's.

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
from typing import TypeVar

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from jaxtyping import Int64, UInt8
from PIL import Image

from benchmarks.parts import pil
from benchmarks.parts.table import Table
from benchmarks.parts.videos import Video, kinds, long_enough
from carl_ray import options
from carl_ray.config import Config
from carl_ray.data.augment import AugmentParameters, change_colors, resize_crop
from carl_ray.data.child import keep_memory
from carl_ray.data.decode import DecodeError, read_frames
from carl_ray.data.make_views import make_views
from carl_ray.data.sample import sample_spec
from carl_ray.errors import UserError
from carl_ray.objectives.base import ViewTensors
from carl_ray.objectives.views import CROPS

T = TypeVar("T")

NUM_DRAWS = 6
"""Pairs of views that are measured, unless there are more videos."""
LIMIT = "decode-only limit"
"""Name of that row."""
_DECODE = "decode"
PIL, PIL_ALONE = "per-frame PIL pipeline", "PIL augmentation alone"
"""Names of those rows, with Pillow's own blur; the multiples are of these."""
_PIL_ROWS: tuple[tuple[str, pil.Blur], ...] = ((PIL, "pillow"), ("… torchvision's blur", "torchvision"))
_PIL_ALONE_ROWS: tuple[tuple[str, pil.Blur], ...] = (
    (PIL_ALONE, "pillow"),
    ("… alone, torchvision's blur", "torchvision"),
)
# Pillow takes seconds for a pair: it augments one frame of so many, which counts for all of them.
_PIL_STRIDE = 16


VARIANTS: tuple[tuple[str, dict[str, str]], ...] = (
    ("+ views and geometry", {"augment.color_on": "trainer", "augment.pixels": "rgb"}),
    ("… as YUV 4:2:0", {"augment.color_on": "trainer", "augment.pixels": "yuv420"}),
    ("+ colour and blur", {"augment.color_on": "workers", "augment.pixels": "rgb"}),
)
"""Ways to make the views: the row's name, and the fields that say so, whatever the configuration."""


@dataclass(frozen=True, eq=False)
class Draw:
    """A video in an epoch, and what its views take."""

    video: Video
    content: bytes
    """Of the file."""
    epoch: int
    pair: ViewTensors[np.ndarray]

    @property
    def num_frames(self) -> int:
        """Frames of both views, without padding."""
        return int(self.pair.mask.sum())

    @property
    def needed(self) -> Int64[np.ndarray, " needed"]:
        """Indices of the frames that either view takes, ascending."""
        return np.unique(self.pair.timestamps[self.pair.mask]).astype(np.int64)

    @property
    def sampled(self) -> set[int]:
        """Places among the needed frames of those that Pillow augments."""
        return {int(place) for view in range(2) for place in self.places(view)[::_PIL_STRIDE]}

    def places(self, view: int) -> Int64[np.ndarray, " time"]:
        """Where the frames of a view are among the needed ones."""
        return np.searchsorted(self.needed, self.pair.timestamps[view, self.pair.mask[view]])

    def parameters(self, view: int) -> AugmentParameters:
        """The augmentation of a view."""
        return AugmentParameters.from_vector(self.pair.parameters[view])


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
    num_draws = -(-NUM_DRAWS // len(long)) * len(long)
    frames = frames_decoded = 0
    stages: dict[str, Stage] = {}
    hops: Counter[str] = Counter()
    with one_thread():
        for number in range(num_draws):
            draw = make_draw(long[number % len(long)], number // len(long), config)
            if number == 0:
                on_progress("data: warming up")
                _our_stages(draw, config)
            count, ours, decoded = _our_stages(draw, config)
            measured = ours | _augmentations(draw, decoded, config)
            stages = {name: stages[name] + stage if stages else stage for name, stage in measured.items()}
            frames += draw.num_frames
            frames_decoded += count
            hops.update(_hops(draw, decoded, config))
            on_progress(
                f"data: {number + 1}/{num_draws} {draw.video.path.name}, "
                f"{draw.num_frames / measured[LIMIT].seconds:,.0f} frames/s at the limit"
            )
    title = f"data: {num_draws} pairs of views of {kinds(long)}, one core, frames of views per CPU second"
    notes.insert(0, f"{_DECODE}: {frames_decoded / stages[_DECODE].seconds:,.0f} frames/s leave the decoder")
    rows = [
        (hop, f"{size / num_draws / 1e6:.1f}", f"{size / hops['shipped']:.2f}") for hop, size in hops.items()
    ]
    return [
        rate_table(title, stages, frames, num_draws, notes),
        Table(
            "bytes of a pair of views at each hop",
            ("hop", "MB", "of what is shipped"),
            rows,
            ["compressed file: the whole of it, whatever part is decoded", "MB: a million bytes"],
        ),
    ]


@dataclass(frozen=True)
class Stage:
    """What a stage takes, for one or more pairs of views."""

    seconds: float
    """Of CPU."""
    num_bytes: int = 0
    """That the frames have when they leave it; 0 where nothing is kept."""
    compared_with: str = PIL
    """The row of Pillow's that it is a multiple of."""

    def __add__(self, other: Stage) -> Stage:
        """Of the pairs of both."""
        return replace(self, seconds=self.seconds + other.seconds, num_bytes=self.num_bytes + other.num_bytes)


def rate_table(
    title: str, stages: Mapping[str, Stage], num_frames: int, num_draws: int, notes: Sequence[str]
) -> Table:
    """The table of stages, each as a share of the limit and as a multiple of Pillow.

    Args:
        title: Of the table.
        stages: What each took for all pairs, `LIMIT`, `PIL` and `PIL_ALONE` among them.
        num_frames: Frames of views of all pairs.
        num_draws: Pairs.
        notes: More lines below it.
    """
    rates = {name: num_frames / stage.seconds for name, stage in stages.items()}
    rows = [
        (
            name,
            f"{rates[name]:,.0f}",
            f"{rates[name] / rates[LIMIT]:.2f}",
            f"{rates[name] / rates[stage.compared_with]:.1f}",
            f"{stage.num_bytes / num_draws / 1e6:.1f}" if stage.num_bytes else "-",
        )
        for name, stage in stages.items()
    ]
    return Table(
        title,
        ("stage", "frames/s", "of the limit", "x PIL", "MB a pair"),
        rows,
        [
            "the limit: from the key frame before the first needed frame to the last, only the needed ones to RGB at "
            "the size of the view",
            f"{_DECODE}: the same without the conversion",
            "PIL: the same, but the needed frames to RGB of their own size; one of "
            f"{_PIL_STRIDE} augmented, counted for all",
            "alone: of frames already decoded; x PIL compares it with Pillow's alone",
            "torchvision's blur: what torchvision.transforms does to Pillow's images; Pillow's own is approximate",
            *notes,
        ],
    )


def limit_seconds(draw: Draw, config: Config) -> float:
    """CPU seconds in which one core decodes and converts the frames of a draw, and nothing else.

    Raises:
        UserError: the video cannot be read.
    """
    with _reading(draw.video), one_thread():
        start = find_start(draw)
        return _timed(partial(least_frames, draw, start, config.augment.image_size))[1]


def make_draw(video: Video, epoch: int, config: Config) -> Draw:
    """A video in an epoch of the run.

    Raises:
        UserError: the video cannot be read.
    """
    with _reading(video):
        content = video.path.read_bytes()
        # The trainer's colour: the same draws in half the time.
        geometry = options.overridden(config, {"augment.color_on": "trainer"})
        return Draw(video, content, epoch, _pair(video, content, epoch, geometry))


@contextmanager
def _reading(video: Video) -> Iterator[None]:
    try:
        yield
    except (DecodeError, av.FFmpegError) as error:
        raise UserError(f"{video.path}: expected a video: {error}") from None


def _our_stages(draw: Draw, config: Config) -> tuple[int, dict[str, Stage], np.ndarray]:
    """Frames that one decode yields, what the stages take for one draw, and the needed frames as the run reads them."""
    with _reading(draw.video):
        start = find_start(draw)
        count, decoding = _timed(partial(decode, draw, start))
        least, limit = _timed(partial(least_frames, draw, start, config.augment.image_size))
        decoded, reading = _timed(partial(_read, draw, config))
        stages = {
            _DECODE: Stage(decoding),
            LIMIT: Stage(limit, least.nbytes),
            "as the run reads them": Stage(reading, decoded.nbytes),
        }
        for label, overrides in VARIANTS:
            variant = options.overridden(config, overrides)
            pair, seconds = _timed(partial(_pair, draw.video, draw.content, draw.epoch, variant))
            stages[label] = Stage(seconds, pixels_of(pair).nbytes)
    return count, stages, decoded


def _augmentations(draw: Draw, decoded: np.ndarray, config: Config) -> dict[str, Stage]:
    """What Pillow takes for one draw, and the augmentation alone."""
    with _reading(draw.video):
        full, decoding = _timed(partial(full_frames, draw, find_start(draw)))
    size = config.augment.image_size
    num_bytes = 4 * draw.num_frames * 3 * size**2
    pipelines = {
        label: Stage(decoding + _pil_seconds(draw, full, config, blur, tensors=True), num_bytes)
        for label, blur in _PIL_ROWS
    }
    seconds = _timed(partial(_augment, draw, decoded, size))[1]
    ours = {"augmentation alone": Stage(seconds, compared_with=PIL_ALONE)}
    taken = {place: decoded[place] for place in draw.sampled}
    alone = {
        label: Stage(_pil_seconds(draw, taken, config, blur, tensors=False), compared_with=PIL_ALONE)
        for label, blur in _PIL_ALONE_ROWS
    }
    return pipelines | ours | alone


def _pair(video: Video, content: bytes, epoch: int, config: Config) -> ViewTensors[np.ndarray]:
    spec = sample_spec(config)
    return make_views(content, str(video.path), video.num_frames, 1.0, epoch, spec, verified=True)[CROPS]


def pixels_of(view: ViewTensors[np.ndarray]) -> UInt8[np.ndarray, "n time *frame"]:
    """The pixels of a view, which every one made of a video has."""
    assert view.pixels is not None
    return view.pixels


def _read(draw: Draw, config: Config) -> UInt8[np.ndarray, "needed height width 3"]:
    return read_frames(
        draw.content,
        draw.needed,
        short_side=config.data.short_side,
        decoder=config.data.decoder,
        num_frames=draw.video.num_frames,
    )


def _augment(draw: Draw, decoded: np.ndarray, image_size: int) -> None:
    for view in range(2):
        parameters = draw.parameters(view)
        places = draw.places(view)
        frames = np.empty((len(places), image_size, image_size, 3), np.uint8)
        resize_crop(decoded, parameters, places, frames)
        change_colors(frames, parameters)


def _pil_seconds(
    draw: Draw, frames: Mapping[int, np.ndarray], config: Config, blur: pil.Blur, *, tensors: bool
) -> float:
    """CPU seconds that Pillow would take for all frames of both views, given `Draw.sampled`."""
    height, width = next(iter(frames.values())).shape[:2]
    scale = min(height, width) / config.data.short_side
    total = 0.0
    for view in range(2):
        parameters = scaled(draw.parameters(view), scale, height, width)
        places = draw.places(view)
        taken = places[::_PIL_STRIDE]
        begin = time.process_time()
        for place in taken:
            image = pil.augment(
                Image.fromarray(frames[int(place)]), parameters, config.augment.image_size, blur
            )
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


@dataclass(frozen=True, eq=False)
class Start:
    """Where decoding begins: at a key frame, from which on frames are known by their timestamps."""

    key_frame: int
    """Its timestamp."""
    indices: Mapping[int, int]
    """Of all frames of the file, by timestamp."""


def find_start(draw: Draw) -> Start | None:
    """The last key frame before the first needed frame; None: decoding begins with the file, and frames are counted.

    Timestamps do where the codec shows a frame for every packet (H.264, H.265), each packet has one of its own, and
    the key frame is the first to come out.
    """
    with av.open(io.BytesIO(draw.content), "r") as container:
        stream = _stream(container)
        packets = [packet for packet in container.demux(stream) if packet.size]
        found = {packet.pts for packet in packets if packet.pts is not None}
        certain = stream.codec_context.name in ("h264", "hevc")
        if not certain or not len(found) == len(packets) == draw.video.num_frames:
            return None
        indices = {timestamp: index for index, timestamp in enumerate(sorted(found))}
        keys = [packet.pts for packet in packets if packet.is_keyframe and packet.pts is not None]
    before = [key for key in keys if indices[key] <= draw.needed[0]]
    if not before:
        return None
    start = Start(max(before), indices)
    first = next(_decoded(draw, start), None)
    return start if first is not None and first[0] == indices[start.key_frame] else None


def _decoded(draw: Draw, start: Start | None) -> Iterator[tuple[int, av.VideoFrame]]:
    """Index and picture of the frames from the start to the last needed one, on one thread."""
    last = draw.needed[-1]
    with av.open(io.BytesIO(draw.content), "r") as container:
        stream = _stream(container)
        if start is not None:
            container.seek(start.key_frame, stream=stream)
        for count, frame in enumerate(container.decode(stream)):
            if start is None:
                index = count
            elif frame.pts is None or frame.pts < start.key_frame:
                continue
            else:
                index = start.indices[frame.pts]
            yield index, frame
            if index == last:
                return
    raise DecodeError(f"decoding ends before frame {last}")


def decode(draw: Draw, start: Start | None) -> int:
    """Decodes what has to be and keeps nothing; how many frames came out."""
    return sum(1 for _ in _decoded(draw, start))


def least_frames(
    draw: Draw, start: Start | None, short_side: int
) -> UInt8[np.ndarray, "needed height width 3"]:
    """The needed frames in RGB, scaled to a short side in pixels as they are converted."""
    reformatter, packer = VideoReformatter(), VideoReformatter()
    places = {index: place for place, index in enumerate(draw.needed.tolist())}
    frames: np.ndarray | None = None
    for index, frame in _decoded(draw, start):
        if (place := places.get(index)) is None:
            continue
        shorter = min(frame.width, frame.height)
        width, height = (round(side * short_side / shorter) for side in (frame.width, frame.height))
        # Where the width is odd, swscale takes three times as long for packed RGB as for planes that are then packed.
        form = "gbrp" if width % 2 else "rgb24"
        scaled = reformatter.reformat(frame, width=width, height=height, format=form, threads=1)
        pixels = _upright(frame, packer.reformat(scaled, format="rgb24", threads=1))
        if frames is None:
            frames = np.empty((len(places), *pixels.shape), np.uint8)
        frames[place] = pixels
    assert frames is not None
    return frames


def full_frames(draw: Draw, start: Start | None) -> dict[int, UInt8[np.ndarray, "height width 3"]]:
    """Converts the needed frames to RGB of their own size; `Draw.sampled` are kept, by their places."""
    reformatter = VideoReformatter()
    places = {index: place for place, index in enumerate(draw.needed.tolist())}
    sampled = draw.sampled
    kept = {}
    for index, frame in _decoded(draw, start):
        if (place := places.get(index)) is not None:
            pixels = _upright(frame, reformatter.reformat(frame, format="rgb24", threads=1))
            if place in sampled:
                kept[place] = pixels
    return kept


def _upright(frame: av.VideoFrame, rgb: av.VideoFrame) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a converted frame, turned as the file asks for."""
    return np.rot90(rgb.to_ndarray(), round(frame.rotation / 90) % 4)


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
        "shipped": pixels_of(draw.pair).nbytes,
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
    keep_memory()  # as the processes do that decode for a run
    try:
        yield
    finally:
        torch.set_num_threads(before)
