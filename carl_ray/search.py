"""Find the frames of other videos that are most similar to a frame.

    python -m carl_ray.search QUERY --frame N --embeddings FOLDER --top 10 --out sheet.png --out moments.csv
    python -m carl_ray.search video.mp4 --frame 120 --embeddings FOLDER
    python -m carl_ray.search QUERY --frame N --embeddings s3://bucket/moments.lance --label squat
    python -m carl_ray.search

QUERY is the id of an embedded video, or a video file; a file is embedded with the checkpoint of the embeddings. Each
video is listed once, with its most similar frame. Folders of embeddings are searched exactly; an index (.lance) that
`export` has made of them approximately, without reading all of it. Without arguments the query is a frame of the newest
demo run's embeddings.
"""

from __future__ import annotations

import argparse
from typing import cast

from carl_ray import storage
from carl_ray.errors import UserError, one_line_errors
from carl_ray.evaluation.embeddings import CropMode, EmbeddedVideo, Embeddings, NotEmbeddedError
from carl_ray.evaluation.frozen import load_frozen
from carl_ray.evaluation.lance_index import SUFFIX, LanceIndex
from carl_ray.evaluation.nearest_frames import FoundFrame, found_frame, printable
from carl_ray.options import OptionParser, number, print_next
from carl_ray.report.tables import text_table
from carl_ray.training.checkpoint import checkpoint_at, default_run

_CSV = ("video", "frame", "time", "similarity", "label", "phase")


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit status 0 only when all output is written."""
    with one_line_errors():
        options = _parse(arguments)
        embeddings = _open(options.embeddings or storage.join(default_run("--embeddings"), "embeddings"))
        checkpoint_uri = options.checkpoint or embeddings.origin.checkpoint
        video = _query_video(options.query, embeddings, checkpoint_uri)
        frame = _frame(options.frame, video)
        query = found_frame(video, frame)
        shown = storage.public_uri(embeddings.uri)
        try:
            found = embeddings.search((video, frame), options.top, label=options.label)
        except ValueError as error:
            raise UserError(f"{shown}: {error}") from None
        if not found:
            of_label = "" if options.label is None else f" of the label {options.label!r}"
            raise UserError(f"{shown}: it holds no video{of_label} but {query.video_id!r}")
        print(_table(query, found))
        for out in options.out:
            if _is_table(out):
                content = storage.csv_bytes(_CSV, map(_csv_row, found))
            else:
                from carl_ray.report.sheets import retrieval_sheet

                content = retrieval_sheet(query, found).content
            storage.write_bytes(out, content)
            print(f"written: {storage.public_uri(out)}")
        print_next("align", query.uri, found[0].uri, "--checkpoint", checkpoint_uri)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = OptionParser(prog="python -m carl_ray.search", description=__doc__)
    add = parser.add_argument
    add("query", nargs="?", metavar="QUERY", help="id of an embedded video, or a video file; none: the first")
    add(
        "--frame",
        type=int,
        metavar="N",
        help="its frame, from 0; none: the middle one of the labelled frames",
    )
    add(
        "--embeddings",
        metavar="EMBEDDINGS",
        help="folder or file of embeddings, or an index of them (.lance); none: the newest demo's",
    )
    add("--label", metavar="LABEL", help="search only videos of this label")
    add(
        "--checkpoint",
        metavar="URI",
        help="embeds a video file; none: where the embeddings say they come from",
    )
    add(
        "--top",
        type=number(int, at_least=1),
        default=10,
        metavar="K",
        help="videos to list, a frame each [10]",
    )
    add(
        "--out",
        action="append",
        default=[],
        metavar="FILE",
        help="a picture of the frames (.png) or their table (.csv); may be given repeatedly",
    )
    options = parser.parse_args(arguments)
    for out in options.out:
        if not out.partition("?")[0].lower().endswith((".png", ".csv")):
            raise UserError(
                f"--out: expected the name of a PNG or a CSV file, such as sheet.png or moments.csv, got {out!r}"
            )
    return options


def _open(uri: str) -> Embeddings | LanceIndex:
    path = uri.partition("?")[0] if storage.is_remote(uri) else uri
    return LanceIndex.open(uri) if path.endswith(SUFFIX) else Embeddings.open(uri)


def _query_video(
    query: str | None, embeddings: Embeddings | LanceIndex, checkpoint_uri: str
) -> EmbeddedVideo:
    """The query: an embedded video, the first test video, or an embedded file.

    Raises:
        UserError: neither an embedded video nor a file has this name.
    """
    if query is None:
        if isinstance(embeddings, LanceIndex):
            raise UserError("QUERY missing: expected the id of a video in the index, or a video file")
        tested = (video for video in embeddings if video.split == "test")
        first = next(tested, None) or next(iter(embeddings), None)
        if first is None:
            raise UserError(f"{storage.public_uri(embeddings.uri)}: it holds no embedded video")
        return first
    try:
        return embeddings.video(query)
    except NotEmbeddedError as error:
        if not storage.exists(query):
            raise UserError(f"{error} (there is no file of this name either)") from None
    return _embed(query, embeddings, checkpoint_uri)


def _embed(uri: str, embeddings: Embeddings | LanceIndex, checkpoint_uri: str) -> EmbeddedVideo:
    """Embed a video file with the encoder and the view of the embeddings."""
    from carl_ray.data.decode import DecodeError, probe_video

    origin = embeddings.origin
    shown = storage.public_uri(checkpoint_uri)
    try:
        checkpoint = load_frozen(checkpoint_uri) or checkpoint_at(checkpoint_uri)
    except UserError as error:
        raise UserError(
            f"{error}; it is needed to embed {storage.public_uri(uri)}: name the --checkpoint that the embeddings come "
            "from"
        ) from None
    if checkpoint.model_sha256 != origin.model_sha256:
        raise UserError(
            f"{shown}: not the model that {storage.public_uri(embeddings.uri)} comes from, which is step "
            f"{origin.step} of {origin.checkpoint}; embeddings of two models do not compare"
        )
    try:
        fps = probe_video(uri).fps
    except DecodeError as error:
        raise UserError(f"{storage.public_uri(uri)}: {error}") from None
    # Lazy import: mistakes are reported before torch is loaded.
    import numpy as np

    from carl_ray.evaluation.inference import load_encoder

    folder = embeddings.source if isinstance(embeddings, LanceIndex) else embeddings.uri
    frames = load_encoder(checkpoint, view=cast(CropMode, origin.view), like=folder).embed(uri)
    timestamps = np.arange(len(frames), dtype=np.float64)
    shown = storage.public_uri(uri)
    return EmbeddedVideo(video_id=shown, uri=uri, fps=fps, timestamps=timestamps, embeddings=frames)


def _frame(wanted: int | None, video: EmbeddedVideo) -> int:
    """The frame of the option, or the middle one of the labelled frames, or of all.

    Raises:
        UserError: the video has no such frame, or none at all.
    """
    if wanted is None and len(video):
        labelled = [i for i, phase in enumerate(video.phases) if phase >= 0]
        return labelled[len(labelled) // 2] if labelled else len(video) // 2
    if wanted is None or not 0 <= wanted < len(video):
        raise UserError(
            f"--frame: {video.video_id!r} has {len(video)} frames, expected 0 to {len(video) - 1}, got {wanted}"
        )
    return wanted


def _table(query: FoundFrame, found: list[FoundFrame]) -> str:
    rows = [["", "video", "frame", "time", "cosine", "label", "phase"], ["query", *_columns(query)]]
    rows += [[str(rank), *_columns(item)] for rank, item in enumerate(found, start=1)]
    return text_table(rows, right_aligned=(2, 3, 4))


def _is_table(out: str) -> bool:
    return out.partition("?")[0].lower().endswith(".csv")


def _csv_row(item: FoundFrame) -> tuple[object, ...]:
    seconds = "" if item.seconds is None else f"{item.seconds:.4f}"
    return (
        item.video_id,
        item.frame,
        seconds,
        f"{item.similarity:.6f}",
        item.label or "",
        item.phase_name or "",
    )


def _columns(item: FoundFrame) -> list[str]:
    return [
        printable(item.video_id),
        str(item.frame),
        "?" if item.seconds is None else f"{item.seconds:.2f} s",
        f"{item.similarity:.4f}",
        printable(item.label or ""),
        printable(item.phase_name or "").removeprefix("phase "),
    ]


if __name__ == "__main__":
    main()
