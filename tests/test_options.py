"""`carl_ray.options`: every field of the config is an option, with its description."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import pytest

from carl_ray.config import Config, ModelConfig, objective_options
from carl_ray.errors import UserError
from carl_ray.objectives.choice import OBJECTIVES
from carl_ray.options import (
    OptionParser,
    add_config_options,
    field_names,
    json_object,
    name_and_value,
    nearest,
    number,
    overridden,
    parse_with_config,
    uri_without_credentials,
)

CONFIG = Config(preset="test", model=ModelConfig(backbone="small", weights="random"))


def parse(*arguments: str) -> Config:
    """Parse as a command does."""
    parser = OptionParser(prog="command", allow_abbrev=False)
    parser.add_argument("--run-dir")
    _, overrides = parse_with_config(parser, arguments)
    return overridden(CONFIG, overrides)


def test_every_field_of_every_section_is_an_option_with_a_description() -> None:
    names = field_names()
    expected = {
        f"{section.name}.{field.name}"
        for section in dataclasses.fields(CONFIG)
        if dataclasses.is_dataclass(getattr(CONFIG, section.name))
        for field in dataclasses.fields(getattr(CONFIG, section.name))
    }
    assert set(names) == expected
    assert len(names) > 60
    for name, description in names.items():
        assert description.endswith("."), name
        assert "\n\n" not in description


def test_help_shows_descriptions_and_defaults() -> None:
    parser = OptionParser(prog="command")
    add_config_options(parser)
    text = " ".join(parser.format_help().split())
    described = "At the first step after the warm-up; decays to zero along a cosine. [0.0001]"
    assert f"--optimizer.learning_rate VALUE {described}" in text
    assert "[[0.8, 1.0]]" in text


def test_help_beside_a_preset_shows_its_defaults() -> None:
    parser = OptionParser(prog="command")
    parser.add_argument("preset", nargs="?")
    parser.add_argument("--run-dir")
    add_config_options(parser, ["--run-dir", "demo", "clips_demo", "--help"])
    text = " ".join(parser.format_help().split())
    assert "defaults are those of the preset clips_demo" in text
    described = "T: frames of a view; positions of any other length are spread over [0, T - 1]."
    assert f"--model.num_frames VALUE {described} [8]" in text
    assert "--objective.order_weight" in text and "--objective.variance" not in text


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("training.epochs", "7", 7),
        ("training.epochs", " 7 ", 7),
        ("optimizer.learning_rate", "1e-3", 1e-3),
        ("objective.variance", "25", 25.0),
        ("model.learnable", "none", "none"),  # a word here, not null
        ("model.temporal_encoder", "none", "none"),
        ("data.manifest", "s3://bucket/a=b/m.parquet?region=eu", "s3://bucket/a=b/m.parquet?region=eu"),
        ("data.manifest", "None", None),
        ("data.train_split", "none", "none"),
        ("cluster.max_decode_tasks", "4", 4),
        ("cluster.max_decode_tasks", "none", None),
        ("cluster.max_failures", "-1", -1),
        ("cluster.use_gpu", "true", True),
        ("cluster.use_gpu", "False", False),
        ("cluster.use_gpu", "1", True),
        ("cluster.data_node_labels", '{"role": "data"}', {"role": "data"}),
        ("cluster.data_node_labels", "{}", {}),
        ("augment.crop_area", "[0.2, 1]", (0.2, 1.0)),
    ],
)
def test_values(option: str, text: str, value: object) -> None:
    section, _, field = option.partition(".")
    for arguments in ([f"--{option}", text], [f"--{option}={text}"]):
        found = getattr(getattr(parse(*arguments), section), field)
        assert found == value
        assert type(found) is type(value)


def test_other_fields_stay_and_the_last_of_two_values_counts() -> None:
    config = parse("--training.epochs", "3", "--model.width=64", "--training.epochs", "5")
    expected = dataclasses.replace(
        CONFIG,
        training=dataclasses.replace(CONFIG.training, epochs=5),
        model=dataclasses.replace(CONFIG.model, width=64),
    )
    assert config == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--training.epoch", "3"], r"unknown option --training\.epoch; did you mean training\.epochs\?"),
        (["--model.wdth=3"], r"unknown option --model\.wdth; did you mean model\.width\?"),
        (
            ["--learning_rate", "1"],
            r"unknown option --learning_rate; did you mean optimizer\.learning_rate\?",
        ),
        (["--run_dir", "x"], r"unknown option --run_dir; did you mean run-dir\?"),
        (["--zzz"], r"unknown option --zzz$"),
        (["extra"], r"unexpected argument 'extra'"),
        (["--training.epochs"], r"expected one argument; see command --help"),
        (["--training.epochs", "many"], r"command line: training\.epochs: .*integer.*got 'many'$"),
        (["--cluster.use_gpu", "maybe"], r"command line: cluster\.use_gpu: .*boolean.*got 'maybe'$"),
        (["--model.learnable", "everything"], r"model\.learnable: .*'block5'.*got 'everything'$"),
        (["--training.epochs", "none"], r"training\.epochs: .*got 'none'$"),
        (["--augment.crop_area", "0.2,1"], r"augment\.crop_area: .*tuple, got '0\.2,1'$"),
        (["--cluster.data_node_labels", "role=data"], r"cluster\.data_node_labels: .*dict.*got 'role=data'$"),
        (["--model.num_heads", "3"], r"model: width must be a multiple of 2 x num_heads, got 256 and 3$"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse(*arguments)
    assert "\n" not in str(caught.value)


def test_nearest_is_empty_where_no_name_is_similar() -> None:
    assert nearest("demo", ["demos", "pouring"]) == "; did you mean demos?"
    assert nearest("xyz", ["demos", "pouring"]) == ""


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("squat_7.mp4", "; did you mean test/squat-007.mp4?"),
        ("test/squat_7.mp4", "; did you mean test/squat-007.mp4?"),
        ("pushup_01.mp4", "; did you mean test/push-up-001.mp4?"),
        ("/home/me/lift-3.avi", "; did you mean train/lift-003.mp4?"),
        ("holiday.mp4", ""),
        ("q.mp4", ""),
    ],
)
def test_nearest_file_ignores_suffix_and_zeros(typed: str, meant: str) -> None:
    actions = {"train": ("lift", "push-up"), "test": ("squat", "push-up")}
    known = [
        f"{split}/{a}-{n:03d}.mp4" for split, names in actions.items() for a in names for n in range(1, 20)
    ]
    assert nearest(typed, known, files=True) == meant


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (number(int, at_least=1), "1", 1),
        (number(int, at_least=1), "0", "expected a whole number of at least 1, got '0'"),
        (number(int), "1.5", "expected a whole number, got '1.5'"),
        (number(float, above=0, at_most=1), "1", 1.0),
        (number(float, above=0, at_most=1), "1e-9", 1e-9),
        (number(float, above=0, at_most=1), "0", "expected a number above 0 up to 1, got '0'"),
        (number(float, above=0), "inf", "expected a number above 0, got 'inf'"),
        (number(float), "nan", "expected a number, got 'nan'"),
        (uri_without_credentials, "s3://bucket/a", "s3://bucket/a"),
        (
            uri_without_credentials,
            "s3://K:hushhush@bucket/a",
            "s3://bucket/a: expected a URI without credentials",
        ),
        (name_and_value, "a=b=c", ("a", "b=c")),
        (name_and_value, "a", "expected NAME=VALUE, got 'a'"),
        (json_object, '{"a": 1}', {"a": 1}),
        (json_object, "{", "not JSON"),
        (json_object, "[]", "expected a JSON object"),
    ],
)
def test_argument_types(kind: Callable[[str], object], text: str, value: object) -> None:
    parser = OptionParser(prog="command")
    parser.add_argument("--x", type=kind)
    if not isinstance(value, str) or not value.startswith(("expected", "not", "s3://bucket/a:")):
        assert parser.parse_args(["--x", text]).x == value
        return
    with pytest.raises(UserError) as caught:
        parser.parse_args(["--x", text])
    assert str(caught.value).startswith(f"argument --x: {value}")
    assert "hushhush" not in str(caught.value)


def test_the_options_of_the_chosen_objective() -> None:
    parser = OptionParser(prog="command", allow_abbrev=False)
    add_config_options(parser, ["--objective.name=tcn", "--objective.variance", "3"])
    text = parser.format_help()
    assert "--objective.window" in text and "--objective.variance" not in text
    # What another objective has, too, is kept where it was set.
    base = overridden(CONFIG, {"objective.temperature": "0.3", "objective.variance": "25"})
    changed = overridden(base, {"objective.name": "tcn", "objective.window": "9"})
    assert changed.objective == objective_options("tcn", temperature=0.3, window=9.0)
    assert overridden(CONFIG, {"objective.name": "weak_scl"}).objective == objective_options("weak_scl")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_its_options(name: str) -> None:
    """Also one on clips, whose encoder a preset has, and the defaults have not."""
    parser = OptionParser(prog="command", allow_abbrev=False)
    add_config_options(parser, ["clips_demo", "--objective.name", name])
    listed = set(re.findall(r"--objective\.(\w+)", parser.format_help()))
    assert listed == {field.name for field in dataclasses.fields(objective_options(name))}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"objective.window": "3"},
            r"^unknown option --objective\.window \(options of objective scl: name, temp",
        ),
        (
            {"objective.temprature": "1"},
            r"^unknown option --objective\.temprature; did you mean objective\.temperat",
        ),
        (
            {"objective.name": "tcnn"},
            r"^command line: objective\.name: unknown objective 'tcnn'; did you mean tcn\?",
        ),
        (
            {"objective.name": "tcn", "objective.window": "-1"},
            r"^command line: objective\.window: .*got '-1'$",
        ),
    ],
)
def test_mistakes_in_the_options_of_an_objective(values: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        overridden(CONFIG, values)
