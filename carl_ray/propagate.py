"""Label all embedded videos from the labels of one or a few of them.

    python -m carl_ray.propagate --embeddings EMBEDDINGS --labels labels.csv --out predicted.csv
    python -m carl_ray.propagate --embeddings EMBEDDINGS --labels labels.csv --out predicted.csv --frames frames.csv

Labels come from files, as for `index --labels`, or without --labels from the embeddings. The videos without labels get
those of the labelled videos of the same action (`label`), or of all where that is unknown. The output has intervals
(video,start,end,label,confidence), least sure video first: correct them and join them with `index --update`. With
--frames, another file has the label and the confidence of each frame.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np

from carl_ray import storage
from carl_ray.data.manifest import LABEL_COLUMNS, SCHEMA
from carl_ray.errors import UserError, one_line_errors
from carl_ray.evaluation.embedded_video import INTERVALS
from carl_ray.evaluation.embeddings import EmbeddedVideo, read_embeddings, video_metadata
from carl_ray.evaluation.nearest_frames import printable
from carl_ray.options import OptionParser, print_next
from carl_ray.progress import ProgressLine


class _Labelled(NamedTuple):
    video: EmbeddedVideo
    labels: list[str]
    """Of each frame; empty: none."""
    confidence: np.ndarray


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit status 0 only when the labels are written."""
    with one_line_errors():
        parser = OptionParser(
            prog="python -m carl_ray.propagate",
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add = parser.add_argument
        add("--embeddings", metavar="EMBEDDINGS", required=True, help="folder or file of embeddings")
        add(
            "--labels", action="append", metavar="FILE", help="labels of some videos; may be given repeatedly"
        )
        add("--out", metavar="FILE", required=True, help="CSV file of the intervals")
        add("--frames", metavar="FILE", help="CSV file of the frames with their confidence")
        options = parser.parse_args(arguments)
        _run(options.embeddings, options.labels or [], options.out, options.frames)


def _run(embeddings: str, labels: list[str], out: str, frames: str | None) -> None:
    videos = _labelled(read_embeddings(embeddings), labels)
    sources = [video for video in videos if (video.phases >= 0).any()]
    if not sources:
        raise UserError(f"{storage.public_uri(embeddings)}: no video has labels; name some with --labels")
    others = [video for video in videos if not (video.phases >= 0).any()]
    # Lazily: mistakes are reported before torch is loaded.
    from carl_ray.evaluation.propagation import propagate

    found: list[_Labelled] = []
    progress = ProgressLine("labelled")
    for done, video in enumerate(others, 1):
        alike = [s for s in sources if video.label is None or s.label in (None, video.label)]
        if alike and len(video) and video.seconds is not None:
            names, phases = _common_names(alike)
            predicted = propagate([source.embeddings for source in alike], phases, video.embeddings)
            found.append(_Labelled(video, [names[k] for k in predicted.phases], predicted.confidence))
        progress(done, len(others))
    found.sort(key=lambda labelled: float(labelled.confidence.mean()))
    rows = [row for labelled in found for row in _intervals(labelled)]
    storage.write_csv(out, INTERVALS, rows)
    if frames is not None:
        of_frames = (
            (video.video_id, frame, label, f"{confidence[frame]:.3f}")
            for video, labels_of, confidence in found
            for frame, label in enumerate(labels_of)
        )
        storage.write_csv(frames, ("video", "frame", "label", "confidence"), of_frames)
    print(f"labels of {len(sources)} videos propagated to {len(found)}: {len(rows):,} intervals")
    if left := len(others) - len(found):
        print(f"left without labels: {left} videos of actions that no labelled video has")
    if found:
        least, most = (item.confidence.mean() for item in (found[0], found[-1]))
        print(f"mean confidence: {least:.2f} ({printable(found[0].video.video_id)}) to {most:.2f}")
    print(f"written: {', '.join(storage.public_uri(file) for file in (out, frames) if file)}")
    files = [word for file in (*labels, out) for word in ("--labels", file)]
    print_next("index", "--update", "MANIFEST", *files)


def _common_names(videos: Sequence[EmbeddedVideo]) -> tuple[list[str], list[np.ndarray]]:
    """Names of the phases of all videos, "" last, and the place of each frame's name; -1: none."""
    own = [
        v.phase_names or [str(phase) for phase in range(int(v.phases.max(initial=-1)) + 1)] for v in videos
    ]
    names = [*dict.fromkeys(chain.from_iterable(own))]
    places = [np.array([*map(names.index, of_video), -1]) for of_video in own]
    return [*names, ""], [place[video.phases] for place, video in zip(places, videos, strict=True)]


def _labelled(videos: list[EmbeddedVideo], files: list[str]) -> list[EmbeddedVideo]:
    """The videos with the labels of the files; the frames of others lose theirs."""
    if not files:
        return videos
    import pyarrow as pa

    from carl_ray.data.labels import LabelOptions, join_labels

    videos = [replace(video, frame_labels=None, phase_names=None) for video in videos]
    names = ("video_id", "uri", "content_hash", "fps", "frame_times", *LABEL_COLUMNS)
    table = pa.table(
        {
            name: pa.array([getattr(video, name) for video in videos], SCHEMA.field(name).type)
            for name in names
        }
    )
    table = table.append_column("num_frames", pa.array([len(video) for video in videos]))
    table, notes = join_labels(table, LabelOptions(files=tuple(files)))
    print(*notes, sep="\n", file=sys.stderr, flush=True)
    return [replace(video, **video_metadata(table, row)) for row, video in enumerate(videos)]


def _intervals(labelled: _Labelled) -> list[tuple[str, ...]]:
    """Rows of a video."""
    video, labels, confidence = labelled
    starts = [frame for frame, label in enumerate(labels) if not frame or label != labels[frame - 1]]
    runs = ((start, end) for start, end in pairwise([*starts, len(labels)]) if labels[start])
    return video.interval_rows((*run, labels[run[0]], confidence[slice(*run)].mean()) for run in runs)


if __name__ == "__main__":
    main()
