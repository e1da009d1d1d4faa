"""Alignment of videos by dynamic time warping, with the cosine distance of frames as cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64

from carl_ray.evaluation.frames import unit_frames
from carl_ray.evaluation.repetitions import Repetition, centred_units
from carl_ray.objectives.dtw import dynamic_time_warping, open_ended_dtw, relative_gap

# Cells of a batch of padded cost matrices, float64: bounds memory to some hundred megabytes.
_MOST_CELLS = 1 << 21
_CYCLE = 64  # places of a mean cycle


def align_pair(
    first: Float[np.ndarray, "N width"], second: Float[np.ndarray, "M width"], *, open_ends: bool = False
) -> Int64[np.ndarray, "steps 2"]:
    """The warping path of two whole videos, with cosine distance as cost.

    Time and memory grow with N * M: two videos of 6,000 frames take seconds and less than 2 GB.

    Args:
        first: Embeddings of the frames of a video; normalised here.
        second: Those of the other video.
        open_ends: Leave out frames at the ends that the other video does not show.

    Returns:
        Pairs of frame indices; each step is (1, 1), (1, 0) or (0, 1). None where the ends are open and the videos have
        nothing in common.

    Raises:
        ValueError: as `unit_frames`, or a video has no frames.
    """
    unit1, unit2 = (torch.from_numpy(frames) for frames in unit_frames([first, second]))
    if len(unit1) == 0 or len(unit2) == 0:
        raise ValueError(f"expected videos with frames, got {len(unit1)} and {len(unit2)} frames")
    mask1, mask2 = (torch.ones(1, len(frames), dtype=torch.bool) for frames in (unit1, unit2))
    cost = (1 - unit1 @ unit2.mT)[None]
    if open_ends:
        path = open_ended_dtw(cost, mask1, mask2, relative_gap(cost, mask1, mask2))
    else:
        path = dynamic_time_warping(cost, mask1, mask2)
    return path.cells[0].nonzero().numpy()


def align_repetitions(
    first: Float[np.ndarray, "N width"],
    second: Float[np.ndarray, "M width"],
    found: tuple[Sequence[Repetition], Sequence[Repetition]],
) -> Int64[np.ndarray, "steps 2"]:
    """The warping paths of two videos' repetitions (`find_repetitions`), the first with the first, and so on.

    Cycles may be cut in different poses: the cuts of the second video are moved, by at most half a repetition, to where
    its mean cycle resembles that of the first one most. Repetitions without a counterpart are left out. Pairs of
    frames are returned as by `align_pair`.
    """
    units = [centred_units(frames) for frames in (first, second)]
    places = (np.arange(_CYCLE) + 0.5) / _CYCLE
    cycles = [
        np.mean([frames[(start + places * (end - start)).astype(int)] for start, end, _ in of_video], axis=0)
        for frames, of_video in zip(units, found, strict=True)
    ]
    likeness = [np.vdot(cycles[0], np.roll(cycles[1], -shift, axis=0)) for shift in range(_CYCLE)]
    moved = int(np.argmax(likeness)) / _CYCLE
    moved -= moved > 0.5
    paths, end = [np.zeros((0, 2), np.int64)], 0
    for one, other in zip(*found, strict=False):
        length = other.end - other.start
        start = max(end, round(other.start + moved * length))
        end = min(max(start + 1, round(other.end + moved * length)), len(second))
        if start < end:
            path = align_pair(units[0][one.start : one.end], units[1][start:end])
            paths.append(path + np.array([one.start, start]))
    return np.concatenate(paths)


def partner_values(
    units: Sequence[Float64[np.ndarray, "_ width"]],
    values: Sequence[Float64[np.ndarray, "_ ..."]],
    pairs: Iterable[tuple[int, int]],
    *,
    tie_cost: float = 0.0,
) -> Iterator[tuple[int, int, Float64[np.ndarray, "frames ..."]]]:
    """Align pairs of videos and average a quantity over the partners of each frame.

    Args:
        units: Normalised embeddings of each video.
        values: The quantity, or several, at each frame of each video.
        pairs: Pairs of videos with frames, each in one order.
        tie_cost: Added to the cost of a cell for each unit that the values of its two frames differ; of one quantity.

    Yields:
        Both orders of each pair as a, b, and for each frame of a the mean value of its partners in b.
    """
    lengths = np.array([len(frames) for frames in units])
    for batch in _batches(lengths, np.array([*pairs], dtype=np.int64).reshape(-1, 2)):
        first, second = batch.T
        unit1, value1, mask1 = _padded(units, values, first)
        unit2, value2, mask2 = _padded(units, values, second)
        cost = 1 - unit1 @ unit2.mT
        if tie_cost:
            cost = cost + tie_cost * (value1[:, :, None] - value2[:, None, :]).abs()
        cells = dynamic_time_warping(cost, mask1, mask2).cells.double()
        partners1 = _mean_partners(cells, value2)
        partners2 = _mean_partners(cells.mT, value1)
        for place, (a, b) in enumerate(batch.tolist()):
            yield a, b, partners1[place, : lengths[a]].numpy()
            yield b, a, partners2[place, : lengths[b]].numpy()


def _mean_partners(cells: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Mean over the partners of each frame of values (B, M) or (B, M, quantities)."""
    sums = cells @ values.reshape(*values.shape[:2], -1)
    return (sums / cells.sum(2, keepdim=True).clamp(min=1)).reshape(*sums.shape[:2], *values.shape[2:])


def _batches(
    lengths: Int[np.ndarray, " videos"], pairs: Int[np.ndarray, "pairs 2"]
) -> Iterator[Int[np.ndarray, "batch 2"]]:
    """The pairs, longer video first, in batches of similar and bounded size."""
    pairs = np.where((lengths[pairs[:, :1]] < lengths[pairs[:, 1:]]), pairs[:, ::-1], pairs)
    pairs = pairs[np.lexsort(lengths[pairs].T[::-1])]
    start = widest = 0
    for stop, (longer, shorter) in enumerate(lengths[pairs].tolist()):
        widest = max(widest, shorter)
        if stop > start and (stop + 1 - start) * longer * widest > _MOST_CELLS:
            yield pairs[start:stop]
            start, widest = stop, shorter
    if start < len(pairs):
        yield pairs[start:]


def _padded(
    units: Sequence[np.ndarray], values: Sequence[np.ndarray], videos: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings, values and mask of some videos, padded with zeros."""
    lengths = torch.tensor([len(units[video]) for video in videos])
    padded, value = (
        torch.nn.utils.rnn.pad_sequence(
            [torch.from_numpy(array[video]) for video in videos], batch_first=True
        )
        for array in (units, values)
    )
    return padded, value, torch.arange(padded.shape[1]) < lengths[:, None]
