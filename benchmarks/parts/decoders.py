"""How fast and how exact the decoders are on a folder of videos.

Each decoder has a process of its own, which is killed where it takes too long and replaced. "crop": 80 of 120
consecutive frames, at random and in order, as one view of a video needs them; "every frame": up to 600; both at
short side 256, and a second is one of CPU time. A file counts as equal where 12 frames over its length are, bit by
bit and at their own size, what a decode from the start yields at these indices; as wrong where one is another
picture.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np

from benchmarks.parts.table import Table
from carl_ray.data.child import MEMORY, BadVideoError, Child, KilledError, open_channel
from carl_ray.data.decode import Decoder, probe_video, read_frames

_SHORT_SIDE = 256
_CROP, _VIEW = 120, 80
_MOST_FRAMES = 600
_COMPARED = 12
_WRONG = (
    8.0  # mean difference in levels of 255; conversions of the same picture differ by less, by 4 at 10 bits
)
_TIME_LIMIT = 120  # seconds for one file and one decoder
_CODE = "from benchmarks.parts.decoders import answer_measurements; answer_measurements()"
_MEASURED = {"crop_frames": int, "crop_seconds": float, "all_frames": int, "all_seconds": float}
_MEASURED |= {"equal": bool, "wrong": bool}


def measure(videos: Sequence[Path], on_progress: Callable[[str], None]) -> Table:
    """Rates of each decoder, how its frames compare, and what it failed on.

    Args:
        videos: Files of any kind.
        on_progress: Called with a line for each.
    """
    results: dict[Decoder, list[dict[str, Any]]] = {decoder: [] for decoder in get_args(Decoder)}
    with ExitStack() as stack:
        children = {decoder: stack.enter_context(closing(Child(_CODE))) for decoder in results}
        for number, video in enumerate(videos, 1):
            on_progress(f"decoders: {number}/{len(videos)} {video.name}")
            for decoder, measured in results.items():
                measured.append({"video": video.name, **_measure_apart(children[decoder], video, decoder)})
    return decoder_table(results)


def measure_video(video: Path, decoder: Decoder) -> dict[str, Any]:
    """CPU seconds and frames of both ways to read a video, and how its frames compare.

    Raises:
        DecodeError: the decoder fails on it.
    """
    content = video.read_bytes()
    count = probe_video(content, verify=True).num_frames
    rng = np.random.default_rng(0)
    start = int(rng.integers(max(1, count - _CROP + 1)))
    crop = np.arange(start, min(count, start + _CROP))
    crop = np.sort(rng.choice(crop, min(_VIEW, len(crop)), replace=False))
    everything = np.arange(min(count, _MOST_FRAMES))
    result: dict[str, Any] = {}
    for name, indices in (("crop", crop), ("all", everything)):
        begin = time.process_time()
        read_frames(content, indices, short_side=_SHORT_SIDE, decoder=decoder)
        result |= {f"{name}_frames": len(indices), f"{name}_seconds": time.process_time() - begin}
    compared = np.unique(np.linspace(0, count - 1, _COMPARED).astype(int))
    # One by one, so that each is reached by a seek of its own.
    frames = [read_frames(content, [index], decoder=decoder)[0] for index in compared]
    references = _full_decode(content, set(compared.tolist()))
    same_shape = all(a.shape == b.shape for a, b in zip(frames, references, strict=True))
    result["equal"] = same_shape and all(map(np.array_equal, frames, references))
    result["wrong"] = not same_shape or any(
        float(np.abs(a.astype(np.int16) - b).mean()) > _WRONG for a, b in zip(frames, references, strict=True)
    )
    return result


def _full_decode(content: bytes, indices: set[int]) -> list[np.ndarray]:
    """The simplest loop there is, as the measure of the others."""
    frames = []
    with av.open(io.BytesIO(content), "r") as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in indices:
                frames.append(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4))
                if len(frames) == len(indices):
                    break
    return frames


def answer_measurements() -> None:
    """Body of a process that measures."""
    open_channel("measuring")(lambda source, decoder: iter([measure_video(Path(source), decoder)]))


def _measure_apart(child: Child, video: Path, decoder: Decoder) -> dict[str, Any]:
    try:
        (measured,) = child.ask(
            str(video.absolute()), {"decoder": decoder}, _MEASURED, seconds=_TIME_LIMIT, memory=4 * MEMORY
        )
    except (BadVideoError, KilledError) as error:
        return {"failure": str(error)}
    return measured


def decoder_table(results: Mapping[Decoder, list[dict[str, Any]]]) -> Table:
    """The table, with the failures and wrong files by name below it.

    Rates are over the videos that every decoder read; ratios are to the first decoder.

    Args:
        results: By decoder, for the same videos in the same order: what `measure_video` returned, or a
            `failure`; and the name of the `video`.
    """
    read_by_all = [
        i for i, row in enumerate(zip(*results.values(), strict=True)) if all("equal" in r for r in row)
    ]
    lines: list[tuple[str, ...]] = []
    notes = []
    first: dict[str, float] = {}
    for decoder, rows in results.items():
        rates: list[str] = []
        for way in ("crop", "all"):
            seconds = sum(rows[i][f"{way}_seconds"] for i in read_by_all)
            rate = sum(rows[i][f"{way}_frames"] for i in read_by_all) / seconds if seconds else float("nan")
            rates += [f"{rate:,.0f}", f"{rate / first.setdefault(way, rate):.2f}"]
        failed = [row for row in rows if "failure" in row]
        wrong = [row for row in rows if row.get("wrong")]
        equal = sum(bool(row.get("equal")) for row in rows)
        lines.append((decoder, *rates, f"{equal} of {len(rows)}", str(len(wrong)), str(len(failed))))
        notes += [f"{decoder}: {row['video']}: wrong frames" for row in wrong]
        notes += [f"{decoder}: {row['video']}: {row['failure']}" for row in failed]
    return Table(
        f"decoders: frames per CPU second at a short side of {_SHORT_SIDE}, over the {len(read_by_all)} videos that "
        "both read",
        (
            "decoder",
            f"crop of {_CROP}, {_VIEW} random",
            "ratio",
            "every frame",
            "ratio",
            "equal",
            "wrong",
            "failed",
        ),
        lines,
        notes,
    )
