"""Index a folder of videos, tar shards or ranges into a manifest (one row a video) and rejects.

    python -m carl_ray.index FOLDER --out MANIFEST
    python -m carl_ray.index s3://bucket/videos --out s3://bucket/manifest.parquet --verify
    python -m carl_ray.index FOLDER --out MANIFEST --labels labels.csv --split-by person --test-fraction 0.3
    python -m carl_ray.index --update MANIFEST --labels labels.csv
    python -m carl_ray.index ranges.csv --out MANIFEST
    python -m carl_ray.index FOLDER --out MANIFEST --prepare COPIES
    python -m carl_ray.index

FOLDER may hold tar shards of videos or be a LeRobot dataset v3. Instead of it, one shard (NAME.tar) or a CSV file of
uri,start,end (seconds; or uri,start_frame,end_frame) may be given; nothing is unpacked or cut.

Without arguments the rendered videos of the demo are made (once) and indexed with their labels. Indexing again reads
only new and changed files, and continues an interrupted scan. Videos that cannot be decoded go to
`MANIFEST.rejects.parquet`, with the reason.

Labels are joined by the column `video` (id, file name or relative path): CSV, TSV or Parquet with the columns
video,start,end,label (seconds; or start_frame,end_frame), video,time,event, video,frame,label, or one row a video with
label, split and any other columns; or exports of ELAN and BORIS. With --update they are joined to a manifest that is
there, without reading the videos again, also after a mistake in the labels.

--prepare writes a copy of each video with a short side of 256 pixels, all its frames at their times, in H.264 that is
fast to decode, and COPIES/manifest.parquet for training. Called again, it adds what is missing, and joins new labels.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import pyarrow as pa

from carl_ray import storage
from carl_ray.errors import RunError, UserError, one_line_errors
from carl_ray.options import OptionParser, number, print_next, program

if TYPE_CHECKING:
    from carl_ray.data.labels import LabelOptions

_MOST_FOLDERS = 6


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    with one_line_errors():
        options = _parse(arguments)
        if options.prepare is not None and options.folder is None:
            raise UserError("--prepare copies the videos that are indexed: name FOLDER and --out, too")
        if options.prepare is not None:
            _check_copies(*map(storage.absolute, (options.folder, options.out or "", options.prepare)))
        labels = _labels(options)
        if options.update is not None and labels is not None:
            from carl_ray.data.labels import label_manifest

            print(_summary(label_manifest(options.update, labels), None, options.update))
            print_next("train", "laptop", "--data.manifest", options.update)
            return
        if options.folder is not None and options.out is None:
            raise UserError("--out is missing: where to write the manifest, such as --out manifest.parquet")
        if options.folder is not None and not storage.exists(options.folder):
            raise UserError(f"{storage.public_uri(storage.absolute(options.folder))}: no such folder")
        for made in (options.out, options.prepare):
            storage.check_bucket(made or "")
        # Lazy import of Ray: help and usage errors answer at once.
        from carl_ray.data.manifest import rejects_uri
        from carl_ray.data.scan import build_manifest
        from carl_ray.datasets.embedded import index_embedded
        from carl_ray.session import connect

        with connect():
            if options.folder is None:
                out, manifest, rejects = index_embedded(options.out, verify=options.verify)
            else:
                out = options.out
                manifest, rejects = build_manifest(options.folder, out, labels, verify=options.verify)
            print(_summary(manifest, rejects, out))
            if manifest.num_rows == 0:
                raise RunError(
                    f"none of {rejects.num_rows} videos can be decoded; reasons in {rejects_uri(out)}"
                )
            if options.prepare is not None:
                out = _prepare(manifest, options.prepare)
        print_next("train", "laptop", "--data.manifest", out)


def _check_copies(folder: str, out: str, copies: str) -> None:
    """Raise `UserError` where copies would be indexed as videos, or their manifest would replace that of these."""
    inside = folder.rstrip("/") + "/"
    if f"{copies.rstrip('/')}/".startswith(inside):
        raise UserError(f"--prepare {storage.public_uri(copies)}: expected a folder outside the indexed one")
    if storage.parent(out).rstrip("/") == copies.rstrip("/"):
        raise UserError(
            "--out: expected another folder than that of --prepare, which has a manifest of its own"
        )


def _prepare(manifest: pa.Table, folder: str) -> str:
    """Make the copies, print what there is; the URI of their manifest."""
    import pyarrow.compute as pc

    from carl_ray.data.manifest import rejects_uri
    from carl_ray.data.prepare import prepare_videos
    from carl_ray.data.scan import count_reasons

    prepared, rejects, out = prepare_videos(manifest, folder)
    size = pc.sum(prepared.column("bytes")).as_py() or 0
    print(f"copies of {len(prepared)} of {len(manifest)} videos: {size / 1e9:.2f} GB")
    for reason, count, uri in count_reasons(rejects):
        print("".join(c if c.isprintable() else "?" for c in f"  {count:>6} x {reason} ({uri})"))
    print(f"manifest: {storage.public_uri(out)}")
    if not len(prepared):
        raise RunError(f"no video could be copied; reasons in {storage.public_uri(rejects_uri(out))}")
    return out


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = OptionParser(prog="python -m carl_ray.index", description=__doc__)
    add = parser.add_argument
    add("folder", nargs="?", metavar="FOLDER", help="path or URI of the videos or ranges")
    add("--out", metavar="MANIFEST", help="path or URI of the manifest, new or to be continued")
    add("--verify", action="store_true", help="decode every frame; count what really decodes")
    copies = "make small copies of the videos there, and their manifest: a run reads them faster"
    add("--prepare", metavar="COPIES", help=copies)
    add("--update", metavar="MANIFEST", help="a manifest that labels are joined to")
    add("--labels", action="append", metavar="FILE", help="labels to join; may be given repeatedly")
    by_level = "the label of a video is its `folder`, or that of this level of its path, from 1"
    add("--label-from", type=_level, metavar="LEVEL", help=by_level)
    by_column = "split into train and test, all videos of a value of this column (or `folder`) on one side"
    add("--split-by", metavar="COLUMN", help=by_column)
    share, share_help = number(float, above=0, below=1), "of the videos for --split-by [0.3]"
    add("--test-fraction", type=share, default=0.3, metavar="SHARE", help=share_help)
    validation = "of the videos for a split validation, on which a sweep chooses [0]"
    share = number(float, at_least=0, below=1)
    add("--validation-fraction", type=share, default=0.0, metavar="SHARE", help=validation)
    add("--seed", type=int, default=0, metavar="N", help="of --split-by [0]")
    return parser.parse_args(arguments)


def _level(text: str) -> str:
    if text != "folder" and not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected folder, or the level of a folder from 1, got {text!r}")
    return text


def _labels(options: argparse.Namespace) -> LabelOptions | None:
    """The labels of the command line; None where there are none."""
    from carl_ray.data.labels import LabelOptions

    given = LabelOptions(
        label_from=options.label_from,
        files=tuple(options.labels or ()),
        split_by=options.split_by,
        test_fraction=options.test_fraction,
        validation_fraction=options.validation_fraction,
        seed=options.seed,
    )
    has_labels = bool(given.files or given.label_from or given.split_by)
    if options.update is not None and (not has_labels or options.folder or options.out or options.verify):
        raise UserError(
            "--update joins labels to a manifest that is there: it takes --labels, --label-from or --split-by, and "
            "neither FOLDER nor --out nor --verify"
        )
    if has_labels and options.update is options.folder is None:
        raise UserError("labels need videos: name FOLDER and --out, or --update MANIFEST")
    given.content  # noqa: B018 - mistakes before Ray starts
    return given if has_labels else None


def _summary(manifest: pa.Table, rejects: pa.Table | None, out: str) -> str:
    from carl_ray.data.labels import folders_like_labels
    from carl_ray.data.manifest import SPLITS, rejects_uri
    from carl_ray.data.scan import count_reasons

    videos = manifest.select(["video_id", "split", "num_frames", "duration"]).to_pylist()
    by_split: dict[str | None, list[dict]] = {}
    for video in sorted(videos, key=lambda video: video["split"] or ""):
        by_split.setdefault(video["split"], []).append(video)
    lines = [f"{'split':<16}{'videos':>10}{'frames':>14}{'hours':>10}"]
    for name, rows in [*by_split.items(), *([("all", videos)] if len(by_split) != 1 else [])]:
        frames, seconds = sum(row["num_frames"] for row in rows), sum(row["duration"] or 0 for row in rows)
        lines.append(f"{name or '(none)':<16}{len(rows):>10,}{frames:>14,}{seconds / 3600:>10.2f}")
    counts = [f"{name or 'no split (trained on)'} {len(rows)}" for name, rows in by_split.items()]
    renamed = {
        f"{folder}/ was read as {video['split']}"
        for video in videos
        for folder, slash, _ in [video["video_id"].partition("/")]
        if slash and folder != SPLITS.get(folder.strip().lower(), folder) == video["split"]
    }
    lines.append("; ".join([", ".join(counts), *sorted(renamed)]))
    folders = folders_like_labels(manifest.column("video_id").to_pylist())
    if folders and not manifest.column("label").drop_null():
        names = ", ".join(folders[:_MOST_FOLDERS]) + (" …" if len(folders) > _MOST_FOLDERS else "")
        command = storage.shell_command(*program("index").split(), "--update", out, "--label-from", "folder")
        lines.append(f"the folders {names} look like labels; to make them labels: {command}")
    if rejects is not None:
        lines.append(f"rejected: {rejects.num_rows}")
        lines += [f"  {count:>6} x {reason} ({uri})" for reason, count, uri in count_reasons(rejects)]
    lines.append(f"manifest: {storage.public_uri(out)}")
    if rejects is not None and rejects.num_rows:
        lines.append(f"rejects:  {storage.public_uri(rejects_uri(out))}")
    # File names are untrusted: replace control characters, which a terminal would obey.
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


if __name__ == "__main__":
    main()
