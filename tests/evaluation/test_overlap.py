"""`carl_ray.evaluation.overlap`: copies are found, other videos are not."""

from dataclasses import replace

import numpy as np

from carl_ray.evaluation.overlap import overlap_warnings
from tests.embedded import embedded


def walk(number, split):
    """A random walk beside what all videos have in common: a clock."""
    rng = np.random.default_rng([number, len(split)])
    length = int(rng.integers(40, 80))
    clock = 20 * np.linspace(0, 1, length)[:, None] * np.ones(4)
    own = rng.standard_normal((length, 12)).cumsum(0)
    return embedded(f"{split}/{number}", np.hstack([clock, own]), content_hash=f"{split}{number}")


TRAIN = [walk(number, "train") for number in range(12)]
TEST = [walk(number, "test") for number in range(6)]


def test_other_videos_are_no_copies():
    assert overlap_warnings(TRAIN, TEST, {}) == []
    assert overlap_warnings([], TEST, {}) == []


def test_the_same_content_is_told():
    same = [replace(TEST[number], content_hash=f"train{number}") for number in (0, 3)]
    (line,) = overlap_warnings(TRAIN, [*same, *TEST[4:]], {})
    assert line.startswith(
        "Copies of training videos among the 4 test videos: 2, such as test/0, which is train/0."
    )


def test_ranges_with_the_same_frames_are_told():
    def part(video, start, end):
        return replace(video, uri=f"long.mp4#frames={start}-{end}/900")

    train = [part(TRAIN[0], 0, 100), *TRAIN[1:]]
    assert overlap_warnings(train, [part(TEST[0], 100, 150), *TEST[1:]], {}) == []
    (line,) = overlap_warnings(train, [part(TEST[0], 99, 150), *TEST[1:]], {})
    assert line.startswith(
        "Ranges with frames of training videos among the 6 test videos: 1, such as test/0,"
    )
    assert "which overlaps with train/0." in line


def test_a_copy_in_another_quality_is_told():
    rng = np.random.default_rng(0)
    faster = TRAIN[5].embeddings[::2]
    copy = replace(TEST[0], embeddings=faster + 0.02 * rng.standard_normal(faster.shape).astype(np.float32))
    (line,) = overlap_warnings(TRAIN, [copy, *TEST[1:]], {})
    assert line.startswith(
        "What seem to be copies of training videos among the 6 test videos: 1, such as test/0, which"
    )
    assert "is train/5." in line


def test_the_same_person_is_told():
    persons = dict(zip(("train/0", "train/1", "test/0", "test/1", "test/2"), "abcbb", strict=True))
    persons["test/3"] = None
    (line,) = overlap_warnings(TRAIN, TEST, persons)
    assert ": 2, such as test/1, which shows the person of train/1." in line
