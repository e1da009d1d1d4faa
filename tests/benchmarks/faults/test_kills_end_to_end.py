"""Whatever is killed at whatever moment, the same command ends with the metrics of a run that nobody disturbed."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.faults.kills import family, kill, run_to_the_end, strikes, victims
from benchmarks.faults.rounds import differences
from carl_ray.data.scan import index_folder
from carl_ray.options import overridden
from carl_ray.presets import PRESETS
from carl_ray.training.checkpoint import latest_checkpoint
from carl_ray.training.run_log import read_log
from carl_ray.training.trainer import train

NUM_STEPS = 80
CHECKPOINT_EVERY = 10
OPTIONS = {
    "data.short_side": 32,
    "training.epochs": NUM_STEPS // 2,
    "training.global_batch_size": 2,
    "training.precision": "fp32",
    "training.log_every_steps": 1,
    "training.checkpoint_every_steps": CHECKPOINT_EVERY,
    "training.validate_every_steps": NUM_STEPS // 2,
    "cluster.max_decode_tasks": 1,  # each has two processes, which start anew after most kills
}
KINDS = (
    "decoding task",
    "decoder",
    "data coordinator",
    "training worker",
    "driver",
    "warned driver",
)
SEED = 32  # the two that decode come first: later, what is left may be decoded already


@pytest.mark.slow
@pytest.mark.usefixtures("local_training")  # of the run that nobody disturbs; the other is a command
def test_kills_at_random_moments_change_nothing(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    """With the preset that has most to restore: two optimisers, in turn."""
    for number in range(4):
        make_video(tmp_path / "videos" / f"{number}.mp4", 30, 64, 48)
    manifest = str(tmp_path / "manifest.parquet")
    index_folder(str(tmp_path / "videos"), manifest)
    values = {name: str(value) for name, value in OPTIONS.items()} | {"data.manifest": manifest}
    undisturbed, disturbed = str(tmp_path / "undisturbed"), str(tmp_path / "disturbed")
    assert train(overridden(PRESETS["clips_demo"](), values), undisturbed).finished

    command = [sys.executable, "-m", "carl_ray.train", "clips_demo", "--run-dir", disturbed]
    command += [part for name, value in values.items() for part in (f"--{name}", value)]
    log = tmp_path / "log"
    statuses: list[subprocess.Popen[bytes]] = []

    def start(resume: bool) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*command, *(["--resume"] if resume else [])], env=os.environ, stdout=output, stderr=output
            )
        statuses.append(process)
        return process

    # Steps alone decide, so that each kill meets a run that has survived the one before.
    coming = islice(strikes(SEED, KINDS, most_steps=8, share_at_once=0.0), len(KINDS))
    # The cluster is that of all tests: coordinators of streams of this process may still be there.
    others = [process for kind in KINDS for process in victims(kind, family())]
    tally = run_to_the_end(
        start,
        disturbed,
        coming,
        log=log,
        strike=lambda strike: kill(strike.kind, strike.choice, spare=others) is not None,
        search_seconds=math.inf,
    )

    printed = log.read_text()
    missed = Counter(KINDS) - tally.strikes
    assert not missed, f"the run ended, all steps done, before these met a victim: {[*missed]}\n{printed}"
    assert tally.strikes == Counter(KINDS), printed
    assert differences(read_log(undisturbed), read_log(disturbed)) == [], printed
    checkpoint, whole = latest_checkpoint(disturbed), latest_checkpoint(undisturbed)
    assert checkpoint is not None and checkpoint.progress.step == NUM_STEPS
    assert whole is not None and checkpoint.model_sha256 == whole.model_sha256
    # Only what kills drivers ends the command; where there is time for it, nothing is done twice.
    assert sorted(process.returncode for process in statuses) == [-9, 0, 143], printed
    last = next(line for line in printed.splitlines() if line.startswith("carl_ray: stopped at step"))
    assert re.search(r"stopped at step (\d+) of 80 by SIGTERM; go on from step \1 with: ", last)
    assert last.endswith(f"python -m carl_ray.train --run-dir {disturbed} --resume")
    assert "Traceback" not in printed
    assert tally.repeated.keys() <= {"data coordinator", "training worker", "driver"}, tally
    # None at all where workers, which outlive their driver for a while, have come to their next checkpoint.
    assert tally.most_repeated <= CHECKPOINT_EVERY, tally
