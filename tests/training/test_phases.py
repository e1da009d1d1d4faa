"""An objective with two phases: a critic guesses times from embeddings, the encoder hides them from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from carl_ray.objectives.base import Objective, ObjectiveOptions, Phase, Terms, crops, options
from carl_ray.objectives.choice import objective_options
from carl_ray.objectives.gather import gather_rows
from carl_ray.training.checkpoint import Progress, open_checkpoint, restore, save_checkpoint
from carl_ray.training.step import TrainingStep
from tests.samples import run_workers
from tests.training import test_step
from tests.training.test_step import NUM_VIDEOS, float64_step, same_state, worker_batch

NUM_STEPS = 6


class Adversary(Objective):
    """Embeddings of all workers' frames near each other, and unlike any time."""

    @options
    class Options(ObjectiveOptions):
        name: Literal["tests.training.test_phases:Adversary"] = "tests.training.test_phases:Adversary"
        weight: float = 0.1

    def __init__(self, options: Any, width: int, batch_norm: Any) -> None:
        super().__init__(options, width, batch_norm)
        self.critic = nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, 1))

    def phases(self, encoder: nn.Module, adam: Any) -> tuple[Phase, ...]:
        critic = torch.optim.SGD(self.critic.parameters(), lr=1e-2, momentum=0.9)
        encoder_phase = Phase("encoder", adam([p for p in encoder.parameters() if p.requires_grad]))
        return Phase("critic", critic, trains_encoder=False), encoder_phase

    def phase_terms(self, phase: str, encodings: Any, batch: Any, progress: float) -> Terms:
        encoding, view = crops(encodings, batch)
        frames, mask = encoding.frames, encoding.mask
        errors = (self.critic(frames)[..., 0] - view.timestamps.to(frames.dtype) / 40).square()
        sums = errors.where(mask, 0).sum()
        if phase == "encoder":
            everyone, real = gather_rows(frames.flatten(0, 2), mask.flatten())
            mean = everyone.where(real[:, None], 0).sum(0) / real.sum()
            spread = (frames - mean).square().sum(-1).where(mask, 0).sum()
            sums = spread - self.options.weight * sums
        return Terms(sums[None], mask.sum()[None])


def config() -> Any:
    name = "tests.training.test_phases:Adversary"
    return replace(test_step.with_model(batch_norm="frozen"), objective=objective_options(name))


def run(rank: int, num_workers: int) -> dict[str, Any]:
    step = float64_step(config(), NUM_STEPS)
    reports = [step.train(worker_batch(n, rank, num_workers), n) for n in range(NUM_STEPS)]
    return {"losses": [report.loss for report in reports], "state": step.model.state_dict()}


def test_two_workers_are_one() -> None:
    alone, *both = run(0, 1), *run_workers(run, 2)
    assert same_state(both[0]["state"], both[1]["state"])
    assert both[0]["losses"] == pytest.approx(alone["losses"], rel=1e-9)
    for name, value in alone["state"].items():
        torch.testing.assert_close(both[0]["state"][name], value, rtol=1e-9, atol=1e-9, msg=name)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def snapshot(step: TrainingStep) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in step.model.state_dict().items()}


def test_each_phase_trains_its_own_weights_and_a_broken_one_ends_the_step() -> None:
    step, batch = TrainingStep(config(), torch.device("cpu"), NUM_STEPS), worker_batch(0)
    before = snapshot(step)
    for phase, own in zip(step.phases, ("objective", "encoder"), strict=True):
        assert step._update(phase, batch, 0, None).applied
        assert changed(before, before := snapshot(step)) == {own}
    weight = step.model.objective.critic[0].weight
    handle = weight.register_hook(lambda gradient: gradient * torch.inf)
    # The encoder's gradient passes the critic, whose own is not clipped with it.
    assert not step.train(batch, 1).applied
    assert changed(before, snapshot(step)) == set()
    handle.remove()
    assert step.train(batch, 1).applied
    assert step.rows_not_finite(batch, range(NUM_VIDEOS)) == []


def test_resume_is_exact(tmp_path: Path) -> None:
    whole = TrainingStep(config(), torch.device("cpu"), NUM_STEPS)
    for number in range(NUM_STEPS):
        if number == 3:
            uri = save_checkpoint(str(tmp_path), whole, Progress(3, 15, 0, 0, 1.0, "videos"), 1)
        whole.train(worker_batch(number), number)
    resumed = TrainingStep(config(), torch.device("cpu"), NUM_STEPS)
    restore(open_checkpoint(uri), resumed)
    for number in range(3, NUM_STEPS):
        resumed.train(worker_batch(number), number)
    assert same_state(resumed.model.state_dict(), whole.model.state_dict())
