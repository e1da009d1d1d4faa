"""Optuna's tree-structured Parzen estimator through Ray Tune's `OptunaSearch`, without repeated points."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ray.tune.search.optuna import OptunaSearch

from carl_ray.errors import UserError
from carl_ray.sweeps.definition import Sweep, trial_id
from carl_ray.sweeps.space import Choices, Point, Space, default_point

_MAX_DRAWS = 32
"""After so many repeated points from the sampler, a random new one is tried."""


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended, for the sampler."""

    epoch: int
    """The last rung at which it was measured; 0 where it failed."""
    score: float | None
    """The score there; none where it failed."""
    is_done: bool
    """Trained to the end; otherwise it failed or was stopped early."""


class OptunaPoints(OptunaSearch):
    """`OptunaSearch` that suggests each point once, and reports trials that were stopped early as pruned.

    Suggestions are `{"point": …}`.

    Args:
        sweep: The sweep.
        first: Points that are suggested before the sampler's own.
        ended: Points of earlier calls that have ended.
        seed: Of the sampler and of the random points.

    Raises:
        UserError: Optuna is not installed.
    """

    def __init__(
        self, sweep: Sweep, first: Iterable[Point], ended: Iterable[tuple[Point, TrialEnd]], seed: int
    ) -> None:
        try:
            import optuna
        except ImportError:
            raise UserError(
                "--search optuna needs Optuna, which is not installed: pip install 'carl_ray[optuna]'"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sweep, self._point_seed = sweep, seed
        super().__init__(
            space=_distributions(sweep.space),
            metric=sweep.metric,
            mode=sweep.mode,
            points_to_evaluate=[self._all_values(point) for point in first],
            seed=seed,
        )
        self._taken: set[str] = set()
        """`trial_id` of all points suggested so far, in this call or earlier."""
        for point, end in ended:
            self._taken.add(self._name(point))
            self._ot_study.add_trial(self._past_trial(point, end))

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """A point that no trial has had yet."""
        for _ in range(_MAX_DRAWS):
            point = super().suggest(trial_id)
            if self._name(point) not in self._taken:
                break
            self._ot_study.tell(self._ot_trials.pop(trial_id), state=_state("FAIL"))
        else:
            default = default_point(self._sweep.space, self._sweep.base)
            points = chain([default], self._sweep.space.draws(self._point_seed, default))
            new = next(point for point in points if self._name(point) not in self._taken)
            self._ot_study.enqueue_trial(self._all_values(new))
            point = super().suggest(trial_id)
        self._taken.add(self._name(point))
        return {"point": point}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report a score at its epoch: Tune's iterations restart with each call."""
        super().on_trial_result(trial_id, {**result, "training_iteration": result["epoch"]})

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Report the end of a trial: complete only at the last rung, otherwise pruned or failed."""
        failed = error or not result or self._sweep.metric not in result
        is_done = False
        if result and not failed:
            self.on_trial_result(trial_id, result)
            is_done = result["epoch"] == self._sweep.rungs[-1]
        super().on_trial_complete(trial_id, result if is_done else None, failed)

    def _past_trial(self, point: Point, end: TrialEnd) -> Any:
        from optuna.trial import create_trial

        return create_trial(
            state=_state("FAIL" if end.score is None else "COMPLETE" if end.is_done else "PRUNED"),
            params=self._all_values(point),
            distributions=self._space,
            value=end.score if end.is_done else None,
            intermediate_values={} if end.score is None else {end.epoch: end.score},
        )

    def _name(self, point: Point) -> str:
        return trial_id(self._sweep, point)

    def _all_values(self, point: Point) -> dict[str, Any]:
        return {**default_point(self._sweep.space, self._sweep.base), **point}


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]


def _distributions(space: Space) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    return {
        name: CategoricalDistribution(parameter.grid)
        if isinstance(parameter, Choices)
        else FloatDistribution(parameter.low, parameter.high, log=True)
        for name, parameter in space.parameters.items()
    }
