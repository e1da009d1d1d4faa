"""Embedding of all videos of a manifest into a folder of Parquet parts, resumable.

Parts are written by `part_writer`. torch and Ray are imported lazily: mistakes and complete folders are reported
without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from carl_ray import storage
from carl_ray.data.manifest import LABEL_COLUMNS, attach_labels, read_manifest, write_table
from carl_ray.errors import UserError
from carl_ray.evaluation.clip_probe import even_clips
from carl_ray.evaluation.embeddings import (
    CropMode,
    EmbeddedVideo,
    Form,
    Origin,
    Precision,
    further_cell,
    list_parts,
    read_origin,
    read_part,
    video_metadata,
    write_part,
)
from carl_ray.evaluation.frozen import CONTROL, FROZEN, FrozenEncoder, formed, load_frozen
from carl_ray.evaluation.part_writer import EmbeddingResult, PartWriter, write_rows
from carl_ray.lease import hold, refuse_if_held
from carl_ray.model.pretrained import find_weights
from carl_ray.training.checkpoint import Checkpoint, checkpoint_at

if TYPE_CHECKING:
    from carl_ray.evaluation.predictions import Classifier

_COLUMNS = [
    "video_id",
    "uri",
    "content_hash",
    "num_frames",
    "frame_step",
    "fps",
    "frame_times",
    *LABEL_COLUMNS,
]
_GROUP = "group"
"""A column that converters add to manifests."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingSettings:
    """How embeddings are computed and written."""

    num_workers: int | None = None
    """Actors; None: as many as the cluster has room for, and the number of frames is worth."""
    cpus_per_worker: int = 1
    """CPUs reserved for each actor, and videos that it decodes side by side."""
    use_gpu: bool = False
    """One GPU for each actor."""
    bf16: bool = False
    """Matrix products in bfloat16."""
    precision: Precision = "float16"
    """Type of the vectors in the files."""
    view: CropMode = "resized"
    """How frames are cropped to the encoder's input."""
    untrained: bool = True
    """Also embed with the untrained encoder, the control of every evaluation."""
    backwards: bool = False
    """Also embed clips played backwards, for the direction of time: an encoder of clips computes twice as much."""
    form: Form | None = None
    """What is made of the encoders' output; `joined` begins with videos that have features. None: as in the
    folder, in a new one `plain`."""


def embed_corpus(
    run: str | Checkpoint | FrozenEncoder,
    manifest: str | None,
    out: str,
    settings: EmbeddingSettings | None = None,
    *,
    splits: Sequence[str] | None = None,
    features: str | None = None,
) -> EmbeddingResult:
    """Embed the videos of a manifest that a folder of embeddings lacks.

    Uses the Ray cluster that this process is connected to, or connects as `carl_ray.session.connect`, but only where
    videos are missing. Progress goes to standard error.

    Args:
        run: A checkpoint, or URI of one or of a run folder, whose latest is taken; or an encoder without training,
            which embeds only videos that have features.
        manifest: URI of the manifest; None: the rendered videos of the demo.
        out: Folder of the embeddings, new or begun with the same checkpoint and view.
        settings: How; None: the defaults.
        splits: Only videos of these splits; those without one count as "train".
        features: Folder of cached features of the encoder's frozen backbone, of the view `resized`; None: the run's
            `data.features`. Videos that it has are not decoded.

    Raises:
        UserError: checkpoint or manifest are missing or malformed, `features` are of another view or encoder, `out`
            holds other embeddings, or another process writes there.
        RunError: storage failed, or more videos than the run's `data.max_bad_fraction` could not be embedded.
    """
    settings = settings or EmbeddingSettings()
    if features is not None and settings.view != "resized":
        raise UserError(f"--features are of the view resized: leave them out, or --view {settings.view}")
    checkpoint = checkpoint_at(run) if isinstance(run, str) else run
    if manifest is None:
        from carl_ray.datasets.embedded import index_embedded
        from carl_ray.session import connect

        _check_control(checkpoint, settings)
        refuse_if_held(out)
        with connect():
            uri = index_embedded(preset=checkpoint.config.preset)[0]
            return embed_corpus(checkpoint, uri, out, settings, splits=splits, features=features)
    if settings.form is None:
        there = list_parts(out)
        settings = replace(settings, form=read_origin(there[0]).form if there else "plain")
    videos = read_videos(manifest, splits)
    result = EmbeddingResult(videos.num_rows, "test" in pc.unique(videos.column("split")).to_pylist())
    # Without the lease: another process may hold it, and this one may lack the right to write.
    if _missing(videos, out, _origin(checkpoint, settings, out)).num_rows:
        _embed_missing(checkpoint, videos, out, settings, features, result)
        result.check(videos.num_rows, checkpoint.config, "embedded", "of the run allows")
    return result


def _embed_missing(
    checkpoint: Checkpoint | FrozenEncoder,
    videos: pa.Table,
    out: str,
    settings: EmbeddingSettings,
    features: str | None,
    result: EmbeddingResult,
) -> None:
    """Embed the videos that a folder lacks, as `embed_corpus` does, and count them."""
    origin = _origin(checkpoint, settings, out)
    _check_control(checkpoint, settings)
    refuse_if_held(out)
    from carl_ray.evaluation import cached as from_cache
    from carl_ray.evaluation import inference
    from carl_ray.evaluation.predictions import trained_classifier

    config = checkpoint.config
    encoders = inference.load_encoders(checkpoint, untrained=settings.untrained)
    classifier = None if isinstance(checkpoint, FrozenEncoder) else trained_classifier(checkpoint)
    cache = from_cache.cache_of(encoders, config, features) if settings.view == "resized" else None
    is_joined = origin.form == "joined"
    if origin.form in ("dynamic", "static") and config.model.clip_streams == "one":
        raise UserError(
            f"--form {origin.form} is the half of one stream, and this encoder has no two: expected plain or centered"
        )
    if origin.has_backwards and (config.model.temporal_encoder != "clip" or origin.form == "centered"):
        raise UserError(
            "--backwards plays clips backwards: expected an encoder of clips, and a form that keeps the mean of a video"
        )
    if is_joined and cache is None and load_frozen(storage.join(out, CONTROL)) is None:
        raise UserError(
            "--form joined needs features of videos that the run was trained on: name them by --features URI"
        )
    with hold(out) as (lease, _):
        # Another writer may have finished since.
        missing = _missing(videos, out, origin)
        result.num_present = videos.num_rows - missing.num_rows

        def write(taken: list[tuple[pa.Table, int, list[np.ndarray]]]) -> None:
            made = [_embedded_video(*video, origin, config.data.frame_stride, classifier) for video in taken]
            write_part(out, made, origin, settings.precision)

        writer = PartWriter(out, lease, write)
        if cache is not None and missing.num_rows:
            located = cache.locate(missing)
            is_cached = located.column("features_part").is_valid()
            cached, missing = located.filter(is_cached), missing.filter(pc.invert(is_cached))
            if cached.num_rows:
                with_frozen = encoders
                if settings.untrained or is_joined:
                    control = from_cache.frozen_control(out, cache, videos)
                    with_frozen = [*encoders, inference.FrozenNetwork(encoders[0], control)]
                write_rows(from_cache.cached_rows(with_frozen, config, cached), cached, result, writer)
        if missing.num_rows and not isinstance(checkpoint, FrozenEncoder):
            from carl_ray.evaluation import extraction
            from carl_ray.session import connect

            with connect():
                extraction.check_resources(settings)
                beside = from_cache.frozen_control(out, cache, videos) if is_joined else None
                rows = extraction.embedded_rows(
                    encoders, config, missing, settings, frozen=beside, classifier=classifier
                )
                write_rows(rows, missing, result, writer)


def _origin(checkpoint: Checkpoint | FrozenEncoder, settings: EmbeddingSettings, out: str) -> Origin:
    model, is_frozen = checkpoint.config.model, isinstance(checkpoint, FrozenEncoder)
    # A folder that was begun with the same model, named by another path or from another place, keeps its name.
    begun = [read_origin(part) for part in list_parts(out)[:1]]
    is_same = bool(begun) and begun[0].model_sha256 == checkpoint.model_sha256
    return Origin(
        checkpoint=begun[0].checkpoint if is_same else storage.public_uri(checkpoint.uri),
        model_sha256=checkpoint.model_sha256,
        preset=FROZEN if is_frozen else checkpoint.config.preset,
        step=0 if isinstance(checkpoint, FrozenEncoder) else checkpoint.progress.step,
        num_frames=model.num_frames,
        position_width=model.width,
        view=settings.view,
        has_untrained=settings.untrained,
        form=settings.form or "plain",
        has_backwards=settings.backwards,
    )


def read_videos(manifest: str, splits: Sequence[str] | None) -> pa.Table:
    """Rows of the manifest in the splits; `UserError` where there are none."""
    table = read_manifest(manifest, _COLUMNS, further=(_GROUP,))
    if _GROUP in table.column_names:
        names = [None if name is None else str(name) for name in table.column(_GROUP).to_pylist()]
        place = table.schema.get_field_index(_GROUP)
        table = table.set_column(place, _GROUP, pa.array(names, pa.string()))
    if splits is not None:
        table = table.filter(pc.is_in(table.column("split").fill_null("train"), pa.array(splits)))
    if table.num_rows == 0:
        where = f" of the split {' or '.join(splits)}" if splits else ""
        raise UserError(f"{storage.public_uri(manifest)}: it has no videos{where}")
    return table


def _check_control(checkpoint: Checkpoint | FrozenEncoder, settings: EmbeddingSettings) -> None:
    """Check that the untrained encoder's pretrained weights exist, before torch and Ray are imported."""
    if settings.untrained:
        find_weights(checkpoint.config.model, "--no-untrained, without the control")


def _missing(videos: pa.Table, out: str, origin: Origin) -> pa.Table:
    finished = finished_videos(out, origin, videos)
    return videos.filter(
        pa.array([video_id not in finished for video_id in videos.column("video_id").to_pylist()])
    )


def finished_videos(folder: str, origin: Origin, videos: pa.Table) -> set[str]:
    """Ids of the videos that a folder of embeddings already holds.

    None where the folder does not exist. Splits, labels and progress of the videos are updated from the manifest.

    Args:
        folder: URI of the folder.
        origin: Expected origin of the embeddings.
        videos: Rows of the manifest: `video_id`, `content_hash` and `LABEL_COLUMNS`.

    Raises:
        UserError: the folder holds embeddings of another origin, or of another file under the id of one of the
            videos, or a part is malformed.
        RunError: the store refuses or fails.
    """
    hashes = dict(
        zip(*(videos.column(name).to_pylist() for name in ("video_id", "content_hash")), strict=True)
    )
    found: set[str] = set()
    for part in list_parts(folder):
        there, known = read_part(part, ["video_id", "content_hash", *LABEL_COLUMNS, _GROUP])
        if there != origin:
            different = [k for k, v in asdict(there).items() if asdict(origin)[k] != v]
            raise UserError(
                f"{storage.public_uri(folder)}: it holds embeddings of another origin (different: "
                f"{', '.join(different)}); name another --out, or delete that folder"
            )
        for video_id, content_hash in zip(*(known.column(i).to_pylist() for i in (0, 1)), strict=True):
            if hashes.get(video_id, content_hash) != content_hash:
                raise UserError(
                    f"{storage.public_uri(folder)}: its {video_id!r} is another file than the manifest's of that name; "
                    "name another --out, or delete that folder"
                )
            found.add(video_id)
        _update_labels(part, known, videos)
    return found


def _update_labels(part: str, known: pa.Table, videos: pa.Table) -> None:
    """Rewrite a part whose videos have other labels in the manifest."""
    listed = pc.is_in(known.column("video_id"), videos.column("video_id").combine_chunks())
    if not pc.any(listed).as_py():
        return
    names = ("video_id", *LABEL_COLUMNS, _GROUP)
    labels = pa.concat_tables(
        [
            table.select([name for name in names if name in table.column_names])
            for table in (videos, known.filter(pc.invert(listed)))
        ],
        promote_options="permissive",
    )
    if not attach_labels(known, labels).equals(known):
        write_table(attach_labels(read_part(part)[1], labels), part)


def _embedded_video(
    videos: pa.Table,
    index: int,
    embedded: list[np.ndarray],
    origin: Origin,
    frame_stride: int,
    classifier: Classifier | None,
) -> EmbeddedVideo:
    predicted = None
    if classifier is not None:
        *embedded, classes = embedded
        predicted = [classifier.labels[k] for k in classes.tolist()] or None
    own = 1 + origin.has_untrained
    frozen = embedded[-1] if origin.form == "joined" else None
    of_encoders = own * (1 + origin.has_backwards)
    made = [formed(array, frozen, origin.form, frame_stride) for array in embedded[:of_encoders]]
    turned = [even_clips(array) for array in made[own:]]
    frame_step, frame_times = (videos.column(name)[index].as_py() for name in ("frame_step", "frame_times"))
    return EmbeddedVideo(
        **video_metadata(videos, index),
        frame_times=None if frame_times is None else np.array(frame_times),
        timestamps=np.arange(len(made[0])) * frame_step,
        embeddings=made[0],
        untrained=made[1] if origin.has_untrained else None,
        frozen=embedded[of_encoders] if len(embedded) > of_encoders else None,
        backwards=turned[0] if turned else None,
        untrained_backwards=turned[1] if len(turned) > 1 else None,
        group=further_cell(videos, _GROUP, index),
        predicted=predicted,
    )
