"""Argument types, and options derived from the configuration: `--section.field VALUE` for every field.

Lazy import of the configuration: half of the commands have no such options.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import PurePath
from types import NoneType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_args, get_origin

from carl_ray import storage
from carl_ray.errors import UserError

if TYPE_CHECKING:
    from carl_ray.config import Config

_Number = TypeVar("_Number", int, float)
_OBJECTIVE = "objective.name"


def program(command: str | None = None) -> str:
    """The words that start a command of this package, as the running process was started.

    `carl-ray train` if the console script runs, else `python -m carl_ray.train`; without a command `carl-ray` or
    `python -m carl_ray`.
    """
    if PurePath(sys.argv[0]).name == "carl-ray":
        return " ".join(filter(None, ("carl-ray", "export-model" if command == "export_model" else command)))
    return f"python -m carl_ray.{command}" if command else "python -m carl_ray"


class OptionParser(argparse.ArgumentParser):
    """Argument parser whose errors are one-line `UserError`s.

    Args:
        prog: `python -m carl_ray.COMMAND`; usage lines show `carl-ray COMMAND` if the console script runs.
        options: Of `argparse.ArgumentParser`. Line breaks of the description stay by default.
    """

    def __init__(self, *, prog: str, **options: Any) -> None:
        prefix, found, command = prog.partition("python -m carl_ray.")
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog=f"{prefix}{program(command)}" if found else prog, **options)

    def error(self, message: str) -> NoReturn:
        """Raise `UserError` where argparse would print its usage and exit."""
        # argparse quotes the argument, which may be a URI with credentials.
        shown = " ".join(map(storage.public_uri, message.split()))
        raise UserError(f"{shown}; see {self.prog} --help")


def number(
    kind: type[_Number],
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Callable[[str], _Number]:
    """Argument type for finite numbers in a range: `type=number(int, at_least=1)`.

    Args:
        kind: `int` or `float`.
        at_least: Lower bound, included.
        above: Lower bound, excluded.
        below: Upper bound, excluded.
        at_most: Upper bound, included.
    """
    bounds = {"of at least": at_least, "above": above, "below": below, "up to": at_most}
    words = [f" {name} {bound:g}" for name, bound in bounds.items() if bound is not None]
    expected = f"expected a {'whole ' if kind is int else ''}number{''.join(words)}"

    def parse(text: str) -> _Number:
        with suppress(ValueError, OverflowError):
            value = kind(text)
            is_high = (at_least is None or value >= at_least) and (above is None or value > above)
            is_low = (at_most is None or value <= at_most) and (below is None or value < below)
            if is_high and is_low and math.isfinite(value):
                return value
        raise argparse.ArgumentTypeError(f"{expected}, got {text!r}")

    return parse


def uri_without_credentials(text: str) -> str:
    """Argument type for URIs that are stored where others can read them: without credentials."""
    if storage.has_secret(text):
        raise argparse.ArgumentTypeError(
            f"{storage.public_uri(text)}: expected a URI without credentials, which belong into the environment"
        )
    return text


def name_and_value(text: str) -> tuple[str, str]:
    """Argument type for `NAME=VALUE`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {storage.public_uri(text)!r}")
    return name, value


def json_object(text: str) -> dict[str, Any]:
    """Argument type for a JSON object."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("expected a JSON object")
    return value


def print_next(command: str, *words: str) -> None:
    """Print the usual next command, ready to paste, as the last line of a command."""
    print(f"next: {storage.shell_command(*program(command).split(), *words)}", flush=True)


def nearest(name: str, known: Sequence[str], *, files: bool = False) -> str:
    """A hint "; did you mean X?" for a misspelt name; empty where no known name is similar.

    Args:
        name: As typed.
        known: Dotted names; `name` may be the last part of one.
        files: The names are paths of files; suffixes and leading zeros are ignored.
    """

    def whole(text: str) -> str:
        return re.sub(r"\.\w*$|(?<!\d)0+(?=\d)", "", text) if files else text

    def last(text: str) -> str:
        return whole(text).rpartition("/" if files else ".")[2]

    for part in (whole, last):
        candidates = {part(candidate): candidate for candidate in reversed(known)}
        found = difflib.get_close_matches(part(name), list(candidates), n=1, cutoff=0.6)
        if found:
            return f"; did you mean {candidates[found[0]]}?"
    return ""


def field_names(objective: str = "scl") -> dict[str, str]:
    """Dotted name of every field of a `Config` section, with its description.

    Args:
        objective: The objective whose options the section `objective` has.
    """
    from carl_ray.objectives.choice import OBJECTIVES

    names = f"{', '.join(OBJECTIVES)}, one of an installed package, or module:Class"
    named = {_OBJECTIVE: f"Training objective: {names}; --help beside it lists its options."}
    return {name: info.description or "" for name, info in _fields(objective).items()} | named


def add_config_options(parser: argparse.ArgumentParser, arguments: Sequence[str] = ()) -> None:
    """Add an option for every field of the config; its help shows the default of the preset, or the paper's.

    Args:
        parser: Of the command.
        arguments: The command line. Its preset and `--objective.name` determine the defaults and which options of an
            objective the help lists; other options `--objective.…` are left to `overridden`, for a config that is
            still to be read.
    """
    from carl_ray import config as configuration
    from carl_ray.objectives.choice import objective_options
    from carl_ray.presets import PRESETS

    given = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    given.add_argument(f"--{_OBJECTIVE}")
    words, others = given.parse_known_args(list(arguments))
    name = None
    with suppress(UserError):  # The command's own parsing tells it.
        asked = parser.parse_known_args([word for word in others if word not in ("-h", "--help")])[0]
        name = asked.preset if getattr(asked, "preset", None) in PRESETS else None
    base = configuration.Config(preset="default") if name is None else PRESETS[name]()
    objective, own = base.objective, getattr(words, _OBJECTIVE)
    try:
        if own is not None:
            objective = objective_options(own)
    except ValueError as error:
        raise UserError(f"command line: {error}") from None
    source = "the paper's; a preset may change them" if name is None else f"those of the preset {name}"
    group = parser.add_argument_group(f"configuration (defaults are {source})")
    # Apart: an objective on clips fits no encoder of frames, as the default is.
    defaults = configuration.to_document(base)
    defaults["objective"] = dataclasses.asdict(objective)
    known = field_names(objective.name)
    for name, description in known.items():
        section, _, field = name.partition(".")
        default = json.dumps(defaults[section][field])
        group.add_argument(
            f"--{name}",
            metavar="VALUE",
            dest=name,
            default=argparse.SUPPRESS,
            help=f"{description} [{default}]".replace("%", "%%"),
        )
    for name in dict.fromkeys(re.findall(r"^--(objective\.\w+)", "\n".join(others), re.M)):
        if name not in known:
            group.add_argument(f"--{name}", dest=name, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def parse_with_config(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, dict[str, str]]:
    """Parse the options of a command and those of the config's fields.

    Returns:
        The parsed arguments; texts of the config fields that are given, by dotted name.

    Raises:
        UserError: an option is unknown; the message has the nearest name.
    """
    add_config_options(parser, arguments)
    parser.allow_abbrev = False  # An abbreviated option could name a field as well.
    parsed, unknown = parser.parse_known_args(arguments)
    for argument in unknown:
        if argument.startswith("-"):
            option = argument.split("=")[0].lstrip("-")
            own = (string.lstrip("-") for action in parser._actions for string in action.option_strings[-1:])
            raise UserError(f"unknown option --{option}{nearest(option, [*field_names(), *own])}")
    if unknown:
        raise UserError(f"unexpected argument {storage.public_uri(unknown[0])!r}")
    return parsed, {name: value for name, value in vars(parsed).items() if "." in name}


def overridden(config: Config, values: dict[str, str]) -> Config:
    """The config with the values of a command line.

    Args:
        config: Usually of a preset.
        values: Dotted field name to text; JSON where the field is a list or a table, `none` for null.

    Raises:
        UserError: an unknown field, or a value of the wrong type or out of its range.
    """
    from carl_ray import config as configuration

    document = configuration.to_document(config)
    objective = values.get(_OBJECTIVE, config.objective.name)
    try:
        fields = _fields(objective)
    except ValueError as error:
        raise UserError(f"command line: {_OBJECTIVE}: {error}") from None
    if objective != config.objective.name:
        document["objective"] = _changed_options(config.objective, fields) | {"name": objective}
    for name, text in values.items():
        section, _, field = name.partition(".")
        if name not in fields:
            own = [known.partition(".")[2] for known in fields if known.startswith("objective.")]
            valid = f" (options of objective {objective}: {', '.join(own)})" if section == "objective" else ""
            # "objective." alone makes names similar.
            hint = nearest(name, list(fields)) if section != "objective" or nearest(field, own) else ""
            raise UserError(f"unknown option --{name}{hint}{valid}")
        document[section][field] = _value(text, fields[name].annotation)
    return configuration.from_document(document, "command line")


def _fields(objective: str) -> dict[str, Any]:
    """Pydantic's description of every field of a section, by dotted name; `ValueError` for an unknown objective."""
    from carl_ray.config import Config
    from carl_ray.objectives.choice import find_objective

    whole: Any = Config
    sections: dict[str, Any] = {name: info.annotation for name, info in whole.__pydantic_fields__.items()}
    sections["objective"] = find_objective(objective).Options
    return {
        f"{section}.{name}": info
        for section, section_class in sections.items()
        if dataclasses.is_dataclass(section_class)
        for name, info in getattr(section_class, "__pydantic_fields__", {}).items()
    }


def _changed_options(objective: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an objective that differ from its defaults and that another one has, too."""
    options = {field.name: getattr(objective, field.name) for field in dataclasses.fields(objective)}
    defaults = {name: info.default for name, info in type(objective).__pydantic_fields__.items()}
    return {
        name: value
        for name, value in options.items()
        if value != defaults[name] and f"objective.{name}" in fields
    }


def _value(text: str, annotation: Any) -> Any:
    # Only where null is valid: for `model.learnable`, "none" is a value of its own.
    if text.lower() in ("none", "null") and NoneType in get_args(annotation):
        return None
    if any(get_origin(part) in (dict, tuple) for part in (annotation, *get_args(annotation))):
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text
    return text
