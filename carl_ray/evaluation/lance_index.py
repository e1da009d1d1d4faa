"""Approximate index of the frames of many videos: a LanceDB table, local or in a bucket (extra `carl_ray[search]`).

    NAME.lance/   one row a frame: `SCHEMA`; its metadata has the `Origin` and the folder of the embeddings

A search reads the parts of the table that it needs, in place. Rows that are in no index of the table yet are compared
one by one, so that they are found at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from carl_ray import storage
from carl_ray.errors import UserError
from carl_ray.evaluation.embedded_video import EmbeddedVideo
from carl_ray.evaluation.embeddings import Embeddings, NotEmbeddedError, Origin
from carl_ray.evaluation.nearest_frames import FoundFrame

if TYPE_CHECKING:
    from lancedb.table import Table

SUFFIX = ".lance"
"""Of the name of a table."""
ROWS_A_COMMIT = 1 << 18
"""An interrupted update goes on after the last of these."""
MOST_SCANNED = 1 << 17
"""Tables with fewer frames have no index of vectors: all are compared."""

SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("frame", pa.int32(), nullable=False),
        pa.field("seconds", pa.float64()),  # from the first frame; null where the rate is unknown
        pa.field("label", pa.string()),  # of the video
        pa.field("phase", pa.int32()),  # label of the frame
        pa.field("phase_name", pa.string()),
        pa.field("digest", pa.int64(), nullable=False),  # of all that is known of the video
    ]
)
"""Columns but `embedding` (float32, as the encoder gives it)."""

_ORIGIN, _SOURCE = b"carl_ray.origin", b"carl_ray.embeddings"
_FOUND = [name for name in SCHEMA.names if name != "digest"]
# A best frame is among its video's neighbours in time: without many of them, few videos are found.
_FETCHED, _REFINED, _PROBED = 500, 10, 64
_NUMBERS_A_CODE = 8
_KEPT_DAYS = 7
# A quarter and less than half of LanceDB's, which take minutes for a million frames.
_SAMPLED_A_PARTITION, _ITERATIONS = 64, 20


@dataclass(frozen=True)
class LanceIndex:
    """A table of frames that is searched for moments."""

    uri: str
    origin: Origin
    """Origin of the embeddings."""
    source: str
    """URI of their folder, without credentials."""
    _table: Table

    @classmethod
    def open(cls, uri: str) -> LanceIndex:
        """Open a table.

        Raises:
            UserError: it is not there, or another one; or the extra is not installed.
            RunError: the store refuses or fails.
        """
        if not storage.exists(uri):
            raise UserError(
                f"{storage.public_uri(uri)}: no index there; make it with `carl-ray export --embeddings … --out …`"
            )
        with _one_line(uri, "open"):
            table = _connect(uri).open_table(_name(uri))
            known = table.schema.metadata or {}
        if not {_ORIGIN, _SOURCE} <= known.keys():
            raise UserError(f"{storage.public_uri(uri)}: not a table of `carl-ray export`")
        return cls(uri, Origin(**json.loads(known[_ORIGIN])), known[_SOURCE].decode(), table)

    def video(self, video_id: str) -> EmbeddedVideo:
        """The video of an id.

        Raises:
            NotEmbeddedError: no video has this id.
        """
        with _one_line(self.uri, "read"):
            rows = self._table.search().where(f"video_id = {_quoted(video_id)}").limit(None).to_arrow()
        if not len(rows):
            shown = storage.public_uri(self.uri)
            raise NotEmbeddedError(f"{storage.public_uri(video_id)}: expected the id of a video in {shown}")
        rows = rows.sort_by("frame")
        phases = rows["phase"].fill_null(-1).to_numpy()
        names = dict(zip(phases.tolist(), rows["phase_name"].to_pylist(), strict=True))
        times = rows["seconds"]
        return EmbeddedVideo(
            video_id=video_id,
            uri=rows["uri"][0].as_py(),
            label=rows["label"][0].as_py(),
            timestamps=np.arange(len(rows), dtype=np.float64),
            embeddings=rows["embedding"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1),
            frame_labels=phases,
            phase_names=[names.get(phase) or f"phase {phase}" for phase in range(max(names) + 1)],
            frame_times=None if times.null_count else times.to_numpy(),
        )

    def search(
        self, query: tuple[EmbeddedVideo, int], k: int = 10, *, label: str | None = None
    ) -> list[FoundFrame]:
        """What `Embeddings.search` finds for a video and the index of its frame, nearly always.

        Raises:
            ValueError: the query has another width.
            RunError: the store refuses or fails.
        """
        video, frame = query
        width = self._table.schema.field("embedding").type.list_size
        if video.embeddings.shape[1] != width:
            raise ValueError(f"expected a query of {width} numbers, got {video.embeddings.shape[1]}")
        files = ", ".join(map(_quoted, (video.uri, storage.absolute(video.uri))))
        where = f"uri NOT IN ({files})" + ("" if label is None else f" AND label = {_quoted(label)}")
        best: dict[str, tuple[float, int]] = {}  # distance and row; rows of a video are in order
        with _one_line(self.uri, "search"):
            # A few long videos may fill an answer: the next one is of others.
            while len(best) < k:
                excluded = ", ".join(map(_quoted, [video.video_id, *best]))
                rows = self._nearest(video.embeddings[frame], f"video_id NOT IN ({excluded}) AND {where}")
                for row in rows:
                    at = row["_distance"], row["_rowid"]
                    best[row["video_id"]] = min(best.get(row["video_id"], at), at)
                if len(rows) < _FETCHED:
                    break
            similarities = {row: 1 - distance for distance, row in sorted(best.values())[:k]}
            taken = self._table.take_row_ids([*similarities]).with_row_id().select(_FOUND).to_list()
        found = [FoundFrame(similarity=similarities[row.pop("_rowid")], **row) for row in taken]
        return sorted(found, key=lambda f: (-f.similarity, f.video_id, f.frame))

    def _nearest(self, vector: np.ndarray, where: str) -> list[dict[str, Any]]:
        """Id, row and distance (1 - cosine) of the nearest frames; further columns are read of the best alone."""
        query: Any = self._table.search(vector.astype(np.float32), vector_column_name="embedding")
        # As many more probes as a filter makes necessary.
        query = query.distance_type("cosine").where(where).minimum_nprobes(_PROBED).maximum_nprobes(0)
        query = query.refine_factor(_REFINED).limit(_FETCHED).select(["video_id", "_distance"])
        return query.with_row_id(True).to_arrow().to_pylist()


def update_index(
    embeddings: Embeddings, uri: str, on_video: Callable[[int], None] = lambda done: None
) -> Counter[str]:
    """Add videos to a table, made where it is missing; replace those whose embeddings or labels have changed.

    Only one process at a time may write to a table. Interrupted, it goes on at the next call. Videos that other
    embeddings have added stay; those without frames are left out.

    Returns:
        Numbers of videos "added", "replaced" and "kept".

    Raises:
        UserError: the table is of another encoder, or an embedding is not finite; or the extra is not installed.
        RunError: the store refuses or fails.
    """
    database = _connect(uri)
    is_new = not storage.exists(uri)
    table = None if is_new else _opened(uri, embeddings)
    known = {} if table is None else _digests(table, uri)
    counts: Counter[str] = Counter()
    waiting: list[pa.Table] = []
    stale: list[int] = []

    def commit() -> None:
        nonlocal table
        with _one_line(uri, "write"):
            if waiting:
                rows = pa.concat_tables(waiting)
                if table is None:
                    table = database.create_table(_name(uri), rows)
                else:
                    table.add(rows)
            if stale and table is not None:
                # After the new ones: a reader finds a video twice at worst, and an interrupted call ends here later.
                table.delete(f"digest IN ({', '.join(map(str, stale))})")
        waiting.clear()
        stale.clear()

    for done, video in enumerate(embeddings, 1):
        if len(video):
            rows = _rows(video, embeddings)
            digest, before = rows["digest"][0].as_py(), known.get(video.video_id, [])
            stale.extend(other for other in before if other != digest)
            counts["kept" if digest in before else "replaced" if before else "added"] += 1
            if digest not in before:
                waiting.append(rows)
            if sum(map(len, waiting)) >= ROWS_A_COMMIT:
                commit()
        on_video(done)
    commit()
    if table is None:
        raise UserError(f"{storage.public_uri(embeddings.uri)}: it holds no embedded frame")
    # Also where nothing is new: a call before may have been interrupted here.
    with _one_line(uri, "index"):
        _build_indices(table, is_new)
    return counts


def _opened(uri: str, embeddings: Embeddings) -> Table:
    """The table, of the same encoder as the embeddings."""
    index = LanceIndex.open(uri)
    one, other = ((o.model_sha256, o.view, o.form) for o in (index.origin, embeddings.origin))
    if one != other:
        raise UserError(
            f"{storage.public_uri(uri)}: of another encoder than {storage.public_uri(embeddings.uri)}; "
            "embeddings of two do not compare"
        )
    return index._table


def _digests(table: Table, uri: str) -> dict[str, list[int]]:
    """Digests by video id; several where a replacement was interrupted."""
    known: dict[str, list[int]] = {}
    with _one_line(uri, "read"):
        for batch in table.search().where("frame = 0").select(["video_id", "digest"]).to_batches():
            for row in batch.to_pylist():
                known.setdefault(row["video_id"], []).append(row["digest"])
    return known


def _build_indices(table: Table, is_new: bool) -> None:
    """Make missing indices, and add new rows to the others; delete versions that are older than a week."""
    from lancedb.index import Bitmap, BTree, IvfPq

    existing = {index.columns[0]: index.name for index in table.list_indices()}
    rows = table.count_rows()
    if name := existing.get("embedding"):
        # Below that, comparing the new rows one by one costs less than rewriting indices.
        stats = table.index_stats(name)
        if stats is not None and stats.num_unindexed_rows < MOST_SCANNED:
            return
    # First: small files are joined, which would move the rows of new indices.
    table.optimize(cleanup_older_than=timedelta(milliseconds=1) if is_new else timedelta(days=_KEPT_DAYS))
    for column, kind in (("video_id", BTree()), ("uri", BTree()), ("label", Bitmap())):
        if column not in existing:
            table.create_index(column, config=kind)
    if rows >= MOST_SCANNED and "embedding" not in existing:
        width = table.schema.field("embedding").type.list_size
        vectors = IvfPq(
            distance_type="cosine",
            num_partitions=math.isqrt(rows),
            num_sub_vectors=width // math.gcd(width, _NUMBERS_A_CODE),
            max_iterations=_ITERATIONS,
            sample_rate=_SAMPLED_A_PARTITION,
        )
        table.create_index("embedding", config=vectors)


def _rows(video: EmbeddedVideo, embeddings: Embeddings) -> pa.Table:
    """The frames of a video as rows of a table."""
    if not np.isfinite(video.embeddings).all():
        raise UserError(f"{video.video_id}: expected finite values")
    phases = video.phases.astype(np.int32)
    described = (video.video_id, video.uri, video.content_hash, video.label, video.phase_names)
    digest = hashlib.sha256(repr(described).encode())
    for array in (video.embeddings, phases, video.seconds):
        digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    values = (
        video.video_id,
        video.uri,
        np.arange(len(video), dtype=np.int32),
        video.seconds,
        video.label,
        [None if phase < 0 else phase for phase in phases.tolist()],
        [video.phase_name(phase) for phase in phases.tolist()],
        int.from_bytes(digest.digest()[:8], "big", signed=True),
    )
    arrays = [
        pa.repeat(pa.scalar(value, field.type), len(video))
        if value is None or isinstance(value, (str, int))
        else pa.array(value, field.type)
        for field, value in zip(SCHEMA, values, strict=True)
    ]
    flat = pa.array(video.embeddings.astype(np.float32).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, video.embeddings.shape[1])
    source = storage.public_uri(storage.absolute(embeddings.uri))
    known = {_ORIGIN: json.dumps(asdict(embeddings.origin)), _SOURCE: source}
    schema = SCHEMA.append(pa.field("embedding", vectors.type)).with_metadata(known)
    return pa.table([*arrays, vectors], schema=schema)


def _connect(uri: str) -> Any:
    """The database of a table: the folder that it is in."""
    # Notes on its training are for developers; its failures are raised.
    os.environ.setdefault("LANCE_LOG", "error")
    try:
        import lancedb
    except ImportError:
        raise UserError(
            f"{storage.public_uri(uri)}: needs LanceDB, which is not installed: pip install 'carl_ray[search]'"
        ) from None
    folder, options = storage.object_store_options(storage.parent(uri))
    with _one_line(uri, "reach"):
        return lancedb.connect(folder, storage_options=options)


def _name(uri: str) -> str:
    return storage.object_store_options(uri)[0].rpartition("/")[2].removesuffix(SUFFIX)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@contextmanager
def _one_line(uri: str, action: str) -> Iterator[None]:
    """Failures of LanceDB as errors of one line."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise storage.storage_error(OSError(str(error)), uri, action) from None
