"""A sweep's folder becomes its document, its table and the best trial."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from carl_ray import storage
from carl_ray.evaluation.controls import VARIANTS
from carl_ray.evaluation.tasks import METRICS
from carl_ray.presets import demo
from carl_ray.sweeps.definition import Sweep, trial_id
from carl_ray.sweeps.results import sweep_document, write_results
from carl_ray.sweeps.space import Choices, LogRange, Space
from carl_ray.sweeps.trials import begin_trial, read_outcome, run_dir, score_at, write_outcome

SPACE = Space(
    "test",
    {
        "objective.temperature": LogRange(0.03, 1.0, (0.1, 0.3)),
        "views.sampling": Choices(("random", "even")),
    },
)


def sweep(seeds: int = 2, metric: str = "phase_classification", space: Space = SPACE) -> Sweep:
    return Sweep(space, demo(), seeds, (2, 6), metric, labelled=True)


def write_measured(
    folder: Path, of: Sweep, point: Any, seed: int, epoch: int, value: float, *, controls: float | None = None
) -> None:
    """What a trial writes; every control is worth half as much, or what is said."""
    document: dict[str, Any] = {
        "origin": {"checkpoint": f"/{seed}/checkpoints/step-{epoch}", "step": 12 * epoch}
    }
    for variant in VARIANTS:
        mean = value if variant == "trained" else value / 2 if controls is None else controls
        document[variant] = {
            metric: {"value": mean, "low": mean - 0.1, "high": mean + 0.1} for metric in METRICS
        }
    document |= {"training_seconds": 10.0 * epoch, "measuring_seconds": 1.0}
    uri = storage.join(run_dir(str(folder), trial_id(of, point), seed), "measured", f"epoch-{epoch:08d}.json")
    storage.write_bytes(uri, json.dumps(document).encode())


def begin(folder: Path, of: Sweep, point: Any, status: str | None = None, reason: str = "") -> None:
    begin_trial(str(folder), of, point)
    if status is not None:
        write_outcome(str(folder), trial_id(of, point), status, reason)  # type: ignore[arg-type]


def test_a_document_holds_every_trial(tmp_path: Path) -> None:
    of = sweep()
    default = {"objective.temperature": 0.1, "views.sampling": "random"}
    good, behind = {"objective.temperature": 0.2}, {"objective.temperature": 0.5}
    unfit, running = {"objective.temperature": -1.0}, {"views.sampling": "even"}
    for point, scores in ((default, (0.7, 0.8)), (good, (0.85, 0.87)), (running, (0.99, None))):
        for seed, score in enumerate(scores):
            for epoch in (2, 6):
                if score is not None:
                    write_measured(tmp_path, of, point, seed, epoch, score - (0.1 if epoch == 2 else 0.0))
    for seed in range(2):
        write_measured(tmp_path, of, behind, seed, 2, 0.95)
    begin(tmp_path, of, default)
    begin(tmp_path, of, good)
    begin(tmp_path, of, behind, "stopped", "behind")
    begin(tmp_path, of, unfit, "failed", "does not fit")
    begin(tmp_path, of, running)
    document = sweep_document(of, str(tmp_path), {"search": "random"})
    by_status = {trial["status"]: trial for trial in document["trials"]}
    assert len(document["trials"]) == 5
    done = {trial["id"]: trial for trial in document["trials"] if trial["status"] == "done"}
    # A stopped trial is measured earlier: its better score does not make it the best.
    assert document["best"] == trial_id(of, good)
    assert done[trial_id(of, good)]["score"]["mean"] == pytest.approx(0.86)
    assert [rung["epoch"] for rung in done[trial_id(of, good)]["rungs"]] == [2, 6]
    # Student's t with one degree of freedom: 12.706 standard errors, of 0.01.
    assert done[trial_id(of, good)]["score"]["high"] == pytest.approx(0.86 + 12.7062 * 0.01, abs=1e-5)
    assert done[trial_id(of, good)]["seconds"] == pytest.approx(2 * 60 + 4 * 1)
    assert done[trial_id(of, good)]["checkpoint"] == "/0/checkpoints/step-6"
    assert done[trial_id(of, good)]["metrics"]["chance"]["kendalls_tau"]["mean"] == pytest.approx(0.43)
    assert [t["id"] for t in document["trials"] if t["is_default"]] == [trial_id(of, default)]
    assert (by_status["stopped"]["epochs"], by_status["stopped"]["values"]["objective.temperature"]) == (
        2,
        0.5,
    )
    assert (by_status["failed"]["reason"], by_status["failed"]["score"]) == ("does not fit", None)
    assert by_status["failed"]["values"] == {"objective.temperature": -1.0, "views.sampling": "random"}
    # One seed of two is measured: nothing to compare yet.
    assert (by_status["unfinished"]["epochs"], by_status["unfinished"]["score"]) == (0, None)
    assert done[trial_id(of, good)]["steps"] == 12 * 6 and done[trial_id(of, good)]["batch_size"] == 8
    assert by_status["failed"]["batch_size"] is None
    json.dumps(document, allow_nan=False)


def test_one_seed_has_the_interval_over_videos(tmp_path: Path) -> None:
    of = sweep(seeds=1)
    write_measured(tmp_path, of, {}, 0, 2, 0.5)
    write_measured(tmp_path, of, {}, 0, 6, 0.6)
    begin(tmp_path, of, {})
    (trial,) = sweep_document(of, str(tmp_path), {})["trials"]
    assert (trial["score"]["low"], trial["score"]["high"]) == (pytest.approx(0.5), pytest.approx(0.7))


def test_a_metric_that_not_all_seeds_have_is_left_out(tmp_path: Path) -> None:
    """Earlier versions measured the score without labels in every sweep."""
    of = sweep()
    for seed in range(2):
        write_measured(tmp_path, of, {}, seed, 6, 0.6)
    (uri,) = tmp_path.glob("trials/*/seed-1/measured/*.json")
    document = json.loads(uri.read_text())
    for variant in VARIANTS:
        del document[variant]["label_free"]
    uri.write_text(json.dumps(document))
    begin(tmp_path, of, {})
    (trial,) = sweep_document(of, str(tmp_path), {})["trials"]
    assert "label_free" not in trial["metrics"]["trained"] and "kendalls_tau" in trial["metrics"]["trained"]


def test_the_best_error_is_the_lowest(tmp_path: Path) -> None:
    of = sweep(seeds=1, metric="alignment_error")
    for temperature, error in ((0.1, 0.04), (0.2, 0.02), (0.3, 0.03)):
        point = {"objective.temperature": temperature}
        write_measured(tmp_path, of, point, 0, 6, error)
        begin(tmp_path, of, point)
    document = sweep_document(of, str(tmp_path), {})
    assert document["best"] == trial_id(of, {"objective.temperature": 0.2})


def test_intervals_stay_within_the_metric_and_controls_keep_theirs(tmp_path: Path) -> None:
    of = sweep()
    for seed, score in enumerate((0.9, 0.99)):
        write_measured(tmp_path, of, {}, seed, 6, score, controls=0.6)
    begin(tmp_path, of, {})
    (trial,) = sweep_document(of, str(tmp_path), {})["trials"]
    # Student's t alone says 0.945 +- 0.57.
    assert (trial["score"]["low"], trial["score"]["high"]) == (
        pytest.approx(0.945 - 12.7062 * 0.045, abs=1e-4),
        1,
    )
    assert trial["metrics"]["trained"]["kendalls_tau"]["high"] == 1
    control = trial["metrics"]["positions"]["phase_classification"]
    assert (control["low"], control["high"]) == (pytest.approx(0.5), pytest.approx(0.7))


def test_what_is_damaged_is_missing(tmp_path: Path) -> None:
    of = sweep(seeds=1)
    name, trial = trial_id(of, {}), tmp_path / "trials" / trial_id(of, {})
    for epoch in (2, 6):
        write_measured(tmp_path, of, {}, 0, epoch, 0.7)
    begin(tmp_path, of, {})
    assert read_outcome(of, str(tmp_path), name) == ("done", None)
    (trial / "seed-0" / "measured" / "epoch-00000006.json").write_text('{"trained": {"phase')
    assert read_outcome(of, str(tmp_path), name) == ("unfinished", None)
    assert sweep_document(of, str(tmp_path), {})["trials"][0]["epochs"] == 2
    write_outcome(str(tmp_path), name, "stopped", "behind")
    assert read_outcome(of, str(tmp_path), name) == ("stopped", "behind")
    (trial / "seed-0" / "measured" / "epoch-00000002.json").unlink()
    assert read_outcome(of, str(tmp_path), name)[0] == "unfinished"  # nothing to compare is left
    (trial / "outcome.json").write_text("")
    assert read_outcome(of, str(tmp_path), name)[0] == "unfinished"
    (trial / "point.json").write_text("{")
    assert sweep_document(of, str(tmp_path), {})["trials"] == []


def test_a_trial_that_begins_again_has_not_failed(tmp_path: Path) -> None:
    of = sweep()
    begin(tmp_path, of, {}, "failed", "a reason")
    assert read_outcome(of, str(tmp_path), trial_id(of, {})) == ("failed", "a reason")
    begin(tmp_path, of, {})
    assert read_outcome(of, str(tmp_path), trial_id(of, {})) == ("unfinished", None)


def test_seeds_count_from_the_configs(tmp_path: Path) -> None:
    of = sweep(seeds=2)
    of = replace(of, base=replace(of.base, training=replace(of.base.training, seed=7)))
    for seed in (7, 8):
        write_measured(tmp_path, of, {}, seed, 6, 0.7)
    assert list(of.training_seeds) == [7, 8] and of.run_config({}, 8).training.seed == 8
    assert score_at(of, str(tmp_path), trial_id(of, {}), 6) == pytest.approx(0.7)


def test_an_empty_folder(tmp_path: Path) -> None:
    document = sweep_document(sweep(), str(tmp_path), {})
    assert (document["trials"], document["best"]) == ([], None)
    write_results(str(tmp_path), document)
    assert pq.read_table(tmp_path / "results.parquet").num_rows == 0


def test_tables_read_back(tmp_path: Path) -> None:
    of = sweep(seeds=1)
    for temperature in (0.1, 0.2):
        point = {"objective.temperature": temperature}
        for epoch in (2, 6):
            write_measured(tmp_path, of, point, 0, epoch, 0.6 + temperature)
        begin(tmp_path, of, point)
    begin(tmp_path, of, {"objective.temperature": 7}, "failed", '=cmd, "quoted"\nand a line')
    document = sweep_document(of, str(tmp_path), {})
    write_results(str(tmp_path), document)
    assert json.loads((tmp_path / "results.json").read_text()) == document
    rows = pq.read_table(tmp_path / "results.parquet")
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    text = pyarrow.csv.read_csv(tmp_path / "results.csv", parse_options=options)
    assert text.column_names == rows.column_names and text.num_rows == 3
    by_temperature = {row["config.objective.temperature"]: row for row in rows.to_pylist()}
    assert by_temperature[0.2]["trained.phase_classification"] == pytest.approx(0.8)
    assert by_temperature[0.2]["chance.phase_classification"] == pytest.approx(0.4)
    assert by_temperature[7.0]["score.mean"] is None and by_temperature[7.0]["status"] == "failed"


def test_two_ways_to_say_a_point_are_one_trial() -> None:
    of = sweep()
    assert trial_id(of, {}) == trial_id(of, {"objective.temperature": 0.1})
    assert trial_id(of, {"objective.temperature": "0.10"}) == trial_id(of, {})
    assert trial_id(of, {"objective.temperature": 0.2}) != trial_id(of, {})
    assert trial_id(of, {"objective.variance": 2}) != trial_id(of, {})  # though the space does not vary it
    assert trial_id(of, {"objective.temperature": -1}).startswith("unfit-")
    # T decides about the batch, and the batch about the steps.
    frames = replace(SPACE, frames_per_step=512)
    assert trial_id(sweep(space=frames), {"model.num_frames": 64}) != trial_id(of, {"model.num_frames": 64})


def test_names_of_trials_outlive_new_fields_of_the_config() -> None:
    """Written down: a folder that was begun with an earlier version goes on under these names."""
    of = sweep()
    assert trial_id(of, {}) == hashlib.blake2b(b"{}", digest_size=8).hexdigest()
    said = b'{"objective.temperature": 0.2, "views.sampling": "even"}'
    point = {"views.sampling": "even", "objective.temperature": 0.2}
    assert trial_id(of, point) == hashlib.blake2b(said, digest_size=8).hexdigest()
