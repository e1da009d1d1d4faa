"""Label all embedded videos from the labels of one or a few of them.

    python -m carl_ray.propagate --embeddings EMBEDDINGS --labels labels.csv --out predicted.csv
    python -m carl_ray.propagate --embeddings EMBEDDINGS --labels labels.csv --out predicted.csv --frames frames.csv

Labels come from files, as for `index --labels`, or without --labels from the embeddings. The videos without labels get
those of the labelled videos of the same action (`label`), or of all where that is unknown. Frames of the labelled
videos that have no label are a phase of their own, "none"; where only a part of each video was labelled, --unlabelled
ignore leaves them out. The output has intervals (video,start,end,label,confidence), least sure video first: correct
them and join them with `index --update`. With --frames, another file has the label and the confidence of each frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from carl_ray import storage
from carl_ray.errors import UserError, note, one_line_errors
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.embeddings import read_embeddings
from carl_ray.evaluation.intervals import INTERVALS, LabelledVideo, interval_rows, intervals, with_labels
from carl_ray.evaluation.nearest_frames import printable
from carl_ray.machine import single_threaded
from carl_ray.options import OptionParser, print_next
from carl_ray.progress import ProgressLine

_MOST_SHOWN = 20


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit status 0 only when the labels are written."""
    with one_line_errors():
        parser = OptionParser(prog="python -m carl_ray.propagate", description=__doc__)
        add = parser.add_argument
        add("--embeddings", metavar="EMBEDDINGS", required=True, help="folder or file of embeddings")
        add(
            "--labels", action="append", metavar="FILE", help="labels of some videos; may be given repeatedly"
        )
        add("--out", metavar="FILE", required=True, help="CSV file of the intervals")
        add("--frames", metavar="FILE", help="CSV file of the frames with their confidence")
        add(
            "--unlabelled",
            choices=("none", "ignore"),
            default="none",
            help="frames of the labelled videos without a label: in no phase, or not known [none]",
        )
        options = parser.parse_args(arguments)
        _run(options.embeddings, options.labels or [], options.out, options.frames, options.unlabelled)


def _run(embeddings: str, labels: list[str], out: str, frames: str | None, unlabelled: str) -> None:
    named = [storage.absolute(file) for file in (*labels, out, *([frames] if frames else []))]
    if twice := {file for file in named[len(labels) :] if named.count(file) > 1}:
        raise UserError(
            f"{storage.public_uri(twice.pop())}: --out and --frames are written anew: expected files of their own, "
            "beside those of --labels"
        )
    videos = read_embeddings(embeddings)
    if labels:
        videos, notes = with_labels(videos, labels)
        note("\n".join(notes))
    sources = [video for video in videos if (video.phases >= 0).any()]
    if not sources:
        raise UserError(f"{storage.public_uri(embeddings)}: no video has labels; name some with --labels")
    others = [video for video in videos if not (video.phases >= 0).any()]
    num_unlabelled = sum(int((video.phases < 0).sum()) for video in sources)
    alone = _with_one_phase(sources)
    if unlabelled == "ignore":
        if alone:
            raise UserError(
                f"--unlabelled ignore: the labelled videos of {alone[0]} have one phase alone, which every frame would "
                "get: label at least two"
            )
        sources = [_labelled_part(video) for video in sources]
    # Lazily: mistakes are reported before torch is loaded.
    from carl_ray.evaluation.propagation import agreement, propagate_names, sources_for

    found: list[LabelledVideo] = []
    progress = ProgressLine("labelled")
    with single_threaded():
        for done, video in enumerate(others, 1):
            alike = sources_for(video, sources)
            if alike and len(video) and video.seconds is not None:
                found.append(propagate_names(alike, video))
            progress(done, len(others))
        right, straight_line = agreement(sources)
    found.sort(key=lambda labelled: float(labelled.confidence.mean()))
    rows = [row for labelled in found for row in interval_rows(labelled.video, intervals(labelled))]
    storage.write_bytes(out, storage.csv_bytes(INTERVALS, rows))
    if frames is not None:
        of_frames = (
            (video.video_id, frame, label, f"{confidence[frame]:.3f}")
            for video, labels_of, confidence in found
            for frame, label in enumerate(labels_of)
        )
        header = ("video", "frame", "label", "confidence")
        storage.write_bytes(frames, storage.csv_bytes(header, of_frames))
    print(f"labels of {len(sources)} videos propagated to {len(found)}: {len(rows):,} intervals")
    if left := len(others) - len(found):
        print(f"left without labels: {left} videos of actions that no labelled video has")
    if right is not None:
        print(
            f"from each other, the labelled videos get {right:.0%} of their labelled frames right ({straight_line:.0%} "
            "at the same relative position)"
        )
    _print_least_sure(found)
    if unlabelled == "none" and any(_share_of_none(labelled) > 0.5 for labelled in found):
        note(
            f"warning: {num_unlabelled:,} frames of the labelled videos have no label and count as a phase, so videos "
            f"above are mostly in none: label the whole of a video{'' if alone else ', or leave these frames out by'}"
            f"{'' if alone else ' --unlabelled ignore'}"
        )
    print(f"written: {', '.join(storage.public_uri(file) for file in (out, frames) if file)}")
    files = [word for file in (*labels, out) for word in ("--labels", file)]
    print_next("index", "--update", "MANIFEST", *files)


def _with_one_phase(sources: Sequence[EmbeddedVideo]) -> list[str]:
    """The actions whose labelled videos have a single phase."""
    names: dict[str, set[str | None]] = {}
    for video in sources:
        of_action = names.setdefault(video.label or "an unknown action", set())
        of_action |= {video.phase_name(phase) for phase in np.unique(video.phases).tolist()} - {None}
    return [printable(action) for action, phases in names.items() if len(phases) == 1]


def _labelled_part(video: EmbeddedVideo) -> EmbeddedVideo:
    """The frames that have a label."""
    frames = np.flatnonzero(video.phases >= 0)
    return replace(
        video,
        timestamps=video.timestamps[frames],
        embeddings=video.embeddings[frames],
        frame_labels=video.phases[frames],
        frame_times=None if video.seconds is None else video.seconds[frames],
        untrained=None,
        frozen=None,
        progress=None,
    )


def _share_of_none(labelled: LabelledVideo) -> float:
    return sum(not label for label in labelled.labels) / len(labelled.labels)


def _print_least_sure(found: Sequence[LabelledVideo]) -> None:
    """A line for each of the least sure videos."""
    if found:
        print("confidence  in no phase  intervals  video, least sure first")
    for labelled in found[:_MOST_SHOWN]:
        row = (labelled.confidence.mean(), _share_of_none(labelled), len(intervals(labelled)))
        print(f"{row[0]:>10.2f}{row[1]:>13.0%}{row[2]:>11}  {printable(labelled.video.video_id)}")
    if len(found) > _MOST_SHOWN:
        print(f"and {len(found) - _MOST_SHOWN:,} surer videos")


if __name__ == "__main__":
    main()
