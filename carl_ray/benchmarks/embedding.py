"""How fast whole videos become embeddings, beside the plainest way to do it. Free of Ray.

Plain: PyAV decodes every frame to RGB at its full size, PIL resizes and crops it, and the CNN sees one frame at a
time in float32, batch norm and all; then the same temporal part.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from carl_ray.benchmarks.table import Table
from carl_ray.config import Config
from carl_ray.data.augment import center_view, normalize
from carl_ray.data.decode import iterate_frames, probe_video
from carl_ray.evaluation.inference import VideoEmbedder
from carl_ray.machine import machine_name
from carl_ray.model.encoder import FrameLevelVideoEncoder
from carl_ray.training.step import initial_model

_CPU_FRAMES, _GPU_FRAMES = 64, 256
_MOST_VIDEOS = 8
_RATE = 25  # of the cut video; no time depends on it


def measure(
    videos: Sequence[Path], config: Config, device: torch.device, on_progress: Callable[[str], None]
) -> Table:
    """Frames a second of `VideoEmbedder`, in float32 and bfloat16, and of the plain way; and how they agree.

    All embed the first 64 frames (on a GPU 256) of the first video, encoded anew as a video of its own; on a GPU
    up to eight whole videos besides.

    Args:
        videos: Files that can be decoded.
        config: Model and decoder. Weights are random: they change no time.
        device: Where the encoder computes.
        on_progress: Called with a line before each part.
    """
    encoder = initial_model(config).encoder.eval()
    on_gpu = device.type == "cuda"
    clip = cut_video(videos[0], _GPU_FRAMES if on_gpu else _CPU_FRAMES)
    num_frames = probe_video(clip, verify=True).num_frames
    embedders = {bf16: VideoEmbedder([encoder], config, device, bf16=bf16) for bf16 in (False, True)}

    on_progress(f"embedding {num_frames} frames in the plain way")
    if on_gpu:
        list(plain_features(encoder, _pil_views(cut_video(videos[0], 2), config.augment.image_size), device))
    begin = time.perf_counter()
    wanted, decoding = embed_plainly(encoder, clip, config.augment.image_size, device)
    seconds = time.perf_counter() - begin
    rows = [_row("plain, fp32, frame by frame", num_frames, seconds, seconds, decoding, "")]
    plain_per_frame = seconds / num_frames

    decoding_per_frame = _decoding_seconds(clip, num_frames, config) / num_frames
    works: list[tuple[str, bool, list[tuple[bytes | str, int]]]] = [
        ("VideoEmbedder, fp32", False, [(clip, num_frames)]),
        ("VideoEmbedder, bf16", True, [(clip, num_frames)]),
    ]
    if on_gpu:
        whole = [
            (str(path), probe_video(str(path), verify=True).num_frames) for path in videos[:_MOST_VIDEOS]
        ]
        works.append((f"VideoEmbedder, bf16, {len(whole)} whole videos", True, [*whole]))
    for name, bf16, work in works:
        on_progress(name)
        if on_gpu:
            list(embedders[bf16].embed(work))
        begin = time.perf_counter()
        results = list(embedders[bf16].embed(work))
        seconds = time.perf_counter() - begin
        for result in results:
            if isinstance(result, Exception):
                raise result
        count = sum(frames for _, frames in work)
        difference = ""
        if len(work) == 1:
            assert not isinstance(results[0], Exception)
            difference = f"{np.abs(_unit(results[0][0]) - _unit(wanted)).max():.1e}"
        rows.append(
            _row(name, count, seconds, count * plain_per_frame, count * decoding_per_frame, difference)
        )
    notes = [
        "ratio: to the plain way, frame for frame; decoding: its time, on one core, as a share of the time taken "
        "(VideoEmbedder decodes in threads beside the CNN, so more than 100 % is possible)",
        "difference: the largest of an element of the embeddings, scaled to length 1, from the plain way's, "
        "whose resizing is another",
    ]
    title = (
        f"embedding: {config.model.backbone}, {config.augment.image_size} pixels, {num_frames} frames of "
        f"{videos[0].name}, {machine_name(use_gpu=on_gpu)}"
    )
    return Table(title, ("way", "frames/s", "ratio", "decoding", "difference"), rows, notes)


def embed_plainly(
    encoder: FrameLevelVideoEncoder, video: bytes, image_size: int, device: torch.device
) -> tuple[Float[np.ndarray, "frames width"], float]:
    """H of all frames, float32, frame by frame as far as possible; and the seconds that went into the pictures.

    Args:
        encoder: In evaluation mode, without C3D.
        video: Content of the file.
        image_size: S.
        device: Where the encoder computes.
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

    features = torch.stack(list(plain_features(encoder, timed(), device)))
    return encoder.embed_features(features).float().cpu().numpy(), decoding


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
        yield (maps.amax((2, 3)) if encoder.pooling == "max" else maps.mean((2, 3)))[0]


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
    with av.open(io.BytesIO(video)) as container:
        for frame in container.decode(video=0):
            picture = frame.to_image()
            short = min(picture.size)
            width, height = (image_size * side // short for side in picture.size)
            if (width, height) != picture.size:
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            left, top = round((width - image_size) / 2), round((height - image_size) / 2)
            yield np.array(picture.crop((left, top, left + image_size, top + image_size)))


def _decoding_seconds(video: bytes, num_frames: int, config: Config) -> float:
    """Of making the views as `VideoEmbedder` does."""
    size = config.augment.image_size
    begin = time.perf_counter()
    for frames in iterate_frames(
        video, num_frames, chunk_frames=64, short_side=size, decoder=config.data.decoder
    ):
        center_view(frames, size)
    return time.perf_counter() - begin


def _row(
    name: str, num_frames: int, seconds: float, plain_seconds: float, decoding_seconds: float, difference: str
) -> tuple[str, ...]:
    return (
        name,
        f"{num_frames / seconds:,.1f}",
        f"{plain_seconds / seconds:.2f}",
        f"{decoding_seconds / seconds:.1%}",
        difference,
    )


def _unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
