"""Label all embedded videos from the labels of one or a few of them.

    python -m carl_ray.propagate --embeddings EMBEDDINGS --labels labels.csv --out predicted.csv
    python -m carl_ray.propagate --embeddings EMBEDDINGS --labels labels.csv --out predicted.csv --frames frames.csv

Labels come from files, as for `index --labels`, or without --labels from the embeddings. The videos without labels get
those of the labelled videos of the same action (`label`), or of all where that is unknown. The output has intervals
(video,start,end,label,confidence), least sure video first: correct them and join them with `index --update`. With
--frames, another file has the label and the confidence of each frame.
"""

from __future__ import annotations

from carl_ray import storage
from carl_ray.errors import UserError, note, one_line_errors
from carl_ray.evaluation.embeddings import read_embeddings
from carl_ray.evaluation.intervals import INTERVALS, LabelledVideo, interval_rows, intervals, with_labels
from carl_ray.evaluation.nearest_frames import printable
from carl_ray.machine import single_threaded
from carl_ray.options import OptionParser, print_next
from carl_ray.progress import ProgressLine


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
        options = parser.parse_args(arguments)
        _run(options.embeddings, options.labels or [], options.out, options.frames)


def _run(embeddings: str, labels: list[str], out: str, frames: str | None) -> None:
    videos = read_embeddings(embeddings)
    if labels:
        videos, notes = with_labels(videos, labels)
        note("\n".join(notes))
    sources = [video for video in videos if (video.phases >= 0).any()]
    if not sources:
        raise UserError(f"{storage.public_uri(embeddings)}: no video has labels; name some with --labels")
    others = [video for video in videos if not (video.phases >= 0).any()]
    # Lazily: mistakes are reported before torch is loaded.
    from carl_ray.evaluation.propagation import propagate_names, sources_for

    found: list[LabelledVideo] = []
    progress = ProgressLine("labelled")
    with single_threaded():
        for done, video in enumerate(others, 1):
            alike = sources_for(video, sources)
            if alike and len(video) and video.seconds is not None:
                found.append(propagate_names(alike, video))
            progress(done, len(others))
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
    if found:
        least, most = (item.confidence.mean() for item in (found[0], found[-1]))
        print(f"mean confidence: {least:.2f} ({printable(found[0].video.video_id)}) to {most:.2f}")
    print(f"written: {', '.join(storage.public_uri(file) for file in (out, frames) if file)}")
    files = [word for file in (*labels, out) for word in ("--labels", file)]
    print_next("index", "--update", "MANIFEST", *files)


if __name__ == "__main__":
    main()
