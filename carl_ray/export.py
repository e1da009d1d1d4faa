"""Export embeddings for search in large corpora and for other tools.

    python -m carl_ray.export --embeddings EMBEDDINGS --out frames.parquet
    python -m carl_ray.export --embeddings EMBEDDINGS --out FOLDER
    python -m carl_ray.export --embeddings EMBEDDINGS --out FOLDER --format csv
    python -m carl_ray.export --embeddings EMBEDDINGS --out s3://bucket/moments.lance
    python -m carl_ray.export --embeddings EMBEDDINGS --out http://HOST:6333/COLLECTION --format qdrant
    python -m carl_ray.export --embeddings EMBEDDINGS --out NAME --format fiftyone
    python -m carl_ray.export

A name that ends in .parquet, .csv or .npz gets a table with one row a frame: video, frame, time_s, label (name of the
phase), and e0, e1, … (float32, not normalised); in .npz the arrays of that name, with `embeddings` (frames, width).

A name that ends in .lance is an index for `search --embeddings NAME.lance` (LanceDB; pip install 'carl_ray[search]'):
made at the first call, and each further one adds new videos and replaces changed ones, of the same or of other
folders of the same encoder. One process at a time may write it.

`--format qdrant` writes one point a frame into a collection of a Qdrant server (same extra; key in $QDRANT_API_KEY),
or of a local folder where --out is a path: cosine, with the payload `video`, `frame`, `seconds`, `label` and `phase`.
The id of a point is made of video and frame: a further call writes the same points.

`--format fiftyone` makes the dataset NAME of FiftyOne (pip install 'carl_ray[fiftyone]'), with one sample a video:
label, phases, and embeddings of the video and of its frames.

A folder gets `<video name>.h5` for each video, with the data set `<video name>`, 100 snippets x width, float32, as the
ActivityNet code of G-TAD reads with `--feature_path FOLDER/ --feat_dim WIDTH`; with `--format csv`,
`<video name>.csv` as BSN and BMN read. The video name is the last part of the video id without its suffix. Called
again, it writes only missing files. Without arguments it takes the newest demo run.
"""

from __future__ import annotations

import io
import typing

from carl_ray import storage
from carl_ray.errors import UserError, one_line_errors
from carl_ray.evaluation.embeddings import Embeddings
from carl_ray.evaluation.localization import Format, export_features
from carl_ray.options import OptionParser, number, print_next
from carl_ray.progress import ProgressLine
from carl_ray.training.checkpoint import default_run

_TABLES = ("parquet", "csv", "npz")
_SUFFIXES = (*_TABLES, "lance")
_STORES = ("qdrant", "fiftyone")


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit status 0 only when all files are written."""
    with one_line_errors():
        embeddings, out, file_format, length = _parse(arguments)
        searched = ["--embeddings", embeddings]
        if file_format == "lance":
            from carl_ray.evaluation.lance_index import update_index

            opened = Embeddings.open(embeddings)
            update = update_index(opened, out, ProgressLine("indexed"))
            for done in ("added", "replaced", "kept"):
                print(f"videos {f'{done}:':<9} {update[done]:,}")
            print(f"index:           {storage.public_uri(out)}")
            searched = [next(iter(opened)).video_id, "--embeddings", out]
        elif file_format == "qdrant":
            from carl_ray.evaluation.qdrant import export_points

            num_frames = export_points(Embeddings.open(embeddings), out, ProgressLine("exported"))
            print(f"points:   {num_frames:,}")
            print(f"qdrant:   {storage.public_uri(out)}")
        elif file_format == "fiftyone":
            from carl_ray.evaluation.fiftyone_samples import export_samples

            num_videos = export_samples(Embeddings.open(embeddings), out, ProgressLine("exported"))
            print(f"videos:   {num_videos:,}")
            print(f"dataset:  {out}; fiftyone app launch {out}")
        elif _suffix(out) == file_format:
            num_frames = _export_table(embeddings, out, file_format)
            print(f"frames:   {num_frames:,}")
            print(f"table:    {storage.public_uri(out)}")
        else:
            progress = ProgressLine("exported")
            written, kept = export_features(
                embeddings, out, length=length, file_format=file_format, on_video=progress
            )
            print(f"videos written: {written}")
            print(f"there before:   {kept}")
            print(f"features:       {storage.public_uri(out)}")
        print_next("search", *searched, "--out", "sheet.png")


def _parse(arguments: list[str] | None) -> tuple[str, str, typing.Any, int]:
    """Embeddings, output, format and length; the format is a suffix of the output where that is a table."""
    parser = OptionParser(prog="python -m carl_ray.export", description=__doc__)
    add = parser.add_argument
    add("--embeddings", metavar="URI", help="folder that `python -m carl_ray.embed` wrote")
    add(
        "--out",
        metavar="URI",
        help="a table (.parquet, .csv, .npz), an index (.lance), a Qdrant collection, a FiftyOne dataset, or a "
        "folder for the files",
    )
    add(
        "--length",
        type=number(int, at_least=1),
        default=100,
        metavar="N",
        help="snippets a video in the files of a folder (default 100)",
    )
    add(
        "--format",
        choices=dict.fromkeys((*typing.get_args(Format), *_SUFFIXES, *_STORES)),
        help="none: the suffix of --out, hdf5 for a folder",
    )
    options = parser.parse_args(arguments)
    embeddings, out = options.embeddings, options.out
    if embeddings is None and out is None:
        run = default_run("--embeddings and --out")
        embeddings, out = storage.join(run, "embeddings"), storage.join(run, "localization")
    elif embeddings is None or out is None:
        missing = "--embeddings" if embeddings is None else "--out"
        raise UserError(f"{missing} missing: --embeddings and --out go together")
    suffix = _suffix(out)
    file_format = options.format or (suffix if suffix in _SUFFIXES else "hdf5")
    is_named = suffix in _SUFFIXES or file_format not in typing.get_args(Format)
    if file_format not in (suffix, *_STORES) and is_named:
        raise UserError(f"--format {file_format}: expected --out to end in .{file_format}, got {out!r}")
    return embeddings, out, file_format, options.length


def _suffix(out: str) -> str:
    return (out.partition("?")[0] if storage.is_remote(out) else out).rpartition(".")[2]


def _export_table(embeddings: str, out: str, file_format: str) -> int:
    """Write one row a frame; return the number of frames."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import csv

    from carl_ray.data.manifest import write_table

    frames = Embeddings.open(embeddings).to_pandas()
    values = np.stack(frames["embedding"].to_list())
    columns: dict[str, typing.Any] = {
        "video": frames["video_id"],
        "frame": frames["frame"],
        "time_s": frames["seconds"],
        "label": frames["phase"],
    }
    if file_format == "npz":
        content = io.BytesIO()
        texts = {name: columns[name].fillna("").to_numpy(str) for name in ("video", "label")}
        numbers = {name: columns[name].to_numpy() for name in ("frame", "time_s")}
        np.savez_compressed(content, allow_pickle=False, **texts, **numbers, embeddings=values)
        storage.write_bytes(out, content.getvalue())
        return len(frames)
    columns["label"] = pa.array(columns["label"], pa.string())
    table = pa.table({**columns, **{f"e{i}": column for i, column in enumerate(values.T)}})
    if file_format == "parquet":
        write_table(table, out)
    else:
        sink = pa.BufferOutputStream()
        csv.write_csv(table, sink)
        storage.write_bytes(out, sink.getvalue().to_pybytes())
    return len(frames)


if __name__ == "__main__":
    main()
