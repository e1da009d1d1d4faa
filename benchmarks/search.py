"""The index of `carl-ray export --out NAME.lance` in a bucket, beside exact search: recall, time, size.

    python -m benchmarks.search EMBEDDINGS --videos 5000
    python -m benchmarks.search EMBEDDINGS --videos 1000 --local

EMBEDDINGS are trained ones, such as those of the demo. Each made-up video is a mixture of two of them of one action,
aligned and in random shares, at a random and changing pace, 100 to 300 frames long, with smooth noise of a tenth of
its length. The bucket is moto's on this machine, through a proxy that counts requests: moto reads a whole object for
every range of it, so that its times say little; `--local` measures on the disk.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float
from pyarrow import fs

from benchmarks.faults.proxy import FaultProxy
from benchmarks.parts.table import Table, table_text
from carl_ray import storage
from carl_ray.evaluation.embeddings import EmbeddedVideo, Embeddings, write_part
from carl_ray.evaluation.frames import unit_frames
from carl_ray.evaluation.lance_index import LanceIndex, update_index
from carl_ray.machine import machine_name

_VIDEOS_A_PART = 500
_ADDED_SHARE = 50
_TOP = 10
_NOISE = 0.1
_T = TypeVar("_T")


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("embeddings", metavar="EMBEDDINGS")
    parser.add_argument(
        "--videos", type=int, default=5000, help="made-up videos, of 200 frames on average [5000]"
    )
    parser.add_argument(
        "--queries", type=int, default=50, help="random frames; half of them of added videos [50]"
    )
    parser.add_argument("--local", action="store_true", help="on the disk instead of in a bucket")
    options = parser.parse_args(arguments)
    # Lazy imports here and below: --help answers at once.
    from benchmarks.faults.rounds import S3Store

    print(machine_name(use_gpu=False), flush=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = None if options.local else stack.enter_context(S3Store(0))
        # Through the proxy, which spoils nothing here, but counts.
        uri = str(folder / "moments.lance") if store is None else store.uri("moments.lance", faulty=True)
        print(table_text(_measured(options, folder, uri, None if store is None else store.proxy)))


def _measured(options: argparse.Namespace, folder: Path, uri: str, proxy: FaultProxy | None) -> Table:
    from carl_ray.explore.library import Corpus

    old = Embeddings.open(options.embeddings)
    origin = replace(old.origin, has_untrained=False)
    rows: list[tuple[str, str]] = []

    def requests() -> int:
        return 0 if proxy is None else sum(proxy.counts.values())

    def timed(name: str, call: Callable[[], _T]) -> _T:
        print(f"{name} …", file=sys.stderr, flush=True)
        wall, cpu, before = time.perf_counter(), time.process_time(), requests()
        value = call()
        seconds = f"{time.perf_counter() - wall:.1f} s, {time.process_time() - cpu:.1f} s of CPU"
        rows.append((name, seconds + (f", {requests() - before:,} requests" if proxy else "")))
        return value

    made = _made_up(old)
    for start in range(0, options.videos, _VIDEOS_A_PART):
        videos = [next(made) for _ in range(min(_VIDEOS_A_PART, options.videos - start))]
        write_part(str(folder / "E"), videos, origin, "float16")
    embeddings = Embeddings.open(str(folder / "E"))
    timed("make the index", lambda: update_index(embeddings, uri))
    size, memory = _size(uri), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    write_part(
        str(folder / "E"), [next(made) for _ in range(options.videos // _ADDED_SHARE)], origin, "float16"
    )
    timed(f"add {options.videos // _ADDED_SHARE} videos", lambda: update_index(embeddings, uri))
    exact = Corpus.open(str(folder / "E")).index
    index = timed("open", lambda: LanceIndex.open(uri))
    frames = index._table.count_rows()
    names = [f"made/{number:07d}" for number in range(options.videos + options.videos // _ADDED_SHARE)]
    rng = np.random.default_rng(1)
    recalls, times, counts, exact_times = [], [], [], []
    for query in range(options.queries):
        first = 0 if query % 2 else options.videos  # Every other one is a video that was added.
        number = int(rng.integers(first, len(names)))
        video = index.video(names[number])
        frame = int(rng.integers(len(video)))
        others = np.arange(len(names)) != number
        started = time.perf_counter()
        wanted = exact.search(video.embeddings[frame], _TOP, others)
        exact_times.append(time.perf_counter() - started)
        started, before = time.perf_counter(), requests()
        found = index.search((video, frame), _TOP)
        times.append(time.perf_counter() - started)
        counts.append(requests() - before)
        # Equal to the last one of the exact ten is as good as in it.
        least = wanted[-1].similarity - 1e-6
        print(f"query {query}: {times[-1]:.2f} s, {counts[-1]} requests", file=sys.stderr, flush=True)
        recalls.append(sum(moment.similarity >= least for moment in found) / _TOP)
    rows += [
        ("size", f"{size / 1e6:,.0f} MB, {size / frames:.0f} bytes a frame"),
        ("recall of the ten best moments", f"{np.mean(recalls):.4f}, least {min(recalls):.1f}"),
        (
            "a query",
            f"{1e3 * np.median(times):.0f} ms, nine of ten in {1e3 * np.quantile(times, 0.9):.0f} ms",
        ),
        ("requests of a query", f"{np.median(counts):.0f}, most {max(counts)}"),
        ("exact search of the same", f"{1e3 * np.median(exact_times):.0f} ms"),
        ("memory at most, until it is made", f"{memory:,.0f} MB"),
    ]
    where = "a bucket of moto" if proxy else "the local disk"
    return Table(f"search: {frames:,} frames of {len(names):,} videos on {where}", ("", ""), rows)


def _made_up(old: Embeddings) -> Iterator[EmbeddedVideo]:
    """Videos without end, of the actions of trained ones in turn."""
    from carl_ray.evaluation.warping import align_pair
    from carl_ray.report.video import partners

    rng = np.random.default_rng(0)
    of_label: dict[str | None, list[Float[np.ndarray, "_ D"]]] = {}
    for video in old:
        of_label.setdefault(video.label, []).extend(unit_frames([video.embeddings]))
    labels = [label for label, videos in of_label.items() if len(videos) > 1]
    paths: dict[tuple[str | None, int, int], np.ndarray] = {}
    number = 0
    while True:
        label = labels[number % len(labels)]
        one, other = (int(i) for i in rng.choice(len(of_label[label]), 2, replace=False))
        first, second = of_label[label][one], of_label[label][other]
        if (label, one, other) not in paths:
            paths[label, one, other] = partners(align_pair(first, second), len(first))
        mixed = first + rng.uniform() * (second[paths[label, one, other]] - first)
        length = int(rng.integers(100, 301))
        pace = np.exp(0.5 * _smooth(rng, length, 8, 1)[:, 0]).cumsum()
        at = (pace - pace[0]) / (pace[-1] - pace[0]) * (len(mixed) - 1)
        low = np.minimum(at.astype(int), len(mixed) - 2)
        share = (at - low)[:, None]
        path = mixed[low] * (1 - share) + mixed[low + 1] * share
        path += _NOISE * _smooth(rng, length, 6, path.shape[1]) / np.sqrt(path.shape[1])
        yield EmbeddedVideo(
            video_id=f"made/{number:07d}",
            uri=f"s3://videos/made/{number:07d}.mp4",
            label=label,
            fps=30.0,
            timestamps=np.arange(length, dtype=np.float64),
            embeddings=path.astype(np.float32),
        )
        number += 1


def _smooth(
    rng: np.random.Generator, length: int, knots: int, width: int
) -> Float[np.ndarray, "length width"]:
    places = np.linspace(0, length - 1, knots)
    return np.stack([np.interp(np.arange(length), places, rng.normal(size=knots)) for _ in range(width)], 1)


def _size(uri: str) -> int:
    """Bytes of all files in a folder."""
    filesystem, path = storage.resolve(uri)
    return sum(info.size or 0 for info in filesystem.get_file_info(fs.FileSelector(path, recursive=True)))


if __name__ == "__main__":
    main()
