"""TFRecord files of `tf.train.SequenceExample` messages, read without TensorFlow.

A TFRecord file is a sequence of records, each of them (TensorFlow, "TFRecord and tf.train.Example"):

    uint64  length            little-endian
    uint32  masked CRC-32C of the length
    byte    data[length]
    uint32  masked CRC-32C of the data

The checksums are tensorboardX's: about 5 MB/s per core, and much faster if the package `crc32c` is installed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from carl_ray import storage
from carl_ray.errors import UserError

Value = bytes | int | float

# From tensorflow/core/example/{example,feature}.proto: name, field number, type of each field. A map is encoded
# as a repeated message of key and value. `*` marks repeated fields.
_MESSAGES = {
    "BytesList": ("value 1 *bytes",),
    "FloatList": ("value 1 *float",),
    "Int64List": ("value 1 *int64",),
    "Feature": ("bytes_list 1 BytesList", "float_list 2 FloatList", "int64_list 3 Int64List"),
    "FeatureEntry": ("key 1 string", "value 2 Feature"),
    "Features": ("feature 1 *FeatureEntry",),
    "FeatureList": ("feature 1 *Feature",),
    "FeatureListEntry": ("key 1 string", "value 2 FeatureList"),
    "FeatureLists": ("feature_list 1 *FeatureListEntry",),
    "SequenceExample": ("context 1 Features", "feature_lists 2 FeatureLists"),
}


@dataclass(frozen=True)
class SequenceExample:
    """One record: features of the whole sequence, and lists with one feature a step."""

    context: dict[str, list[Value]]
    feature_lists: dict[str, list[list[Value]]]


def read_records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the position in the file (bytes) and the data of each record, after checking its checksums.

    Raises:
        UserError: while iterating: there is no such file, or a record is damaged or truncated.
        RunError: the file cannot be read.
    """
    from tensorboardX.record_writer import masked_crc32c  # lazy import: it imports boto3 if that is there

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
    """Yield the sequence examples of a TFRecord file.

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
            {entry.key: _values(entry.value) for entry in parsed.context.feature},
            {e.key: [_values(f) for f in e.value.feature] for e in parsed.feature_lists.feature_list},
        )


def _damaged(path: Path, position: int, reason: str) -> UserError:
    return UserError(f"{path}: damaged record at byte {position}: {reason}; download the file again")


def _values(feature: Any) -> list[Value]:
    return [value for _, values in feature.ListFields() for value in values.value]


@lru_cache(maxsize=1)
def _message_class() -> type[Any]:
    """The message class of `SequenceExample`, in a descriptor pool apart from TensorFlow's."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="sequence_example.proto", package="carl", syntax="proto3")
    for message_name, described in _MESSAGES.items():
        fields = file.message_type.add(name=message_name).field
        for name, number, kind in map(str.split, described):
            type_name = kind.lstrip("*")
            is_message = type_name in _MESSAGES
            fields.add(
                name=name,
                number=int(number),
                label=kinds.LABEL_REPEATED if kind.startswith("*") else kinds.LABEL_OPTIONAL,
                type=kinds.TYPE_MESSAGE if is_message else kinds.Type.Value(f"TYPE_{type_name.upper()}"),
                type_name=f".carl.{type_name}" if is_message else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("carl.SequenceExample"))
