"""Regions of local clips against regions of the whole video (controllable augmentations).

A reading of the abstract of "Controllable Augmentations for Video Representation Learning" (Visual Intelligence 2:1,
2024), whose full text was not at hand. What crop, flip and stride of a clip are is known, so each cell of its map has a
place in the video: cells of two clips attract each other as far as their places overlap.

    local clips, whole video ─ encoder ▶ maps ─ head ▶ region contrast         where and when
                                           ├──── heads on cells and clips ▶ order    before, inside, after
                                           └──── low-level statistics cannot be read  information

Legend: B videos of this worker, A videos of all workers, n clips of a view, R and Q regions of a clip, D width of a
projection.

Longer than 400 lines: all that an objective is has one file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, PositiveInt

from carl_ray.objectives.base import (
    Batch,
    Encoding,
    Objective,
    ObjectiveOptions,
    Phase,
    Terms,
    ViewTensors,
    options,
)
from carl_ray.objectives.boxes import Measure, Overlap, cell_boxes, overlap
from carl_ray.objectives.clip_order import LOCAL, WHOLE, order_terms
from carl_ray.objectives.low_level import (
    NUM_STATISTICS,
    LowLevel,
    Statistics,
    low_level_statistics,
    read_terms,
)
from carl_ray.objectives.views import ViewSpec, Whole, clips_view

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor, nn
    from torch.optim import Optimizer

_PAIRS = (
    ((LOCAL, 0), (LOCAL, 1)),
    ((LOCAL, 1), (LOCAL, 0)),
    *(pair for k in (0, 1) for pair in (((LOCAL, k), (WHOLE, 0)), ((WHOLE, 0), (LOCAL, k)))),
)
"""Ordered pairs of clips, of anchors and candidates."""
_LEAST_COVERAGE = 0.1
"""Of a region by one of the other clip's, for it to be an anchor."""
_INFORMATION_FROM = 0.1
"""Share of the run after which the weight of the information rises from 0, linearly, to its value at the end."""


class RegionContrast(Objective):
    """Soft contrast of regions by their overlap, with a term for order and one against low-level shortcuts."""

    @options
    class Options(ObjectiveOptions):
        reads_clips = contrasts_videos = True
        name: Literal["regions"] = "regions"
        temperature: float = Field(default=0.1, gt=0)
        """tau. Divides the similarities."""
        overlap: Measure = "iou"
        """Of two regions: volume of the intersection as a part of the union's (`iou`) or of the anchor's."""
        targets: Literal["soft", "hard"] = "soft"
        """`hard`: the region that overlaps most is the only positive one."""
        own_negatives: Literal["spatial", "all"] = "spatial"
        """Which regions of the same video push an anchor away: `spatial` leaves out those at its place at another
        time, whose background is the same."""
        whole_view: bool = True
        """Compare with a clip over the whole video, too; without it, the two local clips alone."""
        whole_ratio: int = Field(default=2, ge=1)
        """Frames of this clip, as a multiple of model.num_frames."""
        regions: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
        """Regions of a clip in time, height and width, means of the backbone's cells, whose numbers they divide; none:
        every cell is one."""
        whole_crop_area: tuple[float, float] = (0.6, 1.0)
        """Range of the area of its crop, as `augment.crop_area`."""
        hidden_width: int = Field(default=512, ge=1)
        """Of the projection of regions."""
        projection_width: int = Field(default=128, ge=1)
        """D."""
        order_weight: float = Field(default=1.0, ge=0)
        """Weight of the order of local clips and cells of the whole video; 0: without."""
        order_targets: Literal["three", "distance"] = "three"
        """Whether a clip lies before, inside or after a cell, or how far from it, as a part of the video."""
        information_weight: float = Field(default=1.0, ge=0)
        """Weight of what regions tell of their low-level statistics; 0: without."""
        information: Literal["vclub", "adversary"] = "vclub"
        """How that is measured: `vclub`, an upper bound in nats by a network that reads the statistics; `adversary`,
        the error of this network, whose gradient reaches the regions reversed."""
        low_level: Statistics = "color"
        """These statistics: mean and deviation of the colours, or also the orientations of edges."""
        information_on: Literal["projection", "cells", "clip"] = "projection"
        """What must not tell of them: the projections, the backbone's cells, or its vectors of clips."""
        information_steps: int = Field(default=2, ge=1)
        """Updates a step of the network that reads the statistics, for `vclub`."""

        def __post_init__(self) -> None:
            low, high = self.whole_crop_area
            if not 0 < low <= high <= 1:
                raise ValueError(
                    f"whole_crop_area must be (low, high) with 0 < low <= high <= 1, got ({low:g}, {high:g})"
                )
            if self.regions == (1, 1, 1):
                raise ValueError("regions must be two or more, got 1 x 1 x 1")

        def views(self, default: ViewSpec) -> tuple[ViewSpec, ...]:
            """Two local clips and one over the whole video."""
            local = clips_view(default, LOCAL, 2)
            if not self.whole_view:
                return (local,)
            augment = replace(local.augment, crop_area=self.whole_crop_area)
            num_frames = self.whole_ratio * local.num_frames
            return local, ViewSpec(WHOLE, 1, num_frames, Whole(), augment)

    options: Options

    def __init__(self, options: Options, width: int, batch_norm: Any) -> None:
        super().__init__(options, width, batch_norm)
        from torch import nn

        from carl_ray.layers.normalization import BatchNorm

        self.projection = nn.Sequential(
            nn.Conv3d(width, options.hidden_width, 1, bias=False),
            BatchNorm(options.hidden_width, batch_norm),
            nn.ReLU(inplace=True),
            nn.Conv3d(options.hidden_width, options.projection_width, 1),
        )
        if options.order_weight and options.whole_view:
            outputs = 3 if options.order_targets == "three" else 1
            self.order = nn.Sequential(
                nn.Linear(3 * width, 128), nn.ReLU(inplace=True), nn.Linear(128, outputs)
            )
        self._explained: Tensor | None = None
        if options.information_weight:
            seen = options.projection_width if options.information_on == "projection" else width
            number = NUM_STATISTICS[options.low_level]
            self.reader = nn.Sequential(
                nn.Linear(seen, 128), nn.ReLU(inplace=True), nn.Linear(128, 2 * number)
            )
            self.standardize = BatchNorm(number).requires_grad_(False)

    def phases(
        self, encoder: nn.Module, adam: Callable[[Iterable[nn.Parameter]], Optimizer]
    ) -> tuple[Phase, ...]:
        """For `vclub`: first the reader of low-level statistics alone, then all else."""
        import torch

        is_first = self.options.information_weight and self.options.information == "vclub"
        reader = list(self.reader.parameters()) if is_first else []
        learner = Phase("all", adam(self.learnable(encoder, reader)))
        if not reader:
            return (learner,)
        phase = Phase("reader", torch.optim.Adam(reader, lr=2e-3), trains_encoder=False)
        return (*(phase for _ in range(self.options.information_steps)), learner)

    def phase_terms(
        self, phase: str, encodings: Mapping[str, Encoding], batch: Batch, progress: float
    ) -> Terms:
        """Terms of a phase; see `Objective.phase_terms`."""
        if phase == "all":
            return self(encodings, batch, progress)
        import torch

        encodings = self._pooled(encodings, batch)
        with torch.no_grad():
            regions = self._regions(encodings, batch)
        seen = self._low_level(regions, encodings, batch)
        read = read_terms(self.reader, *self._standardized(seen))
        if self._explained is None:
            self._explained = read.explained
        return Terms(read.own_loss[None], read.number[None])

    def forward(self, encodings: Mapping[str, Encoding], batch: Batch, progress: float) -> Terms:
        """Terms of the loss; see `Objective.forward`."""
        import torch

        encodings = self._pooled(encodings, batch)
        regions = self._regions(encodings, batch)
        sums, counts, figures = self._contrast(regions)
        if self.options.order_weight and self.options.whole_view:
            ordered, found = order_terms(self.order, encodings[LOCAL], encodings[WHOLE], batch)
            sums.append(self.options.order_weight * ordered.sums[0])
            counts.append(ordered.counts[0])
            figures |= found
        if self.options.information_weight:
            weight = self.options.information_weight * max(0.0, progress - _INFORMATION_FROM)
            weight /= 1 - _INFORMATION_FROM
            seen = self._low_level(regions, encodings, batch)
            information, number, explained = self._information(seen, weight)
            # A reader has just learnt from these regions: what it knew before says more.
            figures["low_level_r2"] = explained if self._explained is None else self._explained
            self._explained = None
            sums.append(information)
            counts.append(number)
        self.figures = figures
        return Terms(torch.stack(sums), torch.stack(counts))

    def _pooled(self, encodings: Mapping[str, Encoding], batch: Batch) -> Mapping[str, Encoding]:
        """Encodings whose maps have a cell for each region: the mean of its cells that are no padding."""
        from torch.nn import functional

        from carl_ray.layers.heads import real_cells

        wanted = self.options.regions
        if wanted is None:
            return encodings
        pooled = {}
        for name, encoding in encodings.items():
            assert encoding.maps is not None
            cells = encoding.maps.shape[3:]
            if any(number % regions for number, regions in zip(cells, wanted, strict=True)):
                raise ValueError(
                    f"objective.regions: expected numbers that divide the {' x '.join(map(str, cells))} cells of the "
                    f"view {name}, got {' x '.join(map(str, wanted))}"
                )
            sides = [number // regions for number, regions in zip(cells, wanted, strict=True)]
            real = real_cells(batch.views[name].mask, cells[0]).to(encoding.maps.dtype)
            real = real.flatten(0, 1)[:, None, :, None, None]
            sums = functional.avg_pool3d(encoding.maps.flatten(0, 1) * real, sides)
            share = functional.avg_pool3d(real, (sides[0], 1, 1)).clamp(min=1 / sides[0])
            pooled[name] = encoding._replace(maps=(sums / share).unflatten(0, encoding.maps.shape[:2]))
        return pooled

    def _regions(self, encodings: Mapping[str, Encoding], batch: Batch) -> dict[str, Regions]:
        return {
            name: _regions(self.projection, encoding, batch.views[name])
            for name, encoding in encodings.items()
        }

    def _contrast(
        self, regions: Mapping[str, Regions]
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
        """Sums, counts and figures of the ordered pairs of clips."""
        import torch

        sums, counts, figures = [], [], []
        for (anchors, i), (candidates, k) in _PAIRS:
            if anchors in regions and candidates in regions:
                terms, found = region_terms(
                    regions[anchors].clip(i),
                    regions[candidates].clip(k),
                    temperature=self.options.temperature,
                    measure=self.options.overlap,
                    hard=self.options.targets == "hard",
                    all_own=self.options.own_negatives == "all",
                )
                sums.append(terms.sums[0])
                counts.append(terms.counts[0])
                figures.append(found)
        return sums, counts, {name: torch.stack([one[name] for one in figures]).sum(0) for name in figures[0]}

    def _information(self, seen: LowLevel, weight: float) -> tuple[Tensor, Tensor, Tensor]:
        """Sum and number of the information term, times the weight, and its figure."""
        seen = self._standardized(seen)
        if self.options.information == "adversary":
            # The regions themselves, with their gradient times -weight: the reader learns, they unlearn.
            fixed = seen.z.detach()
            seen = seen._replace(z=fixed + weight * (fixed - seen.z))
        read = read_terms(self.reader, *seen)
        is_vclub = self.options.information == "vclub"
        return weight * read.information if is_vclub else read.own_loss, read.number, read.explained

    def _standardized(self, seen: LowLevel) -> LowLevel:
        import torch

        with torch.autocast(seen.z.device.type, enabled=False):
            return seen._replace(statistics=self.standardize(seen.statistics))

    def _low_level(
        self, regions: Mapping[str, Regions], encodings: Mapping[str, Encoding], batch: Batch
    ) -> LowLevel:
        """All regions with their low-level statistics."""
        import torch

        seen, statistics, masks = [], [], []
        for name, view in batch.views.items():
            encoding, on = encodings[name], self.options.information_on
            assert encoding.maps is not None and encoding.clip is not None and view.pixels is not None
            if on == "clip":
                shape, mask = torch.Size((1, 1, 1)), view.mask.any(-1)[..., None]
                vectors = encoding.clip[:, :, None]
            else:
                shape, mask = encoding.maps.shape[3:], regions[name].mask
                vectors = regions[name].z if on == "projection" else encoding.maps.flatten(3).mT
            low_level = low_level_statistics(view.pixels, view.mask, shape, self.options.low_level)
            seen.append(vectors.flatten(1, 2))
            statistics.append(low_level.flatten(1, 2))
            masks.append(mask.flatten(1))
        z, u, mask = (torch.cat(parts, 1) for parts in (seen, statistics, masks))
        real = mask.flatten().nonzero()[:, 0]
        videos = torch.arange(len(z), device=z.device)[:, None].expand(mask.shape).flatten()[real]
        wide = torch.promote_types(z.dtype, torch.float32)
        z, u = (part.flatten(0, 1)[real].to(wide) for part in (z, u))
        return LowLevel(z, u, videos, len(batch.rows))


class Regions(NamedTuple):
    """Regions of the clips of a view, or of one clip of each video."""

    z: Float[Tensor, "*clips R D"]
    """L2-normalised, float32 or better."""
    boxes: Float[Tensor, "*clips R 6"]
    mask: Bool[Tensor, "*clips R"]
    """False where fewer than half of the frames are real."""

    def clip(self, number: int) -> Regions:
        """Those of one clip of each video."""
        return Regions(*(part[:, number] for part in self))


def _regions(head: nn.Module, encoding: Encoding, view: ViewTensors[Tensor]) -> Regions:
    import torch
    from torch.nn import functional

    from carl_ray.layers.heads import real_cells

    assert encoding.maps is not None and view.pixels is not None
    cells = encoding.maps.shape[3:]
    if cells.numel() == 1:
        size = " x ".join(map(str, view.pixels.shape[2:5]))
        raise ValueError(f"region contrast needs a backbone with a feature map; got 1 x 1 x 1 from {size}")
    mask = real_cells(view.mask, cells[0])[..., None].expand(
        *view.mask.shape[:2], cells[0], cells[1] * cells[2]
    )
    if view.pixels.shape[3] % cells[1] or view.pixels.shape[4] % cells[2]:
        raise ValueError(
            f"region contrast needs frames whose side the {cells[1]} x {cells[2]} cells of a map divide, got "
            f"{view.pixels.shape[3]} pixels: choose another augment.image_size"
        )
    # The batch norm of the head must not see clips without frames.
    real = view.mask.any(-1).flatten().nonzero()[:, 0]
    maps = encoding.maps.flatten(0, 1)
    projected = head(maps[real])
    z = projected.new_zeros(len(maps), *projected.shape[1:]).index_copy(0, real, projected)
    z = z.unflatten(0, view.mask.shape[:2]).flatten(3).mT
    z = functional.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=-1)
    return Regions(z, cell_boxes(view, (cells[0], cells[1], cells[2])), mask.flatten(2))


def region_terms(
    anchors: Regions,
    candidates: Regions,
    *,
    temperature: float,
    measure: Measure = "iou",
    hard: bool = False,
    all_own: bool = False,
) -> tuple[Terms, dict[str, Tensor]]:
    """Cross-entropy of the similarities of regions with their overlaps, and its figures.

    Of anchor r with the regions r' of the other clip of its video, and all regions of that clip of other videos:

        t_rr' = o_rr' / sum_r'' o_rr''        loss = - sum_r' t_rr' log softmax(z_r z_r' / tau)

    Regions that no region of the other clip covers by a tenth are no anchors. Targets have no gradient. Candidates of
    all workers; a collective call.

    Args:
        anchors: Of this worker's videos.
        candidates: Of the same videos, in the same order.
        temperature: tau.
        measure: o.
        hard: Put the whole target on the region that overlaps most.
        all_own: See `own_negatives`.

    Returns:
        Sum over the anchors, and their number; figures: the targets' entropy (the least possible loss), the share of
        regions that are anchors, and the mean rank of the region that overlaps most, from 1.
    """
    import torch

    from carl_ray.objectives.gather import gather_rows, own_rows

    with torch.no_grad():
        found = overlap(anchors.boxes, candidates.boxes)
        target, valid = _targets(found, anchors.mask, candidates.mask, measure, hard)
        counted = candidates.mask[:, None, :].expand(target.shape)
        if not all_own:
            counted = counted & (found.in_time | ~found.in_space)
    z, mask = gather_rows(candidates.z, candidates.mask)
    with torch.autocast(z.device.type, enabled=False):
        logits = torch.einsum("brd,aqd->braq", anchors.z, z) / temperature
        allowed = mask[None, None].expand(logits.shape).clone()
        places = torch.arange(len(anchors.z), device=z.device)
        own = own_rows(places, len(z))
        allowed[places, :, own] = counted
        logits = logits.masked_fill(~allowed, -torch.inf)
        # A row without candidates is no anchor: its logits must stay finite.
        logits = logits.where(valid[..., None, None], 0)
        chances = logits.flatten(2).log_softmax(-1).unflatten(2, logits.shape[2:])[places, :, own]
        weights = target.to(logits.dtype)
        losses = -(weights * chances.where(weights > 0, 0)).sum(-1).where(valid, 0)
    with torch.no_grad():
        entropy = -(target * target.clamp(min=1e-12).log()).sum(-1).where(valid, 0)
        best = logits[places, :, own].gather(2, target.argmax(-1, keepdim=True))
        rank = 1 + (logits.flatten(2) > best).sum(-1)
    number, among = valid.sum(), anchors.mask.sum()
    figures = {
        "target_entropy": torch.stack([entropy.sum(), number]),
        "region_loss": torch.stack([losses.detach().sum(), number]),
        "anchor_share": torch.stack([number, among]).double(),
        "rank_of_best": torch.stack([rank.where(valid, 0).sum(), number]).double(),
    }
    return Terms(losses.sum()[None], number[None]), figures


def _targets(
    found: Overlap,
    anchors: Bool[Tensor, "B R"],
    candidates: Bool[Tensor, "B Q"],
    measure: Measure,
    hard: bool,
) -> tuple[Float[Tensor, "B R Q"], Bool[Tensor, "B R"]]:
    """Targets of every region, and which are anchors."""
    import torch

    real = candidates[:, None, :]
    overlaps = getattr(found, measure).where(real, 0)
    if hard:
        best = overlaps.argmax(-1, keepdim=True)
        overlaps = torch.zeros_like(overlaps).scatter(-1, best, overlaps.gather(-1, best))
    total = overlaps.sum(-1, keepdim=True)
    covered = found.coverage.where(real, 0).amax(-1) >= _LEAST_COVERAGE
    return overlaps / total.where(total > 0, 1), anchors & covered & (total[..., 0] > 0)
