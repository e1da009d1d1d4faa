"""Ray Tune tries the points of a sweep: which come next, which are stopped early, several at a time.

Tune only drives. What a sweep has found lies in its folder as runs and JSON, so a call that goes on with it starts
Tune anew with what is missing; Tune's own records (SWEEP/ray/) are never read again.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal

import numpy as np
import ray
from pyarrow import fs
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from carl_ray import storage
from carl_ray.errors import InterruptedRunError, RunError, UserError, signal_of
from carl_ray.session import quiet_data
from carl_ray.sweeps.preparation import REDUCTION
from carl_ray.sweeps.progress import ProgressTable
from carl_ray.sweeps.results import (
    Status,
    begun_points,
    has_ended,
    last_score,
    read_outcome,
    score_at,
    write_outcome,
    write_point,
)
from carl_ray.sweeps.space import Point, default_point
from carl_ray.sweeps.suggestions import OptunaSuggestions, Told
from carl_ray.sweeps.trial import Sweep, measured, run_dir, run_trial, trial_id, trial_ids
from carl_ray.training.checkpoint import CHECKPOINTS

Search = Literal["random", "grid", "optuna"]

_SCORE, _EPOCH = "score", "epoch"
_DRIVER_BYTES = 2**30
"""Memory that a trial's own process reserves; its training workers and decoders reserve theirs."""
_EMBEDDING_BYTES = 3 * 2**30
"""An actor that embeds reserves at most this, which the trials' own processes must leave on its node."""


def chosen_points(sweep: Sweep, search: Search, num_trials: int | None, search_seed: int) -> dict[str, Point]:
    """The points of a grid or of a random search by their trials, the base config's own first; it alone for Optuna.

    Args:
        sweep: The sweep.
        search: How points are chosen.
        num_trials: At most so many; none: all of the grid.
        search_seed: Of the random points.

    Raises:
        UserError: the space has fewer points than a random search or Optuna is asked for.
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
    """The points that are still to be trained, by their trials: those that were begun, then of the chosen ones.

    Args:
        sweep: The sweep.
        folder: URI of its folder.
        chosen: As `chosen_points` gives them.
        total: Trials in all, those that have ended among them; what was begun is brought to its end whatever it says.
    """
    begun = begun_points(folder)
    waiting = {trial: point for trial, point in begun.items() if not has_ended(sweep, folder, trial)}
    new = [trial for trial in chosen if trial not in begun]
    return waiting | {trial: chosen[trial] for trial in new[: max(0, total - len(begun))]}


def run_sweep(
    sweep: Sweep,
    folder: str,
    chosen: Mapping[str, Point],
    *,
    search: Search,
    num_trials: int | None = None,
    search_seed: int = 0,
    max_concurrent: int,
) -> None:
    """Runs the trials that a sweep's folder has no outcome of. Ray must have been started.

    Where there are several rungs, a trial that is behind at one ends there (asynchronous successive halving). A trial
    that fails does not stop the others: its outcome says why, and the next call tries it again.

    Args:
        sweep: The sweep.
        folder: URI of its folder.
        chosen: As `chosen_points` gives them.
        search: How points are chosen.
        num_trials: Trials in all, those that are done among them; none: as many as were chosen.
        search_seed: Of the random points.
        max_concurrent: Trials at a time.

    Raises:
        UserError: the search needs a package that is not there.
        RunError: interrupted.
    """
    total = num_trials or len(chosen)
    waiting = waiting_points(sweep, folder, chosen, total)
    ended = {t: p for t, p in begun_points(folder).items() if t not in waiting}
    searcher, num_samples = None, 1
    if search == "optuna":
        searcher = OptunaSuggestions(
            sweep,
            waiting.values(),
            [(point, _told(sweep, folder, trial)) for trial, point in ended.items()],
            # The sampler starts anew with each call: another seed, lest it draws the same points again.
            seed=search_seed + len(ended),
        )
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
            metric=_SCORE,
            mode="max" if sweep.higher_is_better else "min",
            num_samples=num_samples,
            max_concurrent_trials=max_concurrent,
            search_alg=searcher,
            scheduler=Halving(sweep, folder),
            # Each trial has a process of its own from beginning to end.
            reuse_actors=False,
            trial_dirname_creator=partial(_dirname, sweep),
        ),
        run_config=tune.RunConfig(
            name=f"start-{start}",
            storage_path=path,
            storage_filesystem=None if isinstance(filesystem, fs.LocalFileSystem) else filesystem,
            # How often a trial is begun again whose process or node died.
            failure_config=tune.FailureConfig(max_failures=sweep.base.cluster.max_failures),
            callbacks=[_Outcomes(sweep, folder, start, table)],
            verbose=0,
        ),
    )
    # Its own answer to Ctrl-C takes the sweep for one that has ended like any other.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    try:
        tuner.fit()
    except KeyboardInterrupt as interruption:
        raise InterruptedRunError("interrupted; the same command goes on", signal_of(interruption)) from None
    table.show()


def driver_resources(nodes: Sequence[Mapping[str, Any]], trials: int) -> dict[str, float]:
    """What each trial's own process reserves, beside what its training does: memory, no CPU.

    On a small machine an actor that embeds may need all the memory that Ray has: then a trace of a resource that every
    cluster's head has, since Tune cannot reserve nothing.

    Args:
        nodes: As `ray.nodes()` lists them.
        trials: At a time.
    """
    most = max((node["Resources"].get("memory", 0.0) for node in nodes if node["Alive"]), default=0.0)
    spare = (most - _EMBEDDING_BYTES) // trials
    return {"memory": min(_DRIVER_BYTES, spare)} if spare > 0 else {"node:__internal_head__": 0.001}


class Halving(FIFOScheduler):
    """Asynchronous successive halving (Li et al., 2020, algorithm 2, arXiv 1810.05934) over the rungs of a sweep.

    A trial ends at a rung where it is not among the best third of those that were measured there before. These are
    read from the sweep's folder, so that calls that go on know what earlier ones knew; Tune's own scheduler begins
    with none at each call, and takes rungs for exact powers of the first.
    """

    def __init__(self, sweep: Sweep, folder: str) -> None:
        super().__init__()
        self._sweep, self._folder = sweep, folder

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on after a rung; where the store does not say, it does."""
        try:
            behind = is_behind(self._sweep, self._folder, result["trial"], result[_EPOCH])
        except RunError as error:
            print(f"trial {result['trial']} goes on unjudged: {error}", file=sys.stderr, flush=True)
            behind = False
        return TrialScheduler.STOP if behind else TrialScheduler.CONTINUE


def is_behind(sweep: Sweep, folder: str, trial: str, epoch: int) -> bool:
    """Whether a trial that was measured at a rung is to end there.

    What went on once was promoted, and is not asked again; what reaches the last rung is done.
    """
    own = score_at(sweep, folder, trial, epoch)
    if own is None or epoch == sweep.rungs[-1] or _went_on(sweep, folder, trial, epoch):
        return False
    sign = 1 if sweep.higher_is_better else -1
    others = [score_at(sweep, folder, other, epoch) for other in trial_ids(folder) if other != trial]
    known = [sign * score for score in others if score is not None]
    return bool(known) and sign * own < float(np.percentile(known, 100 * (1 - 1 / REDUCTION)))


def _went_on(sweep: Sweep, folder: str, trial: str, epoch: int) -> bool:
    """Whether one of a trial's runs has a checkpoint of a later step than the one measured at a rung."""
    for seed in sweep.training_seeds:
        run = run_dir(folder, trial, seed)
        found = measured(run, epoch)
        if found is not None:
            last = f"step-{found['origin']['step']:08d}"
            names = storage.list_folder(storage.join(run, CHECKPOINTS))
            if any(name.startswith("step-") and name > last for name in names):
                return True
    return False


def _told(sweep: Sweep, folder: str, trial: str) -> Told:
    epoch, score = last_score(sweep, folder, trial) or (0, None)
    return Told(epoch, score, read_outcome(folder, trial)["status"] == "done")


def _dirname(sweep: Sweep, trial: Any) -> str:
    return trial_id(sweep, trial.config["point"])


def _trial(config: dict[str, Any], sweep: Sweep, folder: str, start: str) -> None:
    """What Tune runs: a trial, in a process of its own."""
    quiet_data()
    point: Point = config["point"]
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
    """Writes down when trials begin and how they end, and shows the table.

    What the store does not take is said and left: a trial without an outcome is only measured again by the next call.
    """

    def __init__(self, sweep: Sweep, folder: str, start: str, table: ProgressTable) -> None:
        self._sweep, self._folder, self._start, self._table = sweep, folder, start, table

    def _write(self, trial: Any, status: Status | None, reason: str | None = None) -> None:
        """The trial's point, and how it ended where it has."""
        point = trial.config["point"]
        name = trial_id(self._sweep, point)
        try:
            write_point(self._folder, self._sweep, point)
            written = read_outcome(self._folder, name)
            # Why it failed the trial has said itself, unless its process died.
            told = status == "failed" == written["status"] and written["start"] == self._start
            if status is not None and not told:
                write_outcome(self._folder, name, status, reason, self._start)
        except RunError as error:
            print(f"trial {name} could not be written down: {error}", file=sys.stderr, flush=True)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial's point, before anything of it is trained."""
        self._write(trial, None)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Done, or stopped at a rung."""
        done = (trial.last_result or {}).get(_EPOCH) == self._sweep.rungs[-1]
        self._write(trial, "done" if done else "stopped", None if done else "behind the others at this epoch")
        self._table.show()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Failed for good."""
        self._write(trial, "failed", _last_line(trial.get_error()))
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
