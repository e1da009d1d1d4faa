"""Find the repetitions in all embedded videos, one interval each, and count them.

    python -m carl_ray.segments --embeddings EMBEDDINGS --out segments.csv

No labels are needed. The output has intervals (video,start,end,label,confidence) with labels "repetition 1",
"repetition 2", …, and can be joined by `index --labels`. A video that does not repeat is one interval with a low
confidence. In which pose a cycle is cut is arbitrary, but the same throughout a video; what is incomplete at its ends
is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

from carl_ray import storage
from carl_ray.errors import UserError, one_line_errors
from carl_ray.evaluation.embeddings import read_embeddings
from carl_ray.evaluation.intervals import INTERVALS, interval_rows, timed
from carl_ray.evaluation.nearest_frames import printable
from carl_ray.options import OptionParser, print_next
from carl_ray.progress import ProgressLine

_MOST_SHOWN = 60


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
    counts: list[tuple[int, float, str]] = []
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
            counts.append((len(found), min(one.confidence for one in found), video.video_id))
        progress(done, len(videos))
    storage.write_bytes(out, storage.csv_bytes(INTERVALS, rows))
    if counts:
        print("repetitions  least confidence  video")
    for count, confidence, video_id in sorted(counts, key=itemgetter(2))[:_MOST_SHOWN]:
        print(f"{count:>11}{confidence:>18.2f}  {printable(video_id)}")
    if len(counts) > _MOST_SHOWN:
        print(f"and {len(counts) - _MOST_SHOWN:,} videos more")
    num_repeating = sum(count > 1 for count, *_ in counts)
    print(f"{len(rows):,} intervals in {len(counts):,} videos, of which {num_repeating:,} repeat")
    if left := len(videos) - len(counts):
        print(f"left out: {left} videos without frames or frame rate")
    print(f"written: {storage.public_uri(out)}")
    print_next("explore", "--embeddings", embeddings)


if __name__ == "__main__":
    main()
