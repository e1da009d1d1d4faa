from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from carl_ray.data.randomness import sample_generator
from carl_ray.data.views import sample_clips, sample_views, sample_whole

GOLDEN_CROPS = ((78, 90), (78, 87))
GOLDEN_INDICES = [[79, 80, 83, 84, 86, 87, 88, 89], [78, 79, 80, 81, 83, 84, 85, 86]]
LONG_ENOUGH = [  # (S, T, alpha)
    (8, 8, 1.5),
    (9, 8, 1.5),
    (11, 8, 3.0),
    (40, 8, 1.5),
    (40, 8, 1.0),
    (100, 20, 1.1),
    (300, 80, 2.0),
    (1_000_000, 240, 1.5),
    (5, 1, 1.5),
]


def overlap(first: tuple[int, int], second: tuple[int, int]) -> int:
    return max(0, min(first[1], second[1]) - max(first[0], second[0]))


@pytest.mark.parametrize(("num_video_frames", "num_frames", "alpha"), LONG_ENOUGH)
@pytest.mark.parametrize("beta", [0.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("sampling", ["random", "even"])
def test_paper_views_keep_every_promise(num_video_frames, num_frames, alpha, beta, sampling):
    rng = np.random.default_rng(0)
    longest = min(math.floor(alpha * num_frames + 1e-9), num_video_frames)
    for _ in range(60):
        views = sample_views(
            num_video_frames,
            num_frames,
            max_crop_ratio=alpha,
            min_overlap=beta,
            sampling=sampling,
            rng=rng,
        )
        lengths = [view.crop[1] - view.crop[0] for view in views]
        for view, length in zip(views, lengths, strict=True):
            assert num_frames <= length <= longest
            assert view.crop[0] >= 0 and view.crop[1] <= num_video_frames
            assert view.frame_indices.dtype == np.int64 and view.frame_indices.shape == (num_frames,)
            assert view.frame_mask.dtype == np.bool_ and view.frame_mask.all()
            assert (np.diff(view.frame_indices) > 0).all()
            assert view.crop[0] <= view.frame_indices[0] and view.frame_indices[-1] < view.crop[1]
        assert overlap(views[0].crop, views[1].crop) >= beta * min(lengths) - 1e-9
        if beta == 1:
            assert views[0].crop == views[1].crop


@pytest.mark.parametrize(("num_video_frames", "highest"), [(40, 15), (13, 13)])
def test_lengths_are_uniform_and_reach_both_ends(num_video_frames, highest):
    rng = np.random.default_rng(1)
    crops = [view.crop for _ in range(1500) for view in sample_views(num_video_frames, 10, rng=rng)]
    counts = Counter(stop - start for start, stop in crops)
    assert sorted(counts) == list(range(10, highest + 1))
    expected = len(crops) / len(counts)
    assert (
        sum((count - expected) ** 2 / expected for count in counts.values()) < 25
    )  # chi-square, <= 5 d.o.f.


def test_product_of_alpha_and_t_is_not_cut_by_rounding():
    # 1.1 * 10 is 11.000000000000002 and 1.15 * 100 is 114.99999999999999 in floating point.
    rng = np.random.default_rng(0)
    crops = [view.crop for _ in range(300) for view in sample_views(999, 100, max_crop_ratio=1.15, rng=rng)]
    assert max(stop - start for start, stop in crops) == 115


@pytest.mark.parametrize("beta", [0.0, 0.2, 0.5, 0.9])
def test_places_are_uniform_over_all_valid_pairs(beta):
    num_video_frames, num_frames = 14, 6
    draws = 16_000
    rng = np.random.default_rng(2)
    seen: dict[tuple[int, int], Counter] = {}
    for _ in range(draws):
        first, second = (
            view.crop for view in sample_views(num_video_frames, num_frames, min_overlap=beta, rng=rng)
        )
        lengths = (first[1] - first[0], second[1] - second[0])
        seen.setdefault(lengths, Counter())[first[0], second[0]] += 1
    assert set(seen) == set(itertools.product((6, 7, 8, 9), repeat=2))
    for (length1, length2), counts in seen.items():
        valid = [
            (start1, start2)
            for start1 in range(num_video_frames - length1 + 1)
            for start2 in range(num_video_frames - length2 + 1)
            if overlap((start1, start1 + length1), (start2, start2 + length2))
            >= beta * min(length1, length2) - 1e-9
        ]
        assert set(counts) <= set(valid)
        expected = counts.total() / len(valid)
        chi_square = sum((counts[pair] - expected) ** 2 / expected for pair in valid)
        freedom = len(valid) - 1
        assert chi_square < freedom + 5 * math.sqrt(2 * freedom) + 5


def test_full_overlap_is_the_same_crop_at_every_place():
    rng = np.random.default_rng(3)
    crops = Counter()
    for _ in range(600):
        first, second = sample_views(8, 6, min_overlap=1.0, rng=rng)
        assert first.crop == second.crop
        crops[first.crop] += 1
    # Lengths 6, 7, 8 alike; then the 3, 2 and 1 places of each alike.
    assert set(crops) == {(0, 6), (1, 7), (2, 8), (0, 7), (1, 8), (0, 8)}
    assert abs(crops[0, 8] - 200) < 60 and abs(crops[0, 6] - 67) < 35


def test_views_sample_their_crops_independently():
    rng = np.random.default_rng(0)
    first, second = sample_views(300, 40, min_overlap=1.0, rng=rng)
    assert not np.array_equal(first.frame_indices, second.frame_indices)


def test_random_sampling_takes_every_frame_of_the_crop_alike():
    rng = np.random.default_rng(4)
    counts = np.zeros(9)
    for _ in range(3000):
        for view in sample_views(9, 6, rng=rng):
            if view.crop == (0, 9):
                counts[view.frame_indices] += 1
    expected = counts.mean()
    assert expected > 500
    assert ((counts - expected) ** 2 / expected).sum() < 30


@pytest.mark.parametrize("num_frames", [2, 3, 7, 20])
def test_even_sampling_is_even_and_reaches_both_ends(num_frames):
    rng = np.random.default_rng(5)
    for _ in range(100):
        for view in sample_views(100, num_frames, max_crop_ratio=4.0, sampling="even", rng=rng):
            start, stop = view.crop
            assert (view.frame_indices[0], view.frame_indices[-1]) == (start, stop - 1)
            exact = start + np.arange(num_frames) * (stop - start - 1) / (num_frames - 1)
            assert np.abs(view.frame_indices - exact).max() <= 0.5
            if stop - start == num_frames:
                assert np.array_equal(view.frame_indices, np.arange(start, stop))


@pytest.mark.parametrize("crop", ["paper", "released"])
@pytest.mark.parametrize("sampling", ["random", "even"])
@pytest.mark.parametrize("num_video_frames", [1, 2, 7])
def test_short_videos_keep_all_frames_and_are_padded(crop, sampling, num_video_frames):
    rng = np.random.default_rng(0)
    for view in sample_views(num_video_frames, 8, crop=crop, sampling=sampling, rng=rng):
        real = list(range(num_video_frames))
        padding = 8 - num_video_frames
        assert view.crop == (0, num_video_frames)
        assert view.frame_indices.tolist() == real + [num_video_frames - 1] * padding
        assert view.frame_mask.tolist() == [True] * num_video_frames + [False] * padding
        assert view.frame_indices.dtype == np.int64 and view.frame_mask.dtype == np.bool_


@pytest.mark.parametrize("sampling", ["random", "even"])
def test_released_views_draw_past_the_end_and_mask_it(sampling):
    rng = np.random.default_rng(6)
    real_parts = []
    for _ in range(800):
        for view in sample_views(200, 50, crop="released", sampling=sampling, rng=rng):
            assert view.crop == (0, 200)
            real = view.frame_indices[view.frame_mask]
            assert (np.diff(real) > 0).all() and real[-1] < 200
            # Real frames first, then padding with the last index.
            assert (np.diff(view.frame_mask.astype(int)) <= 0).all()
            assert (view.frame_indices[~view.frame_mask] == 199).all()
            real_parts.append(view.frame_mask.mean())
    # The share of real frames is 1 / r on average, r uniform in [1, 1.5): 2 ln 1.5 = 0.811.
    assert np.mean(real_parts) == pytest.approx(2 * math.log(1.5), abs=0.02)
    assert max(real_parts) > 0.97 and min(real_parts) < 0.72


def test_released_views_ignore_overlap():
    pairs = [
        sample_views(90, 30, crop="released", min_overlap=beta, rng=np.random.default_rng(0))
        for beta in (0.0, 1.0)
    ]
    for view, other in zip(*pairs, strict=True):
        assert np.array_equal(view.frame_indices, other.frame_indices)


def test_released_views_never_lack_real_frames():
    rng = np.random.default_rng(7)
    views = [
        view for _ in range(1000) for view in sample_views(3, 1, crop="released", max_crop_ratio=4.0, rng=rng)
    ]
    assert all(view.frame_mask.any() for view in views)
    counts = Counter(int(view.frame_indices[0]) for view in views)
    assert set(counts) == {0, 1, 2} and min(counts.values()) > 550  # a view is not always moved to one place


def test_golden_values():
    """These change only with the samples of every run: a checkpoint could then not be resumed exactly."""
    first, second = sample_views(300, 8, rng=sample_generator(0, 0, "video", 0))
    assert (first.crop, second.crop) == GOLDEN_CROPS
    assert [first.frame_indices.tolist(), second.frame_indices.tolist()] == GOLDEN_INDICES


def test_same_generator_same_views():
    one, other = (sample_views(500, 32, rng=sample_generator(1, 2, "v", 0)) for _ in range(2))
    for view, again in zip(one, other, strict=True):
        assert np.array_equal(view.frame_indices, again.frame_indices) and view.crop == again.crop


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_video_frames": 0}, "num_video_frames must be at least 1, got 0"),
        ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
        ({"max_crop_ratio": 0.9}, "max_crop_ratio .* got 0.9"),
        ({"max_crop_ratio": math.nan}, "max_crop_ratio .* got nan"),
        ({"max_crop_ratio": math.inf}, "max_crop_ratio .* got inf"),
        ({"min_overlap": 1.1}, r"min_overlap must be in \[0, 1\], got 1.1"),
        ({"min_overlap": -0.1}, r"min_overlap must be in \[0, 1\], got -0.1"),
    ],
)
def test_arguments_out_of_range(changes, message):
    arguments = {"num_video_frames": 10, "num_frames": 4} | changes
    with pytest.raises(ValueError, match=message):
        sample_views(**arguments, rng=np.random.default_rng(0))


def clips_of(num_video_frames, num_frames=8, strides=(1, 4), count=2, draws=2000):
    rng = np.random.default_rng(0)
    return [sample_clips(num_video_frames, num_frames, strides, count, rng) for _ in range(draws)]


def test_clips_lie_in_the_video_at_one_stride_and_half_of_them_overlap():
    overlapping, strides, starts = 0, Counter(), Counter()
    for first, second in clips_of(200):
        stride = first.frame_indices[1] - first.frame_indices[0]
        for clip in (first, second):
            assert clip.frame_mask.all() and clip.crop[0] >= 0 and clip.crop[1] <= 200
            assert (np.diff(clip.frame_indices) == stride).all() and clip.frame_indices[0] == clip.crop[0]
            assert clip.crop[1] - clip.crop[0] == 8 * stride
        shared = min(first.crop[1], second.crop[1]) - max(first.crop[0], second.crop[0])
        overlapping += shared >= 8 * stride / 4
        strides[int(stride)] += 1
        starts[first.crop[0] // 50] += 1
    assert sorted(strides) == [1, 2, 3, 4]
    assert min(strides.values()) > 400
    # Half of the draws, and those of the other half that happen to.
    assert 0.5 < overlapping / 2000 < 0.72
    assert min(starts[part] for part in range(3)) > 350


@pytest.mark.parametrize("num_video_frames", [1, 5, 8, 15, 20, 31])
def test_short_videos_lower_the_stride_and_are_padded(num_video_frames):
    for first, second in clips_of(num_video_frames, strides=(4, 4), draws=20):
        stride = max(1, num_video_frames // 8)
        for clip in (first, second):
            places = clip.crop[0] + stride * np.arange(8)
            assert (clip.frame_mask == (places < num_video_frames)).all()
            assert (clip.frame_indices == places.clip(max=num_video_frames - 1)).all()
            assert clip.crop == (places[0], places[0] + 8 * stride)


def test_a_clip_over_the_whole_video_has_one_frame_of_each_part():
    rng = np.random.default_rng(0)
    seen = np.zeros((8, 100), int)
    for _ in range(500):
        clip = sample_whole(100, 8, rng)
        assert clip.crop == (0, 100) and clip.frame_mask.all()
        seen[np.arange(8), clip.frame_indices] += 1
    for part, counts in enumerate(seen):
        low, high = part * 100 // 8, (part + 1) * 100 // 8
        assert counts[low:high].all() and counts.sum() == counts[low:high].sum()
    short = sample_whole(5, 8, rng)
    assert short.frame_mask.tolist() == [True] * 5 + [False] * 3
    # Each of four cells stands for the two frames that it shows.
    assert short.crop == (0, 8)
