"""What every objective promises, whatever it computes: padding, gradients, precision, and sums over workers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from carl_ray.config import AugmentConfig, Config, ModelConfig
from carl_ray.objectives.base import Batch, Encoding, ViewTensors
from carl_ray.objectives.choice import OBJECTIVES, find_objective, objective_options
from carl_ray.objectives.contrastive import contrastive_terms
from carl_ray.objectives.gta import gta_terms
from carl_ray.objectives.lav import lav_terms
from carl_ray.objectives.pairs import FramePairs
from carl_ray.objectives.scl import sequence_contrastive_terms
from carl_ray.objectives.shuffle_and_learn import order_head, shuffle_and_learn_terms
from carl_ray.objectives.supervised import frame_classification_terms
from carl_ray.objectives.tcc import cycle_consistency_terms
from carl_ray.objectives.tcn import time_contrastive_terms
from carl_ray.objectives.views import CROPS
from carl_ray.objectives.weak import weak_contrastive_terms


@dataclass(frozen=True)
class Frames:
    """Padded sequences of frames: the views of one side of the pairs, or of all."""

    z: Tensor
    s: Tensor
    mask: Tensor
    labels: Tensor
    seeds: Tensor

    def take(self, rows: Any) -> Frames:
        return Frames(**{name: value[rows] for name, value in vars(self).items()})


@dataclass(frozen=True)
class Case:
    """An objective, the same for all: sums and counts of sequences (of pairs: two sides)."""

    terms: Callable[..., tuple[Tensor, Tensor]]
    sides: int = 2
    exchanged: tuple[int, ...] = (1, 0)
    """Order of the terms once the two sides are exchanged."""
    smooth: dict[str, float] = field(default_factory=lambda: {"temperature": 0.5})
    """Options with which finite differences are exact enough."""
    cosines: bool = True
    ordered: bool = True
    """Whether the order of the frames in a sequence means anything beside their times."""
    per_worker: bool = True
    """The terms of a batch are the sums of those of its parts."""

    def __call__(self, *sides: Frames, **options: Any) -> tuple[Tensor, Tensor]:
        return self.terms(*sides, **options)


def pairs(a: Frames, b: Frames) -> FramePairs:
    return FramePairs(a.z, b.z, a.s, b.s, a.mask, b.mask)


def pair(function: Callable[..., Any], **fixed: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda a, b, **options: function(pairs(a, b), **(fixed | options))


def weak(a: Frames, b: Frames, **options: Any) -> tuple[Tensor, Tensor]:
    settings = {"temperature": 0.1, "variance": 10.0, "max_match_cost": None} | options
    other = torch.zeros(len(a.z), dtype=torch.bool)
    return weak_contrastive_terms(pairs(a, b), other, **settings)


def tcn(a: Frames, **options: Any) -> tuple[Tensor, Tensor]:
    return time_contrastive_terms(a.z, a.s, a.mask, **({"window": 9.0, "temperature": 0.1} | options))


def order(a: Frames, **options: Any) -> tuple[Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = order_head(4).to(torch.promote_types(a.z.dtype, torch.float32))
    return shuffle_and_learn_terms(a.z, a.mask, a.seeds, head)


def supervised(a: Frames, **options: Any) -> tuple[Tensor, Tensor]:
    return frame_classification_terms(a.z, a.labels, a.mask)


CASES = {
    "scl": Case(pair(sequence_contrastive_terms), ordered=False),
    "scl batch": Case(pair(sequence_contrastive_terms, negatives="batch"), ordered=False, per_worker=False),
    "scl global": Case(pair(sequence_contrastive_terms, negatives="global"), ordered=False, per_worker=False),
    "contrastive": Case(pair(contrastive_terms, temperature=0.1), ordered=False),
    "tcc regression": Case(pair(cycle_consistency_terms, loss="regression"), cosines=False),
    "tcc classification": Case(pair(cycle_consistency_terms, loss="classification"), cosines=False),
    "lav": Case(pair(lav_terms), exchanged=(0, 2, 1), smooth={"smoothing": 0.3}),
    "gta": Case(pair(gta_terms), exchanged=(1, 0, 2), smooth={"temperature": 0.5, "smoothing": 0.3}),
    "weak": Case(weak),
    "tcn": Case(tcn, sides=1, ordered=False),
    "shuffle and learn": Case(order, sides=1, cosines=False),
    "supervised": Case(supervised, sides=1, cosines=False, ordered=False),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
UNORDERED = {name: case for name, case in CASES.items() if not case.ordered}
PAIRED = {name: case for name, case in CASES.items() if case.sides == 2}
# Not where candidates are the other videos of the worker.
PER_WORKER = {name: case for name, case in CASES.items() if case.per_worker}
# Sides without frames: of LAV both, since each side has a regulariser of its own.
EMPTY = [
    pytest.param(case, empty, id=f"{name}-{empty}")
    for name, case in CASES.items()
    for empty in ([(0,)] if case.sides == 1 else [(0, 1)] if name == "lav" else [(0,), (1,), (0, 1)])
]


def batch(case: Case, dtype: torch.dtype = torch.float64) -> list[Frames]:
    """Three sequences a side, of which two are padded."""
    rng = torch.Generator().manual_seed(0)
    sides = []
    for time, lengths in ((7, (7, 5, 7)), (6, (6, 3, 1)))[: case.sides]:
        sides.append(
            Frames(
                z=torch.randn(3, time, 4, generator=rng, dtype=torch.float64).to(dtype),
                s=torch.rand(3, time, generator=rng, dtype=torch.float64).mul(60).sort(1).values,
                mask=torch.arange(time) < torch.tensor(lengths)[:, None],
                labels=torch.randint(-1, 4, (3, time), generator=rng),
                seeds=torch.randint(-(2**40), 2**40, (3,), generator=rng),
            )
        )
    return sides


def gradients(case: Case, sides: list[Frames]) -> tuple[Tensor, Tensor, list[Tensor]]:
    leaves = [side.z.detach().clone().requires_grad_() for side in sides]
    sums, counts = case(*(replace(side, z=leaf) for side, leaf in zip(sides, leaves, strict=True)))
    with torch.autograd.set_detect_anomaly(True):  # No NaN on the way back either.
        sums.sum().backward()
    return sums, counts, [leaf.grad for leaf in leaves]


def filled(side: Frames, garbage: float) -> Frames:
    """The frames with padding that holds garbage."""
    z = side.z.masked_fill(~side.mask[:, :, None], garbage)
    return replace(
        side, z=z, s=side.s.masked_fill(~side.mask, garbage), labels=side.labels.where(side.mask, 99)
    )


@every
def test_gradient(case: Case) -> None:
    sides = batch(case)

    def sums(*z: Tensor) -> Tensor:
        return case(*(replace(side, z=each) for side, each in zip(sides, z, strict=True)), **case.smooth)[0]

    assert torch.autograd.gradcheck(sums, [side.z.requires_grad_() for side in sides])


@pytest.mark.parametrize("case", PAIRED.values(), ids=PAIRED)
def test_exchanging_the_sides_exchanges_the_terms(case: Case) -> None:
    first, second = batch(case)
    sums, counts = case(first, second)
    got, got_counts = case(second, first)
    torch.testing.assert_close(got, sums[list(case.exchanged)])
    assert torch.equal(got_counts, counts[list(case.exchanged)])


@every
def test_order_of_the_sequences_changes_nothing(case: Case) -> None:
    sides = batch(case)
    torch.testing.assert_close(case(*(side.take([2, 0, 1]) for side in sides)), case(*sides))


@pytest.mark.parametrize("case", UNORDERED.values(), ids=UNORDERED)
def test_order_of_the_frames_changes_nothing(case: Case) -> None:
    sides = batch(case)
    shuffled = [
        Frames(**{name: v if name == "seeds" else v.roll(2, 1) for name, v in vars(side).items()})
        for side in sides
    ]
    torch.testing.assert_close(case(*shuffled), case(*sides))


@pytest.mark.parametrize("case", PER_WORKER.values(), ids=PER_WORKER)
@pytest.mark.parametrize("parts", [([0], [1, 2]), ([0], [1], [2]), ([0, 1, 2], [])], ids=str)
def test_terms_are_sums_over_the_workers(case: Case, parts: tuple[list[int], ...]) -> None:
    sides = batch(case)
    sums, counts = case(*sides)
    found = [case(*(side.take(rows) for side in sides)) for rows in parts]
    torch.testing.assert_close(torch.stack([part for part, _ in found]).sum(0), sums)
    assert torch.equal(torch.stack([part for _, part in found]).sum(0), counts)


@every
def test_only_directions_and_differences_of_times_matter(case: Case) -> None:
    sides = batch(case)
    moved = [replace(side, s=side.s + 5000, z=3 * side.z if case.cosines else side.z) for side in sides]
    torch.testing.assert_close(case(*moved), case(*sides))


@every
@pytest.mark.parametrize("garbage", [1e30, math.inf, math.nan])
def test_padding_has_no_influence(case: Case, garbage: float) -> None:
    sides = batch(case)
    expected, counts, clean = gradients(case, sides)
    sums, got_counts, got = gradients(case, [filled(side, garbage) for side in sides])
    torch.testing.assert_close(sums, expected, rtol=1e-12, atol=0)
    assert torch.equal(got_counts, counts)
    for side, gradient, other in zip(sides, got, clean, strict=True):
        torch.testing.assert_close(gradient, other)
        assert not gradient[~side.mask].any()
    longer = []
    for side in sides:
        more = {
            name: functional.pad(getattr(side, name).double(), (0, 3)) for name in ("s", "labels", "mask")
        }
        mask, labels = more["mask"].bool(), more["labels"].long()
        longer.append(Frames(functional.pad(side.z, (0, 0, 0, 3)), more["s"], mask, labels, side.seeds))
    torch.testing.assert_close(case(*longer), (expected.detach(), counts))


@pytest.mark.parametrize("garbage", [0.0, math.nan])
@pytest.mark.parametrize(("case", "empty"), EMPTY)
def test_a_sequence_without_frames_contributes_nothing(
    case: Case, empty: tuple[int, ...], garbage: float
) -> None:
    sides = batch(case)
    rest, counts = case(*(side.take([1, 2]) for side in sides))
    for number in empty:
        mask = sides[number].mask.clone()
        mask[0] = False
        sides[number] = filled(replace(sides[number], mask=mask), garbage)
    sums, got_counts, found = gradients(case, sides)
    if case.per_worker or len(empty) == 2:
        torch.testing.assert_close(sums, rest)
    assert torch.equal(got_counts, counts)
    for gradient in found:
        assert gradient.isfinite().all()
        assert case.per_worker is False or not gradient[0].any()


@every
def test_a_batch_without_frames_is_zero_with_zero_gradient(case: Case) -> None:
    sides = [filled(replace(side, mask=torch.zeros_like(side.mask)), math.nan) for side in batch(case)]
    sums, counts, found = gradients(case, sides)
    assert not sums.any() and not counts.any()
    assert all(gradient is not None and not gradient.any() for gradient in found)


@every
def test_zero_embeddings_have_finite_gradients(case: Case) -> None:
    first, *others = batch(case)
    sums, _, found = gradients(case, [replace(first, z=torch.zeros_like(first.z)), *others])
    assert sums.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in found)


@every
def test_bf16_is_computed_in_float32(case: Case) -> None:
    sides = batch(case, torch.bfloat16)
    exact, counts = case(*(replace(side, z=side.z.double()) for side in sides))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums, got_counts, found = gradients(case, sides)
    assert (sums.dtype, got_counts.dtype) == (torch.float32, torch.int64)
    assert torch.equal(got_counts, counts) and counts.any()
    torch.testing.assert_close(sums.double(), exact, rtol=1e-4, atol=0)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in found)


# --- the objectives of `OBJECTIVES` as modules, without a row for each -----------------------------------------------

ON_CLIPS = [name for name in OBJECTIVES if find_objective(name).Options.reads_clips]
ON_ONE_STREAM = [name for name in ON_CLIPS if not find_objective(name).Options.reads_streams]
"""The other: test_csvr.py."""


def module(name: str, dtype: torch.dtype = torch.float32) -> Any:
    options = objective_options(name).with_num_classes(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return find_objective(name)(options, 4, "frozen").to(dtype)


def videos(name: str, garbage: float = 0.0, dtype: torch.dtype = torch.float32) -> tuple[Any, Batch]:
    """Two pairs of videos, of which some crops are padded; what is padded holds garbage."""
    rng = torch.Generator().manual_seed(1)
    mask = torch.arange(9) < torch.tensor([[9, 7], [9, 9], [6, 9], [9, 8]])[:, :, None]
    frames = torch.randn(4, 2, 9, 4, generator=rng).to(dtype).masked_fill(~mask[..., None], garbage)
    times = torch.rand(4, 2, 9, generator=rng, dtype=torch.float64).mul(30).sort(-1).values
    view = ViewTensors(
        timestamps=times.masked_fill(~mask, garbage),
        mask=mask,
        parameters=torch.zeros(4, 2, 16),
        boxes=torch.zeros(4, 2, 4),
        flips=torch.zeros(4, 2, dtype=torch.bool),
        spans=torch.zeros(4, 2, 2, dtype=torch.float64),
        columns={c: torch.randint(0, 5, mask.shape, generator=rng) for c in objective_options(name).columns},
    )
    seeds = torch.arange(8).view(4, 2)
    return frames.requires_grad_(), Batch({CROPS: view}, torch.arange(4), {CROPS: seeds})


def computed(name: str, *, garbage: float = 0.0, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    objective, (frames, batch) = module(name), videos(name, garbage, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        sums, counts = objective({CROPS: Encoding(frames, batch.views[CROPS].mask)}, batch, 0.5)
    (sums / counts).sum().backward()
    return sums, counts, frames.grad, batch.views[CROPS].mask, objective


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in ON_CLIPS])
def test_objectives_as_modules(name: str) -> None:
    sums, counts, gradient, mask, objective = computed(name)
    assert counts.all() and sums.isfinite().all() and counts.dtype == torch.int64
    # It reaches every crop and every weight of a head, and no padded frame.
    assert gradient.isfinite().all() and not gradient[~mask].any()
    assert (gradient.flatten(2) != 0).any(-1).all()
    assert all(p.grad is not None and p.grad.any() for p in objective.parameters())
    for garbage in (1e30, math.nan):
        found = computed(name, garbage=garbage)
        torch.testing.assert_close(found[:2], (sums, counts))
        torch.testing.assert_close(found[2], gradient)
    half = computed(name, dtype=torch.bfloat16)
    assert half[0].dtype == torch.float32 and half[0].isfinite().all() and half[2].isfinite().all()
    # A frame of these random pairs costs as much as is allowed, to the precision of bf16.
    assert (half[1] - counts).abs().max() <= (name == "weak_scl")


def clips(name: str, last: float, dtype: torch.dtype) -> tuple[dict[str, Encoding], Batch]:
    """Four videos, of which the last has no frames and maps of a value, and the third is padded."""
    config = Config(
        preset="test",
        augment=AugmentConfig(image_size=8),
        model=ModelConfig(
            num_frames=8, backbone="small3d", weights="random", learnable="all", temporal_encoder="clip"
        ),
        objective=objective_options(name).with_num_classes(5),
    )
    rng = torch.Generator().manual_seed(1)
    encodings, views, seeds = {}, {}, {}
    for spec in config.view_specs:
        shape = (4, spec.count, spec.num_frames)
        mask = (torch.arange(spec.num_frames) < torch.tensor([spec.num_frames] * 2 + [5, 0])[:, None])[
            :, None
        ]
        start = torch.rand(4, spec.count, generator=rng, dtype=torch.float64).mul(8)
        views[spec.name] = ViewTensors(
            timestamps=start[..., None] + torch.arange(spec.num_frames),
            mask=mask.expand(shape),
            parameters=torch.zeros(4, spec.count, 16),
            boxes=torch.tensor([0.0, 0.1, 0.9, 1.0], dtype=torch.float64).expand(4, spec.count, 4),
            flips=torch.rand(4, spec.count, generator=rng) < 0.5,
            spans=torch.stack([start, start + spec.num_frames], -1),
            pixels=torch.randint(0, 256, (*shape, 8, 8, 3), generator=rng, dtype=torch.uint8),
            columns={
                c: torch.randint(0, 5, (4, 1, 1), generator=rng).expand(shape)
                for c in config.objective.columns
            },
        )
        maps = torch.randn(4, spec.count, 6, spec.num_frames // 4, 2, 2, generator=rng).to(dtype)
        maps[3] = last
        maps.requires_grad_()
        encodings[spec.name] = Encoding(
            maps.mean((-2, -1)).mT, views[spec.name].mask, maps, maps.mean((-3, -2, -1))
        )
        seeds[spec.name] = torch.arange(4 * spec.count).view(4, spec.count)
    return encodings, Batch(views, torch.arange(4), seeds)


def clip_terms(name: str, *, last: float = 0.0, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    encodings, batch = clips(name, last, dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        objective = find_objective(name)(objective_options(name).with_num_classes(5), 6, "frozen")
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        sums, counts = objective(encodings, batch, 0.5)
    (sums / counts).sum().backward()
    return sums, counts, {name: encoding.maps.grad for name, encoding in encodings.items()}, objective


@pytest.mark.parametrize("name", ON_ONE_STREAM)
def test_objectives_on_clips(name: str) -> None:
    sums, counts, gradients, objective = clip_terms(name)
    assert counts.all() and sums.isfinite().all() and counts.dtype == torch.int64
    for gradient in gradients.values():
        assert gradient.isfinite().all() and not gradient[3].any()
        assert (gradient[:3].flatten(2) != 0).any(-1).all()
    # What reads low-level statistics learns in a phase of its own.
    learner = objective.phases(torch.nn.Identity(), torch.optim.SGD)[-1].optimizer
    assert all(p.grad is not None and p.grad.any() for g in learner.param_groups for p in g["params"])
    found = clip_terms(name, last=1e4)
    torch.testing.assert_close(found[:3], (sums, counts, gradients))
    half = clip_terms(name, dtype=torch.bfloat16)
    assert half[0].dtype == torch.float32 and half[0].isfinite().all() and torch.equal(half[1], counts)
    torch.testing.assert_close(half[0], sums, rtol=5e-2, atol=5e-2)
    assert float((half[0] / counts).sum()) == pytest.approx(float((sums / counts).sum()), rel=1e-2)
