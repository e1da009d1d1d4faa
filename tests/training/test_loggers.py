"""`carl_ray.training.loggers` against Weights & Biases and MLflow, both without a server."""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from carl_ray.config import Config, from_json, to_json
from carl_ray.errors import UserError
from carl_ray.options import overridden
from carl_ray.training import loggers, run_checks
from carl_ray.training.run_log import RunLog, read_log

SECRET = "0123456789" * 4
CONFIG = overridden(Config(preset="test"), {"training.loggers": "wandb,mlflow"})


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not while tests are collected, which every test process does.
    wandb = pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setattr(
        loggers, "_CLOSE_SECONDS", 300.0
    )  # Imports on starved cores take longer than a run waits.
    wandb.teardown()  # It keeps the environment that it was first used in.


def two_starts(run_dir: Path, config: Config = CONFIG) -> None:
    """A run of three lines, and its next start, from step 2 on."""
    for first in (0, 2):
        begin = int(time.time())
        while first and int(time.time()) == begin:  # wandb names its folders by the second.
            time.sleep(0.05)
        log = RunLog(str(run_dir), first, config)
        log.write(first + 1, {"loss": 1 / (first + 1), "gradient_norm": float("nan"), "num_videos": 4})
        log.write(first + 2, {"loss": 0.25})
        log.write(first + 2, {"validation_loss": 2.5})
        log.close()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("carl_ray")]


def numbers(run_dir: Path) -> dict[int, dict[str, float]]:
    """What metrics.jsonl has, by step."""
    steps: dict[int, dict[str, float]] = {}
    for line in read_log(str(run_dir)):
        values = {key: value for key, value in line.items() if key != "step" and value is not None}
        steps[line["step"]] = steps.get(line["step"], {}) | values
    return steps


def records(path: Path) -> Iterator[bytes]:
    """Records of a file of wandb: blocks of 32 KiB, and in these checksum, length and kind before each part."""
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def wandb_history(path: Path) -> dict[int, dict[str, float]]:
    from wandb.proto.wandb_internal_pb2 import Record

    steps = {}
    for record in map(Record.FromString, records(path)):
        if record.HasField("history"):
            items = {
                item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item
            }
            own = {key: value for key, value in items.items() if not key.startswith("_")}
            steps[record.history.step.num] = own
    return steps


def test_both_have_what_the_log_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from mlflow import MlflowClient

    run_dir = tmp_path / "run"
    two_starts(run_dir)
    assert warnings(caplog) == []
    expected = numbers(run_dir)
    assert list(expected) == [1, 2, 3, 4] and expected[2] == {"loss": 0.25, "validation_loss": 2.5}

    run_id = (run_dir / "loggers" / "wandb.id").read_text()
    first, second = sorted((run_dir / "loggers" / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    assert wandb_history(first).keys() == {1, 2}
    assert wandb_history(second) == expected, "a file by itself is the whole run"

    client = MlflowClient((run_dir / "loggers" / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("carl_ray").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params["model.backbone"]) == (
        "run",
        "FINISHED",
        "resnet50",
    )
    for key in ("loss", "num_videos", "validation_loss"):
        history = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]
        assert history == [(step, values[key]) for step, values in expected.items() if key in values]
    assert "gradient_norm" not in run.data.metrics
    for path in run_dir.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_what_is_down_gets_the_lines_at_the_next_start(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    config = overridden(CONFIG, {"training.loggers": name})
    with monkeypatch.context() as context:
        if name == "wandb":
            context.setenv("WANDB_MODE", "online")
            context.setenv("WANDB_INIT_TIMEOUT", "1")
            context.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
            wandb.teardown()
        else:
            context.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            context.setenv("MLFLOW_TRACKING_URI", f"http://user:{SECRET}@127.0.0.1:9")
        two_starts(tmp_path, config)
    assert [f"training.loggers: {name}: " in message for message in warnings(caplog)] == [True, True]
    assert SECRET not in caplog.text and "\n" not in warnings(caplog)[0]
    assert len(read_log(str(tmp_path))) == 6
    wandb.teardown()
    RunLog(str(tmp_path), 4, config).close()
    if name == "wandb":
        *_, path = sorted((tmp_path / "loggers" / "wandb").glob("offline-run-*/*.wandb"))
        assert wandb_history(path) == numbers(tmp_path)
    else:
        assert list((tmp_path / "loggers" / "mlflow").glob("*/*/metrics/validation_loss"))


def test_a_service_that_fails_after_the_start_of_a_run_keeps_this_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    log_batch = MlflowClient.log_batch
    failures = [OSError("500")]

    def failing(*arguments: object, **options: object) -> None:
        if failures:
            raise failures.pop()
        log_batch(*arguments, **options)

    monkeypatch.setattr(MlflowClient, "log_batch", failing)
    two_starts(tmp_path, overridden(CONFIG, {"training.loggers": "mlflow"}))
    assert len(warnings(caplog)) == 1
    client = MlflowClient((tmp_path / "loggers" / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("carl_ray").experiment_id])
    assert run.data.params["model.backbone"] == "resnet50" and run.data.metrics["loss"] == 0.25


def test_a_logger_that_hangs_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = threading.Event()
    monkeypatch.setattr(loggers, "_CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(loggers._MlflowRun, "__init__", lambda *_: released.wait() and None)
    log = RunLog(str(tmp_path), 0, overridden(CONFIG, {"training.loggers": "mlflow"}))
    log.write(1, {"loss": 1.0})
    log.close()
    assert [message.count("no answer") for message in warnings(caplog)] == [1]
    assert numbers(tmp_path) == {1: {"loss": 1.0}}
    released.set()


def test_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CONFIG.training.loggers == ("wandb", "mlflow")
    assert from_json(to_json(CONFIG), "here") == CONFIG
    assert overridden(CONFIG, {"training.loggers": "none"}) == Config(preset="test")
    with pytest.raises(UserError, match=r"training\.loggers.*'wandb' or 'mlflow'"):
        overridden(CONFIG, {"training.loggers": "wandb,neptune"})
    run_checks.check_same_run(CONFIG, Config(preset="test"), "/run")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'carl_ray\[wandb\]'"):
        run_checks.check_inputs(replace(CONFIG, data=replace(CONFIG.data, manifest="x")))
