"""`carl_ray.pipelines.runner` with a fake cluster: which jobs are submitted, waited for and stopped."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobStatus

from carl_ray.errors import RunError, UserError
from carl_ray.pipelines import runner
from carl_ray.pipelines.plan import Plan
from carl_ray.pipelines.runner import PipelineJobs, read_plan


@dataclass
class Info:
    """The cluster's record of a job."""

    submission_id: str | None
    entrypoint: str = ""
    runtime_env: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    status: JobStatus = JobStatus.RUNNING
    message: str = ""
    driver_exit_code: int | None = None
    looks: int = 0


@dataclass
class Cluster:
    """A cluster and its client: a job ends at the second look at it, as `outcomes` says."""

    outcomes: Callable[[str], tuple[JobStatus, int | None, str]]
    """By id: status, exit status and message."""
    infos: dict[str, Info] = field(default_factory=dict)
    stops: list[str] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    """Raised by the next calls, one each."""

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)

    def list_jobs(self) -> list[Info]:
        self._fail()
        return [Info(None), *self.infos.values()]  # The first is a driver without a submission.

    def get_job_info(self, name: str) -> Info:
        self._fail()
        info = self.infos[name]
        info.looks += 1
        if info.looks >= 2 and not info.status.is_terminal():
            info.status, info.driver_exit_code, info.message = self.outcomes(name)
        return info

    def get_job_logs(self, name: str) -> str:
        self._fail()
        return f"output of {name}\n" * self.infos[name].looks

    def submit_job(
        self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, Any], metadata: dict[str, str]
    ) -> None:
        self._fail()
        if submission_id in self.infos:
            raise RuntimeError(f"Request failed with status code 500: {submission_id} already exists")
        self.infos[submission_id] = Info(submission_id, entrypoint, runtime_env, metadata)

    def stop_job(self, name: str) -> bool:
        self.stops.append(name)
        # A job that is starting ignores the first request.
        if self.stops.count(name) == 2:
            self.infos[name].status = JobStatus.STOPPED
        return True


def always(status: JobStatus, exit_status: int | None = None, message: str = "") -> Any:
    return Cluster(lambda name: (status, exit_status, message))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.time, "sleep", lambda seconds: None)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan("two", str(tmp_path), {"one": ["my.one", "1"], "two": ["my.two"]})


@pytest.fixture
def other(plan: Plan) -> Plan:
    return Plan("two", plan.folder, {"one": ["my.one", "2"], "two": ["my.two"]})


def ids(plan: Plan, *names: str) -> list[str]:
    """Of "one-a2" and the like."""
    return [plan.job_prefix(name.rpartition("-a")[0]) + name.rpartition("-a")[2] for name in names]


def run(cluster: Any, plan: Plan) -> None:
    PipelineJobs(cluster, plan).run({"env_vars": {"A": "1"}})


def test_stages_run_one_after_the_other_and_never_again(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = always(JobStatus.SUCCEEDED, 0)
    run(cluster, plan)
    assert list(cluster.infos) == ids(plan, "one-a1", "two-a1")
    first = next(iter(cluster.infos.values()))
    assert first.runtime_env == {"env_vars": {"A": "1"}}
    assert shlex.split(first.entrypoint)[1:] == ["-m", "my.one", "1"]
    assert f"output of {first.submission_id}\n" * 2 in capsys.readouterr().out
    # Also on another cluster, which has no records.
    for again in (cluster, always(JobStatus.FAILED)):
        again.infos.clear()
        run(again, plan)
        assert not again.infos
        assert capsys.readouterr().out == "stage 1 of 2, one: done before\nstage 2 of 2, two: done before\n"


def test_what_fails_is_tried_again_three_times(plan: Plan) -> None:
    failed = (JobStatus.FAILED, 1, "Job failed:\nTraceback\ncarl_ray: the disk is full\n")
    outcomes = dict.fromkeys(ids(plan, "one-a1", "one-a2", "two-a1", "two-a2", "two-a3"), failed)
    cluster: Any = Cluster(lambda name: outcomes.get(name, (JobStatus.SUCCEEDED, 0, "")))
    with pytest.raises(
        RunError,
        match=r"stage two failed 3 times, at last as job .*-two-a3: carl_ray: the disk is full \(exit",
    ):
        run(cluster, plan)
    assert list(cluster.infos) == ids(plan, "one-a1", "one-a2", "one-a3", "two-a1", "two-a2", "two-a3")
    # Submitted again: a new attempt, with a number of its own.
    run(cluster, plan)
    assert list(cluster.infos)[-1:] == ids(plan, "two-a4")
    assert all(plan.is_done(stage) for stage in plan.commands)


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (always(JobStatus.FAILED, 2, "carl_ray: unknown preset"), r"one: carl_ray: unknown preset \(exit status 2\)"),
        (always(JobStatus.STOPPED), "stage one was stopped; submitting the pipeline again continues it"),
    ],
)  # fmt: skip
def test_a_mistake_or_a_stop_is_not_tried_again(cluster: Any, message: str, plan: Plan) -> None:
    with pytest.raises(RunError, match=message):
        run(cluster, plan)
    assert list(cluster.infos) == ids(plan, "one-a1")
    assert not plan.is_done("one")


@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED])
def test_a_running_stage_is_waited_for(
    status: JobStatus, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    (name,) = ids(plan, "one-a7")
    cluster: Any = Cluster(lambda job: (status if job == name else JobStatus.SUCCEEDED, 0, ""))
    cluster.infos[name] = Info(name, shlex.join([runner.sys.executable, "-m", "my.one", "1"]))
    run(cluster, plan)
    said = capsys.readouterr().out
    assert said.startswith(f"stage 1 of 2, one: waiting for job {name}, which is running\n")
    again = [] if status == JobStatus.SUCCEEDED else ["one-a8"]
    assert list(cluster.infos) == ids(plan, "one-a7", *again, "two-a1")


def test_an_unreachable_dashboard_is_asked_again(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = always(JobStatus.SUCCEEDED, 0)
    cluster.failures = [
        ConnectionError("refused"),
        RuntimeError("Request failed with status code 500: No available agent to submit job"),
        OSError("reset"),
    ]
    run(cluster, plan)
    assert list(cluster.infos) == ids(plan, "one-a1", "two-a1")
    jobs = PipelineJobs(cluster, plan)
    cluster.failures = [RuntimeError("Request failed with status code 400: what\nnonsense.\n")]
    with pytest.raises(RunError, match=r"^the Ray cluster: nonsense.$"):
        jobs.latest()
    monkeypatch.setattr(runner, "_RETRY_SECONDS", -1.0)
    cluster.failures = [OSError("gone")]
    with pytest.raises(RunError, match="the Ray cluster: gone"):
        jobs.latest()


def test_unreachable_storage_is_asked_again(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = always(JobStatus.SUCCEEDED, 0)
    looks, is_done = 0, Plan.is_done

    def unreliable(self: Plan, stage: str) -> bool:
        nonlocal looks
        looks += 1
        if looks % 2:
            raise RunError("s3://bucket: could not reach it")
        return is_done(self, stage)

    monkeypatch.setattr(Plan, "is_done", unreliable)
    run(cluster, plan)
    assert list(cluster.infos) == ids(plan, "one-a1", "two-a1")


def test_a_pipeline_is_submitted_once_and_brings_its_plan(plan: Plan, other: Plan) -> None:
    cluster = always(JobStatus.SUCCEEDED, 0)
    jobs = PipelineJobs(cluster, plan)
    (first, second) = ids(plan, "pipeline-a1", "pipeline-a2")
    assert jobs.submit("/usr/bin/my python", {"working_dir": "."}) == first
    assert jobs.submit("python", {}) == first
    assert list(cluster.infos) == [first]
    assert shlex.split(cluster.infos[first].entrypoint) == [
        *("/usr/bin/my python", "-m", "carl_ray.jobs", "run", "--job-id", first)
    ]
    assert read_plan(cluster, first) == (plan, {"working_dir": "."})
    cluster.infos[first].status = JobStatus.RUNNING
    with pytest.raises(UserError, match=f"job {first} runs this pipeline with other parameters; stop it"):
        PipelineJobs(cluster, other).submit("python", {})
    cluster.infos[first].status = JobStatus.FAILED
    assert jobs.submit("python", {}) == second
    cluster.infos["another"] = Info("another", "sleep 1")
    with pytest.raises(UserError, match="job another is not one that"):
        read_plan(cluster, "another")


def test_two_submit_at_once(plan: Plan, other: Plan) -> None:
    """Neither has seen the other's job when it submits its own."""
    cluster = always(JobStatus.SUCCEEDED, 0)
    (name,) = ids(plan, "pipeline-a1")
    submitted = cluster.submit_job

    def late(**arguments: Any) -> None:
        if name not in cluster.infos:
            submitted(**arguments | {"metadata": {"carl_ray.pipeline": plan.to_json()}})
        submitted(**arguments)

    cluster.submit_job = late
    assert PipelineJobs(cluster, plan).submit("python", {}) == name
    assert list(cluster.infos) == [name]
    cluster.infos.clear()
    with pytest.raises(UserError, match=f"job {name} runs this pipeline with other parameters; stop it"):
        PipelineJobs(cluster, other).submit("python", {})


def test_two_run_a_pipeline_at_once(plan: Plan) -> None:
    cluster = always(JobStatus.SUCCEEDED, 0)
    submitted = cluster.submit_job

    def late(**arguments: Any) -> None:
        submitted(**arguments)
        submitted(**arguments)

    cluster.submit_job = late
    run(cluster, plan)
    assert list(cluster.infos) == ids(plan, "one-a1", "two-a1")


def test_changed_commands_are_refused(plan: Plan, other: Plan) -> None:
    (name,) = ids(plan, "one-a1")
    cluster = always(JobStatus.SUCCEEDED, 0)
    cluster.infos[name] = Info(name, "python -m my.one 1")
    for act in (run, lambda cluster, plan: PipelineJobs(cluster, plan).submit("python", {})):
        with pytest.raises(
            UserError, match=r"runs stage one with another command: .* my.one 1; stop it first"
        ):
            act(cluster, other)
    plan.mark_done("one", 1.0)
    with pytest.raises(UserError, match=r"stage one was done as `my.one 1`, and is now `my.one 2`"):
        run(cluster, other)
    assert list(cluster.infos) == [name]


def test_the_pipeline_is_stopped_before_its_stage(plan: Plan) -> None:
    cluster = always(JobStatus.SUCCEEDED, 0)
    pipeline, one, old = ids(plan, "pipeline-a3", "one-a2", "one-a1")
    for name in (one, old, pipeline):
        cluster.infos[name] = Info(name)
    cluster.infos[old].status = JobStatus.FAILED
    assert PipelineJobs(cluster, plan).stop() == [pipeline, one]
    assert cluster.stops == [pipeline, pipeline, one, one]
    assert PipelineJobs(cluster, plan).stop() == []


def test_state_is_that_of_the_last_attempt(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = always(JobStatus.SUCCEEDED, 0)
    names = ids(plan, "one-a2", "one-a10", "one-a9")
    for name in names:
        cluster.infos[name] = Info(name, "", {}, {}, JobStatus.FAILED, f"log of\n{name}\n", 1)
    # Of another pipeline in the same folder, and of none.
    for name in (f"{names[0]}x", names[0].replace("-two-", "-three-"), "raysubmit_1"):
        cluster.infos[name] = Info(name)
    plan.mark_done("two", 1.0)
    PipelineJobs(cluster, plan).print_state()
    assert [line.split(None, 3) for line in capsys.readouterr().out.splitlines()] == [
        ["pipeline", "not", "begun"],
        ["one", "failed", names[1], f"{names[1]} (exit status 1)"],
        ["two", "done"],
    ]


def test_output_is_printed_once(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    text = "".join(f"line {number}\n" for number in range(20))
    cluster = always(JobStatus.SUCCEEDED, 0)
    cluster.infos["job"] = Info("job")
    cluster.get_job_logs = lambda name: text[: 70 * cluster.infos[name].looks]
    jobs = PipelineJobs(cluster, plan)
    assert not jobs.print_output("job", follow=False).status.is_terminal()
    assert capsys.readouterr().out == text[:70]
    cluster.infos["job"] = Info("job")
    assert jobs.print_output("job").status == JobStatus.SUCCEEDED
    assert capsys.readouterr().out == text[:140]
