"""Optuna's tree-structured Parzen estimator as a searcher of Ray Tune: no point is tried twice.

Ray's own searcher for Optuna passes on what the sampler draws, which in a small space is often a point that is done or
still running, and tells it a trial that was stopped early as one that ended with that score.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ray.tune.search import Searcher

from carl_ray.errors import UserError
from carl_ray.sweeps.space import Choices, Point, Space, default_point
from carl_ray.sweeps.trial import Sweep, trial_id

_MAX_DRAWS = 32
"""So often the sampler may draw a point that is taken; after that a random one is tried."""


@dataclass(frozen=True)
class Told:
    """What became of a trial, as the sampler is told."""

    epoch: int
    """The last at which it was measured; 0 where it failed."""
    score: float | None
    """There; none where it failed."""
    is_done: bool
    """It was trained to the end; otherwise it was stopped early."""


class OptunaSuggestions(Searcher):
    """Points for Tune's trials, as `{"point": …}`, and what came of them.

    Args:
        sweep: The sweep.
        first: Points that are suggested before the sampler's own.
        ended: Points that have an end, from earlier calls.
        seed: Of the sampler and of the random points.

    Raises:
        UserError: Optuna is not installed.
    """

    def __init__(
        self, sweep: Sweep, first: Iterable[Point], ended: Iterable[tuple[Point, Told]], seed: int
    ) -> None:
        super().__init__()
        try:
            import optuna
        except ImportError:
            raise UserError(
                "--search optuna needs Optuna, which is not installed: pip install 'carl_ray[optuna]'"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sweep, self._seed = sweep, seed
        self._study = optuna.create_study(
            direction="maximize" if sweep.higher_is_better else "minimize",
            sampler=optuna.samplers.TPESampler(seed=seed),
        )
        self._distributions = _distributions(sweep.space)
        self._told: dict[str, Told | None] = {}
        """By `trial_id`; none while the trial runs."""
        self._running: dict[str, tuple[Any, str]] = {}
        """Optuna's trial and `trial_id`, by Tune's."""
        for point, told in ended:
            self._told[trial_id(sweep, point)] = told
            self._study.add_trial(self._past(point, told))
        for point in first:
            self._study.enqueue_trial(self._whole(point))

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """A point that no trial has had yet."""
        for _ in range(_MAX_DRAWS):
            trial = self._study.ask(self._distributions)
            name = self._name(trial.params)
            if name not in self._told:
                break
            self._tell(trial, self._told[name])
        else:
            default = default_point(self._sweep.space, self._sweep.base)
            points = chain([default], self._sweep.space.draws(self._seed, default))
            point = next(point for point in points if self._name(point) not in self._told)
            self._study.enqueue_trial(self._whole(point))
            trial = self._study.ask(self._distributions)
            name = self._name(trial.params)
        self._told[name] = None
        self._running[trial_id] = (trial, name)
        return {"point": trial.params}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the sampler is told at the end."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tells the sampler how a trial ended."""
        trial, name = self._running.pop(trial_id)
        failed = error or not result or "score" not in result
        told = Told(0, None, False)
        if not failed:
            assert result is not None
            told = Told(result["epoch"], result["score"], result["epoch"] == self._sweep.rungs[-1])
        self._told[name] = told
        self._tell(trial, told)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's folder has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """Takes what Tune says: the sweep has said it already."""
        return True

    def _name(self, point: Point) -> str:
        return trial_id(self._sweep, point)

    def _whole(self, point: Point) -> dict[str, Any]:
        """All values of a point: a random one may come from a list of those that differ."""
        return {**default_point(self._sweep.space, self._sweep.base), **point}

    def _tell(self, trial: Any, told: Told | None) -> None:
        from optuna.trial import TrialState

        if told is None or told.score is None:
            self._study.tell(trial, state=TrialState.FAIL)
        elif told.is_done:
            self._study.tell(trial, told.score)
        else:
            trial.report(told.score, told.epoch)
            self._study.tell(trial, state=TrialState.PRUNED)

    def _past(self, point: Point, told: Told) -> Any:
        from optuna.trial import TrialState, create_trial

        state = (
            TrialState.FAIL
            if told.score is None
            else TrialState.COMPLETE
            if told.is_done
            else TrialState.PRUNED
        )
        return create_trial(
            state=state,
            params=self._whole(point),
            distributions=self._distributions,
            value=told.score if told.is_done else None,
            intermediate_values={} if told.score is None else {told.epoch: told.score},
        )


def _distributions(space: Space) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    return {
        name: CategoricalDistribution(parameter.grid)
        if isinstance(parameter, Choices)
        else FloatDistribution(parameter.low, parameter.high, log=True)
        for name, parameter in space.parameters.items()
    }
