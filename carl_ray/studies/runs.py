"""One row of a study with one seed: a run that is trained, embedded and evaluated, once.

    FOLDER/runs/<hash of the config>/   config.json, checkpoints/, embeddings/, metrics.json (the last: it is done)

Rows of different tables that are the same run share its folder. A study that is called again does what is missing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

from carl_ray import config as configuration
from carl_ray import storage
from carl_ray.config import Config
from carl_ray.errors import RunError
from carl_ray.evaluation.embeddings import read_embeddings, read_origin
from carl_ray.evaluation.extraction import ExtractionSettings, extract_embeddings, room_for_workers
from carl_ray.evaluation.protocol import evaluate
from carl_ray.training.trainer import train

METRICS = "metrics.json"


def run_dir_of(config: Config, folder: str) -> str:
    """Where a run of this config lies in a study's folder; the cluster does not matter."""
    document = configuration.to_document(config)
    del document["cluster"]
    digest = hashlib.blake2b(json.dumps(document, sort_keys=True).encode(), digest_size=8).hexdigest()
    return storage.join(folder, "runs", digest)


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
    settings = ExtractionSettings(
        num_workers=room_for_workers(1, config.cluster.use_gpu), use_gpu=config.cluster.use_gpu
    )
    extract_embeddings(run_dir, manifest, embeddings, settings, splits=["train", "test"])
    document = evaluate(
        read_embeddings(embeddings, split="train"),
        read_embeddings(embeddings, split="test"),
        read_origin(embeddings),
        protocol="phases",
        stride=1,
    )
    storage.write_bytes(storage.join(run_dir, METRICS), (json.dumps(document, indent=2) + "\n").encode())
    return document


def row_config(base: Config, options: dict[str, str], seed: int) -> Config:
    """The config of a row with a seed.

    Raises:
        UserError: an option that the config does not have, or a value out of its range.
    """
    document = configuration.to_document(replace(base, training=replace(base.training, seed=seed)))
    for name, value in options.items():
        section, _, field = name.partition(".")
        document[section][field] = value
    return configuration.from_document(document, "row of the study")
