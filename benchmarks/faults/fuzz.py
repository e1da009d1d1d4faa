"""Damaged videos by the thousand, through the same guarded processes that index and train.

    video ─ one mutation ▶ file ▶ probe (`carl_ray.data.probing`) ▶ two views (`carl_ray.data.guard`) ▶ counted

A file must give frames or one reason. The n-th file of a seed is the same each time: a finding names both.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from carl_ray.config import AugmentConfig, Config, DataConfig, ModelConfig
from carl_ray.data.guard import UNEXPECTED, BadVideoError, ViewReader
from carl_ray.data.manifest import StreamVideo
from carl_ray.data.probing import PROBING_FAILED, probe_guarded
from carl_ray.data.sample import sample_spec
from carl_ray.errors import RunError, UserError

Outcome = Literal["read", "refused", "hang", "crash", "error"]
"""`read`: frames came; `refused`: one reason instead; `hang`: it ran into its time limit; `crash`: its process
died; `error`: a failure that no error is foreseen for, a mistake of carl_ray's own."""

Mutation = Callable[[bytearray, bytes, np.random.Generator], bytes | bytearray]
"""From a video that it may change, another video and a generator: the damaged file."""

_CONFIG = Config(
    preset="fuzz",
    data=DataConfig(short_side=32, time_limit=20.0),
    augment=AugmentConfig(image_size=24),
    model=ModelConfig(num_frames=8, backbone="small", weights="random"),
)
_HEADER = 4096  # bytes
_PROGRESS_SECONDS = 10.0
_MAX_FINDINGS = 20
_BOX = re.compile(
    rb"ftyp|moov|mvhd|trak|tkhd|mdia|mdhd|minf|stbl|stsd|avc1|avcC|hvc1|hvcC|mp4v|esds|stts|ctts|stsc|stsz|stco"
    rb"|co64|stss|edts|elst|mdat|moof|mfhd|traf|tfhd|tfdt|trun|RIFF|hdrl|avih|strh|strf|movi|idx1"
)


@dataclass(frozen=True)
class FuzzReport:
    """What came of the files that were tried."""

    seed: int
    seconds: float
    """Really spent."""
    counts: Mapping[str, Counter[Outcome]]
    """Outcomes by mutation."""
    findings: tuple[str, ...]
    """The first hangs, crashes and errors, a line each: video, seed and number of the file, mutation, reason."""

    @property
    def total(self) -> Counter[Outcome]:
        """Outcomes over all mutations."""
        return sum(self.counts.values(), Counter())

    def __str__(self) -> str:
        outcomes: tuple[Outcome, ...] = ("read", "refused", "hang", "crash", "error")
        lines = ["".join(f"{cell:>10}" for cell in ("tried", *outcomes)) + "  mutation"]
        for name, count in {**self.counts, "all": self.total}.items():
            cells = (count.total(), *(count[outcome] for outcome in outcomes))
            lines.append("".join(f"{cell:>10}" for cell in cells) + f"  {name}")
        lines.append(f"seed {self.seed}, {self.seconds:.0f} s, {self.total.total()} files")
        return "\n".join([*lines, *self.findings])


def fuzz(
    videos: Sequence[Path], *, seconds: float, seed: int, on_progress: Callable[[str], None]
) -> FuzzReport:
    """Damages videos, one mutation a file, and has each probed and read, until the time is over.

    Args:
        videos: Files to begin with; they stay as they are.
        seconds: For how long; a file that was begun is finished.
        seed: Decides every file.
        on_progress: Called with a line every ten seconds.

    Raises:
        UserError: no video.
    """
    if not videos:
        raise UserError("no video to damage: expected at least one file")
    start = shown = time.monotonic()
    counts: dict[str, Counter[Outcome]] = {name: Counter() for name in MUTATIONS}
    findings: list[str] = []
    number = 0
    with tempfile.TemporaryDirectory() as folder, closing(ViewReader()) as reader:
        while time.monotonic() - start < seconds:
            source, mutation, content = damaged_file(videos, seed, number)
            path = Path(folder) / f"{number}{source.suffix}"
            path.write_bytes(content)
            outcome, reason = _outcome(path, reader)
            path.unlink()
            counts[mutation][outcome] += 1
            if outcome not in ("read", "refused") and len(findings) < _MAX_FINDINGS:
                findings.append(
                    f"{outcome}: {source.name}, seed {seed}, number {number} ({mutation}): {reason}"
                )
            number += 1
            if time.monotonic() - shown >= _PROGRESS_SECONDS:
                shown = time.monotonic()
                total: Counter[Outcome] = sum(counts.values(), Counter())
                on_progress(f"{number} damaged files: " + ", ".join(f"{n} {o}" for o, n in total.items()))
    return FuzzReport(seed, time.monotonic() - start, counts, tuple(findings))


def damaged_file(videos: Sequence[Path], seed: int, number: int) -> tuple[Path, str, bytes]:
    """The file of a number: the video that it comes from, the name of its mutation, and its content."""
    rng = np.random.default_rng((seed, number))
    source, other = (videos[int(rng.integers(len(videos)))] for _ in range(2))
    name = list(MUTATIONS)[int(rng.integers(len(MUTATIONS)))]
    content = MUTATIONS[name](bytearray(source.read_bytes() or bytes(1)), other.read_bytes(), rng)
    return source, name, bytes(content)


def _outcome(path: Path, reader: ViewReader) -> tuple[Outcome, str]:
    """What became of a file, and the reason where it was not read."""
    with path.open("rb") as file:
        probe = probe_guarded(file, path.stat().st_size, verify=False)
    if "reason" in probe:
        return _kind(probe["reason"]), probe["reason"]
    try:
        video = StreamVideo(
            video_id=path.name, uri=str(path), num_frames=probe["num_frames"], verified=False, frame_step=1.0
        )
        reader.read(video, 0, sample_spec(_CONFIG))
    except BadVideoError as error:
        return _kind(str(error)), str(error)
    except RunError as error:
        return "crash", str(error)
    return "read", ""


def _kind(reason: str) -> Outcome:
    if reason.startswith("the decoder took longer"):
        return "hang"
    if reason.startswith(("the decoder crashed", "the decoder was killed")):
        return "crash"
    return "error" if reason.startswith((UNEXPECTED, PROBING_FAILED)) else "refused"


# Mutations


def _bit_flips(content: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    for at in rng.integers(len(content), size=int(2 ** rng.uniform(0, 8))):
        content[at] ^= 1 << int(rng.integers(8))
    return content


def _header_damage(content: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    # Tables are at the beginning, or, in files that were written in one go, at the end.
    start = 0 if rng.random() < 0.5 else max(0, len(content) - _HEADER)
    span = min(_HEADER, len(content))
    for at in start + rng.integers(span, size=int(rng.integers(1, 17))):
        content[at] = int(rng.integers(256))
    return content


def _box_sizes(content: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    """Wrong lengths before the names of boxes (MP4, AVI) and in their first fields; in other files anywhere."""
    places = [match.start() for match in _BOX.finditer(content)] or rng.integers(
        len(content), size=4
    ).tolist()
    for _ in range(int(rng.integers(1, 4))):
        at = max(0, int(rng.choice(places)) + int(rng.choice([-4, 4, 8, 12, 16])))
        old = int.from_bytes(content[at : at + 4], "big")
        values = [0, 1, 7, 8, old - 1, old + 1, 2 * old, len(content), 2**31 - 1, 2**31, 2**32 - 1]
        content[at : at + 4] = (int(rng.choice(values)) % 2**32).to_bytes(4, "big")
    return content


def _truncated(content: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    return content[: int(rng.integers(len(content)))]


def _chunk_zeroed(content: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    start, stop = _chunk(content, rng)
    content[start:stop] = bytes(stop - start)
    return content


def _chunk_removed(content: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    start, stop = _chunk(content, rng)
    return content[:start] + content[stop:]


def _chunk_doubled(content: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    start, stop = _chunk(content, rng)
    return content[:stop] + content[start:]


def _chunks_swapped(content: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    (start, stop), (start2, stop2) = sorted(_chunk(content, rng) for _ in range(2))
    stop = min(stop, start2)
    return (
        content[:start] + content[start2:stop2] + content[stop:start2] + content[start:stop] + content[stop2:]
    )


def _spliced(content: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    return content[: int(rng.integers(len(content) + 1))] + other[int(rng.integers(len(other) + 1)) :]


def _chunk(content: bytearray, rng: np.random.Generator) -> tuple[int, int]:
    """Start and end of a piece; its length is anything between a byte and an eighth of the file."""
    length = int((max(2, len(content)) / 8) ** rng.random())
    start = int(rng.integers(len(content)))
    return start, min(len(content), start + max(1, length))


MUTATIONS: Mapping[str, Mutation] = {
    "bit flips": _bit_flips,
    "header damage": _header_damage,
    "box sizes": _box_sizes,
    "truncated": _truncated,
    "chunk zeroed": _chunk_zeroed,
    "chunk removed": _chunk_removed,
    "chunk doubled": _chunk_doubled,
    "chunks swapped": _chunks_swapped,
    "spliced": _spliced,
}
