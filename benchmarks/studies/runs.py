"""One row of a study with one seed: a run that is trained, embedded and evaluated, once.

    FOLDER/runs/<hash of the config>/   config.json, checkpoints/, embeddings/, metrics.json (the last: it is done)

Rows of different tables that are the same run share its folder. A study that is called again does what is missing.
metrics.json says which state of the code made it: a run is not repeated because the code has changed, but told apart.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import carl_ray
from carl_ray import config as configuration
from carl_ray import options, storage
from carl_ray.config import Config
from carl_ray.errors import RunError
from carl_ray.evaluation.corpus import EmbeddingSettings, embed_corpus
from carl_ray.evaluation.embeddings import read_embeddings, read_origin
from carl_ray.evaluation.protocol import evaluate
from carl_ray.objectives.choice import EARLIER
from carl_ray.paper import PROTOCOLS, protocol_of, stride_of
from carl_ray.training.run_videos import read_videos
from carl_ray.training.trainer import train

METRICS = "metrics.json"
_ADDED = (
    ("data", "features", None),
    ("data", "feature_channels", None),
    ("data", "frame_stride", 1),
    ("data", "keypoints", None),
    ("augment", "copies", None),
    ("model", "centered", False),
    ("model", "cut_stages", 0),
    ("model", "motion", "none"),
    ("model", "clip_input", "rgb"),
    ("model", "clip_streams", "one"),
    ("views", "stride", (1, 4)),
    ("optimizer", "name", "adam"),
    ("optimizer", "warmup", 0.0),
    ("optimizer", "encoder_scale", 1.0),
    ("objective", "regions", None),
    ("objective", "span", "stride"),
)
"""Fields that later versions added, with the values that change nothing."""


def digest(config: Config) -> str:
    """Hash of what a run computes, 16 hexadecimal digits."""
    document = configuration.what_is_computed(config)
    # Fields removed and added since: folders named by older digests stay valid.
    document["model"]["weights_format"] = "torchvision"
    document["augment"]["color"] = "exact"
    document["objective"] = EARLIER | document["objective"]
    for section, name, default in _ADDED:
        if document[section].get(name) == default:
            document[section].pop(name, None)
    text = json.dumps(document, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def run_dir_of(config: Config, folder: str) -> str:
    """Where a run of this config lies in a study's folder; the cluster does not matter."""
    return storage.join(folder, "runs", digest(config))


def measured(config: Config, folder: str) -> dict[str, Any] | None:
    """The metrics of a run that was done before, or none."""
    uri = storage.join(run_dir_of(config, folder), METRICS)
    return json.loads(storage.read_bytes(uri)) if storage.exists(uri) else None


def measure(config: Config, folder: str) -> dict[str, Any]:
    """The metrics of a run (as `carl_ray.evaluation.protocol.evaluate`), which is done now where it was not before.

    Ray must have been started.

    Raises:
        UserError, RunError: as training, embedding and evaluation.
    """
    done = measured(config, folder)
    if done is not None:
        return done
    run_dir = run_dir_of(config, folder)
    manifest = config.data.manifest
    assert manifest is not None
    outcome = train(config, run_dir, resume=True)
    if not outcome.finished:
        raise RunError(
            f"{storage.public_uri(run_dir)}: stopped at step {outcome.step} of {outcome.num_steps}"
        )
    embeddings = storage.join(run_dir, "embeddings")
    settings = EmbeddingSettings(use_gpu=config.cluster.use_gpu)
    embed_corpus(run_dir, manifest, embeddings, settings, splits=["train", "test"])
    train_videos = read_embeddings(embeddings, split="train")
    if config.objective.name == "supervised":
        # The probe has the labels that the encoder had, and no others.
        seen = set(read_videos(config)[1].training.column("video_id").to_pylist())
        train_videos = [video for video in train_videos if video.video_id in seen]
    document = evaluate(
        train_videos,
        read_embeddings(embeddings, split="test"),
        read_origin(embeddings),
        tasks=PROTOCOLS[protocol_of(config.preset)],
        stride=stride_of(config.preset),
    )
    document["code"] = code_digest()
    storage.write_bytes(storage.join(run_dir, METRICS), (json.dumps(document, indent=2) + "\n").encode())
    return document


def code_digest() -> str:
    """A short hash of the source files that decide what a run computes."""
    package = Path(carl_ray.__file__).parent
    digest = hashlib.blake2b(digest_size=6)
    for room in ("data", "evaluation", "layers", "model", "objectives", "training"):
        for path in sorted((package / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def row_config(base: Config, values: dict[str, str], seed: int) -> Config:
    """The config of a row with a seed.

    Raises:
        UserError: an option that the config does not have, or a value out of its range.
    """
    return options.overridden(replace(base, training=replace(base.training, seed=seed)), values)
