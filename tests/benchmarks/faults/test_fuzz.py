"""Every damaged file gives frames or one reason, whatever the damage, and the same number the same file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.faults.fuzz import MUTATIONS, _kind, damaged_file, fuzz
from carl_ray.errors import UserError


@pytest.fixture(scope="module")
def videos(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [
        make_video(folder / "a.mp4", 30, gop=10),
        make_video(folder / "b.mkv", 20, 48, 32),
        make_video(folder / "c.avi", 12, codec="mpeg4"),
        make_video(folder / "d.ts", 12, b_frames=0),
    ]


def test_every_file_gives_frames_or_one_reason(videos: list[Path]) -> None:
    before = [path.read_bytes() for path in videos]
    report = fuzz(videos, seconds=5, seed=0, on_progress=print)
    total = report.total
    assert total.total() == sum(count.total() for count in report.counts.values()) > 0
    assert total["error"] == 0, str(report)
    assert len(report.findings) == total["hang"] + total["crash"]
    assert f"seed 0, {report.seconds:.0f} s, {total.total()} files" in str(report)
    assert [path.read_bytes() for path in videos] == before


def test_a_number_names_a_file(videos: list[Path]) -> None:
    files = [damaged_file(videos, 3, number) for number in range(300)]
    assert files == [damaged_file(videos, 3, number) for number in range(300)]
    assert files[:20] != [damaged_file(videos, 4, number) for number in range(20)]
    assert {name for _, name, _ in files} == set(MUTATIONS)
    changed = [content != source.read_bytes() for source, _, content in files]
    assert sum(changed) > 0.9 * len(files)


def test_mutations_of_almost_nothing(tmp_path: Path) -> None:
    for size in (0, 1, 5):
        (tmp_path / "tiny.mp4").write_bytes(bytes(size))
        for number in range(100):
            damaged_file([tmp_path / "tiny.mp4"], 0, number)


@pytest.mark.parametrize(
    "reason,kind",
    [
        ("the decoder took longer than 20 s", "hang"),
        ("the decoder took longer than its time limit", "hang"),
        ("the decoder crashed (SIGSEGV)", "crash"),
        ("the decoder was killed (SIGKILL), perhaps for want of memory", "crash"),
        ("reading failed (IndexError: 3)", "error"),
        ("probing failed (IndexError: 3)", "error"),
        ("encrypted", "refused"),
    ],
)
def test_kinds_of_reasons(reason: str, kind: str) -> None:
    assert _kind(reason) == kind


def test_nothing_to_damage() -> None:
    with pytest.raises(UserError, match="at least one file"):
        fuzz([], seconds=1, seed=0, on_progress=print)
