"""`carl_ray.evaluation.protocol`: the document of metrics.json holds what its metrics say, with every control."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import tests.embedded
from carl_ray.errors import UserError
from carl_ray.evaluation import (
    alignment_error,
    average_precision_at_k,
    kendalls_tau,
    linear_probe,
    phase_classification,
    phase_progression,
)
from carl_ray.evaluation.bootstrap import bootstrap, ratio_of_sums
from carl_ray.evaluation.clip_probe import even_clips
from carl_ray.evaluation.controls import VARIANTS, embedded_by
from carl_ray.evaluation.embeddings import EmbeddedVideo
from carl_ray.evaluation.protocol import evaluate
from carl_ray.evaluation.task import Metric, Task, Videos
from carl_ray.evaluation.tasks import TASKS, metric_names
from carl_ray.paper import PROTOCOLS
from tests.embedded import embedded

ORIGIN = replace(tests.embedded.ORIGIN, num_frames=16, position_width=8, has_untrained=True)
PHASES = 3
PHASE_TASKS = PROTOCOLS["phases"]
PHASE_METRICS = set(metric_names(PHASE_TASKS))


def make_video(number: int, action: str, **fields) -> EmbeddedVideo:
    """Idle, three phases, idle; the trained embedding is a curve in the progress, the untrained one noise."""
    rng = np.random.default_rng(number)
    lengths = rng.integers(4, 12, PHASES + 2)
    labels = np.repeat([-1, *range(PHASES), -1], lengths).astype(np.int32)
    part = np.concatenate([(np.arange(n) + 0.5) / n for n in lengths])
    progress = np.clip((np.repeat(np.arange(-1, PHASES + 1), lengths) + part) / PHASES, 0, 1)
    curve = np.stack(
        [np.cos(3 * progress), np.sin(3 * progress), np.cos(5 * progress), np.sin(5 * progress)], 1
    )
    embeddings = (curve + 0.02 * rng.standard_normal(curve.shape)).astype(np.float32)
    defaults = {
        "uri": f"/{number}.mp4",
        "content_hash": "0",
        "label": action,
        "frame_labels": labels,
        "progress": progress.astype(np.float32),
        "fps": 25.0,
        "untrained": rng.standard_normal(curve.shape).astype(np.float32),
        "frozen": rng.standard_normal((len(curve), 3)).astype(np.float32),
        "predicted": ["kick", "lift"],
        "backwards": even_clips(embeddings[::-1]),
    }
    return embedded(f"{action}/{number}", embeddings, **(defaults | fields))


@pytest.fixture(scope="module")
def train() -> list[EmbeddedVideo]:
    return [make_video(n, action) for n in range(10) for action in ("kick", "lift")]


@pytest.fixture(scope="module")
def test() -> list[EmbeddedVideo]:
    return [make_video(100 + n, action) for n in range(6) for action in ("kick", "lift")]


@pytest.fixture(scope="module")
def document(train, test) -> dict:
    return evaluate(train, test, ORIGIN, tasks=PHASE_TASKS, stride=2)


def test_every_metric_stands_with_every_control(document) -> None:
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert set(VARIANTS) <= set(document)
    for part in (document, *document["actions"].values()):
        for variant in VARIANTS:
            assert set(part[variant]) == PHASE_METRICS
            for entry in part[variant].values():
                assert set(entry) == {"value", "low", "high", "left_out"}
                assert entry["low"] <= entry["value"] <= entry["high"]
    assert document["test"]["videos"] == 12
    assert set(document["actions"]) == {"kick", "lift"}


def test_values_are_those_of_the_metrics_averaged_over_actions(document, train, test) -> None:
    values = []
    for action in ("kick", "lift"):
        fit, held = ([v for v in part if v.label == action] for part in (train, test))
        x, y = [v.embeddings for v in fit], [v.frame_labels for v in fit]
        u, w = [v.embeddings for v in held], [v.frame_labels for v in held]
        labelled = [a[b >= 0] for a, b in zip(u, w, strict=True)]
        values.append(
            {
                "phase_classification": phase_classification(x, y, u, w).value,
                "phase_classification_10": phase_classification(x, y, u, w, fraction=0.1).value,
                "phase_classification_50": phase_classification(x, y, u, w, fraction=0.5).value,
                "phase_progression": phase_progression(x, y, u, w, num_phases=PHASES).value,
                "kendalls_tau": kendalls_tau(labelled, stride=2).value,
                "alignment_error": alignment_error(u, [v.progress for v in held], stride=2).value,
                **{
                    f"average_precision_at_{k}": average_precision_at_k(u, w, k, stride=2).value
                    for k in (5, 10, 15)
                },
            }
        )
    for metric in PHASE_METRICS:
        got = document["trained"][metric]["value"]
        assert got == pytest.approx(np.mean([action[metric] for action in values])), metric
        assert document["actions"]["lift"]["trained"][metric]["value"] == pytest.approx(values[1][metric])


def test_controls_are_the_metrics_of_their_own_arrays(document, train, test) -> None:
    fit, held = ([v for v in part if v.label == "kick"] for part in (train, test))
    for variant in VARIANTS[1:]:
        x, u = ([v.embeddings for v in embedded_by(variant, side, ORIGIN, 0)] for side in (fit, held))
        entry = document["actions"]["kick"][variant]
        found = phase_classification(x, [v.frame_labels for v in fit], u, [v.frame_labels for v in held])
        assert entry["phase_classification"]["value"] == pytest.approx(found.value)
        error = alignment_error(u, [v.progress for v in held], stride=2)
        assert entry["alignment_error"]["value"] == pytest.approx(error.value)
        interval = bootstrap([error], num_draws=1000, level=0.95, seed=0)
        assert (entry["alignment_error"]["low"], entry["alignment_error"]["high"]) == pytest.approx(
            (interval.low, interval.high)
        )
    assert document["bootstrap"] == {"draws": 1000, "level": 0.95, "unit": "test video"}


def test_actions_that_a_mean_leaves_out_are_counted(train, test) -> None:
    few = [v for v in test if v.label == "kick"] + [v for v in test if v.label == "lift"][:1]
    document = evaluate(train, few, ORIGIN, tasks=PHASE_TASKS, stride=4)
    for metric, undefined, without in (
        ("kendalls_tau", 1, 0), ("alignment_error", 1, 0), ("phase_classification", 0, 1),
    ):  # fmt: skip
        left_out = document["trained"][metric]["left_out"]
        assert (left_out["undefined_actions"], left_out["actions_without_interval"]) == (undefined, without)
    assert document["trained"]["phase_classification"]["low"] is None
    assert document["trained"]["kendalls_tau"]["low"] is not None


def test_order_and_repetition_change_nothing(document, train, test) -> None:
    again = evaluate(train, test, ORIGIN, tasks=PHASE_TASKS, stride=2)
    assert again == document


def test_phases_that_come_back_are_counted(train, test) -> None:
    # A gap without labels is no return, 0 1 0 is one.
    gap, back = (np.array(labels, np.int32) for labels in ([0, 0, -1, 0, 1], [0, 1, 1, -1, 0]))
    whole = [
        make_video(200 + number, "lift", progress=None, timestamps=np.arange(5.0)) for number in range(3)
    ]
    videos = [
        replace(
            v,
            frame_labels=labels,
            embeddings=v.embeddings[:5],
            untrained=v.untrained[:5],
            frozen=v.frozen[:5],
        )
        for v, labels in zip(whole, (gap, back, back), strict=True)
    ]
    found = evaluate(train, [*test, *videos], ORIGIN, tasks=PHASE_TASKS, stride=1)
    assert found["videos_with_returning_phases"] == 2
    counts = {name: action["videos_with_returning_phases"] for name, action in found["actions"].items()}
    assert counts == {"kick": 0, "lift": 2}
    # Ten training videos of each of the two actions.
    assert found["fitted_videos"] == {"_10": 2, "_50": 10, "": 20}


def test_tasks_without_what_they_need_do_not_run_and_are_named(train, test) -> None:
    def bare(videos):
        return [replace(v, label=None, frame_labels=None, progress=None) for v in videos]

    document = evaluate(bare(train), bare(test), ORIGIN, tasks=[*PHASE_TASKS, "label_free"])
    assert set(document["actions"]) == {"no label"}
    assert set(document["trained"]) == set(document["metrics"]) == {"kendalls_tau", "label_free"}
    assert document["trained"]["kendalls_tau"]["low"] is not None
    assert document["not_run"] == {
        "phase_classification": "frame labels",
        "phase_progression": "frame labels",
        "retrieval": "frame labels",
        "alignment_error": "progress",
    }
    alone = evaluate([], bare(test), ORIGIN, tasks=PHASE_TASKS)
    assert alone["trained"]["kendalls_tau"] == document["trained"]["kendalls_tau"]
    unfitted = evaluate([], test, ORIGIN, tasks=["phase_classification", "retrieval"])
    assert unfitted["not_run"] == {"phase_classification": "labelled training videos"}
    assert "average_precision_at_5" in unfitted["trained"]
    unlabelled = evaluate(bare(train), test, ORIGIN, tasks=["phase_classification", "retrieval"], stride=4)
    assert unlabelled["not_run"] == unfitted["not_run"]


def test_a_task_of_ones_own(train, test) -> None:
    """A metric from outside gets the controls, the interval, and its description in the document."""
    metric = Metric(name="brightness", title="brightness (%)", meaning="how bright", higher_is_better=False)

    def run(videos):
        means = np.array([v.embeddings[:: videos.stride, 0].mean() for v in videos.test], np.float64)
        return {"brightness": ratio_of_sums(means, np.ones(len(means)))}

    for pooled in (False, True):
        task = Task(name="brightness", metrics=(metric,), run=run, pooled=pooled)
        document = evaluate(train, test, ORIGIN, tasks=[task, "kendalls_tau"], stride=3)
        assert set(document["trained"]) == {"brightness", "kendalls_tau"}
        assert ("brightness" in document["actions"]["kick"]["trained"]) is not pooled
        assert document["metrics"]["brightness"] == vars(metric)
        entry = document["trained"]["brightness"]
        expected = np.mean([video.embeddings[::3, 0].mean(dtype=float) for video in test])
        assert entry["low"] < entry["value"] < entry["high"]
        assert entry["value"] == pytest.approx(expected, abs=1e-6)


def test_every_task_gives_the_metrics_that_it_names(train, test) -> None:
    for name, task in TASKS.items():
        assert task.name == name and task.metrics
        assert all(metric.meaning for metric in task.metrics)
        assert task.missing(train, test) is None
        assert set(task.run(Videos(train[::2], test[::2], 2))) == {metric.name for metric in task.metrics}


def test_without_training_videos_all_controls_are_measured(test) -> None:
    document = evaluate([], test, ORIGIN, tasks=["kendalls_tau"], stride=2)
    assert all(document[variant]["kendalls_tau"]["value"] is not None for variant in VARIANTS)


def test_without_the_untrained_control(train, test, document) -> None:
    whole = document

    def bare(videos):
        return [replace(v, untrained=None, frozen=None) for v in videos]

    told: list[tuple[str, int, int]] = []
    document = evaluate(
        *(bare(train), bare(test), ORIGIN),
        tasks=PHASE_TASKS,
        stride=2,
        on_progress=lambda *step: told.append(step),
    )
    # Controls that the embeddings lack are no steps.
    assert {what.rpartition(", ")[2] for what, _, _ in told} == {"trained", "positions", "chance"}
    assert [done for _, done, _ in told] == list(range(told[0][2]))
    assert document["untrained"] is None and document["frozen"] is None
    assert document["actions"]["kick"]["untrained"] is None
    for variant in ("trained", "positions", "chance"):
        assert document[variant] == whole[variant]


def test_an_action_of_the_test_videos_alone_is_told_not_hidden(train, test) -> None:
    document = evaluate([v for v in train if v.label == "kick"], test, ORIGIN, tasks=PHASE_TASKS, stride=4)
    lift = document["actions"]["lift"]
    assert lift["train_videos"] == 0
    assert lift["trained"]["phase_classification"]["value"] is None
    assert lift["trained"]["kendalls_tau"]["value"] is not None
    whole = document["trained"]["phase_classification"]["value"]
    assert whole == document["actions"]["kick"]["trained"]["phase_classification"]["value"]


def test_pooled_tasks_see_all_videos_together(train, test) -> None:
    def blurred(videos):
        rng = np.random.default_rng(1)
        return [replace(v, embeddings=v.embeddings + 1.2 * rng.standard_normal((len(v), 4))) for v in videos]

    train, test = blurred(train), blurred(test)
    document = evaluate(train, test, ORIGIN, tasks=["linear_probe"])
    assert set(document["trained"]) == set(metric_names(["linear_probe"]))
    assert set(document["actions"]) == {"all classes"}
    x, u = ([v.embeddings for v in part] for part in (train, test))
    y, w = ([v.frame_labels for v in part] for part in (train, test))
    for name, fraction in (("linear_probe_10", 0.1), ("linear_probe_50", 0.5), ("linear_probe", 1.0)):
        expected = linear_probe(x, y, u, w, num_classes=PHASES, fraction=fraction).value
        assert document["trained"][name]["value"] == pytest.approx(expected)
    values = [document["trained"][name]["value"] for name in metric_names(["linear_probe"])]
    assert len(set(values)) >= 2, "the shares of labels must differ here, or nothing was shown"


def test_bad_input_is_one_clear_line(train, test) -> None:
    wide = replace(test[3], embeddings=np.zeros((len(test[3]), 5), np.float32))
    broken = replace(test[3], embeddings=np.full((len(test[3]), 4), np.nan, np.float32))
    moved = replace(train[1], uri="/elsewhere.mp4")
    for fit, held, message in (
        (train, test[:1], "expected at least 2 test videos, got 1"),
        (train, [*test[:3], wide], r"different widths: 5 of 'lift/101', 4 of 'kick/100'"),
        (train, [*test[:3], broken], r"embeddings of 'lift/101' are not finite"),
        (
            train,
            [*test, moved, train[0]],
            "1 of the videos are in the training and in the test embeddings, 'kick/0'",
        ),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(fit, held, ORIGIN, tasks=PHASE_TASKS, stride=1)
