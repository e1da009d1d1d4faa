"""How fast whole videos become embeddings, beside the plainest way to do it. Free of Ray.

Plain: PyAV decodes every frame to RGB at its full size, PIL resizes and crops it, and the CNN sees one frame at a
time, batch norm and all; then the same temporal part. In float32, and in bfloat16 by autocast.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from benchmarks.parts.table import Table
from carl_ray.config import Config
from carl_ray.data.augment_tensors import center_view
from carl_ray.data.decode import iterate_frames, probe_video
from carl_ray.errors import UserError
from carl_ray.evaluation.inference import VideoEmbedder
from carl_ray.machine import machine_name
from carl_ray.model.encoder import FrameLevelVideoEncoder
from carl_ray.model.features import normalize
from carl_ray.training.learner import initial_encoder

_CPU_FRAMES, _GPU_FRAMES = 32, 256
_MOST_VIDEOS = 8
_ROUNDS = 3
_RATE = 25  # of the cut video; no time depends on it


@dataclass(frozen=True)
class Run:
    """One embedding of a video."""

    embeddings: Float[np.ndarray, "frames width"]
    """H of all frames, float32."""
    seconds: float
    """All together."""
    decoding_seconds: float
    """Of the pictures, on one core: for the plain way a part of all, for the other one measured by itself."""


def measure(
    videos: Sequence[Path], config: Config, device: torch.device, on_progress: Callable[[str], None]
) -> Table:
    """Frames a second of `VideoEmbedder` and of the plain way, in float32 and bfloat16; and how they agree.

    All embed the first 32 frames (on a GPU 256) of the first video, encoded anew as a video of its own, in turns:
    once to warm up, then three times, of which the median counts. On a GPU up to eight whole videos besides.

    Args:
        videos: Files that can be decoded.
        config: Model and decoder. Weights are random: they change no time.
        device: Where the encoder computes.
        on_progress: Called with a line before each part.

    Raises:
        UserError: the config's temporal encoder is C3D, which the plain way does not have.
    """
    if config.model.temporal_encoder == "c3d":
        raise UserError(
            "model.temporal_encoder c3d: the part embedding compares encoders that see single frames; "
            "take transformer or none, or leave the part out of --parts"
        )
    encoder = initial_encoder(config).eval()
    assert isinstance(encoder, FrameLevelVideoEncoder)
    size = config.augment.image_size
    on_gpu = device.type == "cuda"
    clip = cut_video(videos[0], _GPU_FRAMES if on_gpu else _CPU_FRAMES)
    num_frames = probe_video(clip, verify=True).num_frames
    embedders = {bf16: VideoEmbedder([encoder], config, device, bf16=bf16) for bf16 in (False, True)}

    ways: dict[str, Callable[[], Run]] = {
        "plain, fp32, frame by frame": partial(embed_plainly, encoder, clip, size, device),
        "plain, bf16, frame by frame": partial(embed_plainly, encoder, clip, size, device, bf16=True),
        "VideoEmbedder, fp32": partial(_embed_clip, embedders[False], clip, num_frames, config),
        "VideoEmbedder, bf16": partial(_embed_clip, embedders[True], clip, num_frames, config),
    }
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    for number in range(1 + _ROUNDS):
        on_progress(
            f"embedding {num_frames} frames, round {number} of {_ROUNDS}" + " (warming up)" * (not number)
        )
        for name, way in ways.items():
            runs[name].append(way())
    seconds = {name: statistics.median(run.seconds for run in made[1:]) for name, made in runs.items()}
    fp32, bf16, *_ = ways
    wanted = runs[fp32][0].embeddings
    rows = []
    for name, made in runs.items():
        taken = seconds[name]
        decoding = statistics.median(run.decoding_seconds for run in made[1:])
        difference = np.abs(_unit(made[0].embeddings) - _unit(wanted)).max()
        rows.append(
            (
                name,
                f"{num_frames / taken:,.1f}",
                f"{seconds[fp32] / taken:.2f}",
                f"{seconds[bf16] / taken:.2f}",
                f"{decoding / taken:.1%}",
                "" if name == fp32 else f"{difference:.1e}",
            )
        )
    if on_gpu:
        whole = [
            (str(path), probe_video(str(path), verify=True).num_frames) for path in videos[:_MOST_VIDEOS]
        ]
        name = f"VideoEmbedder, bf16, {len(whole)} whole videos"
        on_progress(name)
        taken = statistics.median([_embedded(embedders[True], whole)[1] for _ in range(1 + _ROUNDS)][1:])
        rows.append((name, f"{sum(frames for _, frames in whole) / taken:,.1f}", "", "", "", ""))
    notes = [
        f"medians of {_ROUNDS} rounds, in which the ways take turns; x fp32, x bf16: how many times as fast as the "
        "plain way in that precision",
        "decoding: its time, on one core, as a share of the time taken (VideoEmbedder decodes in processes beside the "
        "CNN, so more than 100 % is possible)",
        "difference: the largest of an element of the embeddings, scaled to length 1, from those of the plain way in "
        "fp32, whose resizing is another",
    ]
    title = (
        f"embedding: {config.model.backbone}, {size} pixels, {num_frames} frames of "
        f"{videos[0].name}, {machine_name(use_gpu=on_gpu)}"
    )
    return Table(title, ("way", "frames/s", "x fp32", "x bf16", "decoding", "difference"), rows, notes)


def embed_plainly(
    encoder: FrameLevelVideoEncoder,
    video: bytes,
    image_size: int,
    device: torch.device,
    *,
    bf16: bool = False,
) -> Run:
    """H of all frames, frame by frame as far as possible.

    Args:
        encoder: In evaluation mode, without C3D.
        video: Content of the file.
        image_size: S.
        device: Where the encoder computes.
        bf16: Matrix products in bfloat16.
    """
    encoder = encoder.to(device)
    decoding = 0.0

    def timed() -> Iterator[np.ndarray]:
        nonlocal decoding
        views = _pil_views(video, image_size)
        while True:
            begin = time.perf_counter()
            view = next(views, None)
            decoding += time.perf_counter() - begin
            if view is None:
                return
            yield view

    begin = time.perf_counter()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        features = torch.stack(list(plain_features(encoder, timed(), device)))
        embeddings = encoder.embed_features(features).float().cpu().numpy()
    return Run(embeddings, time.perf_counter() - begin, decoding)


@torch.no_grad()
def plain_features(
    encoder: FrameLevelVideoEncoder, views: Iterator[np.ndarray], device: torch.device
) -> Iterator[Float[Tensor, " C"]]:
    """Pooled features of each frame, its convolutions and batch norms one after the other."""
    backbone = encoder.backbone
    for view in views:
        maps = normalize(torch.from_numpy(view).to(device)[None]).contiguous()
        for name in backbone.frozen + backbone.learnable:
            maps = backbone.get_submodule(name)(maps)
        yield (maps.amax((2, 3)) if backbone.pooling == "max" else maps.mean((2, 3)))[0]


def cut_video(video: Path, num_frames: int) -> bytes:
    """The first frames of a video as a video of its own, MP4 with H.264, as large as they were."""
    sink = io.BytesIO()
    with av.open(str(video)) as source, av.open(sink, "w", format="mp4") as target:
        stream = None
        for number, frame in enumerate(source.decode(video=0)):
            if number == num_frames:
                break
            # 4:2:0 has no odd sides.
            width, height = frame.width // 2 * 2, frame.height // 2 * 2
            if stream is None:
                stream = target.add_stream("libx264", rate=_RATE)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            picture = frame.reformat(width=stream.width, height=stream.height, format="yuv420p")
            picture.pts, picture.time_base = number, Fraction(1, _RATE)
            target.mux(stream.encode(picture))
        if stream is not None:
            target.mux(stream.encode())
    return sink.getvalue()


def _pil_views(video: bytes, image_size: int) -> Iterator[np.ndarray]:
    with av.open(io.BytesIO(video), "r") as container:
        for frame in container.decode(video=0):
            picture = frame.to_image()
            short = min(picture.size)
            width, height = (image_size * side // short for side in picture.size)
            if (width, height) != picture.size:
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            left, top = round((width - image_size) / 2), round((height - image_size) / 2)
            yield np.array(picture.crop((left, top, left + image_size, top + image_size)))


def _embed_clip(embedder: VideoEmbedder, clip: bytes, num_frames: int, config: Config) -> Run:
    decoding = _decoding_seconds(clip, num_frames, config)
    (embeddings,), seconds = _embedded(embedder, [(clip, num_frames)])
    return Run(embeddings, seconds, decoding)


def _embedded(
    embedder: VideoEmbedder, videos: Sequence[tuple[bytes | str, int]]
) -> tuple[list[np.ndarray], float]:
    """The embeddings of each video, and the seconds that all took."""
    begin = time.perf_counter()
    results = list(embedder.embed(videos))
    seconds = time.perf_counter() - begin
    embeddings = []
    for result in results:
        if isinstance(result, Exception):
            raise result
        embeddings.append(result[0])
    return embeddings, seconds


def _decoding_seconds(video: bytes, num_frames: int, config: Config) -> float:
    """Of making the views as `VideoEmbedder` does."""
    size = config.augment.image_size
    begin = time.perf_counter()
    for frames in iterate_frames(
        video, num_frames, chunk_frames=64, short_side=size, decoder=config.data.decoder
    ):
        center_view(frames, size)
    return time.perf_counter() - begin


def _unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
