"""Find the repetitions in all embedded videos, one interval each, and count them.

    python -m carl_ray.segments --embeddings EMBEDDINGS --out segments.csv

No labels are needed. The output has intervals (video,start,end,label,confidence) with labels "repetition 1",
"repetition 2", …, and can be joined by `index --labels`. A video that does not repeat is one interval with a low
confidence. In which pose a cycle is cut is arbitrary, but the same throughout a video.
"""

from __future__ import annotations

from collections.abc import Sequence

from carl_ray import storage
from carl_ray.errors import UserError, one_line_errors
from carl_ray.evaluation.embeddings import read_embeddings
from carl_ray.evaluation.intervals import INTERVALS, interval_rows, timed
from carl_ray.options import OptionParser, print_next
from carl_ray.progress import ProgressLine


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit status 0 only when the intervals are written."""
    with one_line_errors():
        parser = OptionParser(prog="python -m carl_ray.segments", description=__doc__)
        add = parser.add_argument
        add("--embeddings", metavar="EMBEDDINGS", required=True, help="folder or file of embeddings")
        add("--out", metavar="FILE", required=True, help="CSV file of the intervals")
        options = parser.parse_args(arguments)
        _run(options.embeddings, options.out)


def _run(embeddings: str, out: str) -> None:
    from carl_ray.evaluation.repetitions import find_repetitions

    videos = read_embeddings(embeddings)
    rows: list[Sequence[object]] = []
    num_found = num_repeating = 0
    progress = ProgressLine("searched")
    for done, video in enumerate(videos, 1):
        try:
            found = find_repetitions(video.embeddings)
        except ValueError as error:
            raise UserError(f"{storage.public_uri(embeddings)}: {video.video_id!r}: {error}") from None
        if video.seconds is not None and found:
            spans = (
                (one.start, one.end, f"repetition {k}", one.confidence) for k, one in enumerate(found, 1)
            )
            rows += interval_rows(video, timed(video, spans))
            num_found += 1
            num_repeating += len(found) > 1
        progress(done, len(videos))
    storage.write_bytes(out, storage.csv_bytes(INTERVALS, rows))
    print(f"{len(rows):,} intervals in {num_found:,} videos, of which {num_repeating:,} repeat")
    if left := len(videos) - num_found:
        print(f"left out: {left} videos without frames or frame rate")
    print(f"written: {storage.public_uri(out)}")
    print_next("index", "--update", "MANIFEST", "--labels", out)


if __name__ == "__main__":
    main()
