"""This package beside the usual ways to do the same, in turns and in one run: ratios, for docs/peers.md.

    python -m benchmarks.peers
    python -m benchmarks.peers --parts loss,search
    python -m benchmarks.peers --parts stream --videos FOLDER

Every row does the same work on the same input, which is checked where the results can be equal. Times are CPU seconds
of one thread, medians of several turns, so that other work on the machine changes them little; those of `stream` are
wall times of all cores.

    loss           SCL beside a loss on (2BT)^2 logits with a loop over videos, as SPEC describes the released code's
    augmentation   views of decoded frames beside torchvision's v2 transforms, and Pillow frame by frame
    training       a step on cached features beside one that trains block 5 end to end, and one with a frozen backbone
    search         exact search for moments beside a loop over videos, and scikit-learn's brute force
    stream         Ray Data beside a torch DataLoader (starts Ray; needs videos, or renders some)
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.parts.table import Table, table_text
from carl_ray.errors import UserError, one_line_errors
from carl_ray.machine import machine_name
from carl_ray.options import OptionParser, nearest

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from carl_ray.data.augment import AugmentParameters

_TURNS = 5


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    with one_line_errors():
        options = _parse(arguments)
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        print(machine_name(use_gpu=False), flush=True)
        for name in options.parts.split(","):
            if name == "stream":
                torch.set_num_threads(threads)
            print(f"\n{table_text(PARTS[name](options))}", flush=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = OptionParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", default=",".join(PARTS), metavar="PART,…", help=f"[{','.join(PARTS)}]")
    parser.add_argument("--videos", type=Path, metavar="FOLDER", help="of `stream` [rendered ones]")
    parser.add_argument("--turns", type=int, default=_TURNS, metavar="N", help=f"of each row [{_TURNS}]")
    parser.add_argument("--tiny", action="store_true", help="small sizes, whose ratios say nothing")
    options = parser.parse_args(arguments)
    for part in options.parts.split(","):
        if part not in PARTS:
            raise UserError(
                f"--parts: unknown part {part!r}{nearest(part, list(PARTS))} ({', '.join(PARTS)})"
            )
    if options.turns < 1:
        raise UserError(f"--turns: expected at least 1, got {options.turns}")
    return options


def turns(ways: Mapping[str, Callable[[], object]], count: int) -> dict[str, float]:
    """Median CPU seconds of each way, after one that warms up; the ways take turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(1 + count):
        for name, way in ways.items():
            begin = time.process_time()
            way()
            if turn:
                taken[name].append(time.process_time() - begin)
    return {name: statistics.median(times) for name, times in taken.items()}


def ratio_table(
    title: str, taken: Mapping[str, float], more: Mapping[str, str], notes: Sequence[str] = ()
) -> Table:
    """Milliseconds of each way, and how many times as long as the first; `more`: its third column."""
    first = next(iter(taken.values()))
    rows = [
        (name, f"{1000 * seconds:,.2f}", f"{seconds / first:.2f}", more.get(name, ""))
        for name, seconds in taken.items()
    ]
    return Table(title, ("way", "CPU ms", "x ours", ""), rows, notes)


def released_loss(
    z: Float[Tensor, "videos 2 T D"],
    s: Float[Tensor, "videos 2 T"],
    mask: Bool[Tensor, "videos 2 T"],
    *,
    temperature: float = 0.1,
    variance: float = 10.0,
) -> Float[Tensor, ""]:
    """The loss with the cost of the released code, as SPEC describes it: (2BT)^2 logits, a loop over videos.

    Divergence of the softmax over the other view of the anchor's video from the Gaussian targets, mean over all valid
    anchors: half of ours, less the entropy of the targets.
    """
    import torch
    from torch.nn import functional

    videos, _, time_steps, _ = z.shape
    flat = functional.normalize(z, dim=-1).flatten(0, 2)
    logits = flat @ flat.T / temperature
    labels, allowed = torch.zeros_like(logits), torch.zeros_like(logits, dtype=torch.bool)
    for video in range(videos):
        for view in (0, 1):
            start, other = ((2 * video + v) * time_steps for v in (view, 1 - view))
            rows, columns = slice(start, start + time_steps), slice(other, other + time_steps)
            apart = s[video, view][:, None] - s[video, 1 - view][None, :]
            real = mask[video, 1 - view].expand(time_steps, -1)
            weights = torch.where(real, -(apart**2) / (2 * variance), -torch.inf).softmax(-1)
            labels[rows, columns] = weights.to(labels.dtype)
            allowed[rows, columns] = real
    logits = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)
    divergence = functional.kl_div(logits.log_softmax(-1), labels, reduction="none").sum(-1)
    return divergence[mask.flatten()].mean()


def loss(options: argparse.Namespace) -> Table:
    """Forward and backward pass of the loss."""
    import torch

    from carl_ray.objectives.scl import sequence_contrastive_loss

    videos, frames = (2, 8) if options.tiny else (4, 240)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(videos, 2, frames, 128, generator=generator, requires_grad=True)
    s = torch.rand(videos, 2, frames, generator=generator).mul(1.5 * frames).sort(-1)[0].double()
    mask = torch.ones(videos, 2, frames, dtype=torch.bool)

    def ours() -> Tensor:
        z.grad = None
        value = sequence_contrastive_loss(z[:, 0], z[:, 1], s[:, 0], s[:, 1], mask[:, 0], mask[:, 1])
        value.backward()
        return value.detach()

    def released() -> Tensor:
        z.grad = None
        value = released_loss(z, s.float(), mask)
        value.backward()
        return value.detach()

    taken = turns({"SCL, (B, T, T) logits": ours, "(2BT)² logits, loop over videos": released}, options.turns)
    size = {
        "SCL, (B, T, T) logits": 2 * videos * frames**2,
        "(2BT)² logits, loop over videos": (2 * videos * frames) ** 2,
    }
    more = {name: f"{number:,} logits" for name, number in size.items()}
    title = f"loss and gradient: B = {videos}, T = {frames}, D = 128, float32"
    return ratio_table(title, taken, more)


def augmentation(options: argparse.Namespace) -> Table:
    """Geometry, colour and blur of one view."""
    import numpy as np
    import torch
    from PIL import Image

    from benchmarks.parts import pil
    from carl_ray.data.augment import change_colors, draw_parameters, resize_crop
    from carl_ray.objectives.views import AugmentConfig

    count, height, width, size = (2, 48, 64, 32) if options.tiny else (16, 256, 456, 224)
    config = AugmentConfig(image_size=size)
    rng = np.random.default_rng(51)
    # Neighbouring pixels alike, as in pictures.
    small = torch.from_numpy(rng.integers(0, 256, (count, 3, height // 8, width // 8)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 255)
    frames = smooth.permute(0, 2, 3, 1).to(torch.uint8).contiguous()
    draws = [draw_parameters(config, height, width, rng) for _ in range(2 if options.tiny else 12)]
    images = [Image.fromarray(frame) for frame in frames.numpy()]

    def all_draws(way: Callable[[AugmentParameters], object]) -> Callable[[], None]:
        def run() -> None:
            for draw in draws:
                way(draw)

        return run

    places, output = np.arange(count), np.empty((count, size, size, 3), np.uint8)

    def ours(draw: AugmentParameters) -> None:
        resize_crop(frames.numpy(), draw, places, output)
        change_colors(output, draw)

    def pillow(draw: AugmentParameters, blur: pil.Blur) -> None:
        torch.stack([pil.to_tensor(pil.augment(image, draw, size, blur)) for image in images])

    ways: dict[str, Callable[[AugmentParameters], object]] = {
        "ours": ours,
        "torchvision v2, whole view": partial(torchvision_view, frames.permute(0, 3, 1, 2), size=size),
        "Pillow, frame by frame": partial(pillow, blur="pillow"),
        "Pillow, torchvision's blur": partial(pillow, blur="torchvision"),
    }
    taken = turns({name: all_draws(way) for name, way in ways.items()}, options.turns)
    taken = {name: seconds / (count * len(draws)) for name, seconds in taken.items()}
    return ratio_table(
        f"augmentation of a frame: {width}x{height} to {size} pixels, {len(draws)} draws, views of {count} frames",
        taken,
        {},
        ["ours and torchvision end with uint8; Pillow with normalised float32, as its users train"],
    )


def torchvision_view(frames: Tensor, draw: AugmentParameters, *, size: int) -> Tensor:
    """A view by torchvision's v2 functions, all frames at once, with the drawn parameters; uint8 (T, 3, S, S)."""
    from torchvision.transforms.v2 import functional

    made = functional.resized_crop(
        frames, draw.top, draw.left, draw.height, draw.width, [size, size], antialias=True
    )
    if draw.flip:
        made = functional.horizontal_flip(made)
    operations = (
        (functional.adjust_brightness, draw.brightness),
        (functional.adjust_contrast, draw.contrast),
        (functional.adjust_saturation, draw.saturation),
        (functional.adjust_hue, draw.hue),
    )
    for number in draw.order if draw.jitter else ():
        adjust, factor = operations[number]
        made = adjust(made, factor)
    if draw.grayscale:
        made = functional.rgb_to_grayscale(made, num_output_channels=3)
    if draw.blur_sigma > 0:
        kernel = 2 * max(1, size // 20) + 1
        made = functional.gaussian_blur(made, [kernel, kernel], [draw.blur_sigma] * 2)
    return made


def training(options: argparse.Namespace) -> Table:
    """A training step by what of the backbone it runs."""
    import torch

    from benchmarks.parts.step import synthetic_batch
    from carl_ray.config import Config
    from carl_ray.objectives.views import CROPS
    from carl_ray.presets import PRESETS
    from carl_ray.training.step import TrainingStep

    base = PRESETS["demo" if options.tiny else "penn_action"]()
    frames = 4 if options.tiny else 16
    base = replace(
        base,
        model=replace(base.model, weights="random", num_frames=frames, learnable="block5"),
        data=replace(base.data, short_side=base.augment.image_size),
        training=replace(base.training, precision="fp32"),
    )
    batch, device = synthetic_batch(base, 1), torch.device("cpu")
    frozen = replace(base, model=replace(base.model, learnable="none"))
    channels = TrainingStep(frozen, device, 1).model.encoder.backbone.pooled_channels
    cached = replace(
        frozen,
        data=replace(frozen.data, features="none", feature_channels=channels),
        augment=replace(frozen.augment, copies=1),
    )
    view = batch.views[CROPS]
    made = torch.randn(*view.mask.shape, channels).half()
    features = replace(batch, views={CROPS: replace(view, pixels=None, features=made)})

    def trained(config: Config, given: Any) -> Callable[[], object]:
        step = TrainingStep(config, device, num_steps=1_000_000)
        return lambda: step.train(given, 0)

    ways = {
        "cached features": trained(cached, features),
        "frozen backbone": trained(frozen, batch),
        "block 5 end to end": trained(base, batch),
    }
    taken = turns(ways, options.turns)
    pixels = 3 * base.augment.image_size**2
    more = dict(
        zip(
            ways, (f"{2 * frames * b / 1e6:.2f} MB read" for b in (2 * channels, pixels, pixels)), strict=True
        )
    )
    size = base.augment.image_size
    title = f"training step: {base.model.backbone}, one video of 2 x {frames} frames, {size} pixels, fp32"
    return ratio_table(
        title, taken, more, ["without decoding and augmentation, which cached features save too"]
    )


def search(options: argparse.Namespace) -> Table:
    """The best frame of each of the ten best videos."""
    import numpy as np
    from sklearn.neighbors import NearestNeighbors

    from carl_ray.explore.moments import MomentIndex

    count, width, best = (20, 16, 3) if options.tiny else (2000, 128, 10)
    rng = np.random.default_rng(0)
    lengths = rng.integers(60, 150, count)
    starts = np.concatenate([[0], lengths.cumsum()])
    vectors = rng.standard_normal((starts[-1], width), dtype=np.float32)
    vectors += rng.standard_normal((count, width), dtype=np.float32).repeat(lengths, axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = MomentIndex(vectors, lengths.tolist())
    videos = [vectors[start:stop] for start, stop in itertools.pairwise(starts)]
    nearest_frames = NearestNeighbors(metric="cosine", algorithm="brute").fit(vectors)
    queries = vectors[rng.choice(len(vectors), 5)]

    def ours(query: np.ndarray) -> list[tuple[int, int]]:
        return [(moment.video, moment.frame) for moment in index.search(query, best)]

    def by_loop(query: np.ndarray) -> list[tuple[int, int]]:
        found = []
        for number, video in enumerate(videos):
            scores = video @ query
            found.append((float(scores.max()), number, int(scores.argmax())))
        return [(number, frame) for _, number, frame in sorted(found, key=lambda row: -row[0])[:best]]

    def by_sklearn(query: np.ndarray) -> list[tuple[int, int]]:
        # Enough frames that the best ten videos are among them, whatever their lengths.
        (rows,) = nearest_frames.kneighbors(query[None], best * int(np.max(lengths)), return_distance=False)
        at = np.searchsorted(starts, rows, side="right") - 1
        first = np.sort(np.unique(at, return_index=True)[1])[:best]
        return [(int(at[place]), int(rows[place] - starts[at[place]])) for place in first]

    ways = {"MomentIndex, exact": ours, "loop over videos": by_loop, "scikit-learn, brute force": by_sklearn}
    for query in queries:
        found = {name: way(query) for name, way in ways.items()}
        if any(other != found["MomentIndex, exact"] for other in found.values()):
            raise RuntimeError(f"searches disagree: {found}")

    def every(way: Callable[[np.ndarray], object]) -> Callable[[], None]:
        def run() -> None:
            for query in queries:
                way(query)

        return run

    taken = turns({name: every(way) for name, way in ways.items()}, options.turns)
    taken = {name: seconds / len(queries) for name, seconds in taken.items()}
    title = (
        f"search: {len(vectors):,} frames of {count:,} videos, width {width}, one query; all find the same"
    )
    return ratio_table(title, taken, {})


def stream(options: argparse.Namespace) -> Table:
    """Decoded and augmented pairs to one consumer."""
    from benchmarks.parts import stream as measured
    from benchmarks.parts.videos import ensure_rendered, even_sample
    from benchmarks.throughput import probe
    from carl_ray.data.manifest import VIDEO_SUFFIXES
    from carl_ray.options import overridden
    from carl_ray.presets import pouring

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    paths: Iterable[Path] = ensure_rendered(progress)
    if options.videos is not None:
        paths = sorted(path for path in options.videos.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    videos, _ = probe(even_sample(list(paths), 24), 24)
    if not videos:
        raise UserError(f"--videos {options.videos}: no video in it that can be read")
    return measured.measure(videos, overridden(pouring(), {"model.weights": "random"}), progress)


PARTS: dict[str, Callable[[argparse.Namespace], Table]] = {
    "loss": loss,
    "augmentation": augmentation,
    "training": training,
    "search": search,
    "stream": stream,
}
"""What is compared, by the name that `--parts` takes."""

if __name__ == "__main__":
    main()
