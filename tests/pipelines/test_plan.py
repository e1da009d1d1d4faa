"""`carl_ray.pipelines`: the commands of the shipped pipelines and of a user's, with parameters and a folder."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
from pathlib import Path

import pytest

from carl_ray import compare, embed, evaluate, train
from carl_ray.errors import UserError
from carl_ray.pipelines.plan import Plan, check_runtime_env, make_plan
from carl_ray.pipelines.shipped import SHIPPED

PIPELINE = """
from carl_ray.pipelines.shipped import join, train

def two(folder, manifest, options="--fast"):
    '''Two stages.

    Args:
        manifest: the videos
    '''
    return {
        "train": train("demo", manifest, join(folder, "train"), options),
        "my-embed": ["my.embed", join(folder, "train"), '{"role": "data"}'],
    }
"""


@pytest.fixture
def two(tmp_path: Path) -> str:
    (tmp_path / "two.py").write_text(PIPELINE)
    return str(tmp_path / "two.py")


def test_parameters_become_arguments(two: str, tmp_path: Path) -> None:
    values = {"manifest": "/my videos/m.parquet", "options": "--x '1 2' --y"}
    plan = make_plan(two, "s3://bucket/a b/?scheme=http", values)
    assert (plan.pipeline, plan.folder) == ("two", "s3://bucket/a b?scheme=http")
    assert plan == make_plan(f"{two}:two", "s3://bucket/a b?scheme=http", values)
    run = "s3://bucket/a b/train?scheme=http"
    assert plan.commands == {
        "train": [
            *("carl_ray.train", "demo", "--data.manifest", "/my videos/m.parquet", "--run-dir", run, "--resume"),
            *("--x", "1 2", "--y"),
        ],
        "my-embed": ["my.embed", run, '{"role": "data"}'],
    }  # fmt: skip
    assert make_plan(two, "/x", {"manifest": "m"}).commands["train"][-1] == "--fast"
    assert make_plan(two, "/x", {"manifest": "m", "options": ""}).commands["train"][-1] == "--resume"
    # Without values: only the names of stages matter.
    assert list(make_plan(two, "/x").commands) == list(plan.commands)
    assert Plan.from_json(plan.to_json()) == plan


def test_the_documented_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "cluster" / "README.md").read_text()
    (code,) = re.findall(r"```python\n# weights\.py\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("weights.py").write_text(code)
    plan = make_plan("weights.py", "s3://bucket/weights", {"manifest": "s3://bucket/manifest.parquet"})
    assert list(plan.commands) == ["train", "embed", "evaluate"]
    check_commands(plan)


def check_commands(plan: Plan) -> None:
    """Every stage is a command that its module accepts."""
    for module, *arguments in plan.commands.values():
        assert importlib.util.find_spec(module) is not None
        match module:
            case "carl_ray.train":
                assert "--resume" in arguments
                train._choose(*train._parse([word for word in arguments if word != "--resume"]))
            case "carl_ray.embed":
                embed._parse(arguments)
            case "carl_ray.evaluate":
                evaluate._parse(arguments)
            case "carl_ray.compare":
                compare._parse(arguments)
            case _:
                assert (plan.pipeline, module) == ("demo", "carl_ray.index")


def test_ids_are_derived_from_the_folder_alone() -> None:
    folders = ("s3://bucket/x", "s3://bucket/x/", "s3://bucket/y", "s3://bucket/x?scheme=http")
    plans = [make_plan("demo", uri) for uri in folders]
    ids = {plan.job_prefix("train") for plan in plans}
    assert len(ids) == 3
    assert all(name.startswith("carl-demo-") and name.endswith("-train-a") for name in ids)
    assert make_plan("demo", ".").folder == str(Path.cwd())
    assert plans[3].marker("train") == "s3://bucket/x/stages/train.json?scheme=http"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two = 1", "expected a function two in it"),
        ("two(", "SyntaxError"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def two(): pass", "pipeline two: two() takes 0 positional arguments but 1 was given"),
        ("def two(folder): return []", "pipeline two: expected commands by stage, got list"),
        ("def two(folder): return {}", "pipeline two: expected commands by stage, got dict"),
        (
            "def two(folder): return {1: ['a']}",
            "a name of letters, digits, - and _ other than pipeline, got 1",
        ),
        ("def two(folder): return {'a b': ['a']}", "other than pipeline, got 'a b'"),
        ("def two(folder): return {'pipeline': ['a']}", "other than pipeline, got 'pipeline'"),
        ("def two(folder): return {'a': 'b'}", "stage a: expected a module and arguments as texts"),
        ("def two(folder): return {'a': ['b', 1]}", "stage a: expected a module and arguments as texts"),
        ("def two(folder, n): return {'a': [n]}", "pipeline two needs --set n=VALUE: it has no default"),
    ],
)
def test_files_without_a_pipeline(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "two.py").write_text(text)
    with pytest.raises(UserError) as raised:
        make_plan(str(tmp_path / "two.py"), "/x", {})
    assert expected in str(raised.value)


def test_mistakes_in_parameters(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown pipeline 'pourin': expected one of demo, finegym99"):
        make_plan("pourin", "/x", {})
    with pytest.raises(UserError, match="No such file"):
        make_plan(str(tmp_path / "none.py"), "/x", {})
    with pytest.raises(UserError, match=r"has no parameter 'option' \(it has manifest, train_options"):
        make_plan("pouring", "/x", {"manifest": "m", "option": "1"})
    for values in ({}, {"manifest": ""}):
        with pytest.raises(UserError, match="pouring needs --set manifest=VALUE: URI of the manifest that"):
            make_plan("pouring", "/x", values)
    with pytest.raises(UserError, match="pipeline pouring: No closing quotation"):
        make_plan("pouring", "/x", {"manifest": "m", "train_options": "'"})


@pytest.mark.parametrize(
    "values",
    [
        {"manifest": "s3://AKIAKEY:hushhush@bucket/m"},
        {"manifest": "s3://bucket/m?secret_key=hushhush"},
        {"manifest": "m", "train_options": "--model.weights=s3://AKIAKEY:hushhush@bucket/w --a"},
    ],
)
def test_credentials_are_refused_and_not_shown(values: dict[str, str]) -> None:
    with pytest.raises(UserError, match="expected a URI without credentials") as raised:
        make_plan("pouring", "/x", values)
    assert "hushhush" not in str(raised.value)


def test_a_requirement_from_git_is_no_secret() -> None:
    check_runtime_env(
        {"pip": ["git+ssh://git@github.com/org/x.git", "y @ git+ssh://git@host/y.git@v1#egg=y"]}
    )
    for requirement in ("git+ssh://git:hushhush@host/x.git", "git+https://hushhush@host/x.git"):
        with pytest.raises(UserError, match=r"runtime environment: pip .* without credentials") as raised:
            check_runtime_env({"pip": [requirement]})
        assert "hushhush" not in str(raised.value)


def test_done_is_what_storage_says_and_for_that_command_alone(two: str, tmp_path: Path) -> None:
    plan, other = (make_plan(two, str(tmp_path), {"manifest": name}) for name in ("m", "n"))
    assert not plan.is_done("train")
    plan.mark_done("train", 12.34)
    assert json.loads((tmp_path / "stages" / "train.json").read_text())["seconds"] == 12.3
    assert plan.is_done("train")
    assert not plan.is_done("my-embed")
    with pytest.raises(UserError, match=r"stage train was done as `.* m --run.*`, and is now `.* n --run"):
        other.is_done("train")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_pipelines_are_commands_of_this_package(name: str) -> None:
    values = {parameter: f"/{parameter}" for parameter in inspect.signature(SHIPPED[name]).parameters}
    given = {key: value for key, value in values.items() if key != "folder" and not key.endswith("options")}
    if "preset" not in given:
        check_commands(make_plan(name, "s3://bucket/folder", given))
        return
    for preset in ("regions_ucf101", "csvr_ucf101"):
        check_commands(make_plan(name, "s3://bucket/folder", given | {"preset": preset}))
