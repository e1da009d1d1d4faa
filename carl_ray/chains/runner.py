"""The stages of a chain as Ray jobs, one after the other: found again, waited for, tried again.

    carl-demo-1f3b…-chain-a1            runs the chain, on the cluster: nothing depends on who submitted it
    carl-demo-1f3b…-train-a1, -a2 …     attempts at a stage

Ids follow from the chain's name and folder, so that whoever submits a chain again meets the jobs that are there, and
of two who do it at once the cluster lets one.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import aiohttp
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from carl_ray import storage
from carl_ray.chains.chain import CHAIN_JOB, Outline, Plan, check_runtime_env
from carl_ray.errors import RunError, UserError

SECONDS_BETWEEN_LOOKS = 2.0
"""At what the cluster says of a job."""
_SECONDS_BETWEEN_STOPS = 0.5

_MAX_ATTEMPTS = 3
"""At a stage, in one run of the chain; also where a failure, such as losses that are not finite, only comes again: an
exit status of 1 does not tell that from a node that died."""
_PATIENCE_SECONDS = 300.0
"""How long a dashboard that does not answer is asked again."""
_PLAN = "carl_ray.chain"
"""Key of the plan in the metadata of the job that runs it."""
_USER_ERROR = 2
"""Exit status of the commands of this package for a mistake, which another attempt would repeat."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Job:
    """One attempt at a stage, or at running the chain."""

    id: str
    attempt: int
    status: JobStatus = JobStatus.PENDING
    command: str = ""
    """What the cluster's shell runs."""
    plan: str | None = None
    """Of a job that runs a chain: the plan as JSON."""
    exit_status: int | None = None
    """Of its command; none as long as it runs, and where it was killed with its supervisor."""
    reason: str = ""
    """The last line of its output and its exit status, if it failed."""

    @property
    def ended(self) -> bool:
        """Whether it will not go on."""
        return bool(self.status.is_terminal())


@dataclass(frozen=True)
class StageState:
    """Where a stage is."""

    name: str
    done: bool
    job: Job | None
    """Its last attempt that the cluster knows of."""


@dataclass(frozen=True)
class ChainState:
    """Where a chain is."""

    job: Job | None
    """The last one that ran it."""
    stages: tuple[StageState, ...]

    @property
    def done(self) -> bool:
        """Whether all its stages are."""
        return all(stage.done for stage in self.stages)


def chain_state(client: JobSubmissionClient, outline: Outline) -> ChainState:
    """Where a chain is: what storage and the cluster say.

    Raises:
        RunError: one of them refuses or fails.
    """
    jobs = _last_jobs(client, outline)
    return ChainState(
        jobs.get(CHAIN_JOB),
        tuple(StageState(stage, outline.is_done(stage), jobs.get(stage)) for stage in outline.stages),
    )


def submit_chain(client: JobSubmissionClient, plan: Plan, python: str, runtime_env: Mapping[str, Any]) -> Job:
    """Starts the job that runs a chain, or finds it running.

    Args:
        client: Of the cluster.
        plan: The chain.
        python: Interpreter on the head of the cluster.
        runtime_env: Of this job and of all stages.

    Raises:
        UserError: something of it is done, or running, with other commands.
        RunError: the cluster refuses or fails.
    """
    _refuse_other(client, plan)
    last = _last_jobs(client, plan.outline).get(CHAIN_JOB)
    if last is not None and not last.ended:
        return last
    attempt = 1 if last is None else last.attempt + 1
    name = plan.outline.job_id(CHAIN_JOB, attempt)
    command = [python, "-m", "carl_ray.jobs", "run", "--job-id", name]
    _submit(client, name, command, runtime_env, {_PLAN: plan.to_json()})
    # It may be the job of somebody who submitted at the same moment.
    _refuse_other(client, plan)
    return Job(name, attempt)


def _refuse_other(client: JobSubmissionClient, plan: Plan) -> None:
    """Raises `UserError` where what is done of a chain, or running, has other commands than the plan."""
    jobs = _last_jobs(client, plan.outline)
    running = jobs.get(CHAIN_JOB)
    if running is not None and not running.ended and running.plan != plan.to_json():
        theirs = Plan.from_json(running.plan or "{}").commands
        stage = next((name for name in theirs if theirs[name] != plan.commands.get(name)), "")
        raise UserError(
            f"job {running.id} runs this chain with another stage {stage}: `{shlex.join(theirs.get(stage, []))}`; stop "
            "it first, or name another --folder"
        )
    for stage, command in plan.commands.items():
        job = jobs.get(stage)
        if not plan.is_done(stage) and job is not None and not job.ended and not _runs(job, command):
            raise UserError(
                f"job {job.id} runs stage {stage} with another command: {job.command}; stop it first, or name another "
                "--folder"
            )


def _runs(job: Job, command: Sequence[str]) -> bool:
    return job.command.endswith(f" {shlex.join(command)}")


def read_plan(client: JobSubmissionClient, job_id: str) -> tuple[Plan, dict[str, Any]]:
    """The plan that the job of a chain was submitted with, and its runtime environment.

    Raises:
        UserError: the job is not one of a chain, or the cluster does not show its runtime environment as it is.
        RunError: the cluster refuses or fails.
    """
    info = _patiently(lambda: client.get_job_info(job_id))
    text = (info.metadata or {}).get(_PLAN)
    if text is None:
        raise UserError(f"job {job_id} is not one that `python -m carl_ray.jobs submit` started")
    runtime_env = dict(info.runtime_env or {})
    check_runtime_env(runtime_env)
    return Plan.from_json(text), runtime_env


def run_chain(
    client: JobSubmissionClient,
    plan: Plan,
    runtime_env: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Runs the stages that are not done, one after the other; on the cluster, for as long as they take.

    Raises:
        UserError: a stage is done or running, but with another command.
        RunError: a stage was stopped, or failed and is not to be tried again.
    """
    _refuse_other(client, plan)
    for number, stage in enumerate(plan.commands, start=1):
        place = f"stage {number} of {len(plan.commands)}, {stage}"
        if _patiently(partial(plan.is_done, stage)):
            say(f"{place}: done before")
            continue
        started = time.monotonic()

        def say_of_stage(text: str, place: str = place) -> None:
            say(f"{place}: {text}")

        _run_stage(client, plan, stage, runtime_env, say_of_stage)
        say(f"{place}: done after {time.monotonic() - started:.0f} s")


def _run_stage(
    client: JobSubmissionClient,
    plan: Plan,
    stage: str,
    runtime_env: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    job = _last_jobs(client, plan.outline).get(stage)
    if job is not None and not job.ended:
        say(f"waiting for job {job.id}, which is running")
        job = _wait(client, plan.outline, stage, job)
    for _ in range(_MAX_ATTEMPTS):
        if _patiently(lambda: plan.is_done(stage)):
            return
        job = _submit_stage(client, plan, stage, 1 if job is None else job.attempt + 1, runtime_env)
        say(f"job {job.id}")
        job = _wait(client, plan.outline, stage, job)
        if _patiently(lambda: plan.is_done(stage)):
            return
        if job.status == JobStatus.SUCCEEDED:
            raise RunError(
                f"stage {stage}: job {job.id} ended well, but there is no "
                f"{storage.public_uri(plan.outline.marker(stage))}: is the folder on storage that all nodes share?"
            )
        say(f"job {job.id} {job.status.value.lower()}: {job.reason}")
        if job.status == JobStatus.STOPPED:
            raise RunError(f"stage {stage} was stopped; submitting the chain again goes on")
        if job.exit_status == _USER_ERROR:
            raise RunError(f"stage {stage}: {job.reason}")
    raise RunError(
        f"stage {stage} failed {_MAX_ATTEMPTS} times, at last as job {job.id if job else ''}: "
        f"{job.reason if job else ''}; submitting the chain again goes on"
    )


def _submit_stage(
    client: JobSubmissionClient, plan: Plan, stage: str, attempt: int, runtime_env: Mapping[str, Any]
) -> Job:
    name = plan.outline.job_id(stage, attempt)
    # The interpreter that runs the chain, on the same node in the same environment, whatever PATH says.
    command = [sys.executable, "-m", "carl_ray.jobs", "stage", plan.outline.marker(stage)]
    _submit(client, name, [*command, *plan.commands[stage]], runtime_env, {})
    return Job(name, attempt)


def _submit(
    client: JobSubmissionClient,
    name: str,
    command: list[str],
    runtime_env: Mapping[str, Any],
    metadata: dict[str, str],
) -> None:
    """Submits a job of which there is one, whoever submits it."""

    def once() -> None:
        try:
            client.submit_job(
                entrypoint=shlex.join(command),
                submission_id=name,
                runtime_env=dict(runtime_env),
                metadata=metadata,
            )
        except RuntimeError:
            # Another one was faster, or our own request arrived although its answer did not.
            if all(info.submission_id != name for info in client.list_jobs()):
                raise

    _patiently(once)


def _wait(client: JobSubmissionClient, outline: Outline, stage: str, job: Job) -> Job:
    """The job once it has ended."""
    while not _patiently(lambda: client.get_job_status(job.id)).is_terminal():
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return _jobs(client, outline)[stage][job.attempt]


def stop_chain(
    client: JobSubmissionClient, outline: Outline, say: Callable[[str], None] = lambda text: None
) -> list[str]:
    """Stops what runs of a chain and waits for its end: training writes a checkpoint before. Ids of the jobs stopped.

    Raises:
        RunError: the cluster refuses or fails.
    """
    stopped: list[str] = []
    # The chain's own job is gone before the stage's: it could still begin another one.
    for names in ((CHAIN_JOB,), outline.stages):
        while running := [
            job for name in names if (job := _last_jobs(client, outline).get(name)) and not job.ended
        ]:
            for job in running:
                if job.id not in stopped:
                    say(f"stopping job {job.id}")
                    stopped.append(job.id)
                # Again each time: a job that has not begun yet does not hear it.
                _patiently(partial(client.stop_job, job.id))
            time.sleep(_SECONDS_BETWEEN_STOPS)
    return stopped


def job_output(client: JobSubmissionClient, job_id: str, *, follow: bool) -> Iterator[str]:
    """What a job has put out, in pieces; with `follow` until it ends, whatever happens to the connection.

    Raises:
        RunError: while iterating: the cluster refuses or fails.
    """
    if not follow:
        yield _patiently(lambda: client.get_job_logs(job_id))
        return
    length = 0
    while True:
        try:
            for text in _tail(client, job_id, length):
                length += len(text)
                yield text
            # The cluster closes the connection after the last line; so may what stands in between, before.
            if _patiently(lambda: client.get_job_status(job_id)).is_terminal():
                return
        except (OSError, RuntimeError, aiohttp.ClientError):
            # Not all that stands between here and a dashboard passes web sockets on.
            ended = _patiently(lambda: client.get_job_status(job_id)).is_terminal()
            text = _patiently(lambda: client.get_job_logs(job_id))[length:]
            length += len(text)
            yield text
            if ended:
                return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _tail(client: JobSubmissionClient, job_id: str, start: int) -> Iterator[str]:
    """The output of a job from its character `start` on, as it comes, until the cluster ends the connection."""
    stream = aiter(client.tail_job_logs(job_id))
    passed = 0
    with asyncio.Runner() as runner:

        async def following() -> str | None:
            return await anext(stream, None)

        while (text := runner.run(following())) is not None:
            yield text[max(0, start - passed) :]
            passed += len(text)


def _last_jobs(client: JobSubmissionClient, outline: Outline) -> dict[str, Job]:
    """The last attempt at each stage, and at running the chain, that the cluster knows of."""
    return {name: jobs[max(jobs)] for name, jobs in _jobs(client, outline).items()}


def _jobs(client: JobSubmissionClient, outline: Outline) -> dict[str, dict[int, Job]]:
    """By stage or `CHAIN_JOB` and by attempt: the jobs of a chain that the cluster knows of."""
    found: dict[str, dict[int, Job]] = {}
    prefixes = {name: outline.job_id(name, 1).removesuffix("1") for name in (CHAIN_JOB, *outline.stages)}
    for info in _patiently(client.list_jobs):
        for name, prefix in prefixes.items():
            number = (info.submission_id or "").removeprefix(prefix)
            if number.isdecimal() and info.submission_id == prefix + number:
                found.setdefault(name, {})[int(number)] = Job(
                    id=info.submission_id,
                    attempt=int(number),
                    status=info.status,
                    command=info.entrypoint,
                    plan=(info.metadata or {}).get(_PLAN),
                    exit_status=info.driver_exit_code,
                    reason=_reason(info) if info.status == JobStatus.FAILED else "",
                )
    return found


def _patiently(call: Callable[[], _T]) -> _T:
    """What a call to the cluster or to storage returns, asked again for a while where nobody answers."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    told = False
    while True:
        try:
            return call()
        # What requests raises is an OSError, Ray a RuntimeError with the number of the answer in its text.
        except (OSError, RuntimeError) as error:
            passes = isinstance(error, OSError) or "status code 5" in str(error)
            failure = RunError(f"the Ray cluster: {_last_line(str(error))}")
        # Storage: after days of a stage, one request that failed must not end the chain.
        except RunError as error:
            passes, failure = True, error
        if not passes or time.monotonic() > deadline:
            raise failure from None
        if not told:
            print(f"no answer, asking again: {failure}", file=sys.stderr, flush=True)
            told = True
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _reason(info: JobDetails) -> str:
    status = "" if info.driver_exit_code is None else f" (exit status {info.driver_exit_code})"
    return _last_line(info.message or "") + status


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
