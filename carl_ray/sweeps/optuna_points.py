"""Optuna's tree-structured Parzen estimator through Ray Tune's `OptunaSearch`, without repeated points."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from carl_ray.sweeps.definition import Sweep, trial_id
from carl_ray.sweeps.space import Choices, Point, default_point

_MAX_DRAWS = 32
"""After so many repeated points from the sampler, a random new one is tried."""


class OptunaPoints(OptunaSearch):
    """`OptunaSearch` that suggests each point once, and reports trials that were stopped early as pruned.

    Suggestions are `{"point": …}`.

    Args:
        sweep: The sweep.
        first: Points that are suggested before the sampler's own.
        ended: Points of trials that earlier calls have ended, each with the epoch of its last rung and the score there.
        seed: Of the sampler and of the random points.
    """

    _ot_study: Any
    _space: Any

    def __init__(
        self,
        sweep: Sweep,
        first: Iterable[Point],
        ended: Iterable[tuple[Point, tuple[int, float]]],
        seed: int,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sweep, self._point_seed = sweep, seed
        super().__init__(
            space={
                name: CategoricalDistribution(parameter.grid)
                if isinstance(parameter, Choices)
                else FloatDistribution(parameter.low, parameter.high, log=True)
                for name, parameter in sweep.space.parameters.items()
            },
            metric=sweep.metric,
            mode=sweep.mode,
            points_to_evaluate=[self._all_values(point) for point in first],
            seed=seed,
        )
        self._taken: set[str] = set()
        """`trial_id` of all points suggested so far, in this call or earlier."""
        for point, (epoch, score) in ended:
            self._taken.add(self._name(point))
            is_done = epoch == sweep.rungs[-1]
            self._ot_study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.COMPLETE if is_done else TrialState.PRUNED,
                    params=self._all_values(point),
                    distributions=self._space,
                    value=score if is_done else None,
                    intermediate_values={epoch: score},
                )
            )

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """A point that no trial has had yet."""
        for _ in range(_MAX_DRAWS):
            point: Any = super().suggest(trial_id)
            if self._name(point) not in self._taken:
                break
            self._ot_study.tell(self._ot_trials.pop(trial_id), state=TrialState.FAIL)
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
        if error or not result or self._sweep.metric not in result:
            super().on_trial_complete(trial_id, None, error=True)
        elif result["epoch"] == self._sweep.rungs[-1]:
            super().on_trial_complete(trial_id, result)
        else:
            self.on_trial_result(trial_id, result)
            super().on_trial_complete(trial_id, None)

    def _name(self, point: Point) -> str:
        return trial_id(self._sweep, point)

    def _all_values(self, point: Point) -> dict[str, Any]:
        return {**default_point(self._sweep.space, self._sweep.base), **point}
