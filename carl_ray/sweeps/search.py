"""Ray Tune tries the points of a sweep: which come next, which are stopped early, several at a time.

Tune only drives. What a sweep has found lies in its folder as runs and JSON, so a call that goes on with it starts
Tune anew with what is missing; Tune's own records (SWEEP/ray/) are never read again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Any, Literal

from pyarrow import fs
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from carl_ray import storage
from carl_ray.errors import RunError, UserError
from carl_ray.session import quiet_data
from carl_ray.sweeps.preparation import REDUCTION
from carl_ray.sweeps.progress import ProgressTable
from carl_ray.sweeps.results import read_outcome, read_point, write_outcome, write_point
from carl_ray.sweeps.space import Choices, Point, default_point
from carl_ray.sweeps.trial import Sweep, measured, run_dir, run_trial, trial_id, trial_ids

Search = Literal["random", "grid", "optuna"]

_SCORE, _EPOCH = "score", "epoch"
_MAX_RETRIES = 3
"""How often Tune begins a trial again whose process or node died."""
_DRIVER_BYTES = 2**30
"""Memory that a trial's own process reserves; its training workers and decoders reserve theirs."""


def chosen_points(sweep: Sweep, search: Search, num_trials: int | None, search_seed: int) -> list[Point]:
    """The points of a grid or of a random search, the base config's own first; the first one alone for Optuna.

    Raises:
        UserError: the space has fewer points than trials are asked for.
    """
    if search == "grid":
        return sweep.space.grid()[:num_trials]
    points = [default_point(sweep.space, sweep.base)]
    if search == "random":
        points += islice(
            sweep.space.draws(search_seed, points[0]), (num_trials or len(sweep.space.grid())) - 1
        )
    return points


def run_sweep(
    sweep: Sweep,
    folder: str,
    *,
    search: Search,
    num_trials: int | None,
    search_seed: int,
    max_concurrent: int,
) -> None:
    """Runs the trials that a sweep's folder has no outcome of. Ray must have been started.

    Where there are several rungs, a trial that is behind at one ends there (asynchronous successive halving). A trial
    that fails does not stop the others: its outcome says why, and the next call tries it again.

    Args:
        sweep: The sweep.
        folder: URI of its folder.
        search: How points are chosen.
        num_trials: Trials in all, those that are done among them; none: as many as the grid has.
        search_seed: Of the random points.
        max_concurrent: Trials at a time.

    Raises:
        UserError: the search needs a package that is not there, or more points than the space has.
        RunError: interrupted.
    """
    points = chosen_points(sweep, search, num_trials, search_seed)
    total = num_trials or len(sweep.space.grid())
    ended = {
        trial for trial in trial_ids(folder) if read_outcome(folder, trial)["status"] in ("done", "stopped")
    }
    start = str(time.time_ns())
    shared: dict[str, Any] = {"sweep": sweep, "folder": folder, "start": start}
    if search == "optuna":
        space = {name: _domain(parameter) for name, parameter in sweep.space.parameters.items()}
        algorithm = _optuna(sweep, folder, space, ended, search_seed)
        trainable, num_samples = partial(_trial_of_values, **shared), total - len(ended)
    else:
        points = [point for point in points if trial_id(sweep, point) not in ended]
        space = {"place": tune.grid_search(list(range(len(points))))}
        algorithm, trainable, num_samples = None, partial(_trial_of_place, points=points, **shared), 1
        total = len(points) + len(ended)
        if not points:
            return
    if num_samples < 1:
        return
    table = ProgressTable(sweep, folder, total)
    filesystem, path = storage.resolve(storage.join(folder, "ray"))
    mode = "max" if sweep.higher_is_better else "min"
    tuner = tune.Tuner(
        # A process of its own for each trial, beside what its training reserves.
        tune.with_resources(trainable, tune.PlacementGroupFactory([{"CPU": 0, "memory": _DRIVER_BYTES}])),
        param_space=None if search == "optuna" else space,
        tune_config=tune.TuneConfig(
            metric=_SCORE,
            mode=mode,
            num_samples=num_samples,
            max_concurrent_trials=max_concurrent,
            search_alg=algorithm,
            scheduler=_scheduler(sweep) if len(sweep.rungs) > 1 else None,
            # Each trial has a process of its own from beginning to end.
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(
            name=f"start-{start}",
            storage_path=path,
            storage_filesystem=None if isinstance(filesystem, fs.LocalFileSystem) else filesystem,
            failure_config=tune.FailureConfig(max_failures=_MAX_RETRIES),
            callbacks=[_Outcomes(sweep, folder, start, points if search != "optuna" else None, table)],
            verbose=0,
        ),
    )
    # Its own answer to Ctrl-C takes the sweep for one that has ended like any other.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    try:
        tuner.fit()
    except KeyboardInterrupt:
        raise RunError("interrupted; the same command goes on") from None
    table.show()


def _scheduler(sweep: Sweep) -> ASHAScheduler:
    return ASHAScheduler(
        time_attr=_EPOCH,
        max_t=sweep.rungs[-1],
        grace_period=sweep.rungs[0],
        reduction_factor=REDUCTION,
        # The last rung is the end: what reaches it is done, not stopped.
        stop_last_trials=False,
    )


def _trial_of_place(config: dict[str, Any], *, points: Sequence[Point], **shared: Any) -> None:
    _trial(points[config["place"]], **shared)


def _trial_of_values(config: dict[str, Any], **shared: Any) -> None:
    _trial(config, **shared)


def _trial(point: Point, sweep: Sweep, folder: str, start: str) -> None:
    """What Tune runs: a trial, in a process of its own."""
    quiet_data()
    trial = trial_id(sweep, point)
    outcome = read_outcome(folder, trial)
    if outcome["status"] == "failed" and outcome["start"] == start:
        # Tune repeats whatever raised; what failed for a reason of its own would fail again.
        raise RunError(outcome["reason"])
    try:
        run_trial(
            sweep,
            folder,
            point,
            lambda epoch, score: tune.report({_EPOCH: epoch, _SCORE: score, "trial": trial}),
        )
    except (UserError, RunError) as error:
        write_outcome(folder, trial, "failed", str(error), start)
        raise


class _Outcomes(tune.Callback):
    """Writes down when trials begin and how they end, and shows the table."""

    def __init__(
        self, sweep: Sweep, folder: str, start: str, points: Sequence[Point] | None, table: ProgressTable
    ) -> None:
        self._sweep, self._folder, self._start = sweep, folder, start
        self._points, self._table = points, table

    def _point(self, trial: Any) -> Point:
        return trial.config if self._points is None else self._points[trial.config["place"]]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial's point, before anything of it is trained."""
        write_point(self._folder, self._sweep, self._point(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Done, or stopped at a rung."""
        done = (trial.last_result or {}).get(_EPOCH) == self._sweep.rungs[-1]
        name = trial_id(self._sweep, self._point(trial))
        reason = None if done else "behind the others at this epoch"
        write_outcome(self._folder, name, "done" if done else "stopped", reason, self._start)
        self._table.show()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Failed for good; the trial wrote down why, unless its process died."""
        name = trial_id(self._sweep, self._point(trial))
        outcome = read_outcome(self._folder, name)
        if outcome["status"] != "failed" or outcome["start"] != self._start:
            write_outcome(self._folder, name, "failed", _last_line(trial.get_error()), self._start)
        self._table.show()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A rung was reached."""
        self._table.show()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Time passes."""
        self._table.tick()


def _last_line(error: Exception | None) -> str:
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    return lines[-1] if lines else "the trial's process died"


def _domain(parameter: Any) -> Any:
    if isinstance(parameter, Choices):
        return tune.choice(list(parameter.grid))
    return tune.loguniform(parameter.low, parameter.high)


def _optuna(sweep: Sweep, folder: str, space: dict[str, Any], ended: set[str], seed: int) -> Any:
    """Optuna's tree-structured Parzen estimator, told of the trials that are done; begun ones come first."""
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch
    except ImportError:
        raise UserError(
            "--search optuna needs Optuna, which is not installed: pip install 'carl_ray[optuna]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    begun = [
        (trial, point) for trial in trial_ids(folder) if (point := read_point(folder, trial)) is not None
    ]
    first = [point for trial, point in begun if trial not in ended]
    if not begun:
        first = [dict(default_point(sweep.space, sweep.base))]
    algorithm = OptunaSearch(
        OptunaSearch.convert_search_space(space),
        metric=_SCORE,
        mode="max" if sweep.higher_is_better else "min",
        points_to_evaluate=first or None,
        # The sampler starts anew with each call: another seed, lest it draws the same points again.
        seed=seed + len(begun),
    )
    for trial, point in begun:
        scores = [measured(run_dir(folder, trial, seed), sweep.rungs[-1]) for seed in range(sweep.seeds)]
        values = [found["trained"][sweep.metric]["value"] for found in scores if found is not None]
        if trial in ended and len(values) == sweep.seeds:
            algorithm.add_evaluated_point(point, sum(values) / len(values))
    return algorithm
