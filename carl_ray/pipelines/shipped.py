"""The shipped pipelines, and the commands of their stages for pipelines of your own.

    from carl_ray.pipelines.shipped import Stages, embed, join, train

    def penn_action(folder: str, manifest: str, options: str = "") -> Stages:
        run = join(folder, "train")
        return {
            "train": train("penn_action", manifest, run, options),
            "embed": embed(run, manifest, join(folder, "embeddings")),
        }

A pipeline is a function of its folder and its parameters (texts, from --set) that returns the command of each stage, in
order: a module, as after `python -m`, and its arguments. Names of stages must not depend on parameters. A command may
run several times and has to continue from what an earlier attempt left, as the commands below do.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable

from carl_ray.storage import join

Stages = dict[str, list[str]]
"""Command of each stage, in order."""


def index(videos: str, manifest: str) -> list[str]:
    """Command that indexes a folder of videos; the embedded ones where `videos` is empty."""
    return ["carl_ray.index", *([videos] if videos else []), "--out", manifest]


def train(
    preset: str, manifest: str, run_dir: str, options: str = "", *, init_from: str | None = None
) -> list[str]:
    """Command that trains a preset or resumes its run; `options` as on a command line."""
    initial = [] if init_from is None else ["--model.init_from", init_from]
    inputs = ["--data.manifest", manifest, *initial]
    return ["carl_ray.train", preset, *inputs, "--run-dir", run_dir, "--resume", *shlex.split(options)]


def embed(checkpoint: str, manifest: str, out: str, options: str = "") -> list[str]:
    """Command that embeds the videos of a manifest that have no embeddings yet; `options` as on a command line."""
    inputs = ["--checkpoint", checkpoint, "--manifest", manifest]
    return ["carl_ray.embed", *inputs, "--out", out, *shlex.split(options)]


def evaluate(embeddings: str, out: str) -> list[str]:
    """Command that evaluates embeddings: probes on split `train`, metrics on split `test`."""
    return ["carl_ray.evaluate", "--train", embeddings, "--test", embeddings, "--out", out]


def demo(folder: str, videos: str = "", train_options: str = "") -> Stages:
    """Index videos, train the demo preset, embed and evaluate.

    The rendered videos are written to the disk of the head: for a cluster of one machine, or a CARL_RAY_HOME that all
    nodes share.

    Args:
        folder: of all output
        videos: folder of videos, with train and test in it; the rendered ones of the demo where none is named
        train_options: of the training, such as --training.epochs 3
    """
    manifest, run = join(folder, "manifest.parquet"), join(folder, "train")
    embeddings = join(folder, "embeddings")
    return {
        "index": index(videos, manifest),
        "train": train("demo", manifest, run, train_options),
        "embed": embed(run, manifest, embeddings, "--split train --split test"),
        "evaluate": evaluate(embeddings, join(folder, "evaluation")),
    }


def _train_and_evaluate(preset: str, name: str) -> Callable[..., Stages]:
    """The pipeline of a preset whose data set is trained on, embedded and evaluated."""

    def pipeline(folder: str, manifest: str, train_options: str = "", embed_options: str = "") -> Stages:
        run, embeddings = join(folder, "train"), join(folder, "embeddings")
        return {
            "train": train(preset, manifest, run, train_options),
            "embed": embed(run, manifest, embeddings, embed_options),
            "evaluate": evaluate(embeddings, join(folder, "evaluation")),
        }

    pipeline.__name__ = pipeline.__qualname__ = preset
    pipeline.__doc__ = f"""Train, embed and evaluate {name}.

    Args:
        folder: of all output
        manifest: URI of the manifest that carl_ray.datasets.{name.lower().rstrip("0123456789")} wrote
        train_options: of the training, such as --cluster.use_gpu true --cluster.num_workers 4
        embed_options: of the embedding, such as --use-gpu --num-workers 4 --cpus-per-worker 8
    """
    return pipeline


finegym99 = _train_and_evaluate("finegym99", "FineGym99")
pouring = _train_and_evaluate("pouring", "Pouring")


def kinetics400_to_penn_action(
    folder: str,
    kinetics400: str,
    penn_action: str,
    pretrain_options: str = "",
    fine_tune_options: str = "",
    embed_options: str = "",
) -> Stages:
    """Train on Kinetics-400; evaluate PennAction without and with fine-tuning (table 14 of the paper).

    Args:
        folder: of all output
        kinetics400: URI of the manifest that carl_ray.datasets.kinetics400 wrote
        penn_action: URI of the manifest that carl_ray.datasets.penn_action wrote
        pretrain_options: of the training on Kinetics-400, such as --cluster.use_gpu true --cluster.num_workers 8
        fine_tune_options: of the training on PennAction, likewise
        embed_options: of both embeddings, such as --use-gpu --num-workers 4 --cpus-per-worker 8
    """
    pretrained, tuned = join(folder, "pretrain"), join(folder, "fine-tune")
    embeddings = [join(folder, name, "embeddings") for name in ("pretrained", "tuned")]
    evaluations = [join(folder, name, "evaluation") for name in ("pretrained", "tuned")]
    return {
        "pretrain": train("kinetics400", kinetics400, pretrained, pretrain_options),
        "embed-pretrained": embed(pretrained, penn_action, embeddings[0], embed_options),
        "evaluate-pretrained": evaluate(embeddings[0], evaluations[0]),
        "fine-tune": train(
            "kinetics400_to_penn_action", penn_action, tuned, fine_tune_options, init_from=pretrained
        ),
        "embed-tuned": embed(tuned, penn_action, embeddings[1], embed_options),
        "evaluate-tuned": evaluate(embeddings[1], evaluations[1]),
        "compare": ["carl_ray.compare", *evaluations, "--out", join(folder, "table_14.md")],
    }


def three_splits(
    folder: str,
    split_1: str,
    split_2: str,
    split_3: str,
    checkpoint: str = "",
    preset: str = "regions_ucf101",
    fine_tune_options: str = "",
    embed_options: str = "",
) -> Stages:
    """Fine-tune an encoder of clips on each split of UCF101 or HMDB51, evaluate, and average.

    Args:
        folder: of all output
        split_1: URI of the manifest that carl_ray.datasets.ucf101 or hmdb51 wrote with --split 1
        split_2: with --split 2
        split_3: with --split 3
        checkpoint: run folder or checkpoint of the encoder; none: trained from scratch, the control. Its training must
            not have seen the test videos, as an encoder of split 1 of UCF101 has those of the other splits
        preset: whose encoder and views these are
        fine_tune_options: of each training, such as --cluster.use_gpu true; 100 epochs of 64 videos where they say
            nothing else
        embed_options: of each embedding, such as --use-gpu
    """
    scale = "--optimizer.encoder_scale 0.1" if checkpoint else ""
    options = (
        "--objective.name clip_classes --optimizer.learning_rate 1e-3 --training.epochs 100 "
        f"--training.global_batch_size 64 {scale} {fine_tune_options}"
    )
    stages: Stages = {}
    evaluations = []
    for number, manifest in enumerate((split_1, split_2, split_3), 1):
        run, embeddings, evaluation = (
            join(folder, f"split-{number}", name) for name in ("train", "embeddings", "evaluation")
        )
        stages |= {
            f"fine-tune-{number}": train(preset, manifest, run, options, init_from=checkpoint or None),
            f"embed-{number}": embed(run, manifest, embeddings, embed_options),
            f"evaluate-{number}": evaluate(embeddings, evaluation),
        }
        evaluations.append(evaluation)
    return stages | {
        "average": ["carl_ray.compare", *evaluations, "--mean", "--out", join(folder, "three_splits.md")]
    }


SHIPPED: dict[str, Callable[..., Stages]] = {
    pipeline.__name__: pipeline
    for pipeline in (demo, finegym99, kinetics400_to_penn_action, pouring, three_splits)
}
"""The shipped pipelines by name."""
