"""Run the stages of a pipeline as Ray jobs, one after the other, with retries.

    carl-demo-1f3b…-pipeline-a1         runs the pipeline on the cluster, so that it outlives the submitting machine
    carl-demo-1f3b…-train-a1, -a2 …     attempts at a stage

Ids are derived from the pipeline's name and folder: a second submission finds the jobs of the first, and of two at the
same moment the cluster accepts one.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from carl_ray import storage
from carl_ray.errors import RunError, UserError, last_line, note
from carl_ray.pipelines.plan import PIPELINE_JOB, Plan, check_runtime_env

_POLL_SECONDS = 2.0
"""Between two requests for the status or output of a job."""
_STOP_SECONDS = 0.5
"""Between two requests to stop a job."""
_MAX_ATTEMPTS = 3
"""At a stage in one run of the pipeline: exit status 1 does not distinguish a lost node from a failure that recurs."""
_RETRY_SECONDS = 300.0
"""Time limit of retries of a failing dashboard or store."""
_PLAN = "carl_ray.pipeline"
"""Key of the plan in the metadata of the job that runs it."""
_USER_ERROR = 2
"""Exit status of this package's commands for a user's mistake, which another attempt would repeat."""

_T = TypeVar("_T")


def read_plan(client: JobSubmissionClient, job_id: str) -> tuple[Plan, dict[str, Any]]:
    """The plan that the job of a pipeline was submitted with, and its runtime environment.

    Raises:
        UserError: the job runs no pipeline, or Ray has redacted its runtime environment.
        RunError: the cluster refuses or fails.
    """
    info = _retry(lambda: client.get_job_info(job_id))
    text = (info.metadata or {}).get(_PLAN)
    if text is None:
        raise UserError(f"job {job_id} is not one that `python -m carl_ray.jobs submit` started")
    runtime_env = dict(info.runtime_env or {})
    check_runtime_env(runtime_env)
    return Plan.from_json(text), runtime_env


class PipelineJobs:
    """The jobs of a pipeline on a cluster; every method raises `RunError` where the cluster refuses or fails."""

    def __init__(self, client: JobSubmissionClient, plan: Plan) -> None:
        self._client = client
        self._plan = plan

    def latest(self) -> dict[str, JobDetails]:
        """The last job of each stage and of `PIPELINE_JOB`, of those that the cluster knows."""
        infos = {info.submission_id or "": info for info in _retry(self._client.list_jobs)}
        found = {}
        for name in (PIPELINE_JOB, *self._plan.commands):
            prefix = self._plan.job_prefix(name)
            attempts = [id_ for id_ in infos if id_.startswith(prefix) and id_[len(prefix) :].isdecimal()]
            if attempts:
                found[name] = infos[max(attempts, key=_attempt)]
        return found

    def submit(self, python: str, runtime_env: Mapping[str, Any]) -> str:
        """Start the job that runs the pipeline, or find it running.

        Args:
            python: Interpreter on the head of the cluster.
            runtime_env: Of this job and of all stages.

        Returns:
            Id of the job.

        Raises:
            UserError: the pipeline, or one of its stages, is running with other commands.
        """
        latest = self.latest()
        job = latest.pop(PIPELINE_JOB, None)
        for stage, running in latest.items():
            self._refuse_other_command(stage, running)
        if job is None or job.status.is_terminal():
            job_id = self._next_id(PIPELINE_JOB, job)
            command = [python, "-m", "carl_ray.jobs", "run", "--job-id", job_id]
            self._submit_once(job_id, command, runtime_env, {_PLAN: self._plan.to_json()})
            # It may be another submitter's, who was faster.
            job = _retry(lambda: self._client.get_job_info(job_id))
        if (job.metadata or {}).get(_PLAN) != self._plan.to_json():
            raise UserError(
                f"job {job.submission_id} runs this pipeline with other parameters; stop it first, or name another "
                "--folder"
            )
        return str(job.submission_id)

    def run(self, runtime_env: Mapping[str, Any]) -> None:
        """Run the stages that are not done, for as long as they take, and print their output.

        Raises:
            UserError: a stage is done, or running, with another command.
            RunError: a stage was stopped, or failed finally.
        """
        for number, stage in enumerate(self._plan.commands, start=1):
            place = f"stage {number} of {len(self._plan.commands)}, {stage}"
            # Retried beyond storage's own retries, as the end of a stage is: one request must not end days of work.
            if _retry(partial(self._plan.is_done, stage)):
                print(f"{place}: done before", flush=True)
                continue
            started = time.monotonic()
            self._run_stage(stage, place, runtime_env)
            seconds = time.monotonic() - started
            _retry(partial(self._plan.mark_done, stage, seconds))
            print(f"{place}: done after {seconds:.0f} s", flush=True)

    def _run_stage(self, stage: str, place: str, runtime_env: Mapping[str, Any]) -> None:
        # The interpreter of this process: PATH of the stage's job may find another.
        command = [sys.executable, "-m", *self._plan.commands[stage]]
        job = self.latest().get(stage)
        if job is not None and not job.status.is_terminal():
            self._refuse_other_command(stage, job)
            print(f"{place}: waiting for job {job.submission_id}, which is running", flush=True)
            job = self.print_output(job.submission_id or "")
            if job.status == JobStatus.SUCCEEDED:
                return
        for _ in range(_MAX_ATTEMPTS):
            job_id = self._next_id(stage, job)
            self._submit_once(job_id, command, runtime_env, {})
            print(f"{place}: job {job_id}", flush=True)
            job = self.print_output(job_id)
            if job.status == JobStatus.SUCCEEDED:
                return
            reason = failure_reason(job)
            print(f"{place}: job {job_id} {job.status.value.lower()}: {reason}", flush=True)
            if job.status == JobStatus.STOPPED:
                raise RunError(f"stage {stage} was stopped; submitting the pipeline again continues it")
            if job.driver_exit_code == _USER_ERROR:
                raise RunError(f"stage {stage}: {reason}")
        raise RunError(
            f"stage {stage} failed {_MAX_ATTEMPTS} times, at last as job {job_id}: {reason}; submitting the pipeline "
            "again continues it"
        )

    def _refuse_other_command(self, stage: str, job: JobDetails) -> None:
        """Raise `UserError` where the job of a stage is running with another command, by whatever interpreter."""
        if not job.status.is_terminal() and not job.entrypoint.endswith(
            f" -m {shlex.join(self._plan.commands[stage])}"
        ):
            raise UserError(
                f"job {job.submission_id} runs stage {stage} with another command: {job.entrypoint}; stop it first, or "
                "name another --folder"
            )

    def stop(self) -> list[str]:
        """Stop the jobs of the pipeline and wait for their end: training writes a checkpoint before it ends.

        Returns:
            Ids of the jobs that were running.
        """
        stopped: list[str] = []
        # The pipeline's own job first: it could start another stage.
        for names in ([PIPELINE_JOB], list(self._plan.commands)):
            while running := [
                job.submission_id or ""
                for name, job in self.latest().items()
                if name in names and not job.status.is_terminal()
            ]:
                for job_id in running:
                    if job_id not in stopped:
                        print(f"stopping job {job_id}", flush=True)
                        stopped.append(job_id)
                    # Repeatedly: a job that is still starting ignores it.
                    _retry(partial(self._client.stop_job, job_id))
                time.sleep(_STOP_SECONDS)
        return stopped

    def print_state(self) -> None:
        """Print a line for the pipeline and one for each stage: name, state, job, and the reason of a failure."""
        latest = self.latest()
        done = {stage: storage.exists(self._plan.marker(stage)) for stage in self._plan.commands}
        for name, is_done in {PIPELINE_JOB: all(done.values()), **done}.items():
            job = latest.get(name)
            state = "done" if is_done else "not begun" if job is None else job.status.value.lower()
            reason = "" if is_done or job is None else failure_reason(job)
            print(f"{name:<22}{state:<11}{job.submission_id if job else ''}  {reason}".rstrip())

    def print_output(self, job_id: str, *, follow: bool = True) -> JobDetails:
        """Print the output of a job so far, or until it ends.

        Returns:
            The record of the job.
        """
        length = 0
        while True:
            started = time.monotonic()
            job = _retry(lambda: self._client.get_job_info(job_id))
            # Requested after the status: of a job that has ended it is complete.
            text = _retry(lambda: self._client.get_job_logs(job_id))
            print(text[length:], end="", flush=True)
            length = len(text)
            if not follow or job.status.is_terminal():
                return job
            # Each answer holds the whole output: keep the load low where it is long.
            time.sleep(max(_POLL_SECONDS, 10 * (time.monotonic() - started)))

    def _next_id(self, name: str, last: JobDetails | None) -> str:
        previous = 0 if last is None else _attempt(last.submission_id or "")
        return f"{self._plan.job_prefix(name)}{1 + previous}"

    def _submit_once(
        self, job_id: str, command: list[str], runtime_env: Mapping[str, Any], metadata: dict[str, str]
    ) -> None:
        """Submit a job, unless a job of this id exists."""

        def submit() -> None:
            try:
                self._client.submit_job(
                    entrypoint=shlex.join(command),
                    submission_id=job_id,
                    runtime_env=dict(runtime_env),
                    metadata=metadata,
                )
            except RuntimeError:
                # Another submitter was faster, or the answer to our own request was lost.
                if all(info.submission_id != job_id for info in self._client.list_jobs()):
                    raise

        _retry(submit)


def failure_reason(job: JobDetails) -> str:
    """The last line of the message of a failed job and its exit status; empty for any other job."""
    if job.status != JobStatus.FAILED:
        return ""
    status = "" if job.driver_exit_code is None else f" (exit status {job.driver_exit_code})"
    return last_line(job.message or "") + status


def _attempt(job_id: str) -> int:
    return int(job_id.rpartition("-a")[2])


def _retry(call: Callable[[], _T]) -> _T:
    """What a request to the cluster or to storage returns, retried where the server fails."""
    deadline = time.monotonic() + _RETRY_SECONDS
    is_reported = False
    while True:
        try:
            return call()
        # Of requests' an OSError, of Ray's a RuntimeError with the status of the answer in its text.
        except (OSError, RuntimeError) as error:
            is_transient = isinstance(error, OSError) or "status code 5" in str(error)
            failure = RunError(f"the Ray cluster: {last_line(error)}")
        except RunError as error:  # Of storage.
            is_transient, failure = True, error
        if not is_transient or time.monotonic() > deadline:
            raise failure from None
        if not is_reported:
            note(f"no answer, retrying: {failure}")
            is_reported = True
        time.sleep(_POLL_SECONDS)
