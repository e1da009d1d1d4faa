"""The comparison of decoders, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.parts import decoders


def test_every_decoder_reads_a_video_in_a_process_of_its_own(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    said: list[str] = []
    table = decoders.measure([make_video(tmp_path / "video.mp4", 30, 96, 64)], said.append)
    assert said == ["decoders: 1/1 video.mp4"]
    assert [row[0] for row in table.rows] == ["pyav", "decord"]
    assert [row[5:] for row in table.rows] == [("1 of 1", "0", "0")] * 2
    assert table.rows[0][2] == "1.00"
    assert table.notes == []


def test_what_does_not_decode_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    table = decoders.measure([tmp_path / "broken.mp4"], lambda line: None)
    assert [row[-1] for row in table.rows] == ["1", "1"]
    assert all("broken.mp4: not a video" in note for note in table.notes)


def test_rates_are_over_what_both_read_and_ratios_to_the_first() -> None:
    def read(crop: float, everything: float, **others: bool) -> dict[str, object]:
        ways = {"crop": crop, "all": everything}
        return {
            "video": "a.mp4",
            "equal": True,
            **{f"{way}_frames": 100 for way in ways},
            **{f"{way}_seconds": seconds for way, seconds in ways.items()},
            **others,
        }

    failed = {"video": "b.mp4", "failure": "crashed (SIGSEGV)"}
    table = decoders.decoder_table(
        {
            "pyav": [read(0.5, 1.0), read(9.0, 9.0)],
            "decord": [read(1.0, 0.5, equal=False, wrong=True), failed],
        }
    )
    assert table.rows == [
        ("pyav", "200", "1.00", "100", "1.00", "2 of 2", "0", "0"),
        ("decord", "100", "0.50", "200", "2.00", "0 of 2", "1", "1"),
    ]
    assert table.notes == ["decord: a.mp4: wrong frames", "decord: b.mp4: crashed (SIGSEGV)"]
