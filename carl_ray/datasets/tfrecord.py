"""TFRecord files and the `tf.train.SequenceExample`s in them, read without TensorFlow.

A TFRecord file is a run of records, each of them (TensorFlow, "TFRecord and tf.train.Example"):

    uint64  length            little-endian
    uint32  masked CRC-32C of the length
    byte    data[length]
    uint32  masked CRC-32C of the data

with masked(crc) = ((crc >> 15) | (crc << 17)) + 0xa282ead8 in 32 bits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message,
    message_factory,
)
from jaxtyping import UInt32

from carl_ray import storage
from carl_ray.errors import UserError

_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected
_MASK_DELTA = 0xA282EAD8
_STRIPE = 1024  # bytes that one lane of the vectorised checksum goes through

Value = bytes | int | float


@dataclass(frozen=True)
class SequenceExample:
    """One record: features of the whole sequence, and lists with a feature for each of its steps."""

    context: dict[str, list[Value]]
    feature_lists: dict[str, list[list[Value]]]


def read_records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Position in the file (bytes) and data of each record, checksums checked.

    Raises:
        UserError: while iterating: the file is not there, or a record is damaged or cut off.
        RunError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            position = 0
            size = path.stat().st_size
            while header := file.read(12):
                if len(header) < 12:
                    raise _damaged(path, position, "the file ends in the middle of its header")
                length, length_crc = struct.unpack("<QI", header)
                if masked_crc32c(header[:8]) != length_crc:
                    raise _damaged(path, position, "the checksum of its length is wrong")
                if position + 12 + length + 4 > size:
                    raise _damaged(path, position, f"the file ends before its {length} bytes do")
                data = file.read(length)
                (data_crc,) = struct.unpack("<I", file.read(4))
                if masked_crc32c(data) != data_crc:
                    raise _damaged(path, position, "the checksum of its data is wrong")
                yield position, data
                position += 12 + length + 4
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise storage.storage_error(error, str(path), "read") from None


def read_sequence_examples(path: Path) -> Iterator[SequenceExample]:
    """The sequence examples of a TFRecord file, one at a time.

    Raises:
        UserError, RunError: as `read_records`; a record that is no `SequenceExample` counts as damaged.
    """
    for position, data in read_records(path):
        parsed = _message_class()()
        try:
            parsed.ParseFromString(data)
        except message.DecodeError:
            raise _damaged(path, position, "it is no tf.train.SequenceExample") from None
        yield SequenceExample(
            {name: _values(feature) for name, feature in parsed.context.feature.items()},
            {
                name: [_values(feature) for feature in steps.feature]
                for name, steps in parsed.feature_lists.feature_list.items()
            },
        )


def _damaged(path: Path, position: int, reason: str) -> UserError:
    return UserError(f"{path}: damaged record at byte {position}: {reason}; download the file again")


def _values(feature: Any) -> list[Value]:
    kind = feature.WhichOneof("kind")
    return list(getattr(feature, kind).value) if kind else []


@lru_cache(maxsize=1)
def _message_class() -> type[Any]:
    """The class of `tf.train.SequenceExample`, described here by its field numbers and types.

    From tensorflow/core/example/{example,feature}.proto. In a pool of its own: TensorFlow may be loaded too.
    """
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="sequence_example.proto", package="carl", syntax="proto3")

    def add_message(name: str, *fields: tuple[str, int, bool, int | str]) -> Any:
        described = file.message_type.add(name=name)
        for field_name, number, repeated, kind in fields:
            described.field.add(
                name=field_name,
                number=number,
                label=field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL,
                type=field.TYPE_MESSAGE if isinstance(kind, str) else kind,
                type_name=f".carl.{kind}" if isinstance(kind, str) else None,
            )
        return described

    def add_map(name: str, field_name: str, value: str) -> None:
        described = add_message(name, (field_name, 1, True, f"{name}.Entry"))
        entry = described.nested_type.add(name="Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=field.LABEL_OPTIONAL, type=field.TYPE_STRING)
        entry.field.add(
            name="value",
            number=2,
            label=field.LABEL_OPTIONAL,
            type=field.TYPE_MESSAGE,
            type_name=f".carl.{value}",
        )

    add_message("BytesList", ("value", 1, True, field.TYPE_BYTES))
    add_message("FloatList", ("value", 1, True, field.TYPE_FLOAT))
    add_message("Int64List", ("value", 1, True, field.TYPE_INT64))
    feature = add_message(
        "Feature",
        ("bytes_list", 1, False, "BytesList"),
        ("float_list", 2, False, "FloatList"),
        ("int64_list", 3, False, "Int64List"),
    )
    feature.oneof_decl.add(name="kind")
    for alternative in feature.field:
        alternative.oneof_index = 0
    add_message("FeatureList", ("feature", 1, True, "Feature"))
    add_map("Features", "feature", "Feature")
    add_map("FeatureLists", "feature_list", "FeatureList")
    add_message(
        "SequenceExample", ("context", 1, False, "Features"), ("feature_lists", 2, False, "FeatureLists")
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("carl.SequenceExample"))


# CRC-32C


def masked_crc32c(data: bytes) -> int:
    """The checksum that a TFRecord file stores for some bytes."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli; RFC 3720, appendix B.4) of some bytes, at about 200 MB/s on one core.

    The register of a CRC is linear over GF(2) in its start and in the data. So stripes of the data go through
    it side by side, each from a register of 0, and are joined: the register after one stripe, advanced by the
    length of the next as if that were zeros, XOR the register of the next.
    """
    table = _byte_table()
    crc = 0xFFFFFFFF
    whole = len(data) - len(data) % _STRIPE
    stripes = np.frombuffer(data, np.uint8, whole).reshape(-1, _STRIPE)
    registers = np.zeros(len(stripes), np.uint32)
    if len(stripes):
        for column in np.ascontiguousarray(stripes.T):
            registers = table[(registers ^ column) & 0xFF] ^ registers >> 8
    first, second, third, fourth = _advance_tables()
    for register in registers.tolist():
        crc = (
            register ^ first[crc & 255] ^ second[crc >> 8 & 255] ^ third[crc >> 16 & 255] ^ fourth[crc >> 24]
        )
    small = _byte_list()
    for byte in data[whole:]:
        crc = small[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@lru_cache(maxsize=1)
def _byte_table() -> UInt32[np.ndarray, " values"]:
    """What one byte does to a register of 0."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table


@lru_cache(maxsize=1)
def _byte_list() -> list[int]:
    return list(map(int, _byte_table()))


@lru_cache(maxsize=1)
def _advance_tables() -> list[list[int]]:
    """What `_STRIPE` zero bytes make of each byte of a register: one table a byte, the lowest first."""
    registers = np.arange(256, dtype=np.uint32) << np.arange(0, 32, 8, dtype=np.uint32)[:, None]
    for _ in range(_STRIPE):
        registers = _byte_table()[registers & 0xFF] ^ registers >> 8
    return [list(map(int, row)) for row in registers]
