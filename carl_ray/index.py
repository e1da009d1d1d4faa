"""A folder of videos becomes a manifest, one row a video, with the rejects beside it.

    python -m carl_ray.index FOLDER --out MANIFEST
    python -m carl_ray.index s3://bucket/videos --out s3://bucket/manifest.parquet --verify
    python -m carl_ray.index

Without arguments the embedded videos are rendered (once) and indexed with their labels. Indexing again reads
only what is new or has changed, and goes on with what was interrupted. What cannot be decoded goes into
`MANIFEST.rejects.parquet`, with the reason.
"""

from __future__ import annotations

import argparse

import pyarrow as pa
import pyarrow.compute as pc

from carl_ray import storage
from carl_ray.errors import RunError, UserError, one_line_errors
from carl_ray.options import OptionParser, print_next


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
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
        # Ray is imported late: help and mistakes on the command line answer at once.
        from carl_ray.data.scan import index_folder, rejects_uri
        from carl_ray.datasets.embedded import index_embedded
        from carl_ray.session import connect

        if options.folder is None:
            with connect():
                out, manifest, rejects = index_embedded(options.out, verify=options.verify)
        else:
            out = options.out
            with connect():
                manifest, rejects = index_folder(options.folder, out, verify=options.verify)
        print(_summary(manifest, rejects, out))
        if manifest.num_rows == 0:
            raise RunError(f"none of {rejects.num_rows} videos can be decoded; reasons in {rejects_uri(out)}")
        preset = "demo" if options.folder is None else "penn_action"
        print_next("train", preset, "--data.manifest", out)


def _summary(manifest: pa.Table, rejects: pa.Table, out: str) -> str:
    from carl_ray.data.scan import count_reasons, rejects_uri

    lines = [f"{'split':<16}{'videos':>10}{'frames':>14}{'hours':>10}"]
    counts = manifest.group_by("split").aggregate(
        [([], "count_all"), ("num_frames", "sum"), ("duration", "sum")]
    )
    rows = sorted(counts.to_pylist(), key=lambda row: row["split"] or "")
    total = {
        "split": "all",
        "count_all": manifest.num_rows,
        "num_frames_sum": pc.sum(manifest.column("num_frames")).as_py(),
        "duration_sum": pc.sum(manifest.column("duration")).as_py(),
    }
    lines += [
        f"{row['split'] or '(none)':<16}{row['count_all']:>10,}{row['num_frames_sum'] or 0:>14,}"
        f"{(row['duration_sum'] or 0) / 3600:>10.2f}"
        for row in ([*rows, total] if len(rows) > 1 else [total])
    ]
    read_as = sorted(
        {
            (folder, row["split"])
            for row in manifest.select(["video_id", "split"]).to_pylist()
            for folder, slash, _ in [row["video_id"].partition("/")]
            if slash and row["split"] not in (None, folder)
        }
    )
    named = [f"{row['split'] or 'no split (trained on)'} {row['count_all']}" for row in rows]
    renamed = [f"{folder}/ was read as {split}" for folder, split in read_as]
    lines.append("; ".join([", ".join(named), *renamed]))
    lines.append(f"rejected: {rejects.num_rows}")
    lines += [f"  {count:>6} x {reason} ({uri})" for reason, count, uri in count_reasons(rejects)]
    lines.append(f"manifest: {storage.public_uri(out)}")
    lines.append(f"rejects:  {storage.public_uri(rejects_uri(out))}")
    # Names come from the folder, and a terminal obeys what is in them.
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


if __name__ == "__main__":
    main()
