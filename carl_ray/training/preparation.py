"""What is found out before a run starts: its videos, where it goes on, whether the cluster and the folder will do.

Whatever can be wrong with a command is found here, before anything is written or any worker started: what needs no
cluster by `check_run`, before Ray starts. Ray, torch and torchvision are imported lazily, so that it answers at once.
"""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from carl_ray import config as configuration
from carl_ray import storage
from carl_ray.config import Config
from carl_ray.data.manifest import (
    STREAM_COLUMNS,
    first_difference,
    read_manifest,
    refuse_pickles,
    videos_digest,
    write_table,
)
from carl_ray.data.plan import (
    Plan,
    training_plan,
    validation_plan,
)
from carl_ray.errors import UserError
from carl_ray.lease import refuse_if_held
from carl_ray.model.pretrained import find_weights
from carl_ray.training.checkpoint import (
    CONFIG,
    Checkpoint,
    initial_weights,
    latest_checkpoint,
    load_model,
    resume_command,
)

VIDEOS = "videos.parquet"
"""The videos of a run, in its folder."""
_CONTENT = ["bytes", "content_hash"]
_RECORDED = ["video_id", "num_frames", "frame_step", "label", "frame_labels", *_CONTENT, "uri"]


@dataclass(frozen=True)
class Videos:
    """The videos of a run: the columns of the manifest that the stream needs."""

    training: pa.Table
    validation: pa.Table | None
    record: pa.Table
    """All that plans and samples depend on, with a column `part`: what a resumed run must find again."""


def check_run(config: Config, run_dir: str, *, resume: bool = False, manifest: bool = True) -> None:
    """Check whatever can be wrong with a run and needs no cluster: the cheapest first, before Ray starts.

    Args:
        config: The run.
        run_dir: URI of the run folder.
        resume: Whether the folder may hold a run already.
        manifest: Whether the manifest should be there by now.

    Raises:
        UserError: a URI holds credentials, another process writes into the folder, it holds a run (without `resume`)
            or another one than this, the manifest or its labels will not do, or the weights to begin with are not there
            or do not fit.
        RunError: weights could not be fetched, or a store failed.
    """
    refuse_secrets(
        {"--run-dir": run_dir, "data.manifest": config.data.manifest, "model.weights": config.model.weights}
        | {"model.init_from": config.model.init_from}
    )
    refuse_if_held(run_dir)
    saved = _begun(run_dir, resume=resume)
    if manifest:
        config, _ = read_videos(config)
    if saved is None:
        check_weights(config)
    else:
        _check_same_run(saved, config, run_dir)


def check_weights(config: Config) -> None:
    """Check that the weights that a run begins with are there and fit, by loading them.

    Raises:
        UserError, RunError: as `initial_weights`, `find_weights` and `load_backbone_weights`.
    """
    model = config.model
    if model.init_from is not None:
        initial_weights(config, model.init_from)
        return
    if model.weights == "random":
        return
    find_weights(model)
    from carl_ray.model.backbone import build_backbone, load_backbone_weights

    load_backbone_weights(build_backbone(model), model)


def read_videos(config: Config) -> tuple[Config, Videos]:
    """The training and validation rows of the run's manifest, and the config with what was counted in them.

    Frame labels come as the classes of the whole data set: phase k of an action follows all phases of the actions
    before it.

    Raises:
        UserError: no manifest is named or there, no row of it belongs to the training split, or the labels that the
            objective needs are missing.
    """
    uri = _manifest_uri(config)
    columns = [*STREAM_COLUMNS, *_CONTENT]
    supervised = config.objective.name == "supervised"
    if supervised or config.objective.paired or config.data.train_fraction < 1:
        columns.append("label")
    if supervised:
        columns.append("frame_labels")
    training = read_manifest(uri, columns, split=config.data.train_split)
    if not training.num_rows:
        found = read_manifest(uri, ["split"]).column("split").unique().to_pylist()
        splits = sorted(split or "train" for split in found)
        raise UserError(
            f"{storage.public_uri(uri)}: no video with split {config.data.train_split!r}; "
            f"it has {', '.join(splits) if splits else 'no rows at all'}"
        )
    training = _fraction(training, config.data.train_fraction, config.training.seed)
    validation = read_manifest(uri, columns, split=config.data.validation_split)
    validation = validation.slice(0, config.data.max_validation_videos)
    record = pa.concat_tables(
        table.select([name for name in _RECORDED if name in columns]).append_column(
            "part", pa.array([part] * table.num_rows, pa.string()).dictionary_encode()
        )
        for part, table in (("training", training), ("validation", validation))
    ).unify_dictionaries()
    training, validation = (table.drop_columns(_CONTENT) for table in (training, validation))
    if config.objective.paired and not training.column("label").drop_null():
        raise UserError(
            f"{storage.public_uri(uri)}: objective {config.objective.name} trains on pairs of videos of the same "
            "label, but no training video has one"
        )
    if supervised:
        offsets, num_classes = _class_offsets(pa.concat_tables([training, validation]))
        if not num_classes:
            raise UserError(
                f"{storage.public_uri(uri)}: objective supervised needs frame labels, but no video has any"
            )
        training, validation = (_with_classes(table, offsets) for table in (training, validation))
        classes = [
            pc.list_flatten(table.column("frame_labels")).to_numpy() for table in (training, validation)
        ]
        occurring = int((np.unique(np.concatenate(classes)) >= 0).sum())
        if occurring < num_classes:
            print(f"frame labels make {num_classes} classes, of which {occurring} occur", flush=True)
        config = replace(config, objective=replace(config.objective, num_classes=num_classes))
    return config, Videos(training, validation if validation.num_rows else None, record)


def make_plans(config: Config, videos: Videos) -> tuple[Plan, Plan | None]:
    """Which training video comes when, and which validation video, if there are any."""
    seed, batch_size, epochs = (
        config.training.seed,
        config.training.global_batch_size,
        config.training.epochs,
    )
    training, validation = videos.training, videos.validation

    def codes(table: pa.Table) -> np.ndarray | None:
        return _label_codes(table) if config.objective.paired else None

    return (
        training_plan(seed, training.num_rows, batch_size, epochs, codes(training)),
        None
        if validation is None
        else validation_plan(seed, validation.num_rows, batch_size, codes(validation)),
    )


def _fraction(videos: pa.Table, fraction: float, seed: int) -> pa.Table:
    """The same share of the videos of each label, in file order: of each the first of a seeded permutation."""
    if fraction == 1:
        return videos
    codes = _label_codes(videos)
    chosen = []
    for label in np.unique(codes):
        (places,) = np.nonzero(codes == label)
        # 0.07 x 100 is a little more than 7 in floating point, and is no eighth video.
        count = math.ceil(fraction * len(places) - 1e-9)
        chosen.append(np.random.default_rng([seed, len(places)]).permutation(places)[:count])
    return videos.take(pa.array(np.sort(np.concatenate(chosen))))


def _label_codes(videos: pa.Table) -> np.ndarray:
    """A number for each label, int32; -1 for videos without one."""
    codes = videos.column("label").combine_chunks().dictionary_encode().indices
    return codes.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)


def _class_offsets(videos: pa.Table) -> tuple[dict[str | None, int], int]:
    """What is added to the frame labels of each action, by its name, and the number of classes.

    Nothing is added where no two actions share a frame label: those number the classes of the whole data set already.
    """
    found: dict[str | None, set[int]] = {}
    for label, frame_labels in zip(
        *(videos.column(n).to_pylist() for n in ("label", "frame_labels")), strict=True
    ):
        found.setdefault(label, set()).update(
            frame_label for frame_label in frame_labels or [] if frame_label >= 0
        )
    most = {label: 1 + max(classes, default=-1) for label, classes in found.items()}
    if sum(map(len, found.values())) == len(set().union(*found.values())):
        return dict.fromkeys(most, 0), max(most.values(), default=0)
    offsets, total = {}, 0
    for label in sorted(most, key=lambda label: label or ""):
        offsets[label] = total
        total += most[label]
    return offsets, total


def _with_classes(videos: pa.Table, offsets: dict[str | None, int]) -> pa.Table:
    """The videos with their frame labels as classes of the whole data set."""
    classes = [
        None if labels is None else [k if k < 0 else offsets[label] + k for k in labels]
        for label, labels in zip(
            *(videos.column(n).to_pylist() for n in ("label", "frame_labels")), strict=True
        )
    ]
    index = videos.schema.get_field_index("frame_labels")
    return videos.set_column(index, videos.schema.field(index), pa.array(classes, pa.list_(pa.int32())))


def _manifest_uri(config: Config) -> str:
    if config.data.manifest is None:
        raise UserError(
            f"preset {config.preset} needs videos: --data.manifest URI (`python -m carl_ray.index FOLDER --out URI` "
            "makes a manifest)"
        )
    return config.data.manifest


def record_videos(videos: Videos, run_dir: str) -> None:
    """Writes what a resumed run must find again into the run folder."""
    write_table(videos.record, storage.join(run_dir, VIDEOS))


def find_checkpoint(config: Config, videos: Videos, run_dir: str, *, resume: bool) -> Checkpoint | None:
    """Where a run in this folder goes on, or none for the beginning; checks that the folder can take this run.

    Args:
        config: The run.
        videos: Its videos.
        run_dir: URI of the run folder.
        resume: Whether it may hold a run already.

    Raises:
        UserError: the folder holds a run and `resume` is false, or holds another run than this one.
        RunError: the folder cannot be read.
    """
    saved = _begun(run_dir, resume=resume)
    if saved is not None:
        _check_same_run(saved, config, run_dir)
    checkpoint = latest_checkpoint(run_dir) if resume else None
    if checkpoint is not None:
        difference = _difference(videos, checkpoint, run_dir)
        if difference is None and checkpoint.progress.videos != videos_digest(videos.training):
            difference = "their ids, their order or their numbers of frames"
        if difference is not None:
            raise UserError(
                f"{storage.public_uri(run_dir)} was begun with other videos than the manifest has now ({difference}): "
                "its steps would be others; restore that manifest, or start another run, which --model.init_from "
                "begins with this one's weights"
            )
        from carl_ray.training.step import TrainedModel

        # On the driver, so that a misfit is one clear line before any worker starts.
        load_model(checkpoint, TrainedModel(config))
    return checkpoint


def _difference(videos: Videos, checkpoint: Checkpoint, run_dir: str) -> str | None:
    """Where the videos differ first from those of the run; None also where it is from before there were records."""
    uri = storage.join(run_dir, VIDEOS)
    if not storage.exists(uri):
        if checkpoint.config.versions:  # written since there are records
            raise UserError(
                f"{storage.public_uri(uri)}: expected the record of the run's videos, found none, so that nothing "
                "tells whether they are the same; restore it, or start another run, which --model.init_from begins "
                "with this one's weights"
            )
        return None
    try:
        before = pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
        refuse_pickles(before.schema)
        for part in ("training", "validation"):
            old, new = (
                table.filter(pc.equal(table.column("part"), part)) for table in (before, videos.record)
            )
            if found := first_difference(old, new):
                return f"{part}: {found}"
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise UserError(f"{storage.public_uri(uri)}: not the record of a run's videos ({error})") from None
    return None


def saved_config(run_dir: str) -> Config | None:
    """The config of the run in a folder, or none where it holds no run."""
    uri = storage.join(run_dir, CONFIG)
    if not storage.exists(uri):
        return None
    return configuration.from_json(storage.read_bytes(uri), storage.public_uri(uri))


def _begun(run_dir: str, *, resume: bool) -> Config | None:
    """The config of the run in a folder, or none; raises `UserError` where there is one and `resume` is false."""
    saved = saved_config(run_dir)
    if saved is not None and not resume:
        raise UserError(
            f"{storage.public_uri(run_dir)} already holds a run; another --run-dir starts anew, and this one goes on "
            f"with: {resume_command(run_dir)}"
        )
    return saved


def _check_same_run(saved: Config, config: Config, run_dir: str) -> None:
    """Raises `UserError` where a resumed run would not be the one that was begun; how it is done may change."""
    before, after = configuration.what_is_computed(saved), configuration.what_is_computed(config)
    if config.training.precision == "auto":  # Whatever it is now, the run keeps what its checkpoint has.
        after["training"]["precision"] = saved.training.precision
    for section, values in before.items():
        if values == after[section]:
            continue
        if not isinstance(values, dict):
            raise UserError(
                f"{storage.public_uri(run_dir)} holds a run of preset {values}, not {after[section]}"
            )
        field = next(name for name in values if values[name] != after[section][name])
        raise UserError(
            f"{storage.public_uri(run_dir)} was begun with {section}.{field} = {values[field]!r}, now "
            f"{after[section][field]!r}: --resume continues the same run; start another one for another setting"
        )


def warn_short_videos(videos: pa.Table, num_frames: int) -> None:
    """Says on standard error how many videos are shorter than T."""
    lengths = videos.column("num_frames").to_numpy()
    short = int((lengths < num_frames).sum())
    if short:
        print(
            f"warning: {short} of {len(lengths)} training videos are shorter than T = {num_frames} frames (longest "
            f"{int(lengths.max())}); their views are padded",
            file=sys.stderr,
            flush=True,
        )


def refuse_secrets(uris: dict[str, str | None]) -> None:
    """Raises `UserError` for the first of these options whose URI holds credentials."""
    for name, uri in uris.items():
        if uri is not None and storage.has_secret(uri):
            raise UserError(
                f"{name}: expected a URI without credentials, since it is written into the run folder; put them into "
                "the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
            )


def check_shared(run_dir: str) -> None:
    """Raises `UserError` where a local run folder is not the same folder on every node of the cluster."""
    if storage.is_remote(run_dir) or len(_nodes()) == 1:
        return
    marker = storage.join(run_dir, f".shared-{time.time_ns()}")
    storage.write_bytes(marker, b"")
    try:
        everywhere = _all_nodes_see(marker)
    finally:
        Path(storage.resolve(marker)[1]).unlink(missing_ok=True)
    if not everywhere:
        raise UserError(
            f"{run_dir} is a folder of this machine, but the cluster has {len(_nodes())} nodes: --run-dir must be in "
            "object storage (s3://…, gs://…) or on a file system that all nodes share"
        )


def check_videos_shared(videos: pa.Table) -> None:
    """Raises `UserError` where videos of this machine (the first one is asked for) are not on every node."""
    uri = videos.column("uri")[0].as_py()
    if storage.is_remote(uri) or len(_nodes()) == 1 or not storage.exists(uri) or _all_nodes_see(uri):
        return
    raise UserError(
        f"{uri} is a video of this machine, but the cluster has {len(_nodes())} nodes: its videos must be in "
        "object storage (s3://…, gs://…) or on a file system that all nodes share"
    )


def _nodes() -> list[str]:
    import ray

    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def _all_nodes_see(uri: str) -> bool:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    is_there = ray.remote(num_cpus=0)(storage.exists)
    everywhere = [NodeAffinitySchedulingStrategy(node, soft=False) for node in _nodes()]
    return all(ray.get([is_there.options(scheduling_strategy=node).remote(uri) for node in everywhere]))


def explain_resources(config: Config) -> None:
    """Says what the cluster lacks for this run, on standard error.

    Raises:
        UserError: it is a cluster of this machine alone, which cannot grow.
    """
    import ray

    cluster = config.cluster
    there = ray.cluster_resources()
    cpus = cluster.min_workers * cluster.worker_cpus + cluster.decode_cpus
    lacking = []
    if there.get("CPU", 0) < cpus:
        lacking.append(f"{cpus:g} CPUs (it has {there.get('CPU', 0):g})")
    if cluster.use_gpu and there.get("GPU", 0) < cluster.min_workers:
        lacking.append(f"{cluster.min_workers} GPUs (it has {there.get('GPU', 0):g})")
    if not cluster.use_gpu and there.get("GPU", 0) >= 1:
        print(
            f"warning: the cluster has {there['GPU']:g} GPUs and this run uses none: --cluster.use_gpu true",
            file=sys.stderr,
            flush=True,
        )
    if lacking and not os.environ.get("RAY_ADDRESS"):
        raise UserError(
            f"training and decoding need {' and '.join(lacking)}, and a Ray cluster of this machine alone cannot grow: "
            "lower --cluster.num_workers, set --cluster.use_gpu false, or name a cluster in RAY_ADDRESS"
        )
    if lacking:
        print(
            f"waiting for the cluster to grow: training and decoding need {' and '.join(lacking)}; where no node "
            "will join, stop and lower --cluster.num_workers or --cluster.worker_cpus",
            file=sys.stderr,
            flush=True,
        )
