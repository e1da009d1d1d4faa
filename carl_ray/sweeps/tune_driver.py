"""Run the trials of a sweep with Ray Tune: which points come next, and which trials are stopped early.

The state of a sweep is the records and runs in its folder. A further call starts a new Tune experiment (SWEEP/ray/)
with the trials that are missing; docs/design.md says why this is not `Tuner.restore`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Container, Mapping
from functools import partial
from itertools import chain
from types import SimpleNamespace
from typing import Any, Literal

import ray
from pyarrow import fs
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from carl_ray import storage
from carl_ray.errors import InterruptedRunError, RunError, UserError, signal_of
from carl_ray.session import quiet_data
from carl_ray.sweeps.cluster_share import driver_resources
from carl_ray.sweeps.definition import REDUCTION, Sweep, trial_id
from carl_ray.sweeps.progress_table import ProgressTable
from carl_ray.sweeps.space import Point, default_point
from carl_ray.sweeps.trial import run_trial
from carl_ray.sweeps.trial_records import (
    Status,
    begun_points,
    has_ended,
    last_score,
    read_outcome,
    score_at,
    was_promoted,
    write_outcome,
    write_point,
)

Search = Literal["random", "grid", "optuna"]

_EPOCH, _RUNG = "epoch", "rung"
"""Of a reported result; the rung is a power of `REDUCTION`, as `ASHAScheduler` expects, where epochs are rounded."""


def chosen_points(sweep: Sweep, search: Search, num_trials: int | None, search_seed: int) -> dict[str, Point]:
    """The points of a grid or random search by trial, the base config's first; only the latter for Optuna.

    Args:
        sweep: The sweep.
        search: How points are chosen.
        num_trials: At most so many; none: the whole grid.
        search_seed: Of the random points.

    Raises:
        UserError: the space has fewer points than trials.
    """
    base, space = default_point(sweep.space, sweep.base), sweep.space
    if num_trials is None:
        num_trials = len({trial_id(sweep, point) for point in [base, *space.grid()]})
    if search != "grid" and space.num_points is not None and num_trials > space.num_points:
        raise UserError(
            f"space {space.name} has no more than {space.num_points} points, {num_trials} trials were asked for; lower "
            "--num-trials, or use --search grid"
        )
    further = {"grid": space.grid(), "random": space.draws(search_seed, base), "optuna": []}[search]
    chosen: dict[str, Point] = {}
    for point in chain([base], further):
        chosen.setdefault(trial_id(sweep, point), point)
        if len(chosen) == num_trials:
            break
    return chosen


def waiting_points(sweep: Sweep, folder: str, chosen: Mapping[str, Point], total: int) -> dict[str, Point]:
    """The points still to be trained, by trial: first those begun, then of the chosen ones up to `total` trials."""
    begun = begun_points(folder)
    waiting = {trial: point for trial, point in begun.items() if not has_ended(sweep, folder, trial)}
    new = [trial for trial in chosen if trial not in begun]
    return waiting | {trial: chosen[trial] for trial in new[: max(0, total - len(begun))]}


def run_trials(
    sweep: Sweep,
    folder: str,
    chosen: Mapping[str, Point],
    *,
    search: Search,
    num_trials: int | None = None,
    search_seed: int = 0,
    max_concurrent: int,
) -> None:
    """Run the trials that have no outcome in the sweep's folder. Requires an initialised Ray.

    With several rungs, a trial that is behind at one is stopped (asynchronous successive halving). A trial that fails
    does not stop the others: its outcome gives the reason, and the next call repeats it.

    Args:
        sweep: The sweep.
        folder: URI of its folder.
        chosen: Result of `chosen_points`.
        search: How points are chosen.
        num_trials: Trials in total, including finished ones; none: the number of chosen points.
        search_seed: Of the random points.
        max_concurrent: Trials at a time.

    Raises:
        UserError: the search needs a package that is not installed.
        RunError: interrupted.
    """
    total = num_trials or len(chosen)
    waiting = waiting_points(sweep, folder, chosen, total)
    ended = {t: p for t, p in begun_points(folder).items() if t not in waiting}
    searcher, num_samples = None, 1
    if search == "optuna":
        searcher = _optuna_points(sweep, folder, waiting, ended, search_seed)
        num_samples = max(len(waiting), total - len(ended))
    if not (waiting if searcher is None else num_samples):
        return
    start = str(time.time_ns())
    table = ProgressTable(sweep, folder, max(total, len(ended) + len(waiting)))
    filesystem, path = storage.resolve(storage.join(folder, "ray"))
    tuner = tune.Tuner(
        tune.with_resources(
            partial(_trial, sweep=sweep, folder=folder, start=start),
            tune.PlacementGroupFactory([driver_resources(ray.nodes(), max_concurrent)]),
        ),
        param_space=None if searcher else {"point": tune.grid_search([dict(p) for p in waiting.values()])},
        tune_config=tune.TuneConfig(
            num_samples=num_samples,
            max_concurrent_trials=max_concurrent,
            search_alg=searcher,
            scheduler=asha_scheduler(sweep, folder, waiting),
            # Each trial has its own process.
            reuse_actors=False,
            trial_dirname_creator=lambda trial: trial_id(sweep, trial.config["point"]),
        ),
        run_config=tune.RunConfig(
            name=f"start-{start}",
            storage_path=path,
            storage_filesystem=None if isinstance(filesystem, fs.LocalFileSystem) else filesystem,
            # Retries of a trial whose process or node died.
            failure_config=tune.FailureConfig(max_failures=sweep.base.cluster.max_failures),
            callbacks=[_Records(sweep, folder, start), table],
            verbose=0,
        ),
    )
    # Tune's own SIGINT handler would let an interrupted sweep look complete.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    try:
        tuner.fit()
    except KeyboardInterrupt as interruption:
        raise InterruptedRunError("interrupted; the same command goes on", signal_of(interruption)) from None
    table.show()


def _optuna_points(
    sweep: Sweep, folder: str, waiting: Mapping[str, Point], ended: Mapping[str, Point], seed: int
) -> Searcher:
    """Optuna's searcher, which begins with the waiting points and knows the scores of the ended ones."""
    try:
        from carl_ray.sweeps.optuna_points import OptunaPoints
    except ImportError:
        raise UserError(
            "--search optuna needs Optuna, which is not installed: pip install 'carl_ray[optuna]'"
        ) from None
    ends = ((point, last_score(sweep, folder, trial)) for trial, point in ended.items())
    known = [(point, last) for point, last in ends if last is not None]
    # Each call has a new sampler: another seed, so that it does not draw the same points again.
    return OptunaPoints(sweep, waiting.values(), known, seed=seed + len(ended))


def asha_scheduler(sweep: Sweep, folder: str, waiting: Container[str]) -> ASHAScheduler:
    """Asynchronous successive halving over the sweep's rungs, with the scores of earlier calls.

    Args:
        sweep: The sweep.
        folder: URI of its folder.
        waiting: Trials that this call runs. A rung beyond which they were trained counts as reported.
    """
    scheduler = ASHAScheduler(
        time_attr=_RUNG,
        metric=sweep.metric,
        mode=sweep.mode,
        grace_period=1,
        max_t=REDUCTION ** (len(sweep.rungs) - 1),
        reduction_factor=REDUCTION,
    )
    no_controller: Any = None
    for trial in begun_points(folder):
        earlier: Any = SimpleNamespace(trial_id=f"earlier-{trial}")
        scheduler.on_trial_add(no_controller, earlier)
        for epoch in sweep.rungs[:-1]:
            score = score_at(sweep, folder, trial, epoch)
            if score is not None and (trial not in waiting or was_promoted(sweep, folder, trial, epoch)):
                scheduler.on_trial_result(no_controller, earlier, rung_result(sweep, trial, epoch, score))
    return scheduler


def rung_result(sweep: Sweep, trial: str, epoch: int, score: float) -> dict[str, Any]:
    """What a trial reports to Tune at a rung."""
    return {
        _EPOCH: epoch,
        _RUNG: REDUCTION ** sweep.rungs.index(epoch),
        sweep.metric: score,
        "trial": trial,
    }


def _trial(config: dict[str, Any], sweep: Sweep, folder: str, start: str) -> None:
    """The function that Tune runs in a process of its own."""
    quiet_data()
    point: Point = config["point"]
    trial = trial_id(sweep, point)
    outcome = read_outcome(folder, trial)
    if outcome["status"] == "failed" and outcome["start"] == start:
        # Tune retries any exception, but this failure would repeat.
        raise RunError(outcome["reason"])
    try:
        run_trial(
            sweep,
            folder,
            point,
            lambda epoch, score: tune.report(rung_result(sweep, trial, epoch, score)),
        )
    except (UserError, RunError) as error:
        write_outcome(folder, trial, "failed", str(error), start)
        raise


class _Records(tune.Callback):
    """Write the records of trials as they begin and end.

    If the storage fails, this only prints a line: the next call repeats the measurement of a trial without an outcome.
    """

    def __init__(self, sweep: Sweep, folder: str, start: str) -> None:
        self._sweep, self._folder, self._start = sweep, folder, start

    def _write(self, trial: Any, status: Status | None, reason: str | None = None) -> None:
        """Write the trial's point, and its outcome if it has ended."""
        point = trial.config["point"]
        name = trial_id(self._sweep, point)
        try:
            write_point(self._folder, self._sweep, point)
            written = read_outcome(self._folder, name)
            # The trial itself has written why it failed, unless its process died.
            known = status == "failed" == written["status"] and written["start"] == self._start
            if status is not None and not known:
                write_outcome(self._folder, name, status, reason, self._start)
        except RunError as error:
            print(f"trial {name} could not be recorded: {error}", file=sys.stderr, flush=True)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record the point before anything is trained."""
        self._write(trial, None)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record that the trial is done, or was stopped at a rung."""
        done = (trial.last_result or {}).get(_EPOCH) == self._sweep.rungs[-1]
        self._write(trial, "done" if done else "stopped", None if done else "behind the others at this epoch")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a failure after all retries."""
        lines = [line.strip() for line in str(trial.get_error() or "").splitlines() if line.strip()]
        self._write(trial, "failed", lines[-1] if lines else "the trial's process died")
