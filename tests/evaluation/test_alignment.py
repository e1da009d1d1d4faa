import numpy as np
import pytest
import torch

from carl_ray.evaluation.alignment import alignment_error
from carl_ray.evaluation.warping import align_pair
from tests.objectives.test_dtw import slow_dtw


def slow_path(a, b):
    """The warping path of two videos, a cell at a time."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return slow_dtw(torch.from_numpy(1 - a @ b.T))[0]


def slow_error(embeddings, progress, stride=1):
    embeddings = [x[::stride].astype(float) for x in embeddings]
    progress = [p[::stride] for p in progress]
    errors = []
    for a in range(len(embeddings)):
        for b in range(len(embeddings)):
            if a == b:
                continue
            path = slow_path(embeddings[a], embeddings[b])
            error = 0
            for i in range(len(embeddings[a])):
                partners = [progress[b][j] for k, j in path if k == i]
                error += abs(progress[a][i] - np.mean(partners)) / len(embeddings[a])
            errors.append(error)
    return np.mean(errors)


def videos(seed, lengths, width=6):
    rng = np.random.default_rng(seed)
    return (
        [rng.standard_normal((length, width)).cumsum(0) for length in lengths],
        [np.sort(rng.random(length)) for length in lengths],
    )


def on_a_curve(progress, width=16):
    """Embeddings that tell the progress exactly, and nothing else."""
    angles = np.asarray(progress)[:, None] * np.pi
    return np.concatenate([np.cos(angles), np.sin(angles), np.zeros((len(progress), width - 2))], axis=1)


@pytest.mark.parametrize("stride", [1, 2, 5])
def test_equals_a_slow_reference(stride):
    embeddings, progress = videos(0, [9, 23, 16, 31])
    found = alignment_error(embeddings, progress, stride=stride)
    assert found.value == pytest.approx(slow_error(embeddings, progress, stride), abs=1e-12)
    assert found.left_out == {"undefined_pairs": 0}


def test_perfect_embeddings_have_no_error_whatever_the_idle_time():
    steps = np.linspace(0, 1, 11)
    progress = [
        np.concatenate([np.zeros(a), np.repeat(steps, n), np.ones(b)]) for a, n, b in ((20, 1, 2), (3, 3, 30))
    ]
    assert alignment_error([on_a_curve(p) for p in progress], progress).value == pytest.approx(0, abs=1e-12)


def test_positions_are_wrong_by_the_idle_time():
    # Evenly spread positions pair frame i with frame i; the action is idle-time later in the second video.
    progress = [np.clip((np.arange(101) - start) / 50, 0, 1) for start in (0, 50)]
    positions = [on_a_curve(np.linspace(0, 1, 101))] * 2
    expected = np.abs(progress[0] - progress[1]).mean()
    assert alignment_error(positions, progress).value == pytest.approx(expected)


def test_constant_embeddings_walk_along_the_diagonal():
    progress = [np.linspace(0, 1, 30), np.linspace(0, 1, 30) ** 2]
    constant = [np.ones((30, 4))] * 2
    assert alignment_error(constant, progress).value == pytest.approx(
        np.abs(progress[0] - progress[1]).mean()
    )


def test_videos_without_frames_are_left_out_and_counted():
    embeddings, progress = videos(3, [9, 0, 14])
    found = alignment_error(embeddings, progress)
    assert found.left_out == {"undefined_pairs": 4}
    assert found.value == pytest.approx(slow_error(embeddings[::2], progress[::2]), abs=1e-12)


def test_single_frames_have_one_partner_each():
    found = alignment_error([np.ones((1, 2)), np.ones((4, 2))], [np.array([0.5]), np.arange(4) / 3])
    assert found.statistics[0, 1] == pytest.approx(0)
    assert found.statistics[1, 0] == pytest.approx((0.5 + 0.5 + 1 / 6 + 1 / 6) / 4)


def test_paths_equal_a_slow_reference():
    (a, b), _ = videos(5, [17, 26])
    found = align_pair(a.astype(np.float16).astype(np.float32), 3 * b)
    assert [tuple(step) for step in found] == slow_path(a.astype(np.float16).astype(np.float64), b)


def test_frames_of_zeros_are_as_far_from_all_others():
    path = align_pair(np.zeros((3, 4)), np.eye(4))
    assert path[0].tolist() == [0, 0]
    assert path[-1].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("embeddings", "progress", "message"),
    [
        ([np.ones((4, 3))], [np.ones(5)], "video 0: expected one for each of 4 frames"),
        ([np.ones((4, 3))] * 2, [np.ones(4)], "expected those of 2 videos, got 1"),
        ([np.ones((4, 3))], [np.full(4, np.inf)], "progress of video 0: expected finite values"),
    ],
)
def test_wrong_arguments_are_refused(embeddings, progress, message):
    with pytest.raises(ValueError, match=message):
        alignment_error(embeddings, progress)


def test_a_video_without_frames_has_no_path():
    with pytest.raises(ValueError, match="expected videos with frames, got 4 and 0"):
        align_pair(np.ones((4, 3)), np.ones((0, 3)))
