"""`carl_ray.datasets.tfrecord`: framing and checksums by definition, damage named with its position."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboardX.record_writer import masked_crc32c

from carl_ray.datasets.tfrecord import SequenceExample, read_records, read_sequence_examples
from carl_ray.errors import RunError, UserError


def test_records_come_back_with_their_positions(write_tfrecord: Callable[..., Path], tmp_path: Path) -> None:
    records = [b"first", b"", bytes(3000)]
    path = write_tfrecord(tmp_path / "a.tfrecord", records)
    assert list(read_records(path)) == [(0, b"first"), (21, b""), (37, bytes(3000))]
    assert list(read_records(write_tfrecord(tmp_path / "b.tfrecord", []))) == []


def test_sequence_examples_of_every_kind(
    write_tfrecord: Callable[..., Path], sequence_example: Callable[..., bytes], tmp_path: Path
) -> None:
    context = {"name": "größe".encode(), "len": 2, "label": -1, "rate": 0.5}
    lists = {"video": [b"\xff\xd8a", b"\xff\xd8b"], "frame_labels": [0, 4], "empty": []}
    path = write_tfrecord(tmp_path / "a.tfrecord", [sequence_example(context, lists), b""])
    assert list(read_sequence_examples(path)) == [
        SequenceExample(
            {name: [value] for name, value in context.items()},
            {name: [[value] for value in values] for name, values in lists.items()},
        ),
        SequenceExample({}, {}),
    ]


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        (21 + 3, "the checksum of its length is wrong"),
        (21 + 9, "the checksum of its length is wrong"),
        (21 + 15, "the checksum of its data is wrong"),
        (-1, "the checksum of its data is wrong"),
    ],
)
def test_a_flipped_bit_is_noticed(
    at: int, reason: str, write_tfrecord: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_tfrecord(tmp_path / "a.tfrecord", [b"first", b"second"])
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)
    records = read_records(path)
    assert next(records) == (0, b"first")
    with pytest.raises(UserError, match=rf"a\.tfrecord: damaged record at byte 21: {reason}; download"):
        next(records)


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (21 + 5, "the file ends in the middle of its header"),
        (21 + 12, "the file ends before its 6 bytes do"),
        (21 + 12 + 6 + 3, "the file ends before its 6 bytes do"),
    ],
)
def test_a_file_that_was_cut_off_is_noticed(
    kept: int, reason: str, write_tfrecord: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_tfrecord(tmp_path / "a.tfrecord", [b"first", b"second"])
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=f"damaged record at byte 21: {reason}"):
        list(read_records(path))


def test_a_length_beyond_the_file_takes_no_memory(
    write_tfrecord: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "a.tfrecord"
    length = struct.pack("<Q", 1 << 62)
    path.write_bytes(length + struct.pack("<I", masked_crc32c(length)) + b"short")
    with pytest.raises(UserError, match="damaged record at byte 0: the file ends before"):
        list(read_records(path))


def test_what_is_no_sequence_example(write_tfrecord: Callable[..., Path], tmp_path: Path) -> None:
    path = write_tfrecord(tmp_path / "a.tfrecord", [b"not a message"])
    with pytest.raises(UserError, match=r"byte 0: it is no tf\.train\.SequenceExample"):
        list(read_sequence_examples(path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        list(read_records(tmp_path / "missing.tfrecord"))
    (tmp_path / "folder.tfrecord").mkdir()
    with pytest.raises(RunError, match="could not read it"):
        list(read_records(tmp_path / "folder.tfrecord"))
