"""Find the repetitions in all embedded videos, one interval each, and count them.

    python -m carl_ray.segments --embeddings EMBEDDINGS --out segments.csv

The output has intervals (video,start,end,label,confidence), seconds and labels "repetition 1", "repetition 2", …; it
can be corrected and joined with `index --labels`. A video that does not repeat is one interval with a low confidence.
No labels are needed. In which pose a cycle is cut is arbitrary, but the same throughout a video.
"""

from __future__ import annotations

import argparse

from carl_ray import storage
from carl_ray.errors import UserError, one_line_errors
from carl_ray.evaluation.embeddings import read_embeddings
from carl_ray.options import OptionParser, print_next
from carl_ray.progress import ProgressLine


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit status 0 only when the intervals are written."""
    with one_line_errors():
        parser = OptionParser(
            prog="python -m carl_ray.segments",
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument(
            "--embeddings", metavar="EMBEDDINGS", required=True, help="folder or file of embeddings"
        )
        parser.add_argument("--out", metavar="FILE", required=True, help="CSV file of the intervals")
        options = parser.parse_args(arguments)
        _run(options.embeddings, options.out)


def _run(embeddings: str, out: str) -> None:
    import numpy as np

    from carl_ray.evaluation.intervals import LabelledVideo, intervals_csv
    from carl_ray.evaluation.repetitions import find_repetitions

    videos = read_embeddings(embeddings)
    found: list[LabelledVideo] = []
    counts: list[int] = []
    progress = ProgressLine("searched")
    for done, video in enumerate(videos, 1):
        try:
            repetitions = find_repetitions(video.embeddings)
        except ValueError as error:
            shown = storage.public_uri(embeddings)
            raise UserError(f"{shown}: {video.video_id!r}: {error}") from None
        if video.seconds is not None and repetitions:
            labels, confidence = [""] * len(video), np.zeros(len(video))
            for number, (start, end, certainty) in enumerate(repetitions, 1):
                labels[start:end] = [f"repetition {number}"] * (end - start)
                confidence[start:end] = certainty
            found.append(LabelledVideo(video, labels, confidence))
            counts.append(len(repetitions))
        progress(done, len(videos))
    content, num_intervals = intervals_csv(found)
    storage.write_bytes(out, content)
    repeating = [count for count in counts if count > 1]
    print(f"{num_intervals:,} intervals in {len(found):,} videos, of which {len(repeating):,} repeat")
    if repeating:
        print(f"repetitions in these: {min(repeating)} to {max(repeating)}, median {np.median(repeating):g}")
    if left := len(videos) - len(found):
        print(f"left out: {left} videos without frames or with an unknown frame rate")
    print(f"written: {storage.public_uri(out)}")
    print_next("index", "--update", "MANIFEST", "--labels", out)


if __name__ == "__main__":
    main()
