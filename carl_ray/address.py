"""Addresses of videos: a file, a part of its bytes, a range of its frames, or a range of such a part.

    s3://bucket/videos-0.tar#bytes=1536+20480           a member of a shard: offset and length
    /videos/competition.mp4#frames=1500-2250/90000      frames 1500 to 2249 of the 90,000 of the file

An address stands wherever a video's URI does; `storage` and `data.video_file` alone look into it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_PART = re.compile(r"(.+?)#(?:bytes=(\d+)\+(\d+)(?:&(?=f)|$))?(?:frames=(\d+)-(\d+)(?:/(\d+))?)?", re.DOTALL)


class Address(NamedTuple):
    """Where a video is; the numbers are those of a manifest's columns of the same names."""

    file: str
    """Path or URI."""
    byte_offset: int | None = None
    byte_length: int | None = None
    start_frame: int | None = None
    end_frame: int | None = None
    """Exclusive."""
    file_frames: int | None = None
    """Frames of the whole file or part; None where they are not known."""

    @property
    def is_range(self) -> bool:
        """Whether it is a range of frames, not all of them."""
        return self.start_frame is not None

    def __str__(self) -> str:
        parts = []
        if self.byte_offset is not None:
            parts.append(f"bytes={self.byte_offset}+{self.byte_length}")
        if self.start_frame is not None:
            of_all = "" if self.file_frames is None else f"/{self.file_frames}"
            parts.append(f"frames={self.start_frame}-{self.end_frame}{of_all}")
        return "#".join([self.file, "&".join(parts)]) if parts else self.file


def parse(uri: str) -> Address:
    """The address that a URI is; any other `#` belongs to the name of the file."""
    match = _PART.fullmatch(uri) if "#" in uri else None
    if match is None or match.end(1) + 1 == len(uri):
        return Address(uri)
    return Address(match[1], *(None if number is None else int(number) for number in match.groups()[1:]))


def file_of(uri: str) -> str:
    """The path or URI of the file in which a video is."""
    return parse(uri).file


def place_of(uri: str) -> str:
    """What an address adds to the URI of the file, with its `#`; empty for a whole file."""
    return uri.removeprefix(file_of(uri))
