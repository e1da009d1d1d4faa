"""Run the trials of a sweep with Ray Tune: which points come next, and what is recorded.

The state of a sweep is the records and runs in its folder. A further call starts a new Tune experiment (SWEEP/ray/)
with the trials that are missing; docs/design.md says why this is not `Tuner.restore`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import partial
from itertools import chain
from typing import Any, Literal

import ray
from ray import tune
from ray.tune.execution import class_cache
from ray.tune.search import Searcher

from carl_ray import storage
from carl_ray.errors import InterruptedRunError, RunError, UserError, last_line, note, signal_of
from carl_ray.session import quiet_data, records_storage
from carl_ray.sweeps.cluster_share import driver_resources
from carl_ray.sweeps.definition import Sweep, trial_id
from carl_ray.sweeps.space import Point, default_point
from carl_ray.sweeps.trials import begun_points, last_score, read_outcome, run_trial, write_outcome

Search = Literal["random", "grid", "optuna"]

_EPOCH = "epoch"
"""Of a reported result."""


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
    ended = [trial for trial in begun if read_outcome(sweep, folder, trial)[0] in ("done", "stopped")]
    waiting = {trial: point for trial, point in begun.items() if trial not in ended}
    new = [trial for trial in chosen if trial not in begun]
    return waiting | {trial: chosen[trial] for trial in new[: max(0, total - len(begun))]}


def run_trials(
    sweep: Sweep,
    folder: str,
    chosen: Mapping[str, Point],
    num_trials: int,
    *,
    max_concurrent: int,
    optuna_seed: int | None = None,
) -> None:
    """Run the trials that have no outcome in the sweep's folder. Requires an initialised Ray.

    A trial that fails does not stop the others: its outcome gives the reason, and the next call repeats it.

    Args:
        sweep: The sweep.
        folder: URI of its folder.
        chosen: Result of `chosen_points`.
        num_trials: Trials in total, including finished ones.
        max_concurrent: Trials at a time.
        optuna_seed: Have Optuna choose the points after the chosen ones, with this seed.

    Raises:
        UserError: the search needs a package that is not installed.
        RunError: interrupted.
    """
    waiting = waiting_points(sweep, folder, chosen, num_trials)
    ended = {t: p for t, p in begun_points(folder).items() if t not in waiting}
    searcher, num_samples = None, 1
    if optuna_seed is not None:
        searcher = _optuna_points(sweep, folder, waiting, ended, optuna_seed)
        num_samples = max(len(waiting), num_trials - len(ended))
    if not (waiting if searcher is None else num_samples):
        return
    total = max(num_trials, len(ended) + len(waiting))
    tuner = tune.Tuner(
        tune.with_resources(
            partial(_trial, sweep=sweep, folder=folder),
            tune.PlacementGroupFactory([driver_resources(ray.nodes(), max_concurrent)]),
        ),
        param_space=None if searcher else {"point": tune.grid_search([dict(p) for p in waiting.values()])},
        tune_config=tune.TuneConfig(
            num_samples=num_samples,
            max_concurrent_trials=max_concurrent,
            search_alg=searcher,
            # Each trial has its own process.
            reuse_actors=False,
            trial_dirname_creator=lambda trial: trial_id(sweep, trial.config["point"]),
        ),
        run_config=tune.RunConfig(
            name=f"start-{time.time_ns()}",
            **records_storage(storage.join(folder, "ray")),
            # Retries of a trial whose process or node died.
            failure_config=tune.FailureConfig(max_failures=sweep.base.cluster.max_failures),
            callbacks=[TrialRecords(sweep, folder, len(ended), total)],
            verbose=0,
        ),
    )
    _keep_credentials()
    # Tune's own SIGINT handler would let an interrupted sweep look complete.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    # Its tables come from an output that knows no silence; the other one keeps to `verbose`.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    try:
        tuner.fit()
    except KeyboardInterrupt as interruption:
        raise InterruptedRunError("interrupted; the same command goes on", signal_of(interruption)) from None


def _keep_credentials() -> None:
    """Have Tune not hand the credentials of this process to trials: Ray logs the environment of a trial as plain text.

    Nodes have credentials of their own, as for all else that runs on them.
    """
    # Private (Ray 2.60); there is no option.
    handed = getattr(class_cache, "ENV_VARS_TO_PROPAGATE", None)
    if isinstance(handed, set):
        handed.difference_update([name for name in handed if name.startswith("AWS_")])
    elif "AWS_SECRET_ACCESS_KEY" in os.environ:
        note(
            f"warning: Ray {ray.__version__} is not as this version of carl_ray knows it: Ray Tune may write the AWS "
            "credentials of this process to Ray's logs; unset them where the nodes have their own"
        )


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


def _trial(config: dict[str, Any], sweep: Sweep, folder: str) -> None:
    """The function that Tune runs in a process of its own; after an expected failure it returns.

    Tune retries exceptions, but such a failure would repeat.
    """
    quiet_data()
    point: Point = config["point"]
    trial = trial_id(sweep, point)

    def report(epoch: int, score: float) -> None:
        tune.report({_EPOCH: epoch, sweep.metric: score, "trial": trial})

    try:
        run_trial(sweep, folder, point, report)
    except (UserError, RunError) as error:
        write_outcome(folder, trial, "failed", str(error))


class TrialRecords(tune.Callback):
    """Print a line at each rung and at each end of a trial; record the failure of trials whose process died.

    If the storage fails, this only prints a line: the next call repeats a trial without an outcome.

    Args:
        sweep: The sweep.
        folder: URI of its folder.
        num_ended: Trials that earlier calls have ended.
        num_trials: Trials in total.
    """

    def __init__(self, sweep: Sweep, folder: str, num_ended: int, num_trials: int) -> None:
        self._sweep, self._folder = sweep, folder
        self._num_ended, self._num_trials = num_ended, num_trials

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Print the score at a rung."""
        metric = self._sweep.metric
        if _EPOCH in result:
            self._print(trial, f"{metric} {result[metric]:.4f} at epoch {result[_EPOCH]}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print how the trial ended."""
        self._end(trial, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a failure after all retries."""
        self._end(trial, last_line(trial.get_error() or "the trial's process died"))

    def _end(self, trial: Any, failure: str | None) -> None:
        name = trial_id(self._sweep, trial.config["point"])
        self._num_ended += 1
        try:
            if failure is not None:
                write_outcome(self._folder, name, "failed", failure)
            outcome = ": ".join(filter(None, read_outcome(self._sweep, self._folder, name)))
            self._print(trial, f"{outcome}; {self._num_ended} of {self._num_trials} trials ended")
        except RunError as error:
            note(f"trial {name} could not be recorded: {error}")

    def _print(self, trial: Any, text: str) -> None:
        point = trial.config["point"]
        values = ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in point.items())
        print(f"trial {trial_id(self._sweep, point)[:8]} ({values}): {text}", flush=True)
