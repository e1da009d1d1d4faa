"""Who is killed, when, and what is made of it: without Ray."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from benchmarks import soak as command
from benchmarks.faults import kills, rounds
from benchmarks.faults.growth import WARM_UP_SECONDS, Growth, Sample, growth, slope
from benchmarks.faults.kills import KINDS, Process, Strike, Tally, below, run_to_the_end, strikes, victims
from benchmarks.faults.rounds import (
    CHECKPOINT_EVERY,
    LEAST_MINUTES,
    LEAST_SECONDS_FOR_A_RATE,
    MOST_MEBIBYTES,
    MOST_MEBIBYTES_PER_HOUR,
    Figures,
    differences,
)
from carl_ray.errors import RunError

SUBMIT = "/bin/python -m ray.scripts.scripts job submit -- /bin/python -m carl_ray.train demo"
PROCESSES = [
    Process(10, 1, "/usr/bin/python3.11 -m ray.scripts.scripts start --head --block --port=6379"),
    Process(11, 10, "/opt/ray/core/raylet --session-dir"),
    Process(12, 11, "ray::MapBatches(load)"),
    Process(13, 11, "ray::MapBatches(load)"),
    Process(18, 12, "/bin/python -c from carl_ray.data.guard import answer_views; answer_views()"),
    Process(14, 11, "ray::MapBatches(plan_segment)"),
    Process(15, 11, "ray::RayTrainWorker.execute"),
    Process(16, 11, "ray::SplitCoordinator.get"),
    Process(17, 11, "ray::IDLE"),
    Process(20, 1, "/usr/bin/python3.11 -m ray.scripts.scripts start --block --address=127.0.0.1:6379"),
    Process(21, 20, "/opt/ray/core/raylet --session-dir"),
    Process(22, 21, "ray::MapBatches(load)"),
    Process(30, 1, f"/bin/sh -c {SUBMIT}; exit $?"),
    Process(31, 30, SUBMIT),
    Process(40, 11, "/bin/sh -c /bin/python -m carl_ray.train demo"),
    Process(41, 40, "/bin/python -m carl_ray.train demo"),
]


def test_victims_are_known_by_their_titles() -> None:
    found = {kind: [process.pid for process in victims(kind, PROCESSES)] for kind in KINDS}
    assert found == {
        "decoding task": [12, 13, 22],
        "decoder": [18],
        "planning task": [14],
        "data coordinator": [16],
        "training worker": [15],
        "warned training worker": [15],
        "training controller": [],
        "monitor": [],
        "driver": [41],
        "warned driver": [41],
        "node": [20],
        "shell": [30],
    }
    assert [process.pid for process in below(20, PROCESSES)] == [21, 22]
    assert [process.pid for process in below(30, PROCESSES)] == [31]


def test_only_the_own_family_is_killed() -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)", "ray::MapBatches(load)"]
    KINDS["sleeper"] = kills.Kind(r"\S+ -c import time; time.sleep\(600\) ray::", KINDS["driver"].signal)
    # A child of a child, and a process that is neither.
    code = f"import subprocess; subprocess.run({sleeper!r})"
    try:
        assert kills.kill("sleeper", 0.5) is None
        parent = subprocess.Popen([sys.executable, "-c", code])
        while (victim := kills.kill("sleeper", 0.999)) is None:
            assert parent.poll() is None
        assert parent.wait(timeout=180) == 0
        assert victim.parent == parent.pid
    finally:
        del KINDS["sleeper"]


def test_strikes_are_a_seed_s_and_take_turns() -> None:
    kinds = ["a", "b", "c"]
    some = list(islice(strikes(1, kinds, 9, 0.5), 300))
    assert some == list(islice(strikes(1, kinds, 9, 0.5), 300))
    assert some != list(islice(strikes(2, kinds, 9, 0.5), 300))
    assert Counter(strike.kind for strike in some) == dict.fromkeys(kinds, 100)
    assert {strike.kind for strike in some[:3]} == {strike.kind for strike in some[3:6]} == set(kinds)
    assert {strike.steps for strike in some} == set(range(1, 10))
    at_once = [strike for strike in some if strike.seconds < 60]
    assert 100 < len(at_once) < 200


COMMAND = """
import json, pathlib, sys, time
log = pathlib.Path(sys.argv[1]) / "metrics.jsonl"
lines = log.read_text().splitlines() if log.exists() else []
number = len(list(log.parent.glob("start-*")))
begin, end, status = json.loads(sys.argv[2])[number]
(log.parent / f"start-{number}").touch()
with log.open("w") as file:
    file.writelines(line + "\\n" for line in lines[:begin])
    file.writelines(json.dumps({"step": step}) + "\\n" for step in range(begin + 1, end + 1))
while status == 1 and not (log.parent / f"strike-{number}").exists():
    time.sleep(0.01)
sys.exit(status)
"""


def starts(folder: Path, plan: list[tuple[int, int, int]]) -> Any:
    """A command whose n-th start writes the lines after `begin` to `end` and leaves with a status; 1 once struck."""
    resumed: list[bool] = []

    def start(resume: bool) -> subprocess.Popen[bytes]:
        assert resume == bool(resumed)
        resumed.append(resume)
        return subprocess.Popen([sys.executable, "-S", "-c", COMMAND, str(folder), json.dumps(plan)])

    return start


def test_a_command_is_resumed_until_it_ends_well(tmp_path: Path) -> None:
    carried_out: list[str] = []
    seen: set[int] = set()

    def strike(strike: Strike) -> bool:
        (tmp_path / f"strike-{len(carried_out)}").touch()
        carried_out.append(strike.kind)
        return True

    tally = run_to_the_end(
        starts(tmp_path, [(0, 8, 1), (5, 12, 1), (10, 20, 0)]),
        str(tmp_path),
        iter(Strike(kind, steps, math.inf, 0.0) for kind, steps in (("a", 8), ("b", 4), ("c", 100))),
        log=tmp_path / "log",
        strike=strike,
        on_poll=lambda step, tally: seen.add(step),
    )
    assert carried_out == ["a", "b"]
    assert (tally.strikes, tally.commands) == ({"a": 1, "b": 1}, 3)
    assert {8, 12} <= seen


def test_the_next_strike_waits_for_the_restart_after_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    carried_out: list[tuple[str, int]] = []
    polls = 0

    def log(steps: int) -> None:
        (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {n}}}\n' for n in range(1, steps + 1)))

    def strike(strike: Strike) -> bool:
        (tmp_path / f"strike-{len(carried_out)}").touch()
        carried_out.append((strike.kind, polls))
        log(10)  # steps that were done after the log was read
        return True

    def on_poll(step: int, tally: Tally) -> None:
        nonlocal polls
        polls += 1
        if polls == 4:
            log(20)  # what was struck goes on for some steps
        elif polls == 7:
            (tmp_path / "events" / "second").touch()
        elif polls == 12:
            (tmp_path / "end").touch()

    (tmp_path / "events" / "first").touch()
    log(5)
    wait = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)"
    tally = run_to_the_end(
        lambda resume: subprocess.Popen([sys.executable, "-S", "-c", wait, str(tmp_path / "end")]),
        str(tmp_path),
        iter([Strike("training worker", 2, math.inf, 0.0), Strike("decoder", 2, math.inf, 0.0)]),
        log=tmp_path / "log",
        strike=strike,
        on_poll=on_poll,
    )
    assert carried_out == [("training worker", 1), ("decoder", 8)]
    assert (tally.commands, tally.most_repeated) == (1, 10)


def test_a_store_that_does_not_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    store = rounds.S3Store(0)
    for name in store.environment:
        monkeypatch.setenv(name, "")
    servers: list[subprocess.Popen[bytes]] = []

    def fail(port: int, server: subprocess.Popen[bytes], what: str) -> None:
        servers.append(server)
        raise RunError("not there")

    monkeypatch.setattr(rounds, "_wait_for", fail)
    with pytest.raises(RunError, match="not there"), store:
        pass
    assert [server.returncode for server in servers] == [-signal.SIGKILL]


def test_a_command_that_is_refused_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("one\ncarl_ray: unknown option\n\n")
    with pytest.raises(RunError, match="refused: carl_ray: unknown option"):
        run_to_the_end(starts(tmp_path, [(0, 1, 2)]), str(tmp_path), iter(()), log=tmp_path / "log")


def test_a_run_that_stands_still_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kills, "_STALLED_SECONDS", 0.2)
    with pytest.raises(RunError, match=re.escape("no step in 0 s, at step 0, after {}")):
        run_to_the_end(
            lambda resume: subprocess.Popen(["false"]), str(tmp_path), iter(()), log=tmp_path / "log"
        )


def test_metrics_differ_in_what_was_computed_alone() -> None:
    reference = [{"step": 1, "loss": 0.1, "num_workers": 1}, {"step": 2, "loss": None}]
    assert (
        differences(reference, [{"step": 1, "loss": 0.1, "num_workers": 2}, {"step": 2, "loss": None}]) == []
    )
    assert differences(reference, [{"step": 1, "loss": 0.10000000000000002}, {"step": 2, "loss": None}]) == [
        "line 1, step 1: loss: expected 0.1, got 0.10000000000000002"
    ]
    assert differences(reference, reference[:1]) == ["expected 2 lines, got 1"]
    assert differences(reference, [*reference, {"step": 2}]) == ["expected 2 lines, got 3"]
    assert len(differences(reference, [{"step": 2}, {"step": 1, "norm": 1.0}])) == 4


def test_slope_has_an_intercept_for_each_series() -> None:
    line = [(float(x), 2.0 * x + 5) for x in range(10)]
    higher = [(x + 100.0, y + 1000) for x, y in line]
    assert slope([line]) == pytest.approx(2)
    assert slope([line, higher]) == pytest.approx(2)
    assert slope([line, [(x, 7.0) for x, _ in line]]) == pytest.approx(1)
    assert slope([[], [(1.0, 5.0)], [(3.0, 9.0)]]) is None


def test_growth_leaves_the_warm_up_out() -> None:
    def life(start: float, rate: float, seconds: int) -> list[Sample]:
        warm = start + WARM_UP_SECONDS
        times = [start + 2.0 * n for n in range(seconds // 2 + 1)]
        return [
            Sample(t, 500.0 if t < warm else 100.0 + rate * (t - warm), 9 if t < start + 110 else 12)
            for t in times
        ]

    samples = {
        "raylet": [life(0.0, 0.01, 200), life(200.0, 0.01, 100), life(300.0, 9.0, 20)],
        "GCS": [life(0, 0, 10)],
    }
    (found,) = growth(samples)
    assert found.kind == "raylet"
    assert found.mebibytes_per_hour == pytest.approx(36)
    assert (found.seconds, found.mebibytes) == (140, pytest.approx(1.4))
    assert found.descriptors == (9, (12 + 9) / 2)


WATCHED = [*rounds._OF_THE_CLUSTER, *rounds._OF_A_RUN]
GOOD = Figures(
    minutes=20.0,
    seed=3,
    rounds=4,
    differences=[],
    tally=Tally(
        Counter({**dict.fromkeys(KINDS, 1), "driver": 2}), 6, Counter({"driver": 31}), CHECKPOINT_EVERY
    ),
    worker_starts=11,
    storage_faults={"reset": 5},
    quarantined=30,
    growth=[Growth(kind, 3.25, 1100.0, 1.0, (40.0, 41.0)) for kind in WATCHED],
    object_store=(0.0, 0.5),
    spilled=0.0,
    notes=[],
)


def test_a_soak_that_is_passed_is_one_line() -> None:
    assert GOOD.failures() == []
    line = GOOD.line()
    assert "\n" not in line
    for part in (
        "4 rounds",
        "survived 13: data coordinator 1, ",
        "driver 2, monitor 1, node 1, ",
        "reset 5",
        "GCS +3.2 in 18 min",
        "GCS 40 to 41",
        "quarantined: 30",
    ):
        assert part in line
    assert "storage faults: left out" in replace(GOOD, storage_faults=None).line()


def test_a_long_soak_must_have_shown_everything() -> None:
    missing = replace(
        GOOD,
        tally=replace(GOOD.tally, strikes=GOOD.tally.strikes - Counter(["node", "monitor"])),
        storage_faults={},
        quarantined=0,
        growth=GOOD.growth[1:],
    )
    assert missing.failures() == [
        "no victim was met of: monitor, node",
        "no request met a storage fault",
        "the video that is damaged on purpose was not quarantined",
        f"the growth was not measured of: {WATCHED[0]}",
    ]
    assert replace(missing, minutes=LEAST_MINUTES - 0.1).failures() == []
    assert replace(GOOD, storage_faults=None).failures() == []


def test_growth_by_the_hour_counts_where_it_was_watched_long_enough() -> None:
    fast = Growth("raylet", MOST_MEBIBYTES_PER_HOUR + 1, LEAST_SECONDS_FOR_A_RATE, 16.5, (4.0, 4.0))
    assert replace(GOOD, growth=[*GOOD.growth, fast]).failures() == [
        "raylet grew by 33.0 MiB an hour, more than 32"
    ]
    short = replace(fast, seconds=LEAST_SECONDS_FOR_A_RATE - 1)
    assert replace(GOOD, growth=[*GOOD.growth, short]).failures() == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"differences": ["round 1, line 2", "b"]},
            "2 differences from the reference, first round 1, line 2",
        ),
        ({"tally": replace(GOOD.tally, most_repeated=CHECKPOINT_EVERY + 1)}, "11 steps were done again"),
        (
            {"growth": [*GOOD.growth, Growth("GCS", 1.0, 1e3, MOST_MEBIBYTES + 1, (4.0, 4.0))]},
            "GCS grew by 33.0 MiB",
        ),
        (
            {"growth": [*GOOD.growth, Growth("GCS", 1.0, 1e3, 1.0, (4.0, 24.0))]},
            "GCS had 4 files open, then 24",
        ),
        ({"object_store": (1.0, 20.0)}, "the object store held 1.0 MiB, then 20.0"),
        ({"spilled": 0.5}, "0.5 MiB were spilled"),
    ],
)
def test_what_fails_a_soak(change: dict[str, Any], expected: str) -> None:
    (failure,) = replace(GOOD, **change).failures()
    assert failure.startswith(expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--minutes", "0"], "--minutes: expected a number above 0, got 0"),
        (["--minutes", "nan"], "--minutes: expected a number above 0"),
        (["--run-dir", "s3://bucket/run"], "expected a folder of this machine, got s3://bucket/run"),
        (["--run-dir", "/usr"], "expected a folder that is empty or not there"),
        (["--fuzz", "/nowhere"], "/nowhere: no such folder"),
        (["--fuzz", "/usr", "--run-dir", "x"], "leave out --run-dir"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        command.main(arguments)
    assert left.value.code == 2
    assert expected in capsys.readouterr().err
