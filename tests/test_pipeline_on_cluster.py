"""A pipeline of jobs on a real head: after kills, submitting again completes it, each stage once."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from carl_ray import jobs
from carl_ray.pipelines.plan import PIPELINE_JOB, Plan, make_plan
from carl_ray.training.checkpoint import CHECKPOINTS
from carl_ray.training.run_log import read_log

REPOSITORY = Path(__file__).parents[1]
NUM_STEPS = 200  # more than are done while a job is told to stop
TRAINING = (
    "--training.epochs 100 --training.global_batch_size 2 --training.log_every_steps 1 --training.precision fp32 "
    "--training.checkpoint_every_steps 10 --model.num_frames 8 --model.num_layers 1 --model.width 32 "
    "--model.num_heads 2 --model.hidden_width 32 --model.feedforward_width 32 --augment.image_size 32 "
    "--cluster.max_decode_tasks 1"
)


@pytest.fixture
def videos(tmp_path: Path, make_video: Callable[..., Path]) -> Path:
    for number in range(7):
        make_video(tmp_path / "videos" / ("train" if number < 4 else "test") / f"{number}.mp4", 30)
    return tmp_path / "videos"


def until(happens: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 900
    while not happens():
        if time.monotonic() > deadline:
            pytest.fail(f"not within a quarter of an hour: {what}\n{everything()}")
        time.sleep(0.05)


def everything() -> str:
    """What the cluster says of its jobs, and the ends of their logs."""
    client = JobSubmissionClient()
    lines = []
    for info in client.list_jobs():
        if info.submission_id is not None:
            lines += [
                f"{info.submission_id} {info.status.value}",
                client.get_job_logs(info.submission_id)[-1500:],
            ]
    return "\n".join(lines)


def kill(text: str) -> None:
    """SIGKILL to every process whose command line has this text, which must be one of the test's own names."""

    def found() -> list[int]:
        pids = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = file.read_bytes()
            except OSError:
                continue
            if text.encode() in command.replace(b"\0", b" "):
                pids.append(int(file.parent.name))
        return pids

    until(lambda: bool(found()), f"no process {text}")
    for pid in found():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def step_of(run: Path) -> int:
    """Of the newest whole checkpoint; 0 where there is none."""
    states = (run / CHECKPOINTS).glob("step-*/state.json")
    return max((json.loads(state.read_text())["progress"]["step"] for state in states), default=0)


def attempts(client: JobSubmissionClient, plan: Plan, stage: str) -> list[JobStatus]:
    status = {info.submission_id: info.status for info in client.list_jobs()}
    ids = [f"{plan.job_prefix(stage)}{attempt}" for attempt in range(1, 20)]
    return [status[name] for name in ids if name in status]


def resumed_at(log: str) -> int:
    found = re.search(r"^resuming .* from step (\d+)$", log, re.MULTILINE)
    assert found is not None, log
    return int(found[1])


@pytest.mark.slow
def test_killed_between_stages_and_in_training(
    ray_cluster: dict[str, str], tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pipeline"
    where = ["demo", "--folder", str(folder)]
    sent = ("--python", sys.executable, "--working-dir", str(REPOSITORY))
    arguments = [*where, *sent, "--set", f"videos={videos}"]
    plan = make_plan("demo", str(folder))
    client = JobSubmissionClient()
    number = 0

    def submit() -> str:
        """Submit the pipeline; id of the job that runs it now, a new one each time."""
        nonlocal number
        number += 1
        jobs.main(["submit", *arguments, "--set", f"train_options={TRAINING}"])
        return f"{plan.job_prefix(PIPELINE_JOB)}{number}"

    def kill_pipeline(job: str) -> None:
        kill(f"--job-id {job}")
        until(lambda: client.get_job_status(job) == JobStatus.FAILED, f"{job} survived")

    def done(stage: str) -> Callable[[], bool]:
        return Path(plan.marker(stage)).exists

    def log_of(attempt: int) -> str:
        return client.get_job_logs(f"{plan.job_prefix('train')}{attempt}")

    # Index is done, training has begun; the pipeline's job goes, the stage's stays, and the next pipeline waits for it.
    job = submit()
    until(lambda: bool(attempts(client, plan, "train")), "training begins")
    kill_pipeline(job)
    waiting = submit()
    until(
        lambda: "waiting for job" in client.get_job_logs(waiting), "the pipeline waits for the running stage"
    )

    # In the middle of training: its job is killed, and the pipeline tries again.
    run = folder / "train"
    until(lambda: step_of(run) > 0, "a checkpoint")
    kill(f"--run-dir {run}")
    killed_at = step_of(run)
    until(lambda: len(attempts(client, plan, "train")) == 2, "another attempt")
    # Ray's workers outlive a killed driver by a moment, with a checkpoint perhaps: only the new one's step counts.
    until(lambda: "resuming " in log_of(2), "the new attempt resumes")
    until(lambda: step_of(run) > resumed_at(log_of(2)), "it goes on")
    jobs.main(["stop", *where])
    stopped_at = step_of(run)
    assert 0 < killed_at < stopped_at < NUM_STEPS
    assert attempts(client, plan, PIPELINE_JOB)[-1] == JobStatus.STOPPED
    assert attempts(client, plan, "train") == [JobStatus.FAILED, JobStatus.STOPPED]
    assert not done("train")()

    # Between train and embed.
    job = submit()
    until(done("train"), "train")
    kill_pipeline(job)
    trained = Path(plan.marker("train")).stat().st_mtime_ns
    with pytest.raises(SystemExit) as left:
        jobs.main(["submit", *arguments, "--set", "train_options=--training.epochs 7"])
    assert left.value.code == 2

    submit()
    capsys.readouterr()
    jobs.main(["logs", *where, "--follow"])
    assert "metrics: " in capsys.readouterr().out
    jobs.main(["submit", *arguments, "--set", f"train_options={TRAINING}", "--wait"])
    assert "nothing to do: all 4 stages are done" in capsys.readouterr().out

    assert attempts(client, plan, "index") == [JobStatus.SUCCEEDED]
    assert attempts(client, plan, "train") == [JobStatus.FAILED, JobStatus.STOPPED, JobStatus.SUCCEEDED]
    assert attempts(client, plan, "embed") == [JobStatus.SUCCEEDED]
    assert attempts(client, plan, "evaluate") == [JobStatus.SUCCEEDED]
    assert Path(plan.marker("train")).stat().st_mtime_ns == trained
    assert [line["step"] for line in read_log(str(run)) if "loss" in line] == list(range(1, NUM_STEPS + 1))
    assert killed_at <= resumed_at(log_of(2)) < resumed_at(log_of(3)) == stopped_at
    assert {path.name for path in folder.iterdir()} == {
        *("stages", "manifest.parquet", "manifest.rejects.parquet", "train", "embeddings", "evaluation")
    }
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
    assert (metrics["origin"]["step"], metrics["test"]["videos"]) == (NUM_STEPS, 3)
    jobs.main(["status", *where])
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["done"] * 5
