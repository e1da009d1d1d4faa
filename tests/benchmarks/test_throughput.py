"""`python -m benchmarks.throughput`: its report and its complaints."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from benchmarks import throughput
from benchmarks.parts import embedding, evaluation, videos
from benchmarks.parts.table import Table
from carl_ray.data import probing

TINY = ["--data.short_side", "32", "--augment.image_size", "24", "--model.num_frames", "8"]


def complaint(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        throughput.main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_the_report_of_a_folder(
    tmp_path: Path,
    make_video: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_video(tmp_path / "inner" / "a.mp4", 30, 48, 32)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "notes.txt").write_text("no video, and not named so")
    made = Table("evaluation: made up", ("metric", "ratio"), [("tau", "3")])
    monkeypatch.setattr(evaluation, "measure", lambda on_progress: made)
    throughput.main([str(tmp_path), "--parts", "evaluation, data", *TINY])
    report, progress = capsys.readouterr()
    head, first, second, third = report.split("\n\n")
    assert "torch " in head
    assert head.endswith("T = 8, 24 x 24 pixels")
    assert first.splitlines() == ["evaluation: made up", "metric  ratio", "tau         3"]
    assert second.startswith("data: 6 pairs of views of 1 video (48x32 h264)")
    assert "decode-only limit" in second
    assert third.startswith("bytes of a pair")
    assert "left out broken.mp4" in progress
    assert "data: 6/6 a.mp4" in progress


def test_only_what_is_asked_for_is_rendered_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARL_RAY_HOME", str(tmp_path))
    monkeypatch.setattr(videos, "_WIDTH", 96)
    monkeypatch.setattr(videos, "_HEIGHT", 64)
    monkeypatch.setattr(videos, "_NUM_FRAMES", 12)
    said: list[str] = []
    paths = videos.ensure_rendered(said.append)
    assert len(said) == len(paths) == 3
    assert videos.ensure_rendered(said.append) == paths
    assert len(said) == 3
    found, _ = throughput.probe(paths, 3)
    assert [(video.num_frames, video.kind) for video in found] == [(12, "96x64 h264")] * 3
    assert len({path.read_bytes() for path in paths}) == 3
    assert sorted((tmp_path / "bench").iterdir()) == sorted(paths)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--parts", "data,steam"], "unknown part 'steam'; did you mean stream?"),
        (["--parts", ""], "unknown part ''"),
        (["/nowhere"], "/nowhere: no such folder"),
        (["--model.num_frame", "8"], "unknown option --model.num_frame; did you mean model.num_frames?"),
        (["--model.num_frames", "none"], "model.num_frames"),
        (["--evaluation"], "unknown option --evaluation"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = complaint(arguments, capsys)
    assert expected in found
    assert found.count("\n") == 1


def test_a_folder_without_videos(
    tmp_path: Path, make_video: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no video in it" in complaint([str(tmp_path), "--parts", "data"], capsys)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert "none of 1 videos can be read" in complaint([str(tmp_path), "--parts", "data"], capsys)
    (tmp_path / "broken.mp4").unlink()
    make_video(tmp_path / "short.mp4", 5, 48, 32)
    assert "no video has the 8 frames" in complaint([str(tmp_path), "--parts", "data", *TINY], capsys)


def test_a_large_folder_is_sampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(60):
        (tmp_path / f"{number:02}.mp4").write_bytes(b"")
    probed = []

    def probe_guarded(file: BinaryIO, size: int, *, verify: bool) -> dict[str, Any]:
        assert verify
        probed.append(Path(file.name).stem)
        if probed[-1] == "00":
            return {"reason": "took longer than 120 s"}
        return {"num_frames": 9, "width": 48, "height": 32, "codec": "h264"}

    measured: list[Path] = []

    def measure(paths: list[Path], *others: object) -> Table:
        measured.extend(paths)
        return Table("embedding: made up", ("way",), [])

    monkeypatch.setattr(probing, "probe_guarded", probe_guarded)
    monkeypatch.setattr(embedding, "measure", measure)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    throughput.main([str(tmp_path), "--parts", "embedding"])
    # One that decodes is enough.
    assert probed == ["00", "02"]
    assert measured == [tmp_path / "02.mp4"]
    found = throughput._Videos(tmp_path)
    assert [len(found.paths), len(found.readable)] == [60, 23]
    assert found.readable[-1] == videos.Video(tmp_path / "59.mp4", 9, "48x32 h264")
    assert len(probed) == 2 + 24
    progress = capsys.readouterr().err
    assert "24 of the 60 videos, evenly taken" in progress
    assert "left out 00.mp4: took longer than 120 s" in progress


def test_neither_the_door_nor_the_data_part_loads_ray() -> None:
    code = (
        "import sys; from benchmarks import throughput; light = set(sys.modules); "
        "from benchmarks.parts import data, decoders, evaluation, videos; from carl_ray.data import probing; "
        "assert 'ray' not in sys.modules; assert not {'av', 'pyarrow.dataset'} & light, light"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
