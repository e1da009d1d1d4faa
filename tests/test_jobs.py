"""The command `python -m carl_ray.jobs` without a cluster; with one: `test_pipeline_on_cluster.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from carl_ray import jobs, storage
from carl_ray.errors import UserError
from carl_ray.pipelines.plan import make_plan
from tests.samples import failure

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["submit", "demo", "--folder", "/x", "--working-dir", "/"], "/: expected a checkout with carl_ray in it"),
        (["submit", "demo", "--folder", "/x", "--runtime-env-json", "[]"], "json: expected a JSON object"),
        (
            ["submit", "demo", "--folder", "/x", "--installed", "--runtime-env-json", '{"env_vars": {"X": 1}}'],
            "--runtime-env-json: env_vars.X: expected a text, got int",
        ),
        (
            ["submit", "demo", "--folder", "/x", "--installed", "--runtime-env-json", '{"env_vars": 3}'],
            "--runtime-env-json: env_vars: expected an object, got int",
        ),
        (["status", "demo", "--folder", "s3://K:hushhush@b/x"], "s3://b/x: expected a URI without credentials"),
        (["submit", "demo", "--folder", "s3://K:hushhush@b/x"], "s3://b/x: expected a URI without credentials"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line = failure(capsys, jobs.main, *arguments)
    assert status == 2
    assert expected in line
    assert "hushhush" not in line


def test_fields_that_ray_does_not_know_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    for text, is_told in (('{"pippp": []}', True), ('{"nsight": "default", "pip": ["a"]}', False)):
        options = ["submit", "demo", "--folder", "/x", "--installed", "--runtime-env-json", text]
        jobs._runtime_env(jobs._parse(options))
        assert ("has no field 'pippp'" in capsys.readouterr().err) == is_told


def test_names_of_stages_are_fixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.py"
    file.write_text("def a(folder, n='1'): return {f'stage-{n}': ['x']}")
    status, line = failure(capsys, jobs.main, "submit", str(file), "--folder", str(tmp_path), "--set", "n=2")
    assert (status, "the names of its stages must not depend on its parameters" in line) == (2, True)


@pytest.mark.parametrize("name", ["random", "imagenet", "pretrained"])
def test_names_of_weights_and_of_encoders_on_the_hub_are_no_paths(name: str) -> None:
    options = f"--model.weights {name} --model.init_from hf://lab/x"
    values = {"manifest": "/m.parquet", "train_options": options}
    jobs._check_inputs(make_plan("pouring", "/data/run", values))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--model.init_from run-old", "--model.init_from run-old: a job runs in a folder of its own"),
        ("--data.features features", "--data.features features: a job runs in a folder of its own"),
        ("--data.keypoints hf://lab/x", "hf://lab/x: expected a path or a file, s3 or gs URI"),
    ],
)
def test_inputs_that_a_job_will_not_find(options: str, expected: str) -> None:
    plan = make_plan("pouring", "/data/run", {"manifest": "/m.parquet", "train_options": options})
    with pytest.raises(UserError, match=expected):
        jobs._check_inputs(plan)


def test_a_folder_whose_name_only_begins_like_that_of_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "exists", lambda uri: False)

    def check(manifest: str) -> None:
        jobs._check_inputs(make_plan("pouring", "s3://b/run?region=eu", {"manifest": manifest}))

    check("s3://b/run/m.parquet?region=eu")
    check("file:///m.parquet")
    with pytest.raises(UserError, match=r"s3://b/run-old/m\.parquet\?region=eu: nothing is there"):
        check("s3://b/run-old/m.parquet?region=eu")


def test_help_lists_the_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        jobs.main(["submit", "--help"])
    assert left.value.code == 0
    assert (
        "    penn_action: URI of the manifest that carl_ray.datasets.penn_action wrote\n"
        in capsys.readouterr().out
    )


@pytest.fixture
def dashboard() -> Iterator[str]:
    """URL of a fake dashboard, of a cluster that requires a token and has no jobs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            body = {"/api/version": {"version": "4", "ray_version": "2.60.0", "ray_commit": ""}}.get(
                self.path, []
            )
            self.send_response(200 if allowed else 401)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body if allowed else "Unauthorized").encode())

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_the_named_address_gets_the_token(dashboard: str, tmp_path: Path) -> None:
    def status(address: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*(sys.executable, "-m", "carl_ray.jobs", "status", "demo"), "--folder", tmp_path, "--address", address],
            env={**{k: v for k, v in os.environ.items() if not k.startswith("RAY_")}, **environment},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )  # fmt: skip

    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "index.json").write_text("{}")
    elsewhere = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}
    found = status(dashboard, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN, **elsewhere)
    assert found.returncode == 0, found.stderr
    assert [line.split(None, 1) for line in found.stdout.splitlines()] == [
        *(["pipeline", "not begun"], ["index", "done"], ["train", "not begun"], ["embed", "not begun"]),
        ["evaluate", "not begun"],
    ]
    refused = status(dashboard, RAY_AUTH_MODE="disabled")
    assert (refused.returncode, "set RAY_AUTH_MODE=token" in refused.stderr) == (1, True), refused.stderr
    absent = status("http://127.0.0.1:1")
    assert absent.returncode == 1
    assert "could not reach the Ray cluster at http://127.0.0.1:1" in absent.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr + absent.stderr
