"""Soft region contrast, the information term and the order of clips."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from carl_ray.objectives.base import Batch, Encoding, ViewTensors
from carl_ray.objectives.boxes import cell_boxes
from carl_ray.objectives.clip_order import LOCAL, WHOLE, order_terms
from carl_ray.objectives.low_level import low_level_statistics, read_terms
from carl_ray.objectives.regions import RegionContrast, Regions, region_terms

TAU = 0.1


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def regions(videos: int = 3, count: int = 8, seed: int = 0, width: int = 5) -> Regions:
    """Unit vectors with boxes of random places."""
    z = functional.normalize(rand(videos, count, width, seed=seed) - 0.5, dim=-1)
    low = rand(videos, count, 3, seed=seed + 1)
    boxes = torch.cat([low, low + 0.2 + rand(videos, count, 3, seed=seed + 2)], -1)
    return Regions(z, boxes, torch.ones(videos, count, dtype=torch.bool))


def plainly(
    a: Regions, b: Regions, all_own: bool = False, measure: str = "iou", hard: bool = False
) -> tuple[float, int]:
    """The loss, written from the formula."""
    total, anchors = 0.0, 0
    for v in range(len(a.z)):
        for r in range(a.z.shape[1]):
            if not a.mask[v, r]:
                continue
            overlaps, covered, allowed = [], 0.0, []
            p = a.boxes[v, r]
            volume = math.prod(float(p[3 + k] - p[k]) for k in range(3))
            for s in range(b.z.shape[1]):
                q = b.boxes[v, s]
                sides = [max(0.0, float(min(p[3 + k], q[3 + k]) - max(p[k], q[k]))) for k in range(3)]
                shared = math.prod(sides)
                other = math.prod(float(q[3 + k] - q[k]) for k in range(3))
                real = bool(b.mask[v, s])
                whole = volume + other - shared if measure == "iou" else volume
                overlaps.append(shared / whole if real else 0.0)
                covered = max(covered, shared / volume if real else 0.0)
                allowed.append(real and (all_own or sides[2] > 0 or not (sides[0] > 0 and sides[1] > 0)))
            if covered < 0.1:
                continue
            if hard:
                best = max(range(len(overlaps)), key=overlaps.__getitem__)
                overlaps = [float(s == best) for s in range(len(overlaps))]
            scores = {}
            for w in range(len(b.z)):
                for s in range(b.z.shape[1]):
                    if (w == v and allowed[s]) or (w != v and b.mask[w, s]):
                        scores[w, s] = float(a.z[v, r] @ b.z[w, s]) / TAU
            norm = math.log(sum(math.exp(score) for score in scores.values()))
            weights = [overlap / sum(overlaps) for overlap in overlaps]
            total += sum(-weight * (scores[v, s] - norm) for s, weight in enumerate(weights) if weight > 0)
            anchors += 1
    return total, anchors


def masked(side: Regions, *places: tuple[int, int]) -> Regions:
    mask = side.mask.clone()
    for place in places:
        mask[place] = False
    return side._replace(mask=mask)


@pytest.mark.parametrize(
    "options",
    [{}, {"all_own": True}, {"measure": "coverage"}, {"hard": True}, {"hard": True, "all_own": True}],
)
def test_the_loss_is_the_formula(options: dict[str, Any]):
    a, b = masked(regions(), (2, 4)), masked(regions(seed=9, count=6), (1, 2), (0, 0))
    terms, figures = region_terms(a, b, temperature=TAU, **options)
    total, anchors = plainly(a, b, **options)
    assert float(terms.sums) == pytest.approx(total, rel=1e-10)
    assert int(terms.counts) == anchors
    assert float(figures["target_entropy"][0]) <= total


def test_the_order_of_regions_and_of_videos_does_not_matter():
    sides = masked(regions(), (2, 4)), masked(regions(seed=9, count=6), (1, 2), (0, 0))
    terms, figures = region_terms(*sides, temperature=TAU)
    videos = torch.tensor([2, 0, 1])
    orders = torch.tensor([3, 1, 4, 0, 7, 6, 2, 5]), torch.tensor([5, 2, 0, 4, 1, 3])
    moved = [Regions(*(p[videos][:, order] for p in side)) for side, order in zip(sides, orders, strict=True)]
    others, found = region_terms(*moved, temperature=TAU)
    torch.testing.assert_close(others, terms)
    torch.testing.assert_close(found, figures)


def test_equal_boxes_are_infonce_over_cells():
    a = regions()
    b = regions(seed=9)._replace(boxes=a.boxes)
    grid = torch.arange(8, dtype=torch.float64)[:, None].expand(8, 3)
    boxes = torch.cat([grid, grid + 1], -1).expand(3, 8, 6)  # No two overlap.
    a, b = a._replace(boxes=boxes), b._replace(boxes=boxes)
    terms, _ = region_terms(a, b, temperature=TAU, all_own=True)
    logits = a.z.flatten(0, 1) @ b.z.flatten(0, 1).T / TAU
    expected = functional.cross_entropy(logits, torch.arange(24), reduction="sum")
    torch.testing.assert_close(terms.sums[0], expected)


def test_clips_apart_have_no_anchors_and_a_finite_gradient():
    a = regions()
    z = a.z.clone().requires_grad_()
    b = regions(seed=9)
    far = b.boxes + torch.tensor([0, 0, 100.0, 0, 0, 100.0], dtype=torch.float64)
    terms, _ = region_terms(a._replace(z=z), b._replace(boxes=far), temperature=TAU)
    terms.sums.sum().backward()
    assert (terms.sums.item(), terms.counts.item()) == (0, 0)
    assert z.grad is not None and not z.grad.any()


def test_gradients_agree_with_central_differences_and_none_reaches_targets():
    a, b = regions(2, 4), regions(2, 4, seed=9)
    boxes = b.boxes.clone().requires_grad_()

    def loss(z: Tensor, other: Tensor) -> Tensor:
        terms, _ = region_terms(a._replace(z=z), b._replace(z=other, boxes=boxes), temperature=0.5)
        return terms.sums

    inputs = (a.z.clone().requires_grad_(), b.z.clone().requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs, atol=1e-7)
    loss(*inputs).sum().backward()
    assert boxes.grad is None


@pytest.mark.parametrize("with_anchors", [False, True])
def test_a_masked_clip_changes_no_other_video(with_anchors: bool):
    """Regions without a region of the other clip of their video are no anchors."""
    a, b = regions(), regions(seed=9)
    two, _ = region_terms(Regions(*(p[:2] for p in a)), Regions(*(p[:2] for p in b)), temperature=TAU)
    sides = [
        masked(side, *((2, region) for region in range(8)))._replace(
            z=side.z.index_fill(0, torch.tensor([2]), 1e3)
        )
        for side in (a, b)
    ]
    three, _ = region_terms(sides[0] if with_anchors else a, sides[1], temperature=TAU)
    torch.testing.assert_close(three.sums, two.sums)
    assert torch.equal(three.counts, two.counts)


@pytest.mark.parametrize("cells", [1, 2])
def test_codes_of_the_true_cells_reach_the_entropy(cells: int):
    """Of anchors that are one cell of the other clip, or two of them in time, each with half of the target."""
    view = view_of(videos=2)[LOCAL]
    boxes, anchors = (cell_boxes(view, (times, 2, 2))[:, 0] for times in (2, 2 // cells))
    codes = torch.eye(16, dtype=torch.float64).unflatten(0, (2, 8))
    z = codes.unflatten(1, (2 // cells, cells, 4)).sum(2).flatten(1, 2) / math.sqrt(cells)
    terms, figures = region_terms(
        Regions(z, anchors, torch.ones(z.shape[:2], dtype=torch.bool)),
        Regions(codes, boxes, torch.ones(2, 8, dtype=torch.bool)),
        temperature=0.02,
        all_own=True,
    )
    entropy, number = figures["target_entropy"].tolist()
    assert entropy / number == pytest.approx(math.log(cells), abs=1e-6)
    assert float(terms.sums) / number == pytest.approx(entropy / number, rel=0.05, abs=1e-6)
    assert figures["rank_of_best"].tolist() == [number, number]


@pytest.mark.parametrize("pooled", [None, (1, 2, 2)])
def test_cells_of_padding_are_neither_anchors_nor_candidates(pooled: tuple[int, int, int] | None):
    made = objective(information_weight=0, order_weight=0, regions=pooled).eval()
    batch = batch_of(2)
    local = batch.views[LOCAL]
    mask = local.mask.clone()
    mask[:, :, 5:] = False  # One of four frames of the second cell in time is real.
    batch = replace(batch, views=batch.views | {LOCAL: replace(local, mask=mask)})
    found = []
    for padding in (0.0, 7.0):
        encodings = encodings_of(batch)
        maps = encodings[LOCAL].maps.detach().clone()  # type: ignore[union-attr]
        maps[:, :, :, 1] += padding
        encodings[LOCAL] = encodings[LOCAL]._replace(maps=maps)
        mask_of = made._regions(made._pooled(encodings, batch), batch)[LOCAL].mask[0, 0].tolist()
        assert mask_of == ([True] * 4 + [False] * 4 if pooled is None else [True] * 4)
        found.append(made(encodings, batch, 1.0))
    torch.testing.assert_close(found[0], found[1])
    assert int(found[0].counts.sum()) > 0


def view_of(videos: int, frames: int = 8, size: int = 8) -> dict[str, ViewTensors[Tensor]]:
    """Local clips, and clips over the whole of videos of 64 frames."""

    def view(count: int, spans: list[list[float]]) -> ViewTensors[Tensor]:
        generator = torch.Generator().manual_seed(count)
        shape = (videos, count, frames, size, size, 3)
        return ViewTensors(
            timestamps=torch.zeros(videos, count, frames, dtype=torch.float64),
            mask=torch.ones(videos, count, frames, dtype=torch.bool),
            parameters=torch.zeros(videos, count, 16, dtype=torch.float64),
            boxes=torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64).expand(videos, count, 4),
            flips=torch.zeros(videos, count, dtype=torch.bool),
            spans=torch.tensor(spans, dtype=torch.float64).expand(videos, count, 2),
            pixels=torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        )

    return {LOCAL: view(2, [[0, 16], [8, 24]]), WHOLE: view(1, [[0, 64]])}


def batch_of(videos: int) -> Batch:
    seeds = torch.arange(2 * videos).unflatten(0, (videos, 2))
    return Batch(view_of(videos), torch.arange(videos), {LOCAL: seeds, WHOLE: seeds[:, :1]})


def encodings_of(batch: Batch, width: int = 6) -> dict[str, Encoding]:
    found = {}
    for name, view in batch.views.items():
        maps = rand(*view.mask.shape[:2], width, 4 if name == WHOLE else 2, 2, 2, seed=3).float()
        maps.requires_grad_()
        found[name] = Encoding(maps.mean((-2, -1)).mT, view.mask, maps, maps.mean((-3, -2, -1)))
    return found


def objective(**options: object) -> RegionContrast:
    torch.manual_seed(0)
    chosen = {"hidden_width": 8, "projection_width": 5} | options
    return RegionContrast(RegionContrast.Options(**chosen), 6, "local")  # type: ignore[arg-type]


def test_a_phase_of_the_reader_reaches_it_alone_and_the_other_not_at_all():
    made, batch = objective(), batch_of(3)
    phases = made.phases(nn.Linear(1, 1), lambda parameters: torch.optim.Adam(parameters))
    assert [phase.name for phase in phases] == ["reader", "reader", "all"]
    reader = {id(p) for p in made.reader.parameters()}
    assert {id(p) for g in phases[0].optimizer.param_groups for p in g["params"]} == reader
    assert not reader & {id(p) for g in phases[-1].optimizer.param_groups for p in g["params"]}
    encodings = encodings_of(batch)
    made.phase_terms("reader", encodings, batch, 1.0).sums.sum().backward()
    assert all(encoding.maps.grad is None for encoding in encodings.values() if encoding.maps is not None)
    assert all(p.grad is None for p in made.projection.parameters())
    assert all(p.grad is not None for p in made.reader.parameters())


def test_one_cell_is_refused():
    made, batch = objective(), batch_of(2)
    encodings = {
        name: replace_maps(encoding, encoding.maps[..., :1, :1, :1])  # type: ignore[index]
        for name, encoding in encodings_of(batch).items()
    }
    with pytest.raises(ValueError, match="needs a backbone with a feature map; got 1 x 1 x 1 from 8 x 8 x 8"):
        made(encodings, batch, 1.0)


def test_regions_are_means_of_cells_with_their_boxes():
    made, batch = objective(regions=(1, 2, 1), information_weight=0).eval(), batch_of(2)
    encodings = encodings_of(batch)
    found = made._regions(made._pooled(encodings, batch), batch)
    for name, encoding in encodings.items():
        pooled = encoding.maps.mean((3, 5), keepdim=True)  # type: ignore[union-attr]
        expected = functional.normalize(made.projection(pooled.flatten(0, 1)).flatten(2).mT, dim=-1)
        torch.testing.assert_close(found[name].z.flatten(0, 1), expected)
        torch.testing.assert_close(found[name].boxes, cell_boxes(batch.views[name], (1, 2, 1)))
    cells = made(encodings, batch, 1.0)
    # Order has its cells in time all the same.
    assert int(cells.counts[-1]) == 2 * 2 * 4
    with pytest.raises(ValueError, match="regions must be two or more"):
        objective(regions=(1, 1, 1))
    with pytest.raises(ValueError, match="divide the 2 x 2 x 2 cells of the view local, got 1 x 3 x 1"):
        objective(regions=(1, 3, 1))(encodings, batch, 1.0)


def replace_maps(encoding: Encoding, maps: Tensor) -> Encoding:
    return encoding._replace(maps=maps, frames=maps.mean((-2, -1)).mT)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_the_information_of_gaussians(correlation: float):
    torch.manual_seed(0)
    reader = nn.Linear(6, 12)

    class Unclamped(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return reader(z)

    optimizer = torch.optim.Adam(reader.parameters(), lr=2e-2)
    generator = torch.Generator().manual_seed(1)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(count, 6, generator=generator)
        noise = torch.randn(count, 6, generator=generator)
        return z, correlation * z + math.sqrt(1 - correlation**2) * noise

    for _ in range(600):
        z, u = draw(512)
        optimizer.zero_grad()
        read_terms(Unclamped(), z, u, torch.arange(512) % 64, 64).own_loss.backward()
        optimizer.step()
    z, u = draw(20_000)
    found = read_terms(Unclamped(), z, u, torch.arange(20_000) % 64, 64)
    nats = found.information.item() / int(found.number)
    assert nats == pytest.approx(6 * correlation**2 / (1 - correlation**2), rel=0.1, abs=0.05)
    explained, total = found.explained.tolist()
    assert explained / total == pytest.approx(correlation**2, abs=0.03)


def test_a_video_alone_has_no_information_term():
    found = read_terms(nn.Linear(6, 12), torch.randn(8, 6), torch.randn(8, 6), torch.zeros(8).long(), 1)
    assert (int(found.number), float(found.information), float(found.own_loss)) == (0, 0, 0)


def test_statistics_are_means_and_deviations_of_the_colours():
    pixels = torch.randint(0, 256, (1, 1, 4, 8, 8, 3), dtype=torch.uint8)
    mask = torch.ones(1, 1, 4, dtype=torch.bool)
    found = low_level_statistics(pixels, mask, (2, 2, 4))[0, 0].unflatten(0, (2, 2, 4))
    block = pixels[0, 0, 2:4, 0:4, 6:8].double().flatten(0, 2)
    expected = torch.cat([block.mean(0), block.std(0, correction=0)])
    torch.testing.assert_close(found[1, 0, 3].double(), expected, rtol=1e-4, atol=1e-3)
    mask[0, 0, 3:] = False
    padded = low_level_statistics(pixels, mask, (2, 2, 4))[0, 0].unflatten(0, (2, 2, 4))
    block = pixels[0, 0, 2, 0:4, 6:8].double().flatten(0, 1)
    expected = torch.cat([block.mean(0), block.std(0, correction=0)])
    torch.testing.assert_close(padded[1, 0, 3].double(), expected, rtol=1e-4, atol=1e-3)


def test_edges_are_shares_of_orientations():
    pixels = torch.zeros(1, 1, 2, 16, 16, 3, dtype=torch.uint8)
    places = torch.arange(16)
    pixels[..., :8, :] = (8 * places[:8]).byte()[:, None]  # brighter to the right: gradients at 0
    diagonal = 8 * ((places[:, None] + places[None, 8:]) - 8)
    pixels[..., 8:, :] = diagonal.clamp(0, 255).byte()[..., None]  # at 45 degrees
    mask = torch.tensor([[[True, False]]])
    pixels[:, :, 1] = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8)
    found = low_level_statistics(pixels, mask, (1, 1, 2), "color+edges")[0, 0]
    assert found.shape == (2, 14)
    torch.testing.assert_close(found[:, :6], low_level_statistics(pixels, mask, (1, 1, 2))[0, 0])
    edges = found[:, 6:]
    torch.testing.assert_close(edges.sum(-1), torch.ones(2))
    # Both cells see the border between them in one of eight columns.
    assert edges[0].argmax() == 0 and edges[0, 0] > 0.8
    assert edges[1].argmax() == 2 and edges[1, 2] > 0.7
    flat = low_level_statistics(torch.full_like(pixels, 7), mask, (1, 1, 2), "color+edges")
    assert float(flat[..., 6:].abs().max()) == 0


def test_the_adversary_learns_and_the_regions_unlearn_with_the_weight():
    batch = batch_of(3)
    made = objective(information="adversary", low_level="color+edges", information_weight=2.0).eval()
    (phase,) = made.phases(nn.Linear(1, 1), lambda parameters: torch.optim.Adam(parameters))
    assert {id(p) for p in made.reader.parameters()} <= {
        id(p) for g in phase.optimizer.param_groups for p in g["params"]
    }
    grown = []
    for progress in (0.05, 0.55, 1.0):
        encodings = encodings_of(batch)
        made.zero_grad()
        seen = made._low_level(made._regions(encodings, batch), encodings, batch)
        assert seen is not None
        seen = seen._replace(z=seen.z.detach().requires_grad_())
        weight = 2 * max(0.0, progress - 0.1) / 0.9
        loss, number, _ = made._information(seen, weight)
        loss.backward()
        assert made.reader[0].weight.grad is not None and int(number) == len(seen.z)
        learnt = made.reader[0].weight.grad.clone()
        plain = seen.z.detach().clone().requires_grad_()
        own = read_terms(made.reader, *made._standardized(seen._replace(z=plain))).own_loss
        torch.testing.assert_close(loss, own)
        made.zero_grad()
        own.backward()
        torch.testing.assert_close(made.reader[0].weight.grad, learnt)
        assert plain.grad is not None and seen.z.grad is not None
        torch.testing.assert_close(seen.z.grad, -weight * plain.grad, rtol=1e-4, atol=1e-6)
        grown.append(float(seen.z.grad.abs().sum()))
        assert len(made(encodings, batch, progress).sums) == len(objective()(encodings, batch, progress).sums)
    assert 0 == grown[0] < grown[1] < grown[2]


def test_distances_are_of_the_clips_middle_from_the_cells():
    batch = batch_of(2)
    encodings = encodings_of(batch)
    # Middles 8 and 16 of 64 frames; middles of the cells 8, 24, 40 and 56.
    expected = (torch.tensor([8.0, 16])[:, None] - torch.tensor([8.0, 24, 40, 56])) / 64

    class Off(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return (expected + 0.05).expand(2, 2, 4)[..., None]

    terms, figures = order_terms(Off(), encodings[LOCAL], encodings[WHOLE], batch)
    assert float(terms.sums) == pytest.approx(16 * 0.5 * 0.05**2 / 0.1, rel=1e-4)
    assert int(terms.counts) == 16
    # Of each cell the two distances differ by an eighth, whatever the cell.
    spread = 16 * (1 / 16) ** 2
    assert figures["order_r2"].tolist() == pytest.approx([spread - 16 * 0.05**2, spread], rel=1e-4)
    few = encodings[WHOLE]._replace(frames=encodings[WHOLE].frames[:, :, :2])
    with pytest.raises(ValueError, match="needs 4 cells in time of the whole video, got 2"):
        order_terms(Off(), encodings[LOCAL], few, batch)


@pytest.mark.parametrize("outputs", [3, 1])
def test_order_does_not_see_the_timestamps(outputs: int):
    head, batch = nn.Linear(18, outputs), batch_of(3)
    encodings = encodings_of(batch)
    moved = replace(
        batch,
        views={n: replace(v, spans=v.spans + 7, timestamps=v.timestamps + 7) for n, v in batch.views.items()},
    )
    here, _ = order_terms(head, encodings[LOCAL], encodings[WHOLE], batch)
    there, _ = order_terms(head, encodings[LOCAL], encodings[WHOLE], moved)
    assert torch.equal(here.sums, there.sums)


def test_order_classes_are_before_inside_and_after():
    batch = batch_of(2)
    encodings = encodings_of(batch)
    # Middles 8 and 16 of 64 frames: in cells 0 and 1 of 4.
    seen = []

    class Spy(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            seen.append(features)
            scores = torch.zeros(*features.shape[:-1], 3)
            expected = torch.tensor([[1, 0, 0, 0], [2, 1, 0, 0]])
            return scores.scatter(-1, expected.expand(2, 2, 4)[..., None], 50.0)

    terms, figures = order_terms(Spy(), encodings[LOCAL], encodings[WHOLE], batch)
    assert float(terms.sums) == pytest.approx(0, abs=1e-6)
    assert figures["order_accuracy"].tolist() == [16, 16]
    assert figures["order_best_guess"].tolist() == [2 + 2 + 4 + 4, 16]
    assert seen[0].shape == (2, 2, 4, 18)


def test_cells_that_do_not_divide_the_frames_are_refused():
    made, batch = objective(), batch_of(2)
    encodings = {
        name: replace_maps(encoding, encoding.maps.repeat(1, 1, 1, 1, 1, 2)[..., :3])  # type: ignore[union-attr]
        for name, encoding in encodings_of(batch).items()
    }
    with pytest.raises(ValueError, match="whose side the 2 x 3 cells of a map divide, got 8 pixels"):
        made(encodings, batch, 1.0)
