"""Videos of a run: read from its manifest, planned, recorded, compared."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from carl_ray import storage
from carl_ray.config import Config
from carl_ray.data.features import require_cache
from carl_ray.data.key_frames import choose_key_frames
from carl_ray.data.keypoint_table import locate_keypoints
from carl_ray.data.keypoints import KEYPOINTS, check_keypoints
from carl_ray.data.manifest import (
    STREAM_COLUMNS,
    first_difference,
    read_manifest,
    refuse_pickles,
    videos_digest,
    write_table,
)
from carl_ray.data.plan import Plan, training_plan, validation_plan
from carl_ray.errors import UserError, note
from carl_ray.objectives.views import KeyFrame
from carl_ray.training.checkpoint import Checkpoint

VIDEOS = "videos.parquet"
"""File of a run folder that records the run's videos."""
_NO_RECORD = "not the record of a run's videos"
_CONTENT = ["bytes", "content_hash"]
_LEAST_FRAMES = 4
"""Of a video that clips are taken of."""
_RECORDED = [
    *("video_id", "num_frames", "frame_step", "label", "frame_labels", "key_frames", "keypoints_digest"),
    *(*_CONTENT, "uri"),
]


@dataclass(frozen=True)
class Videos:
    """The videos of a run: the columns of the manifest that the stream needs."""

    training: pa.Table
    validation: pa.Table | None
    record: pa.Table
    """Everything that plans and samples depend on, with a column `part`: a resumed run must find the same."""


def read_videos(config: Config, *, quiet: bool = False) -> tuple[Config, Videos]:
    """Read the training and validation videos of a run's manifest.

    Args:
        config: The run.
        quiet: Do not print how many classes of the frame labels occur; a later call does.

    Returns:
        The config, with the classes counted if the objective is on frame labels, and the videos. Frame labels are
        numbered over the whole data set: phase k of an action follows all phases of the actions before it.

    Raises:
        UserError: no manifest is named or there, no row belongs to the training split, or labels that the objective
            needs, or cached features, are missing.
    """
    uri = config.data.manifest
    if uri is None:
        raise UserError(
            f"preset {config.preset} needs videos: --data.manifest URI (`python -m carl_ray.index FOLDER --out URI` "
            "makes a manifest)"
        )
    columns = [*STREAM_COLUMNS, *_CONTENT]
    objective = config.objective
    on_frame_labels = "frame_labels" in objective.columns
    if on_frame_labels or objective.pairs_videos or config.data.train_fraction < 1:
        columns.append("label")
    columns += [name for name in objective.columns if name not in columns]
    columns += _columns_of_views(config)
    training = read_manifest(uri, columns, split=config.data.train_split)
    if not training.num_rows:
        found = read_manifest(uri, ["split"]).column("split").unique().to_pylist()
        splits = sorted(split or "train" for split in found)
        raise UserError(
            f"{storage.public_uri(uri)}: no video with split {config.data.train_split!r}; "
            f"it has {', '.join(splits) if splits else 'no rows at all'}"
        )
    if objective.reads_clips:
        training = _long_enough(training, storage.public_uri(uri))
    training = _fraction(training, config.data.train_fraction, config.training.seed)
    validation = read_manifest(uri, columns, split=config.data.validation_split)
    validation = validation.slice(0, config.data.max_validation_videos)
    _note_key_frames(training, config)
    if any(view.keypoints for view in config.view_specs):
        check = check_keypoints if config.data.keypoints is None else locate_keypoints
        source = config.data.keypoints or storage.public_uri(uri)
        training, validation = check(training, source), check(validation, source, "validation")
    record = pa.concat_tables(
        table.select([name for name in _RECORDED if name in table.column_names]).append_column(
            "part", pa.array([part] * table.num_rows, pa.string()).dictionary_encode()
        )
        for part, table in (("training", training), ("validation", validation))
    ).unify_dictionaries()
    if config.data.features is not None:
        cache = require_cache(config.data.features)
        training, validation = (cache.locate_all(table) for table in (training, validation))
        config = replace(config, data=replace(config.data, feature_channels=cache.channels))
    training, validation = (_without_records(table, objective.columns) for table in (training, validation))
    config, training, validation = _count_classes(config, training, validation, quiet=quiet)
    return config, Videos(training, validation if validation.num_rows else None, record)


def _count_classes(
    config: Config, training: pa.Table, validation: pa.Table, *, quiet: bool
) -> tuple[Config, pa.Table, pa.Table]:
    """The config with the number of classes, and the videos with these in the place of their labels.

    Raises:
        UserError: labels that the objective needs are missing.
    """
    objective, shown = config.objective, storage.public_uri(config.data.manifest or "")
    if objective.pairs_videos and not training.column("label").drop_null():
        raise UserError(
            f"{shown}: objective {objective.name} trains on pairs of videos of the same label, but no training video "
            "has one"
        )
    if "frame_labels" in objective.columns:
        offsets, num_classes = _class_offsets(pa.concat_tables([training, validation]))
        if not num_classes:
            raise UserError(f"{shown}: objective {objective.name} needs frame labels, but no video has any")
        training, validation = (_with_classes(table, offsets) for table in (training, validation))
        flat = [pc.list_flatten(table.column("frame_labels")).to_numpy() for table in (training, validation)]
        occurring = int((np.unique(np.concatenate(flat)) >= 0).sum())
        if occurring < num_classes and not quiet:
            print(f"frame labels make {num_classes} classes, of which {occurring} occur", flush=True)
        config = replace(config, objective=objective.with_num_classes(num_classes))
    if "label" in objective.columns:
        names = _label_names(training)
        if not names:
            raise UserError(
                f"{shown}: objective {objective.name} needs labels, but no training video has one"
            )
        training, validation = (_with_label_classes(table, names) for table in (training, validation))
        config = replace(config, objective=objective.with_num_classes(len(names)))
    return config, training, validation


def make_plans(config: Config, videos: Videos) -> tuple[Plan, Plan | None]:
    """Order of the training videos over the run, and of the validation videos if any."""
    seed, batch_size = config.training.seed, config.training.global_batch_size
    training, validation = videos.training, videos.validation

    def codes(table: pa.Table) -> np.ndarray | None:
        return _label_codes(table) if config.objective.pairs_videos else None

    plan = training_plan(seed, training.num_rows, batch_size, config.training.epochs, codes(training))
    if validation is None:
        return plan, None
    return plan, validation_plan(seed, validation.num_rows, batch_size, codes(validation))


def _long_enough(videos: pa.Table, shown: str) -> pa.Table:
    """The videos that have a clip; a note names those left out.

    Raises:
        UserError: none has.
    """
    is_long = pc.greater_equal(videos.column("num_frames"), _LEAST_FRAMES)
    short = videos.filter(pc.invert(is_long)).column("uri").to_pylist()
    if len(short) == len(videos):
        raise UserError(f"{shown}: no training video has {_LEAST_FRAMES} frames, which a clip needs")
    if short:
        named = f"{len(short)} training videos with fewer than {_LEAST_FRAMES} frames are left out"
        note(f"warning: {named}, such as {storage.public_uri(short[0])}")
    return videos.filter(is_long)


def _columns_of_views(config: Config) -> list[str]:
    """Columns of the manifest that the views of a run need."""
    specs = config.view_specs
    columns = ["key_frames"] if any(isinstance(view.span, KeyFrame) for view in specs) else []
    if config.data.keypoints is None and any(view.keypoints for view in specs):
        columns.append(KEYPOINTS)
    return columns


def _without_records(videos: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The videos without what is only recorded; with a number for each content where an objective reads it."""
    hashes = videos.column("content_hash").to_pylist()
    videos = videos.select([n for n in videos.column_names if n not in (*_CONTENT, "keypoints_digest")])
    if "content_hash" not in columns:
        return videos
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in hashes)
    numbers = pa.array([int.from_bytes(digest) >> 1 for digest in digests], pa.int64())
    return videos.append_column("content_hash", numbers)


def _note_key_frames(videos: pa.Table, config: Config) -> None:
    """Say how many videos have evenly spaced frames instead of key frames, by reason."""
    for policy in {view.span.policy for view in config.view_specs if isinstance(view.span, KeyFrame)}:
        rows = zip(*(videos.column(name).to_pylist() for name in ("key_frames", "num_frames")), strict=True)
        counts = Counter(choose_key_frames(found, frames, policy)[1] for found, frames in rows)
        del counts[None]
        if counts:
            reasons = "; ".join(f"{number} with {reason}" for reason, number in counts.most_common())
            note(
                f"evenly spaced frames instead of key frames in {counts.total()} of {len(videos)} training videos: "
                f"{reasons}"
            )


def _fraction(videos: pa.Table, fraction: float, seed: int) -> pa.Table:
    """The same share of the videos of each label, by a seeded draw, in file order."""
    if fraction == 1:
        return videos
    codes = _label_codes(videos)
    chosen = []
    for label in np.unique(codes):
        (places,) = np.nonzero(codes == label)
        # Without the tolerance, rounding would make 0.07 x 100 eight videos.
        count = math.ceil(fraction * len(places) - 1e-9)
        chosen.append(np.random.default_rng([seed, len(places)]).permutation(places)[:count])
    return videos.take(pa.array(np.sort(np.concatenate(chosen))))


def _label_codes(videos: pa.Table) -> np.ndarray:
    """A number for each label, int32; -1 for videos without one."""
    codes = videos.column("label").combine_chunks().dictionary_encode().indices
    return codes.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)


def _class_offsets(videos: pa.Table) -> tuple[dict[str | None, int], int]:
    """Offset of the frame labels of each action by its name, and number of classes.

    All offsets are 0 where no two actions share a frame label: these number the classes of the whole data set already.
    """
    found: dict[str | None, set[int]] = {}
    for label, frame_labels in _labels(videos):
        found.setdefault(label, set()).update(k for k in frame_labels or [] if k >= 0)
    num_phases = {label: 1 + max(classes, default=-1) for label, classes in found.items()}
    if sum(map(len, found.values())) == len(set().union(*found.values())):
        return dict.fromkeys(num_phases, 0), max(num_phases.values(), default=0)
    offsets, total = {}, 0
    for label in sorted(num_phases, key=lambda label: label or ""):
        offsets[label] = total
        total += num_phases[label]
    return offsets, total


def _with_classes(videos: pa.Table, offsets: dict[str | None, int]) -> pa.Table:
    """The videos with their frame labels as classes of the whole data set."""
    classes = [
        None if labels is None else [k if k < 0 else offsets[label] + k for k in labels]
        for label, labels in _labels(videos)
    ]
    index = videos.schema.get_field_index("frame_labels")
    return videos.set_column(index, videos.schema.field(index), pa.array(classes, pa.list_(pa.int32())))


def _with_label_classes(videos: pa.Table, names: list[str]) -> pa.Table:
    """The videos with the place of their label among names; null where it has none."""
    classes = pc.index_in(videos.column("label"), pa.array(names, pa.string()))
    return videos.set_column(videos.schema.get_field_index("label"), "label", classes)


def _label_names(videos: pa.Table) -> list[str]:
    """Labels of the videos; the place of one is its class."""
    return sorted(videos.column("label").drop_null().unique().to_pylist())


def recorded_labels(run_dir: str) -> tuple[list[str], set[tuple[str, str]]]:
    """Labels of the classes of a run on labels of videos, and id and content hash of its training videos.

    Raises:
        UserError: the folder has no such record.
    """
    uri = storage.join(run_dir, VIDEOS)
    with storage.reading(uri, _NO_RECORD):
        training = _part(_read_record(uri), "training")
        return _label_names(training), _contents(training)


def videos_seen_before(config: Config, run_dir: str) -> tuple[int, int]:
    """How many of the manifest's videos that the run does not train on an earlier run was trained on, and of how many.

    Nothing is known of a run folder without a record of its videos.
    """
    uri = storage.join(run_dir, VIDEOS)
    if not storage.exists(uri):
        return 0, 0
    with storage.reading(uri, _NO_RECORD):
        seen = _contents(_part(_read_record(uri), "training"))
    videos = read_manifest(config.data.manifest or "", ["video_id", "content_hash", "split"])
    splits = pc.fill_null(videos.column("split"), "train")
    others = _contents(videos.filter(pc.not_equal(splits, config.data.train_split)))
    return len(others & seen), len(others)


def _contents(videos: pa.Table) -> set[tuple[str, str]]:
    """Id and content hash of each video."""
    columns = (videos.column(name).to_pylist() for name in ("video_id", "content_hash"))
    return set(zip(*columns, strict=True))


def _read_record(uri: str) -> pa.Table:
    record = pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
    refuse_pickles(record.schema)
    return record


def _part(record: pa.Table, part: str) -> pa.Table:
    return record.filter(pc.equal(record.column("part"), part))


def _labels(videos: pa.Table) -> list[tuple[str | None, list[int] | None]]:
    """Label and frame labels of each video."""
    columns = (videos.column(name).to_pylist() for name in ("label", "frame_labels"))
    return list(zip(*columns, strict=True))


def record_videos(videos: Videos, run_dir: str) -> None:
    """Write the record of a run's videos into its folder."""
    write_table(videos.record, storage.join(run_dir, VIDEOS))


def check_same_videos(videos: Videos, checkpoint: Checkpoint, run_dir: str) -> None:
    """Raise `UserError` where the videos are not those of the run's checkpoint."""
    difference = _difference(videos, checkpoint, run_dir)
    if difference is None and checkpoint.progress.videos != videos_digest(videos.training):
        difference = "their ids, their order or their numbers of frames"
    if difference is not None:
        raise UserError(
            f"{storage.public_uri(run_dir)} was begun with other videos than the manifest has now ({difference}): "
            "its steps would be others; restore that manifest, or start another run, which --model.init_from "
            "begins with this one's weights"
        )


def _difference(videos: Videos, checkpoint: Checkpoint, run_dir: str) -> str | None:
    """First difference from the run's record of its videos; None also without one."""
    uri = storage.join(run_dir, VIDEOS)
    if not storage.exists(uri):
        if checkpoint.config.versions:  # Package versions and this record were introduced together.
            raise UserError(
                f"{storage.public_uri(uri)}: expected the record of the run's videos, found none, so that nothing "
                "tells whether they are the same; restore it, or start another run, which --model.init_from begins "
                "with this one's weights"
            )
        return None
    with storage.reading(uri, _NO_RECORD):
        record = _read_record(uri)
        for part in ("training", "validation"):
            if found := first_difference(_part(record, part), _part(videos.record, part)):
                return f"{part}: {found}"
    return None


def warn_short_videos(videos: pa.Table, num_frames: int) -> None:
    """Print to standard error how many videos are shorter than T frames."""
    lengths = videos.column("num_frames").to_numpy()
    short = int((lengths < num_frames).sum())
    if short:
        note(
            f"warning: {short} of {len(lengths)} training videos are shorter than T = {num_frames} frames (longest "
            f"{int(lengths.max())}); their views are padded"
        )
