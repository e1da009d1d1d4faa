"""Index a folder of videos into a manifest (one row a video) and rejects.

    python -m carl_ray.index FOLDER --out MANIFEST
    python -m carl_ray.index s3://bucket/videos --out s3://bucket/manifest.parquet --verify
    python -m carl_ray.index

Without arguments the rendered videos of the demo are made (once) and indexed with their labels. Indexing again reads
only new and changed files, and continues an interrupted scan. Videos that cannot be decoded go to
`MANIFEST.rejects.parquet`, with the reason.
"""

from __future__ import annotations

import argparse

import pyarrow as pa

from carl_ray import storage
from carl_ray.errors import RunError, UserError, one_line_errors
from carl_ray.options import OptionParser, print_next


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    with one_line_errors():
        parser = OptionParser(
            prog="python -m carl_ray.index",
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("folder", nargs="?", metavar="FOLDER", help="path or URI of the videos")
        parser.add_argument(
            "--out", metavar="MANIFEST", help="path or URI of the manifest, new or to be continued"
        )
        parser.add_argument(
            "--verify", action="store_true", help="decode every frame; count what really decodes"
        )
        options = parser.parse_args(arguments)
        if options.folder is not None and options.out is None:
            raise UserError("--out is missing: where to write the manifest, such as --out manifest.parquet")
        if options.folder is not None and not storage.exists(options.folder):
            raise UserError(f"{storage.public_uri(storage.absolute(options.folder))}: no such folder")
        # Lazy import of Ray: help and usage errors answer at once.
        from carl_ray.data.scan import build_manifest, rejects_uri
        from carl_ray.datasets.embedded import index_embedded
        from carl_ray.session import connect

        if options.folder is None:
            with connect():
                out, manifest, rejects = index_embedded(options.out, verify=options.verify)
        else:
            out = options.out
            manifest, rejects = build_manifest(options.folder, out, verify=options.verify)
        print(_summary(manifest, rejects, out))
        if manifest.num_rows == 0:
            raise RunError(f"none of {rejects.num_rows} videos can be decoded; reasons in {rejects_uri(out)}")
        print_next("train", "demo", "--data.manifest", out)


def _summary(manifest: pa.Table, rejects: pa.Table, out: str) -> str:
    from carl_ray.data.scan import count_reasons, rejects_uri

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
        if slash and video["split"] not in (None, folder)
    }
    lines.append("; ".join([", ".join(counts), *sorted(renamed)]))
    lines.append(f"rejected: {rejects.num_rows}")
    lines += [f"  {count:>6} x {reason} ({uri})" for reason, count, uri in count_reasons(rejects)]
    lines.append(f"manifest: {storage.public_uri(out)}")
    lines.append(f"rejects:  {storage.public_uri(rejects_uri(out))}")
    # File names are untrusted: replace control characters, which a terminal would obey.
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


if __name__ == "__main__":
    main()
