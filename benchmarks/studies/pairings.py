"""Ways of pairing the frames of two crops, and warps whose partners are known.

Legend: P pairs, T sampled frames of a crop, F its frames, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.nn import functional

from carl_ray.objectives.dtw import dynamic_time_warping, open_ended_dtw
from carl_ray.objectives.pairs import FramePairs
from carl_ray.objectives.soft_dtw import soft_dtw
from carl_ray.objectives.weak import correspondence

_NUM_SAMPLED, _NUM_FRAMES, _WIDTH = 80, 120, 64
_VARIANCE = 10.0
_TOLERANCE = _NUM_FRAMES // 10
_REPETITIONS = (2.5, 3.5)


@dataclass(frozen=True)
class Scene:
    """What two crops show and how well it can be seen."""

    name: str
    overlap: float = 1.0
    """Share of either crop that the other one shows, too."""
    noise: float = 0.0
    """Length of the noise of each frame beside the signal's 1: partners have a cosine of 1 / (1 + noise^2)."""
    style: float = 0.0
    """Length of a smooth curve of each video's own."""
    common: float = 0.0
    """Length of a vector that all frames have in common."""
    kind: str = "once"
    """`once`, `inside` (b shows the middle third of a), `repeated`, or `replaced` (a third of a is something else)."""


SCENES = (
    *(
        Scene(f"{overlap:.0%} overlap, noise {noise:g}", overlap, noise)
        for noise in (0.0, 0.5, 1.0)
        for overlap in (0.0, 0.2, 0.5, 0.8, 1.0)
    ),
    *(Scene(f"{overlap:.0%}, own style 1", overlap, style=1.0) for overlap in (0.2, 1.0)),
    *(Scene(f"{overlap:.0%}, noise 0.5, all alike", overlap, 0.5, common=2.0) for overlap in (0.2, 1.0)),
    Scene("one inside the other, noise 0.5", noise=0.5, kind="inside"),
    Scene("80%, noise 0.5, a third replaced", 0.8, 0.5, kind="replaced"),
    *(Scene(f"repeated, noise {noise:g}", noise=noise, kind="repeated") for noise in (0.0, 0.5, 1.0)),
)


@dataclass(frozen=True, eq=False)
class Crop:
    """P crops of videos."""

    unit: Float64[Tensor, "P T D"]
    frames: Float64[Tensor, "P T"]
    """Index of each sampled frame in the crop."""
    phases: Float64[Tensor, "P T"]
    """Place of each in the action, in repetitions."""
    phase_of_frame: Float64[Tensor, "P F"]


class Targets(NamedTuple):
    """What a way gives one direction of the pairs."""

    weights: Float[Tensor, "P T T"]
    """Of the candidates of each frame, with sum 1."""
    anchors: Bool[Tensor, "P T"]
    """Which frames have a target."""


Method = Callable[[FramePairs], tuple[Targets, Targets]]


def make_pairs(scene: Scene, num_pairs: int, seed: int) -> tuple[Crop, Crop]:
    """Pairs of crops of a scene, each of an action of its own."""
    rng = torch.Generator().manual_seed(seed)
    draw = partial(torch.rand, generator=rng, dtype=torch.float64)
    normal = partial(torch.randn, generator=rng, dtype=torch.float64)
    if scene.kind == "repeated":
        waves = 2 * math.pi * torch.arange(1, 5)
        amplitudes = normal(num_pairs, 8, _WIDTH)
    else:
        frequencies, shifts = normal(num_pairs, 1, _WIDTH) / 0.06, 2 * math.pi * draw(num_pairs, 1, _WIDTH)
    common = scene.common * functional.normalize(normal(num_pairs, 1, _WIDTH), dim=-1)

    def show(phases: Tensor) -> Tensor:
        if scene.kind == "repeated":
            angles = phases[..., None] * waves
            curve = torch.cat([angles.cos(), angles.sin()], -1) @ amplitudes
        else:
            curve = torch.cos(phases[..., None] * frequencies + shifts)
        return functional.normalize(curve, dim=-1)

    def crop(start: Tensor, length: float) -> Crop:
        pace = functional.interpolate(2 ** (2 * draw(num_pairs, 1, 6) - 1), _NUM_FRAMES, mode="linear")[:, 0]
        passed = pace.cumsum(1) - pace[:, :1]
        phase_of_frame = start[:, None] + length * passed / passed[:, -1:]
        frames = draw(num_pairs, _NUM_FRAMES).argsort(1)[:, :_NUM_SAMPLED].sort(1).values
        phases = phase_of_frame.gather(1, frames)
        own = torch.cos(
            phases[..., None] * normal(num_pairs, 1, _WIDTH) / 0.1 + 7 * draw(num_pairs, 1, _WIDTH)
        )
        noise = scene.noise * normal(num_pairs, _NUM_SAMPLED, _WIDTH) / math.sqrt(_WIDTH)
        seen = show(phases) + noise + scene.style * functional.normalize(own, dim=-1) + common
        return Crop(functional.normalize(seen, dim=-1), frames.double(), phases, phase_of_frame)

    zero = torch.zeros(num_pairs, dtype=torch.float64)
    match scene.kind:
        case "repeated":
            return crop(draw(num_pairs), _REPETITIONS[0]), crop(draw(num_pairs), _REPETITIONS[1])
        case "inside":
            return crop(zero, 1.0), crop(zero + 1 / 3, 1 / 3)
    first = draw(num_pairs) < 0.5  # which crop is the earlier one
    later = (1 - scene.overlap) / 2
    a, b = crop(later * first, 0.5), crop(later * ~first, 0.5)
    if scene.kind == "replaced":
        third = slice(_NUM_SAMPLED // 3, 2 * _NUM_SAMPLED // 3)
        a.unit[:, third] = show(a.phases[:, third] + 9)
        a.phases[:, third] = torch.inf
    return a, b


def true_times(anchors: Crop, candidates: Crop, *, repeated: bool) -> Float64[Tensor, "K P T"]:
    """When the anchors' phases come in the candidates' crops, or outside of them, in frames; in each repetition."""
    phase_of_frame = candidates.phase_of_frame
    found = []
    for repetition in range(-4, 5) if repeated else (0,):
        phases = anchors.phases + repetition
        after = torch.searchsorted(phase_of_frame, phases).clamp(1, _NUM_FRAMES - 1)
        before, behind = phase_of_frame.gather(1, after - 1), phase_of_frame.gather(1, after)
        found.append(after - 1 + (phases - before) / (behind - before))
    return torch.stack(found)


@dataclass(frozen=True)
class Score:
    """How right the targets of a way are."""

    right: float
    """Share of the targets' weight within a tenth of a crop of a true partner."""
    found: float
    """That weight of the frames that have a true partner, of one each."""
    kept: float
    """Share of the frames that are anchors."""


def score(method: Method, a: Crop, b: Crop, *, repeated: bool) -> Score:
    """Both directions of all pairs."""
    mask = torch.ones(a.frames.shape, dtype=torch.bool)
    targets = method(FramePairs(a.unit, b.unit, a.frames, b.frames, mask, mask))
    right = has_partner = found = kept = 0.0
    for side, anchors, candidates in zip(targets, (a, b), (b, a), strict=True):
        times = true_times(anchors, candidates, repeated=repeated)
        near = ((candidates.frames[:, None, :] - times[..., None]).abs() <= _TOLERANCE).any(0)
        exists = ((times >= 0) & (times <= _NUM_FRAMES - 1)).any(0)
        weight = (side.weights * near).sum(-1).where(side.anchors, 0)
        right += float(weight.sum())
        found += float(weight.where(exists, 0).sum())
        has_partner += float(exists.sum())
        kept += float(side.anchors.sum())
    return Score(right / max(kept, 1), found / max(has_partner, 1), kept / (2 * mask.numel()))


def _gaussians(times: Tensor, candidates: Tensor) -> Tensor:
    return (-((times[:, :, None] - candidates[:, None, :]) ** 2) / (2 * _VARIANCE)).softmax(-1)


def _costs(pairs: FramePairs) -> Tensor:
    return (1 - pairs.z1 @ pairs.z2.mT).clamp(0, 2)


def of_the_package(pairs: FramePairs) -> tuple[Targets, Targets]:
    """The targets of `weak_scl` with its default options."""
    of_a, of_b = correspondence(pairs)
    return (
        Targets(_gaussians(of_a.time, pairs.s2), of_a.cost.isfinite()),
        Targets(_gaussians(of_b.time, pairs.s1), of_b.cost.isfinite()),
    )


def _of_cells(
    cells: Tensor, pairs: FramePairs, limit: Tensor | float, *, fewest: float = 1
) -> tuple[Targets, Targets]:
    """Targets around the mean time of the partners; anchors have partners that cost at most the limit on average."""
    sides = []
    for weight, cost, times in ((cells, _costs(pairs), pairs.s2), (cells.mT, _costs(pairs).mT, pairs.s1)):
        total = weight.sum(2).clamp(min=1e-9)
        time, mean = (weight @ times[:, :, None])[:, :, 0] / total, (weight * cost).sum(2) / total
        sides.append(Targets(_gaussians(time, times), (total >= fewest) & (mean <= limit)))
    return sides[0], sides[1]


def tied_ends(pairs: FramePairs, *, limit: float) -> tuple[Targets, Targets]:
    """DTW between the ends of both crops."""
    return _of_cells(
        dynamic_time_warping(_costs(pairs), pairs.mask1, pairs.mask2).cells.double(), pairs, limit
    )


def open_ends(pairs: FramePairs, *, gap: float) -> tuple[Targets, Targets]:
    """DTW with open ends, at another cost of a frame that is left out (of the mean cost) than the package's."""
    cost = _costs(pairs)
    gaps = gap * cost.mean((1, 2))
    cells = open_ended_dtw(cost, pairs.mask1, pairs.mask2, gaps).cells.double()
    return _of_cells(cells, pairs, 2 * gaps[:, None])


def soft_path(pairs: FramePairs, *, gap: float = 0.35, smoothing: float = 0.05) -> tuple[Targets, Targets]:
    """Probability that a path with open ends goes through a cell: attention whose prior is that order is kept."""
    cost = _costs(pairs)
    size = cost.shape[1] + 2
    relative = torch.full((len(cost), size, size), gap, dtype=cost.dtype)
    relative[:, 1:-1, 1:-1] = cost / cost.mean((1, 2), keepdim=True)
    mask = torch.ones(len(cost), size, dtype=torch.bool)
    relative.requires_grad_()
    (cells,) = torch.autograd.grad(soft_dtw(relative, mask, mask, smoothing=smoothing).sum(), relative)
    limit = 2 * gap * cost.mean((1, 2))[:, None]
    return _of_cells(cells[:, 1:-1, 1:-1], pairs, limit, fewest=0.5)


def attention(pairs: FramePairs, *, reach: int = 4, temperature: float = 0.05) -> tuple[Targets, Targets]:
    """Softmax of the similarity of the frames around both, in order: a prior that time goes on alike."""
    cost = _costs(pairs)
    relative = cost / cost.mean((1, 2), keepdim=True)
    total, weights = torch.zeros_like(cost), torch.zeros_like(cost)
    size = cost.shape[1]
    for lag in range(-reach, reach + 1):
        weight = math.exp(-2 * (lag / reach) ** 2)
        here = slice(max(0, -lag), size - max(0, lag))
        there = slice(max(0, lag), size - max(0, -lag))
        total[:, here, here] += weight * relative[:, there, there]
        weights[:, here, here] += weight
    smooth = total / weights
    sides = []
    for costs in (smooth, smooth.mT):
        target = (-costs / temperature).softmax(-1)
        sides.append(Targets(target, (target * costs).sum(-1) <= 0.6))
    return sides[0], sides[1]


METHODS: dict[str, Method] = {
    "tied ends": partial(tied_ends, limit=2),
    "tied ends, limit 0.3": partial(tied_ends, limit=0.3),
    "open ends, gap 0.25": partial(open_ends, gap=0.25),
    "open ends (weak_scl)": of_the_package,
    "open ends, gap 0.45": partial(open_ends, gap=0.45),
    "soft path": soft_path,
    "attention": attention,
}
