"""`carl_ray.chains.runner`: which jobs are submitted, waited for and stopped, on a cluster that is pretended."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobStatus

from carl_ray.chains import runner
from carl_ray.chains.chain import Chain, Plan, plan_chain, write_done
from carl_ray.chains.runner import (
    chain_state,
    job_output,
    read_plan,
    run_chain,
    stop_chain,
    submit_chain,
)
from carl_ray.errors import RunError, UserError

CHAIN = Chain("two", {"n": "a number [1]"}, {"one": ("my.one", "{n}"), "two": ("my.two",)})


@dataclass
class Info:
    """As the cluster's record of a job."""

    submission_id: str
    entrypoint: str
    runtime_env: dict[str, Any]
    metadata: dict[str, str]
    status: JobStatus = JobStatus.RUNNING
    message: str = ""
    driver_exit_code: int | None = None
    looks: int = 0


@dataclass
class Cluster:
    """A cluster and its client: a job ends at the second look at it, as `outcomes` says."""

    outcomes: Callable[[str], tuple[JobStatus, int | None, str]]
    """By id: status, exit status and message; SUCCEEDED writes the marker as the command would."""
    infos: dict[str, Info] = field(default_factory=dict)
    stops: list[str] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    """Raised by the next calls, one each."""

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)

    def list_jobs(self) -> list[Any]:
        self._fail()
        driver = Info("", "", {}, {})
        driver.submission_id = None  # type: ignore[assignment]
        return [driver, *self.infos.values()]

    def get_job_info(self, name: str) -> Info:
        self._fail()
        return self.infos[name]

    def get_job_status(self, name: str) -> JobStatus:
        self._fail()
        info = self.infos[name]
        info.looks += 1
        if info.looks >= 2 and not info.status.is_terminal():
            info.status, info.driver_exit_code, info.message = self.outcomes(name)
            words = shlex.split(info.entrypoint)
            if info.status == JobStatus.SUCCEEDED and words[3:4] == ["stage"]:
                write_done(words[4], words[5:], 1.0)
        return info.status

    def submit_job(
        self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, Any], metadata: dict[str, str]
    ) -> None:
        self._fail()
        if submission_id in self.infos:
            raise RuntimeError(f"Request failed with status code 500: {submission_id} already exists")
        self.infos[submission_id] = Info(submission_id, entrypoint, runtime_env, metadata)

    def stop_job(self, name: str) -> bool:
        self.stops.append(name)
        # A job that is starting does not hear the first one.
        if self.stops.count(name) == 2:
            self.infos[name].status = JobStatus.STOPPED
        return True


def always(status: JobStatus, exit_status: int | None = None, message: str = "") -> Any:
    return lambda name: (status, exit_status, message)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(runner, "_SECONDS_BETWEEN_STOPS", 0.0)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_chain(CHAIN, str(tmp_path), {})


def ids(plan: Plan, *names: str) -> list[str]:
    """Of "one-a2" and the like."""
    return [plan.outline.job_id(name.rpartition("-a")[0], int(name.rpartition("-a")[2])) for name in names]


def ran(cluster: Any, plan: Plan) -> list[str]:
    said: list[str] = []
    run_chain(cluster, plan, {"env_vars": {"A": "1"}}, said.append)
    return said


def test_stages_run_one_after_the_other_and_never_again(plan: Plan) -> None:
    cluster = Cluster(always(JobStatus.SUCCEEDED, 0))
    ran(cluster, plan)
    assert list(cluster.infos) == ids(plan, "one-a1", "two-a1")
    first = next(iter(cluster.infos.values()))
    assert first.runtime_env == {"env_vars": {"A": "1"}}
    assert shlex.split(first.entrypoint)[1:] == [
        *("-m", "carl_ray.jobs", "stage", plan.outline.marker("one"), "my.one", "1")
    ]
    assert ran(cluster, plan) == ["stage 1 of 2, one: done before", "stage 2 of 2, two: done before"]
    # Also on another cluster, which knows nothing.
    another = Cluster(always(JobStatus.FAILED))
    ran(another, plan)
    assert another.infos == {}


def test_what_fails_is_tried_again_three_times(plan: Plan) -> None:
    failed = (JobStatus.FAILED, 1, "Job failed:\nTraceback\ncarl_ray: the disk is full\n")
    outcomes = dict.fromkeys(ids(plan, "one-a1", "one-a2", "two-a1", "two-a2", "two-a3"), failed)
    cluster = Cluster(lambda name: outcomes.get(name, (JobStatus.SUCCEEDED, 0, "")))
    with pytest.raises(
        RunError,
        match=r"stage two failed 3 times, at last as job .*-two-a3: carl_ray: the disk is full \(exit",
    ):
        ran(cluster, plan)
    assert list(cluster.infos) == ids(plan, "one-a1", "one-a2", "one-a3", "two-a1", "two-a2", "two-a3")
    # Submitted again: a new attempt, with a number of its own.
    ran(cluster, plan)
    assert list(cluster.infos)[-1:] == ids(plan, "two-a4")
    assert chain_state(cluster, plan.outline).done  # type: ignore[arg-type]


def test_a_mistake_is_not_tried_again(plan: Plan) -> None:
    cluster = Cluster(always(JobStatus.FAILED, 2, "carl_ray: unknown preset"))
    with pytest.raises(RunError, match=r"stage one: carl_ray: unknown preset \(exit status 2\)"):
        ran(cluster, plan)
    assert list(cluster.infos) == ids(plan, "one-a1")


def test_success_without_a_marker_is_none(plan: Plan) -> None:
    cluster = Cluster(always(JobStatus.SUCCEEDED, 0))
    (name,) = ids(plan, "one-a1")
    # The command wrote to a disk of its own.
    original = cluster.submit_job

    def elsewhere(**arguments: Any) -> None:
        original(**arguments)
        cluster.infos[name].entrypoint = shlex.join(["python", "-m", "carl_ray.jobs", "other", "x"])

    cluster.submit_job = elsewhere  # type: ignore[method-assign]
    with pytest.raises(RunError, match=r"ended well, but there is no .*one.json: is the folder on storage"):
        ran(cluster, plan)
    assert list(cluster.infos) == [name]


def command_of(plan: Plan, stage: str) -> str:
    return shlex.join(
        ["python", "-m", "carl_ray.jobs", "stage", plan.outline.marker(stage), *plan.commands[stage]]
    )


def test_a_running_stage_is_waited_for(plan: Plan) -> None:
    for status in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED):
        two = plan_chain(CHAIN, f"{plan.outline.folder}/{status.value}", {})
        (name,) = ids(two, "one-a7")
        cluster = Cluster(lambda job, n=name, s=status: (s if job == n else JobStatus.SUCCEEDED, 0, ""))
        cluster.infos[name] = Info(name, command_of(two, "one"), {}, {})
        said = ran(cluster, two)
        assert said[0] == f"stage 1 of 2, one: waiting for job {name}, which is running"
        again = [] if status == JobStatus.SUCCEEDED else ["one-a8"]
        assert list(cluster.infos) == ids(two, "one-a7", *again, "two-a1")


def test_a_stage_that_somebody_stops_ends_the_chain(plan: Plan) -> None:
    cluster = Cluster(always(JobStatus.STOPPED))
    with pytest.raises(RunError, match="stage one was stopped; submitting the chain again goes on"):
        ran(cluster, plan)
    assert list(cluster.infos) == ids(plan, "one-a1")


def test_the_loss_of_a_dashboard_is_borne(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(always(JobStatus.SUCCEEDED, 0))
    cluster.failures = [
        ConnectionError("refused"),
        RuntimeError("Request failed with status code 500: No available agent to submit job"),
        OSError("reset"),
    ]
    ran(cluster, plan)
    assert list(cluster.infos) == ids(plan, "one-a1", "two-a1")
    cluster.failures = [RuntimeError("Request failed with status code 400: what\nnonsense.\n")]
    with pytest.raises(RunError, match=r"^the Ray cluster: nonsense.$"):
        chain_state(cluster, plan.outline)  # type: ignore[arg-type]
    monkeypatch.setattr(runner, "_PATIENCE_SECONDS", -1.0)
    cluster.failures = [OSError("gone")]
    with pytest.raises(RunError, match="the Ray cluster: gone"):
        chain_state(cluster, plan.outline)  # type: ignore[arg-type]


def test_the_loss_of_storage_is_borne(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(always(JobStatus.SUCCEEDED, 0))
    looks, is_done = 0, Plan.is_done

    def unreliable(self: Plan, stage: str) -> bool:
        nonlocal looks
        looks += 1
        # The first two are of the submission, which somebody watches.
        if looks > 2 and looks % 2:
            raise RunError("s3://bucket: could not reach it")
        return is_done(self, stage)

    monkeypatch.setattr(Plan, "is_done", unreliable)
    ran(cluster, plan)
    assert list(cluster.infos) == ids(plan, "one-a1", "two-a1")


def test_a_chain_is_submitted_once_and_brings_its_plan(plan: Plan) -> None:
    cluster: Any = Cluster(always(JobStatus.SUCCEEDED, 0))
    (first, second) = ids(plan, "chain-a1", "chain-a2")
    assert submit_chain(cluster, plan, "/usr/bin/my python", {"working_dir": "."}).id == first
    assert submit_chain(cluster, plan, "python", {}).id == first
    assert list(cluster.infos) == [first]
    assert shlex.split(cluster.infos[first].entrypoint) == [
        *("/usr/bin/my python", "-m", "carl_ray.jobs", "run", "--job-id", first)
    ]
    assert read_plan(cluster, first) == (plan, {"working_dir": "."})
    cluster.infos[first].status = JobStatus.FAILED
    assert submit_chain(cluster, plan, "python", {}).id == second
    cluster.infos["another"] = Info("another", "sleep 1", {}, {})
    with pytest.raises(UserError, match="job another is not one that"):
        read_plan(cluster, "another")


def test_two_submit_at_once(plan: Plan) -> None:
    """Neither has seen the other's job when it submits its own."""
    cluster: Any = Cluster(always(JobStatus.SUCCEEDED, 0))
    other = plan_chain(CHAIN, plan.outline.folder, {"n": "2"})
    (name,) = ids(plan, "chain-a1")
    submitted = cluster.submit_job

    def late(**arguments: Any) -> None:
        if name not in cluster.infos:
            submitted(**arguments | {"metadata": {"carl_ray.chain": plan.to_json()}})
        submitted(**arguments)

    cluster.submit_job = late
    assert submit_chain(cluster, plan, "python", {}).id == name
    assert list(cluster.infos) == [name]
    cluster.infos.clear()
    with pytest.raises(
        UserError, match=f"job {name} runs this chain with another stage one: `my.one 1`; stop it"
    ):
        submit_chain(cluster, other, "python", {})


def test_two_run_a_chain_at_once(plan: Plan) -> None:
    cluster: Any = Cluster(always(JobStatus.SUCCEEDED, 0))
    submitted = cluster.submit_job

    def late(**arguments: Any) -> None:
        submitted(**arguments)
        submitted(**arguments)

    cluster.submit_job = late
    ran(cluster, plan)
    assert list(cluster.infos) == ids(plan, "one-a1", "two-a1")


def test_a_chain_that_changes_is_refused(plan: Plan) -> None:
    other = plan_chain(CHAIN, plan.outline.folder, {"n": "2"})
    (name,) = ids(plan, "one-a1")
    cluster: Any = Cluster(always(JobStatus.SUCCEEDED, 0))
    cluster.infos[name] = Info(name, command_of(plan, "one"), {}, {})
    for refused in (lambda: submit_chain(cluster, other, "python", {}), lambda: ran(cluster, other)):
        with pytest.raises(
            UserError, match=r"runs stage one with another command: .* my.one 1; stop it first"
        ):
            refused()
    write_done(plan.outline.marker("one"), ["my.one", "1"], 1.0)
    for refused in (lambda: submit_chain(cluster, other, "python", {}), lambda: ran(cluster, other)):
        with pytest.raises(UserError, match=r"stage one was done as `my.one 1`, and is now `my.one 2`"):
            refused()
    assert list(cluster.infos) == [name]


def test_the_chain_is_stopped_before_its_stage(plan: Plan) -> None:
    cluster: Any = Cluster(always(JobStatus.SUCCEEDED, 0))
    chain, one, old = ids(plan, "chain-a3", "one-a2", "one-a1")
    for name in (one, old, chain):
        cluster.infos[name] = Info(name, "", {}, {})
    cluster.infos[old].status = JobStatus.FAILED
    assert stop_chain(cluster, plan.outline) == [chain, one]
    assert cluster.stops == [chain, chain, one, one]
    assert stop_chain(cluster, plan.outline) == []


def test_state_is_that_of_the_last_attempt(plan: Plan) -> None:
    cluster: Any = Cluster(always(JobStatus.SUCCEEDED, 0))
    names = ids(plan, "one-a2", "one-a10", "one-a9")
    for name in names:
        cluster.infos[name] = Info(name, "", {}, {}, JobStatus.FAILED, f"log of\n{name}\n", 1)
    # Of another chain in the same folder, and of no chain.
    for name in (f"{names[0]}x", names[0].replace("-two-", "-three-"), "raysubmit_1"):
        cluster.infos[name] = Info(name, "", {}, {})
    write_done(plan.outline.marker("two"), ["my.two"], 1.0)
    state = chain_state(cluster, plan.outline)
    assert state.job is None
    assert [(stage.name, stage.done) for stage in state.stages] == [("one", False), ("two", True)]
    job = state.stages[0].job
    assert job is not None
    assert (job.id, job.attempt, job.reason, job.exit_status) == (
        names[1],
        10,
        f"{names[1]} (exit status 1)",
        1,
    )


def test_output_is_followed_over_broken_connections(plan: Plan) -> None:
    text = "".join(f"line {number}\n" for number in range(20))

    class Logs(Cluster):
        tails = 0

        def get_job_logs(self, name: str) -> str:
            return text[:70] if self.tails < 2 else text

        async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
            self.tails += 1
            for start in range(0, len(text), 20):
                if self.tails == 1 and start == 40:
                    raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
                yield text[start : start + 20]

    cluster: Any = Logs(always(JobStatus.SUCCEEDED, 0))
    cluster.infos["job"] = Info("job", "", {}, {})
    assert "".join(job_output(cluster, "job", follow=True)) == text
    assert cluster.tails == 2
    assert list(job_output(cluster, "job", follow=False)) == [text]
