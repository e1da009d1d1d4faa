import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from carl_ray.evaluation.controls import CONTROLS
from carl_ray.evaluation.kendall import kendalls_tau
from carl_ray.evaluation.label_free import consistent_warping
from tests.embedded import ORIGIN, embedded
from tests.objectives.test_dtw import slow_dtw


def walks(seed, lengths, width=6):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((length, width)).cumsum(0) for length in lengths]


def progress_of(length, idle_before, idle_after):
    """A video that rests, acts and rests again."""
    action = length - idle_before - idle_after
    return np.concatenate([np.zeros(idle_before), np.linspace(0, 1, action), np.ones(idle_after)])


TIMINGS = [(60, 0, 20), (70, 25, 0), (55, 10, 10), (80, 5, 35), (64, 20, 4), (75, 0, 0), (58, 12, 22)]


LENGTHS = [timing[0] for timing in TIMINGS]


def control(name, seed=0):
    videos = [embedded(f"{i}.mp4", np.zeros((n, 128))) for i, n in enumerate(LENGTHS)]
    return CONTROLS[name].embed(videos, replace(ORIGIN, num_frames=32, position_width=128), seed)


def on_a_curve(clocks):
    """What an encoder makes of videos that sees what these clocks show, and nothing else: points on a curve."""
    codes = [np.exp(-80 * (clock[:, None] - np.linspace(0, 1, 20)) ** 2) for clock in clocks]
    return [code / np.linalg.norm(code, axis=1, keepdims=True) for code in codes]


def seen(noise=0.0, seed=0):
    """What an encoder that sees the action makes of the videos, with noise."""
    rng = np.random.default_rng(seed)
    codes = on_a_curve([progress_of(*timing) for timing in TIMINGS])
    return [code + noise * rng.standard_normal(code.shape) / math.sqrt(20) for code in codes]


def cosines(first, second):
    norms = np.linalg.norm(first, axis=1)[:, None] * np.linalg.norm(second, axis=1)
    return np.where(norms > 0, first @ second.T / np.where(norms > 0, norms, 1), 0)


def slow_partners(first, second):
    """The mean partner, in relative time, of each frame of `first`: dynamic time warping cell by cell."""
    times = [np.arange(len(video)) / max(len(video) - 1, 1) for video in (first, second)]
    cost = 1 - cosines(first, second) + 1e-6 * np.abs(times[0][:, None] - times[1])
    partners = [[] for _ in first]
    for i, j in slow_dtw(torch.from_numpy(cost))[0]:
        partners[i].append(times[1][j])
    return [sum(found) / len(found) for found in partners]


def slow_score(videos):
    def likeness(a, b):
        return cosines(videos[a], videos[b]).max(1).mean()

    def partner_at(a, b, time):
        """Between the partners of the two frames of a around a time."""
        partners = slow_partners(videos[a], videos[b])
        place = time * (len(partners) - 1)
        low = min(int(place), len(partners) - 2)
        return partners[low] + (place - low) * (partners[low + 1] - partners[low])

    of_videos = []
    for a in range(len(videos)):
        others = sorted((v for v in range(len(videos)) if v != a), key=lambda v: -likeness(a, v))[:3]
        gains = []
        for b in others:
            for c in others:
                if b != c:
                    direct, through = slow_partners(videos[a], videos[b]), slow_partners(videos[a], videos[c])
                    for frame, (p, middle) in enumerate(zip(direct, through, strict=True)):
                        q = partner_at(c, b, middle)
                        time = frame / (len(direct) - 1)
                        gains.append(abs(p - time) - abs(p - q) / math.sqrt(3))
        of_videos.append(np.mean(gains))
    return np.mean(of_videos)


@pytest.mark.parametrize("lengths", [[7, 9, 4, 8, 6], [6, 5, 8], [9, 3, 7, 5]])
def test_equals_a_slow_reference(lengths):
    for seed in range(3):
        videos = walks(seed, lengths)
        assert consistent_warping(videos) == pytest.approx(slow_score(videos), abs=1e-12)


def test_an_encoder_that_sees_the_action_wins_over_the_controls():
    positions = control("positions")
    chance = [control("chance", seed) for seed in range(5)]
    assert kendalls_tau(positions).value > kendalls_tau(seen()).value
    assert consistent_warping(positions) == pytest.approx(0, abs=0.002)
    assert [consistent_warping(videos) for videos in chance] == pytest.approx([0] * 5, abs=0.015)
    assert consistent_warping(seen()) > 0.08


def test_it_falls_with_noise_and_with_less_of_the_action():
    noisy = [consistent_warping(seen(noise)) for noise in (0, 0.7, 1.4, 2.8)]
    assert sorted(noisy, reverse=True) == noisy
    positions = control("positions")
    positions = [video / np.linalg.norm(video, axis=1, keepdims=True) for video in positions]
    mixed = [
        consistent_warping([np.hstack([a, weight * b]) for a, b in zip(seen(), positions, strict=True)])
        for weight in (0.5, 2, 5)
    ]
    assert sorted(mixed, reverse=True) == mixed


# What follows is not wanted, but so: whoever reads the score must know it.


def test_a_clock_of_each_videos_own_is_taken_for_the_action():
    times = [np.linspace(0, 1, length) for length in LENGTHS]

    def blind(most, seed):
        powers = most ** np.random.default_rng(seed).uniform(-1, 1, len(times))
        return consistent_warping(on_a_curve([t**power for t, power in zip(times, powers, strict=True)]))

    scores = {most: [blind(most, seed) for seed in range(3)] for most in (1, 1.5, 3, 6)}
    assert scores[1] == pytest.approx([0] * 3, abs=0.002)
    assert max(scores[1.5]) < min(scores[3]) and max(scores[3]) < min(scores[6])
    assert min(scores[1.5]) > 0.04
    assert min(scores[6]) > consistent_warping(seen())


def test_the_progress_of_another_video_is_taken_for_the_action():
    progress = [progress_of(*timing) for timing in TIMINGS]
    for order in ([2, 4, 3, 6, 5, 0, 1], [5, 0, 1, 4, 2, 6, 3]):
        wrong = [
            np.interp(np.linspace(0, 1, length), np.linspace(0, 1, len(progress[other])), progress[other])
            for length, other in zip(LENGTHS, order, strict=True)
        ]
        assert consistent_warping(on_a_curve(wrong)) > 0.8 * consistent_warping(seen())


def test_counting_frames_is_taken_for_the_action_where_lengths_differ():
    def counted(lengths):
        return consistent_warping(on_a_curve([np.arange(length) / max(lengths) for length in lengths]))

    assert counted(LENGTHS) > 0.05
    assert counted([60] * 7) == pytest.approx(0, abs=1e-6)


def test_departures_without_agreement_are_no_evidence():
    # Each video's time is bent in a way of its own for every partner: here, by noise that is smooth in time.
    rng = np.random.default_rng(0)
    kernel = np.hanning(15)[:, None]
    videos = []
    for length in (60, 75, 52, 68, 80, 57):
        noise = rng.standard_normal((length + 14, 32))
        smooth = sum(weight * noise[shift : shift + length] for shift, weight in enumerate(kernel))
        videos.append(smooth / np.linalg.norm(smooth, axis=1, keepdims=True))
    assert consistent_warping(videos) < 0.02


def test_videos_of_another_action_do_not_disturb():
    zeros = np.zeros_like
    alone = seen()
    other = [video[::-1] for video in seen(0.3, seed=1)]
    both = [np.hstack([a, zeros(a)]) for a in alone] + [np.hstack([zeros(b), b]) for b in other]
    expected = (consistent_warping(alone) + consistent_warping(other)) / 2
    assert consistent_warping(both) == pytest.approx(expected, abs=1e-9)


def test_the_order_of_the_frames_matters():
    videos = walks(5, [30, 41, 12, 25, 18])
    # Played backwards all of them, every departure is mirrored.
    backwards = consistent_warping([video[::-1] for video in videos])
    assert backwards == pytest.approx(consistent_warping(videos), abs=0.01)
    rng = np.random.default_rng(0)
    assert consistent_warping(seen()) - consistent_warping([rng.permutation(v) for v in seen()]) > 0.05


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_constant_embeddings_are_no_evidence(value):
    # Of different lengths, so that the cheapest path is not unique.
    videos = [np.full((length, 8), value) for length in (40, 71, 25, 90)]
    assert consistent_warping(videos) == pytest.approx(0, abs=0.01)
    of_its_own = [
        np.tile(look, (length, 1))
        for length, look in zip(
            (40, 71, 25, 90), np.random.default_rng(0).standard_normal((4, 8)), strict=True
        )
    ]
    assert consistent_warping(of_its_own) == pytest.approx(0, abs=0.01)


def test_videos_too_few_or_too_short_give_a_number():
    assert consistent_warping(walks(7, [30])) == 0
    assert consistent_warping(walks(7, [30, 20])) == 0
    assert consistent_warping([*walks(7, [30, 20]), np.zeros((0, 6))]) == 0
    assert consistent_warping(walks(7, [1, 1, 1, 1])) == 0
    mixed = [*walks(8, [1, 2, 30, 20]), np.zeros((5, 6))]
    mixed[2][::4] = 0
    assert -1 / math.sqrt(3) <= consistent_warping(mixed) <= 1
