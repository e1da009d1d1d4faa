"""`carl_ray.chains.chain`: what a chain file says, and what becomes of it with parameters and a folder."""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path

import pytest

from carl_ray import compare, embed, evaluate, train
from carl_ray.chains.chain import (
    CHAIN_JOB,
    Plan,
    check_runtime_env,
    outline_of,
    plan_chain,
    read_chain,
    shipped_chains,
    write_done,
)
from carl_ray.errors import UserError

CHAIN = """
name: two
parameters:
  manifest: the videos
  options: of the training, such as [this] or that [--fast]
stages:
  train: >-
    my.train {manifest} --out {folder}/train-of-{manifest} {options...} --json '{"role": "data"}'
  embed: my.embed {folder}/train
"""


def written(folder: Path, text: str) -> str:
    (folder / "chain.yaml").write_text(text)
    return str(folder / "chain.yaml")


def test_parameters_become_arguments(tmp_path: Path) -> None:
    chain = read_chain(written(tmp_path, CHAIN))
    plan = plan_chain(
        chain, "s3://bucket/a b?scheme=http", {"manifest": "/my videos/m.parquet", "options": "--x '1 2' --y"}
    )
    assert plan.outline.folder == "s3://bucket/a b?scheme=http"
    assert list(plan.commands) == ["train", "embed"]
    assert plan.commands["train"][:3] == ("my.train", "/my videos/m.parquet", "--out")
    assert plan.commands["train"][4:] == ("--x", "1 2", "--y", "--json", '{"role": "data"}')
    defaults = plan_chain(chain, str(tmp_path), {"manifest": "m"})
    assert defaults.commands["train"][3:5] == (f"{tmp_path}/train-of-m", "--fast")
    dashed = read_chain(written(tmp_path, "name: a\nparameters: {my-p: t}\nstages: {x: 'y {my-p}'}"))
    assert plan_chain(dashed, "/x", {"my-p": "1"}).commands["x"] == ("y", "1")
    chain = read_chain(written(tmp_path, CHAIN))
    none = plan_chain(chain, str(tmp_path), {"manifest": "m", "options": ""})
    assert none.commands["train"][4:] == ("--json", '{"role": "data"}')


def test_a_plan_survives_as_text(tmp_path: Path) -> None:
    plan = plan_chain(read_chain(written(tmp_path, CHAIN)), str(tmp_path), {"manifest": "ä b"})
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()


def test_ids_follow_from_the_folder_alone() -> None:
    chain = read_chain("demo")
    ids = {
        outline_of(chain, uri).job_id("train", 1)
        for uri in ("s3://bucket/x", "s3://bucket/x/", "s3://bucket/y", "s3://bucket/x?scheme=http")
    }
    assert len(ids) == 3
    assert all(name.startswith("carl-demo-") and name.endswith("-train-a1") for name in ids)
    assert outline_of(chain, ".").folder == str(Path.cwd())
    assert (
        outline_of(chain, "s3://b/x/?scheme=http").marker("train") == "s3://b/x/stages/train.json?scheme=http"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [", "not YAML"),
        ("- a", "expected `name`, `parameters` and `stages`, got list"),
        ("name: a\nstage: {}", "expected `name`, `parameters` and `stages`, got name, stage"),
        ("name: a", "expected at least one stage"),
        ("name: a\nstages: [x]", "expected stages as `name: text`, got list"),
        ("name: a\nstages: {x: 1}", "expected stages as `name: text`, got x"),
        ("name: A\nstages: {x: y}", "names of small letters, digits, - and _, got 'A'"),
        ("name: a\nstages: {1: y}", "names of small letters, digits, - and _, got 1"),
        ("name: a\nstages: {chain: y}", "the name 'chain' has a meaning of its own"),
        ("name: a\nparameters: {folder: x}\nstages: {x: y}", "the name 'folder' has a meaning of its own"),
        ("name: a\nstages: {x: 'y {z}'}", "stage x: {z} is not among the parameters"),
        ("name: a\nparameters: {z: t}\nstages: {x: 'y {Z}'}", "stage x: {Z} is not among the parameters"),
        (
            "name: a\nparameters: {z: t}\nstages: {x: 'y {z-1...}'}",
            "stage x: {z-1...} is not among the parameters",
        ),
        ("name: a\nparameters: {z: t}\nstages: {x: 'y --z={z...}'}", "{z...} stands for whole arguments"),
        ('name: a\nstages: {x: "y \'z"}', "is not a command line (No closing quotation)"),
    ],
)
def test_files_that_are_no_chains(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(UserError) as raised:
        read_chain(written(tmp_path, text))
    assert expected in str(raised.value)


def test_mistakes_in_parameters(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown chain 'pourin': expected one of demo, finegym99"):
        read_chain("pourin")
    with pytest.raises(UserError, match="no such file"):
        read_chain(str(tmp_path / "none.yaml"))
    chain = read_chain("pouring")
    with pytest.raises(UserError, match=r"has no parameter 'option' \(it has manifest, train_options"):
        plan_chain(chain, "/x", {"manifest": "m", "option": "1"})
    for values in ({}, {"manifest": ""}):
        with pytest.raises(UserError, match="pouring needs --set manifest=VALUE: URI of the manifest that"):
            plan_chain(chain, "/x", values)
    with pytest.raises(UserError, match=r"--set train_options: .* is not a command line"):
        plan_chain(chain, "/x", {"manifest": "m", "train_options": "'"})


@pytest.mark.parametrize(
    ("folder", "values"),
    [
        ("s3://AKIAKEY:hushhush@bucket/x", {"manifest": "m"}),
        ("/x", {"manifest": "s3://AKIAKEY:hushhush@bucket/m"}),
        ("/x", {"manifest": "s3://bucket/m?secret_key=hushhush"}),
        ("/x", {"manifest": "m", "train_options": "--model.weights=s3://AKIAKEY:hushhush@bucket/w --a"}),
    ],
)
def test_secrets_are_refused_and_not_shown(folder: str, values: dict[str, str]) -> None:
    with pytest.raises(UserError, match="expected a URI without credentials") as raised:
        plan_chain(read_chain("pouring"), folder, values)
    assert "hushhush" not in str(raised.value)


def test_a_requirement_from_git_is_no_secret() -> None:
    check_runtime_env(
        {"pip": ["git+ssh://git@github.com/org/x.git", "y @ git+ssh://git@host/y.git@v1#egg=y"]}
    )
    for requirement in ("git+ssh://git:hushhush@host/x.git", "git+https://hushhush@host/x.git"):
        with pytest.raises(UserError, match=r"runtime environment: pip .* without credentials") as raised:
            check_runtime_env({"pip": [requirement]})
        assert "hushhush" not in str(raised.value)


def test_done_is_what_storage_says_and_for_that_command_alone(tmp_path: Path) -> None:
    chain = read_chain(written(tmp_path, CHAIN))
    plan, other = (plan_chain(chain, str(tmp_path), {"manifest": name}) for name in ("m", "n"))
    assert not plan.is_done("train")
    write_done(plan.outline.marker("train"), list(plan.commands["train"]), 12.34)
    assert json.loads((tmp_path / "stages" / "train.json").read_text())["seconds"] == 12.3
    assert plan.is_done("train")
    assert not plan.is_done("embed")
    assert other.outline.is_done("train")
    with pytest.raises(
        UserError, match=r"stage train was done as `my.train m --out .*, and is now `my.train n"
    ):
        other.is_done("train")


@pytest.mark.parametrize("name", shipped_chains())
def test_shipped_chains_are_commands_of_this_package(name: str) -> None:
    chain = read_chain(name)
    assert (chain.name, CHAIN_JOB in chain.stages) == (name, False)
    values = {place: f"/{place}" for place, text in chain.parameters.items() if not text.endswith("]")}
    plan = plan_chain(chain, "s3://bucket/folder", values)
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
                assert (name, module) == ("demo", "carl_ray.index")
        for word in shlex.split(shlex.join(arguments)):
            assert "{" not in word
