"""Fixtures that imitate published data sets of single frames: small JPEG files, TFRecords."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _jpeg(number: int, width: int = 24, height: int = 16) -> bytes:
    buffer = io.BytesIO()
    picture = np.full((height, width, 3), (number * 37 % 256, 255 - number * 5 % 256, 90), np.uint8)
    Image.fromarray(picture).save(buffer, "jpeg", quality=95, subsampling=0)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def jpeg() -> Callable[..., bytes]:
    """A function that makes a small JPEG file, another one for every number: jpeg(number, width, height)."""
    return _jpeg


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    content = b""
    while value > 127:
        content += bytes([value & 127 | 128])
        value >>= 7
    return content + bytes([value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _feature(value: bytes | int | float) -> bytes:
    match value:
        case bytes():
            return _field(1, _field(1, value))
        case float():
            return _field(2, _field(1, struct.pack("<f", value)))
        case _:
            return _field(3, _field(1, _varint(value)))


def _map(entries: dict[str, bytes]) -> bytes:
    return b"".join(
        _field(1, _field(1, name.encode()) + _field(2, content)) for name, content in entries.items()
    )


def _sequence_example(
    context: dict[str, bytes | int | float], lists: dict[str, Sequence[bytes | int | float]]
) -> bytes:
    steps = {name: b"".join(_field(1, _feature(v)) for v in values) for name, values in lists.items()}
    features = {name: _feature(value) for name, value in context.items()}
    return _field(1, _map(features)) + _field(2, _map(steps))


@pytest.fixture(scope="session")
def sequence_example() -> Callable[..., bytes]:
    """A function that serializes a `tf.train.SequenceExample` by hand: sequence_example(context, lists).

    One value a feature; `lists` maps names to one value a step.
    """
    return _sequence_example


def _masked_crc(content: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF)


def _write_tfrecord(path: Path, records: Sequence[bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + _masked_crc(length) + record + _masked_crc(record))
    return path


@pytest.fixture(scope="session")
def write_tfrecord() -> Callable[..., Path]:
    """A function that writes records with checksums taken bit by bit: write_tfrecord(path, records)."""
    return _write_tfrecord
