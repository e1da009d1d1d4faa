"""Finds the frames of other videos that are nearest to a frame: the same moment of the action, elsewhere.

    python -m carl_ray.retrieve QUERY --frame N --embeddings FOLDER --top 10 --out sheet.png
    python -m carl_ray.retrieve video.mp4 --frame 120 --embeddings FOLDER
    python -m carl_ray.retrieve

QUERY is the id of an embedded video, or a video file; a file is embedded with the checkpoint that the embeddings
come from. Each video is listed once, with its nearest frame. Without arguments a frame of the newest demo run's
embeddings is searched for.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import cast

from carl_ray import storage
from carl_ray.errors import UserError, one_line_errors
from carl_ray.evaluation.embeddings import CropMode, EmbeddedVideo, iterate_embeddings, read_origin
from carl_ray.options import OptionParser, nearest, print_next
from carl_ray.report.neighbours import FoundFrame, found_frame, nearest_frames, printable
from carl_ray.training.checkpoint import checkpoint_at, default_run, load_encoder


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; leaves with status 0 only when the table is printed and the picture written."""
    with one_line_errors():
        options = _parse(arguments)
        if options.embeddings is None:
            options.embeddings = storage.join(default_run("--embeddings"), "embeddings")
        # Whatever is wrong with the embeddings shows before a video is embedded for them.
        origin = read_origin(options.embeddings)
        video = _embedded(options.query, options.embeddings)
        if video is None:
            video = _embed(options.query, options.embeddings, options.checkpoint or origin.checkpoint)
        frame = _frame(options.frame, video)
        query = found_frame(video, frame)
        others = _others(options.embeddings, video)
        try:
            found = nearest_frames(video.embeddings[frame], others, options.top)
        except ValueError as error:
            raise UserError(f"{storage.public_uri(options.embeddings)}: {error}") from None
        if not found:
            raise UserError(
                f"{storage.public_uri(options.embeddings)}: it holds no video but {query.video_id!r}"
            )
        print(_table(query, found))
        if options.out is not None:
            from carl_ray.report.sheets import retrieval_sheet, thumbnails

            pictures = thumbnails([query, *found])
            sheet = retrieval_sheet(
                (query, pictures[query.uri, query.frame]),
                [(item, pictures[item.uri, item.frame]) for item in found],
            )
            storage.write_bytes(options.out, sheet.content)
            print(f"picture: {storage.public_uri(options.out)}")
        print_next("align", query.uri, found[0].uri, "--checkpoint", options.checkpoint or origin.checkpoint)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = OptionParser(
        prog="python -m carl_ray.retrieve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "query", nargs="?", metavar="QUERY", help="id of an embedded video, or a video file; none: the first"
    )
    parser.add_argument(
        "--frame",
        type=int,
        metavar="N",
        help="its frame, from 0; none: the middle one of the labelled frames",
    )
    parser.add_argument(
        "--embeddings", metavar="EMBEDDINGS", help="folder or file of embeddings; none: the newest demo's"
    )
    parser.add_argument(
        "--checkpoint",
        metavar="URI",
        help="embeds a video file; none: where the embeddings say they come from",
    )
    parser.add_argument("--top", type=int, default=10, metavar="K", help="videos to list, a frame each [10]")
    parser.add_argument("--out", metavar="PICTURE", help="PNG file with the frames")
    options = parser.parse_args(arguments)
    if options.top < 1:
        raise UserError(f"--top: expected at least 1, got {options.top}")
    if options.out is not None and not options.out.partition("?")[0].lower().endswith(".png"):
        raise UserError(f"--out: expected the name of a PNG file, such as sheet.png, got {options.out!r}")
    return options


def _embedded(query: str | None, embeddings: str) -> EmbeddedVideo | None:
    """The embedded video of an id, or the first test video where none is named; none for a video file.

    Raises:
        UserError: neither an embedded video nor a file has this name.
    """
    if query is None:
        first = next(iterate_embeddings(embeddings, split="test"), None) or next(
            iterate_embeddings(embeddings), None
        )
        if first is None:
            raise UserError(f"{storage.public_uri(embeddings)}: it holds no embedded video")
        return first
    known = []
    for video in iterate_embeddings(embeddings):
        if video.video_id == query:
            return video
        known.append(video.video_id)
    if not storage.exists(query):
        raise UserError(
            f"{storage.public_uri(query)}: neither the id of one of the {len(known)} videos in "
            f"{storage.public_uri(embeddings)} nor a file{nearest(query, known, files=True)}"
        )
    return None


def _embed(uri: str, embeddings: str, checkpoint_uri: str) -> EmbeddedVideo:
    """A video file as the videos in `embeddings` were embedded: same encoder, same view."""
    from carl_ray.data.decode import DecodeError, probe_video

    origin = read_origin(embeddings)
    shown = storage.public_uri(checkpoint_uri)
    if not storage.exists(checkpoint_uri):
        raise UserError(
            f"{shown}: no checkpoint there, which is needed to embed {storage.public_uri(uri)}; name the "
            "--checkpoint that the embeddings come from"
        )
    checkpoint = checkpoint_at(checkpoint_uri)
    if checkpoint.hashes.get("model.pt") != origin.model_sha256:
        raise UserError(
            f"{shown}: not the model that {storage.public_uri(embeddings)} comes from, which is step "
            f"{origin.step} of {origin.checkpoint}; embeddings of two models do not compare"
        )
    try:
        fps = probe_video(uri).fps
    except DecodeError as error:
        raise UserError(f"{storage.public_uri(uri)}: {error}") from None
    # Imported late: mistakes answer at once.
    import numpy as np
    import torch

    from carl_ray.evaluation.inference import VideoEmbedder

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    embedder = VideoEmbedder(
        [load_encoder(checkpoint)], checkpoint.config, device, view=cast(CropMode, origin.view)
    )
    (frames,) = embedder.embed_file(uri)
    return EmbeddedVideo(
        video_id=storage.public_uri(uri),
        uri=uri,
        content_hash="",
        split=None,
        label=None,
        frame_labels=None,
        progress=None,
        fps=fps,
        timestamps=np.arange(len(frames), dtype=np.float64),
        embeddings=frames,
        untrained=None,
    )


def _frame(wanted: int | None, video: EmbeddedVideo) -> int:
    """The frame that was asked for, or a sensible one.

    Raises:
        UserError: the video has no such frame, or none at all.
    """
    if wanted is None and len(video):
        labelled = (
            []
            if video.frame_labels is None
            else [i for i, label in enumerate(video.frame_labels) if label >= 0]
        )
        return labelled[len(labelled) // 2] if labelled else len(video) // 2
    if wanted is None or not 0 <= wanted < len(video):
        raise UserError(
            f"--frame: {video.video_id!r} has {len(video)} frames, expected 0 to {len(video) - 1}, got {wanted}"
        )
    return wanted


def _others(embeddings: str, query: EmbeddedVideo) -> Iterator[EmbeddedVideo]:
    """The embedded videos but the one asked about, which may be among them under its id or as the same file."""
    place = storage.resolve(query.uri)
    for video in iterate_embeddings(embeddings):
        if video.video_id != query.video_id and storage.resolve(video.uri) != place:
            yield video


def _table(query: FoundFrame, found: list[FoundFrame]) -> str:
    rows = [["", "video", "frame", "time", "cosine", "label", "phase"], ["query", *_columns(query)]]
    rows += [[str(rank), *_columns(item)] for rank, item in enumerate(found, start=1)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in (2, 3, 4) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _columns(item: FoundFrame) -> list[str]:
    return [
        printable(item.video_id),
        str(item.frame),
        "?" if item.seconds is None else f"{item.seconds:.2f} s",
        f"{item.similarity:.4f}",
        printable(item.label or ""),
        "" if item.phase is None else str(item.phase),
    ]


if __name__ == "__main__":
    main()
