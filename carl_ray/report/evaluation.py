"""Evaluation of embeddings into metrics.json and report.html."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from carl_ray import storage
from carl_ray.data.manifest import read_manifest
from carl_ray.errors import RunError, UserError
from carl_ray.evaluation.embeddings import EmbeddedVideo, Origin, read_embeddings, read_origin
from carl_ray.machine import single_threaded
from carl_ray.objectives.views import Stride
from carl_ray.paper import PROTOCOLS, protocol_of, stride_of
from carl_ray.training.checkpoint import CONFIG, run_of
from carl_ray.training.run_log import BAD_VIDEOS, read_log

if TYPE_CHECKING:
    from carl_ray.report.generation import GenerationSection

METRICS_FILE = "metrics.json"
REPORT_FILE = "report.html"
_TRUTH = ("label", "frame_labels", "progress")
"""Of which a test video must have one."""


def evaluate_embeddings(
    train: str,
    test: str,
    out: str,
    *,
    protocol: str | None = None,
    stride: int | None = None,
    seed: int = 0,
    centered: bool = False,
    title: str | None = None,
) -> dict[str, Any]:
    """Evaluate embeddings; write `metrics.json` and `report.html`.

    Args:
        train: URI of the embeddings that probes are fitted to.
        test: URI of the embeddings that are measured. Where it is `train`, the split of each video decides: "train"
            (or none) and "test". Without videos of the split "test", or where none of them has a label, those of
            "validation" are measured, or all videos, and a warning says so.
        out: URI of the folder.
        protocol: Which tasks, one of `carl_ray.paper.PROTOCOLS`; None: those of the paper for the preset.
            Propagation is added to the protocol of phases, repetitions where a phase of a test video returns, the score
            without labels where no test video has any, recognition where two labels have two videos on each side, the
            classifier's accuracy where `embed` wrote its predictions, the direction of time where it embedded clips
            played backwards.
        stride: Every how many frames tau, AP@K and the alignment error look at; None: as in the paper.
        seed: Of label fractions, chance and the bootstrap.
        centered: Subtract the mean of each video from its embeddings, also those of the untrained and frozen encoder.
        title: Of the report; None: preset and steps.

    Returns:
        The document of metrics.json: that of `evaluate`, `protocol`, `warnings` (sentences), and `not_embedded`, the
        number of videos that `embed` could not read.

    Raises:
        UserError: these are not two sets of embeddings of one encoder, or as `evaluate`.
        RunError: the store refuses or fails.
    """
    origin, train_videos, test_videos, warnings = _read(train, test)
    if centered:
        train_videos, test_videos = ([v.centered() for v in side] for side in (train_videos, test_videos))
    # Lazy import: mistakes are reported before torch is loaded.
    from carl_ray.evaluation.overlap import overlap_warnings
    from carl_ray.evaluation.protocol import evaluate
    from carl_ray.report.page import write_report

    protocol = protocol or protocol_of(origin.preset)
    document = {"protocol": protocol} | evaluate(
        train_videos,
        test_videos,
        origin,
        tasks=_tasks(protocol, origin, train_videos, test_videos, centered),
        stride=stride or stride_of(origin.preset),
        seed=seed,
        on_progress=_print_progress,
    )
    document["centered"] = centered
    document["not_embedded"] = sum(len(read_log(uri, BAD_VIDEOS)) for uri in {_named(train), _named(test)})
    run_dir = run_of(origin.checkpoint)
    config = _config(run_dir)
    manifest = config.get("data", {}).get("manifest")
    persons = _column(manifest, "person")
    document["warnings"] = [*warnings, *overlap_warnings(train_videos, test_videos, persons)]
    document["warnings"] += _repetition_warnings(test_videos)
    is_csvr = config.get("objective", {}).get("name") == "csvr"
    generation = _generation(document, origin, test_videos, seed) if is_csvr else None
    has_both = origin.form in ("plain", "centered")
    has_streams = has_both and config.get("model", {}).get("clip_streams") == "two"
    scenes = {
        video: f"scene {scene}" for video, scene in _column(manifest, "scene").items() if scene is not None
    }
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    storage.write_bytes(storage.join(out, METRICS_FILE), text.encode())
    print("evaluated; now the report", file=sys.stderr, flush=True)
    with single_threaded():
        write_report(
            storage.join(out, REPORT_FILE),
            document,
            train_videos,
            test_videos,
            log=None if run_dir is None else read_log(run_dir) or None,
            objective=config.get("objective", {}).get("name"),
            clip_span=_clip_span(config),
            scenes=scenes if has_streams else None,
            generation=generation,
            title=title,
        )
    return document


def _tasks(
    protocol: str, origin: Origin, train: list[EmbeddedVideo], test: list[EmbeddedVideo], centered: bool
) -> list[str]:
    """Names of the tasks of a protocol, and of those that the videos allow besides."""
    from carl_ray.evaluation.frozen import FROZEN
    from carl_ray.evaluation.protocol import has_returning_phase
    from carl_ray.evaluation.tasks import TASKS

    tasks = list(PROTOCOLS[protocol])
    # The mean of a video's embeddings is nothing where they are centred.
    has_means = origin.form in ("plain", "dynamic", "static") and origin.preset != FROZEN and not centered
    if protocol == "clips" and not has_means:
        raise UserError(
            "protocol clips compares the means of videos, which centred embeddings have not: embed with --form plain, "
            "evaluate without --centered, or name another --protocol"
        )
    if protocol != "clips" and not _is_labelled(test):
        tasks.append("label_free")
    elif protocol == "phases":
        tasks.append("propagation")
    if protocol == "phases" and any(map(has_returning_phase, test)):
        tasks.append("repetitions")
    if protocol != "clips" and has_means and TASKS["recognition"].missing(train, test) is None:
        tasks.append("recognition")
    if has_means and TASKS["direction_of_time"].missing(train, test) is None:
        tasks.append("direction_of_time")
    if TASKS["classifier"].missing(train, test) is None:
        tasks.append("classifier")
    return tasks


def _is_labelled(videos: list[EmbeddedVideo]) -> bool:
    return any((video.phases >= 0).any() for video in videos)


def _repetition_warnings(videos: list[EmbeddedVideo]) -> list[str]:
    """A sentence where most videos without labels seem to repeat their action; some fifty of them tell."""
    from carl_ray.evaluation.repetitions import find_repetitions

    some = [] if _is_labelled(videos) else videos[:: -(-len(videos) // 50)]
    repeating = sum(len(find_repetitions(video.embeddings)) > 1 for video in some)
    if repeating <= len(some) / 2:
        return []
    return [
        f"In {repeating} of {len(some)} videos the action seems to repeat (carl-ray segments): Kendall's tau and the "
        "score without labels suppose that it comes once, and say little here."
    ]


def print_evaluation(train: str, test: str, out: str, **options: Any) -> None:
    """Evaluate embeddings as `evaluate_embeddings`, and print the table and where the files are."""
    from carl_ray.report.tables import metrics_text

    print(metrics_text(evaluate_embeddings(train, test, out, **options)))
    print(f"metrics:     {storage.public_uri(storage.join(out, METRICS_FILE))}")
    print(f"report:      {storage.public_uri(storage.join(out, REPORT_FILE))}")


def _read(train: str, test: str) -> tuple[Origin, list[EmbeddedVideo], list[EmbeddedVideo], list[str]]:
    """Origin, training videos, test videos and warnings; errors as `evaluate_embeddings`."""
    origin = read_origin(train)
    if _named(test) != _named(train):
        if read_origin(test) != origin:
            raise UserError(
                f"{storage.public_uri(test)}: embeddings of another encoder or view than those in "
                f"{storage.public_uri(train)}"
            )
        return origin, read_embeddings(train), read_embeddings(test), []
    videos = read_embeddings(train)
    splits = {
        split: [video for video in videos if (video.split or "train") == split]
        for split in ("train", "validation", "test")
    }
    if splits["test"] and (_has_truth(splits["test"]) or not _has_truth(splits["validation"])):
        return origin, splits["train"], splits["test"], []
    if splits["test"]:
        number = len(splits["validation"])
        warning = f"No test video has a label, so the {number} validation videos were measured."
        return origin, splits["train"], splits["validation"], [warning]
    without = "There are no videos of the split test, so"
    advice = (
        "For a measurement on videos that training has not seen, index them in folders train/ and test/, or split them "
        "with carl-ray index --update MANIFEST --split-by COLUMN (such as person; video draws single ones)."
    )
    if len(splits["validation"]) > 1:
        measured = f"{without} the {len(splits['validation'])} validation videos were measured. {advice}"
        return origin, splits["train"], splits["validation"], [measured]
    measured = f"{without} all {len(videos)} videos were measured, those of the training among them. {advice}"
    return origin, [], videos, [measured]


def _named(uri: str) -> str:
    """The URI by which folders are compared: absolute, without a slash at the end."""
    return storage.join(storage.absolute(uri))


def _has_truth(videos: Sequence[EmbeddedVideo]) -> bool:
    """Whether one of the videos has labels."""
    return any(getattr(video, name) is not None for video in videos for name in _TRUTH)


def measured_splits(manifest: str) -> list[str] | None:
    """The splits of a manifest that `evaluate_embeddings` reads; None: all."""
    table = read_manifest(manifest, ["split", *_TRUTH])

    def has_truth(split: str) -> bool:
        rows = table.filter(pc.equal(table.column("split"), split))
        return any(rows.column(name).null_count < len(rows) for name in _TRUTH)

    if "test" not in table.column("split").to_pylist():
        return None
    return ["train", "test" if has_truth("test") or not has_truth("validation") else "validation"]


def _config(run_dir: str | None) -> dict[str, Any]:
    """The run's config.json; empty where it is missing."""
    if run_dir is None or not storage.exists(uri := storage.join(run_dir, CONFIG)):
        return {}
    # Not parsed as a Config, so that runs of other versions can be read.
    found: dict[str, Any] = json.loads(storage.read_bytes(uri))
    return found


def _clip_span(config: dict[str, Any]) -> int | None:
    """Frames of a video that a clip of evaluation stands for; None without an encoder of clips."""
    model = config.get("model", {})
    if model.get("temporal_encoder") != "clip":
        return None
    span = model["num_frames"] * Stride(*config["views"]["stride"]).mean * config["data"]["frame_stride"]
    return int(span)


def _column(manifest: str | None, name: str) -> dict[str, Any]:
    """A further column of the run's manifest, by video id; empty where there is none."""
    try:
        table = read_manifest(manifest, ["video_id"], further=(name,), check=False) if manifest else None
    except (UserError, RunError):  # It may have been moved.
        table = None
    if table is None or name not in table.column_names:
        return {}
    return dict(zip(*(table.column(of).to_pylist() for of in ("video_id", name)), strict=True))


def _generation(
    document: dict[str, Any], origin: Origin, test: Sequence[EmbeddedVideo], seed: int
) -> GenerationSection:
    """What a run of `csvr` makes for test videos, or why there is nothing; its errors go into the document."""
    from carl_ray.evaluation.generation import METRICS, Generation, generate
    from carl_ray.evaluation.protocol import add_results
    from carl_ray.report.generation import draw_generation

    print("predicting poses and generating clips of test videos", file=sys.stderr, flush=True)
    try:
        made = generate(origin, test, seed)
    except (UserError, RunError) as error:  # Checkpoint, manifest or videos may have been moved.
        made = Generation([], {}, {}, 0, str(error))
    add_results(document, METRICS, made.results, seed)
    return draw_generation(made)


def _print_progress(what: str, done: int, total: int) -> None:
    print(f"evaluating {what} ({done + 1} of {total})", file=sys.stderr, flush=True)
