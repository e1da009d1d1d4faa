"""Files of an exported encoder: tensors, config, and a model card with the header of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from carl_ray import config as configuration
from carl_ray import storage
from carl_ray.evaluation.controls import shown_variants
from carl_ray.evaluation.tasks import metric_of
from carl_ray.report.tables import metric_names, metric_rows, summary
from carl_ray.training.checkpoint import CONFIG, ENCODER, EXPORTED, Checkpoint, checkpoint_tensors

_CARD = """---
{header}
---

# {name}

An embedding of every frame of a video, {width} numbers each, by carl_ray {version} (after CARL, CVPR 2022).

```python
import carl_ray

encoder = carl_ray.load_encoder("{name}")  # this folder, or hf://OWNER/NAME
h = encoder.embed("video.mp4")  # float32 (frames, {width}), L2-normalised
```

## Data

Manifest `{manifest}`, split `{split}`{share}. Frames of {size} pixels; {seen}.

## Training

| | |
|---|---|
{training}

The whole configuration is in config.json.

## Metrics

{metrics}
"""


def exported_files(
    name: str, checkpoint: Checkpoint, document: Mapping[str, Any] | None, license_id: str | None = None
) -> dict[str, bytes]:
    """Files of a folder with the encoder alone, which `checkpoint_at` reads, by name.

    Args:
        name: Of the folder.
        checkpoint: Of the encoder.
        document: metrics.json of an evaluation; None: the card says that there is none.
        license_id: Of the weights, as the hub names it; None: the card names none.
    """
    from safetensors.torch import save

    tensors = {k: v.contiguous() for k, v in checkpoint_tensors(checkpoint).items() if k.startswith(ENCODER)}
    content = save(tensors)
    state = {
        "progress": vars(checkpoint.progress),
        "config": configuration.to_document(checkpoint.config),
        "hashes": {EXPORTED: hashlib.sha256(content).hexdigest()},
    }
    header = _header(name, checkpoint, document, license_id)
    card = _card(name, header, checkpoint, document)
    return {
        EXPORTED: content,
        CONFIG: (json.dumps(state, indent=2) + "\n").encode(),
        "README.md": card.encode(),
    }


def _header(
    name: str, checkpoint: Checkpoint, document: Mapping[str, Any] | None, license_id: str | None
) -> str:
    """Metadata of the hub in YAML, with the metrics of the trained encoder as its index of results."""
    from huggingface_hub import EvalResult, ModelCardData

    data = _manifest(checkpoint)
    names = [] if document is None else metric_names(document)
    measured = {} if document is None else document["trained"]
    # Unknown where videos have none, and to earlier versions.
    splits: list[Any] = [None] if document is None else document["test"].get("splits", [None])
    results = [
        EvalResult(
            task_type="feature-extraction",
            dataset_type=data,
            dataset_name=data,
            dataset_split=None if None in splits else "+".join(splits),
            metric_type=metric,
            metric_name=metric_of(metric, document).title,
            metric_value=measured[metric]["value"],
        )
        for metric in names
        if measured[metric]["value"] is not None
    ]
    header = ModelCardData(
        library_name="carl_ray",
        pipeline_tag="feature-extraction",
        license=license_id,
        tags=["video", "self-supervised", "action-representation", checkpoint.config.objective.name],
        model_name=name,
        eval_results=results or None,
    )
    return header.to_yaml()


def _manifest(checkpoint: Checkpoint) -> str:
    manifest = checkpoint.config.data.manifest or "the rendered videos of the demo"
    return storage.public_uri(manifest).rpartition("/")[2]


def _card(name: str, header: str, checkpoint: Checkpoint, document: Mapping[str, Any] | None) -> str:
    config = checkpoint.config
    from carl_ray.training.learner import initial_encoder

    model, data = config.model, config.data
    is_of_clips = model.temporal_encoder == "clip"
    training = {
        "preset": config.preset,
        "objective": config.objective.name,
        "backbone": f"{model.backbone}, weights {storage.public_uri(model.weights)}, learnable {model.learnable}",
        "frames of a view": model.num_frames,
        "steps": checkpoint.progress.step,
        "videos a step": config.training.global_batch_size,
        "seed": config.training.seed,
    }
    return _CARD.format(
        header=header,
        name=name,
        width=initial_encoder(config).width if is_of_clips else model.embedding_width,
        seen=f"a frame has the embedding of the clip of {model.num_frames} frames around it"
        if is_of_clips
        else "the whole video is seen at once",
        version=config.versions.get("carl_ray", ""),
        manifest=_manifest(checkpoint),
        split=data.train_split,
        share="" if data.train_fraction == 1 else f", {data.train_fraction:.0%} of its videos",
        size=config.augment.image_size,
        training="\n".join(f"| {key} | {value} |" for key, value in training.items()),
        metrics="Not evaluated." if document is None else _metrics(document),
    )


def _metrics(document: Mapping[str, Any]) -> str:
    rows, variants = metric_rows(document, metric_names(document)), shown_variants(document)
    lines = [
        f"{document['train']['videos']} videos for the probes, {document['test']['videos']} measured. "
        f"Intervals of 95 %. {summary(document)}",
        "",
        "| metric | " + " | ".join(variants) + " |",
        "|---" * (len(variants) + 1) + "|",
    ]
    form = document.get("origin", {}).get("form", "plain")
    if form != "plain":
        lines[0] += (
            f" Measured on {form} embeddings (`embed --form {form}`); this folder's encoder alone gives plain ones."
        )
    for row in rows:
        cells = (str(row.cells.get(variant) or "") for variant in variants)
        lines.append(f"| {row.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
