"""A chain: stages of commands, one after the other, read from YAML. Free of Ray.

    name: pouring
    parameters:
      manifest: URI of the manifest of the videos
      train_options: of the training, such as --cluster.use_gpu true []
    stages:
      train: carl_ray.train pouring --data.manifest {manifest} --run-dir {folder}/train --resume {train_options...}
      embed: carl_ray.embed --checkpoint {folder}/train --manifest {manifest} --out {folder}/embeddings

A stage is a module and its arguments, as after `python -m`. `{name}` is one argument or a part of one, `{name...}`
any number of arguments, `{folder}` the folder of the chain. A parameter whose text ends in `[...]` has as its default
what is in the brackets. A stage must be able to go on from what an attempt before it left: the commands of this
package are.

A chain file is read as data, but its stages are commands, which run on the cluster as whoever submits it: submit only
what you would run.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from carl_ray import storage
from carl_ray.errors import UserError

CHAIN_JOB = "chain"
"""What the job that runs a chain is called where stages have their names."""

_FOLDER = "folder"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_PLACE = re.compile(r"\{([A-Za-z0-9_-]+)(\.\.\.)?\}")
_DEFAULT = re.compile(r"\[([^\[\]]*)\]\s*$")
_SUFFIX = ".yaml"
_REDACTED = "<redacted>"
_ENVIRONMENT = "env_vars."


@dataclass(frozen=True)
class Chain:
    """A chain as it was written."""

    name: str
    parameters: Mapping[str, str]
    """What each parameter is, with its default."""
    stages: Mapping[str, tuple[str, ...]]
    """The arguments of each stage, in order, with places for parameters."""


@dataclass(frozen=True)
class Outline:
    """Which chain is in which folder: enough to find its jobs, and to see which stages are done."""

    chain: str
    folder: str
    stages: tuple[str, ...]
    """Names, in order."""

    def job_id(self, name: str, attempt: int) -> str:
        """Id of the job that makes an attempt at a stage, or that runs the chain: whoever asks gets the same.

        Args:
            name: Of the stage, or `CHAIN_JOB`.
            attempt: From 1.
        """
        digest = hashlib.blake2b(self.folder.encode(), digest_size=4).hexdigest()
        return f"carl-{self.chain}-{digest}-{name}-a{attempt}"

    def marker(self, stage: str) -> str:
        """Where it is written down that a stage is done: job records die with their cluster, storage does not."""
        return storage.join(self.folder, "stages", f"{stage}.json")

    def is_done(self, stage: str) -> bool:
        """Whether a stage is done. Raises as `storage.exists`."""
        return storage.exists(self.marker(stage))


@dataclass(frozen=True)
class Plan:
    """A chain in a folder with everything filled in, ready to run."""

    outline: Outline
    commands: Mapping[str, tuple[str, ...]]
    """By stage, in order: a module and its arguments."""

    def to_json(self) -> str:
        """The plan as text; equal plans have equal texts."""
        return json.dumps(
            {"chain": self.outline.chain, "folder": self.outline.folder, "commands": self.commands}
        )

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that `to_json` wrote."""
        document = json.loads(text)
        commands = {stage: tuple(command) for stage, command in document["commands"].items()}
        return Plan(Outline(document["chain"], document["folder"], tuple(commands)), commands)

    def is_done(self, stage: str) -> bool:
        """Whether a stage is done.

        Raises:
            UserError: it was done with another command.
            RunError: the store refuses or fails.
        """
        if not self.outline.is_done(stage):
            return False
        before = json.loads(storage.read_bytes(self.outline.marker(stage)))["command"]
        if before != list(self.commands[stage]):
            raise UserError(
                f"{storage.public_uri(self.outline.folder)}: stage {stage} was done as `{shlex.join(before)}`, and is "
                f"now `{shlex.join(self.commands[stage])}`: submit the chain as before, or into another --folder"
            )
        return True


def shipped_chains() -> list[str]:
    """Names of the chains of this package."""
    files = resources.files("carl_ray.chains").iterdir()
    return sorted(file.name.removesuffix(_SUFFIX) for file in files if file.name.endswith(_SUFFIX))


def read_chain(name: str) -> Chain:
    """A shipped chain, or one in a YAML file.

    Raises:
        UserError: there is none of that name, or the file is not a chain.
        RunError: the store refuses or fails.
    """
    if name in shipped_chains():
        text = resources.files("carl_ray.chains").joinpath(name + _SUFFIX).read_text(encoding="utf-8")
    elif name.endswith((".yaml", ".yml")):
        text = storage.read_bytes(name).decode("utf-8", errors="replace")
    else:
        raise UserError(
            f"unknown chain {storage.public_uri(name)!r}: expected one of {', '.join(shipped_chains())}, or a YAML file"
        )
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{storage.public_uri(name)}: not YAML ({' '.join(str(error).split())})") from None
    return _chain(document, storage.public_uri(name))


def _chain(document: Any, source: str) -> Chain:
    if not isinstance(document, dict) or set(document) - {"name", "parameters", "stages"}:
        raise UserError(f"{source}: expected `name`, `parameters` and `stages`, got {_keys(document)}")
    parameters, stages = document.get("parameters") or {}, document.get("stages") or {}
    for part, entries in (("parameters", parameters), ("stages", stages)):
        if not isinstance(entries, dict) or not all(isinstance(text, str) for text in entries.values()):
            raise UserError(f"{source}: expected {part} as `name: text`, got {_keys(entries)}")
    if not stages:
        raise UserError(f"{source}: expected at least one stage")
    for name in (document.get("name"), *parameters, *stages):
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(f"{source}: expected names of small letters, digits, - and _, got {name!r}")
    for name, taken in ((_FOLDER, parameters), (CHAIN_JOB, stages)):
        if name in taken:
            raise UserError(f"{source}: the name {name!r} has a meaning of its own: choose another")
    split = {name: _split(text, f"{source}: stage {name}") for name, text in stages.items()}
    for stage, words in split.items():
        for word in words:
            for place in _PLACE.finditer(word):
                if place[1] not in (*parameters, _FOLDER):
                    raise UserError(f"{source}: stage {stage}: {place[0]} is not among the parameters")
                if place[2] and place[0] != word:
                    raise UserError(
                        f"{source}: stage {stage}: {place[0]} stands for whole arguments, not for a part of {word!r}"
                    )
    return Chain(document["name"], parameters, split)


def _split(text: str, what: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(f"{what}: {text!r} is not a command line ({error})") from None


def _keys(document: Any) -> str:
    return ", ".join(map(str, document)) if isinstance(document, dict) else type(document).__name__


def outline_of(chain: Chain, folder: str) -> Outline:
    """The outline of a chain in a folder, however its URI ends.

    Raises:
        UserError: the URI holds credentials.
    """
    if storage.has_secret(folder):
        raise UserError(
            f"{storage.public_uri(folder)}: expected a URI without credentials, since the cluster's job records show "
            "it; put them into the environment of the nodes, or --runtime-env-json"
        )
    return Outline(chain.name, storage.join(storage.absolute(folder)), tuple(chain.stages))


def plan_chain(chain: Chain, folder: str, values: Mapping[str, str]) -> Plan:
    """A chain in a folder with its parameters filled in.

    Raises:
        UserError: a parameter that the chain does not have, one without a value, or an argument that holds
            credentials: everybody who may use the cluster can read the commands of its jobs.
    """
    for name in values:
        if name not in chain.parameters:
            raise UserError(
                f"chain {chain.name} has no parameter {name!r} (it has {', '.join(chain.parameters) or 'none'})"
            )
    outline = outline_of(chain, folder)
    defaults = {name: found[1] for name, text in chain.parameters.items() if (found := _DEFAULT.search(text))}
    filled = defaults | dict(values) | {_FOLDER: outline.folder}
    commands = {}
    for stage, words in chain.stages.items():
        command: list[str] = []
        for word in words:
            place = _PLACE.fullmatch(word)
            if place and place[2] and place[1] in filled:
                command += _split(filled[place[1]], f"--set {place[1]}")
            else:
                command.append(_PLACE.sub(lambda place: _value(chain, filled, place[1]), word))
        for argument in command:
            if storage.has_secret(argument):
                raise UserError(
                    f"stage {stage}: {storage.public_uri(argument)}: expected a URI without credentials, since the "
                    "cluster's job records show it; put them into the environment of the nodes, or --runtime-env-json"
                )
        commands[stage] = tuple(command)
    return Plan(outline, commands)


def _value(chain: Chain, filled: Mapping[str, str], name: str) -> str:
    if not filled.get(name):
        raise UserError(f"chain {chain.name} needs --set {name}=VALUE: {chain.parameters[name]}")
    return filled[name]


def check_runtime_env(runtime_env: Mapping[str, Any]) -> None:
    """Refuses a runtime environment that would not do what it says, or show what it must not.

    Raises:
        UserError: a value is Ray's placeholder for one that it did not show, or a URI with credentials.
    """
    for name, value in _texts(runtime_env, ""):
        if value == _REDACTED:
            raise UserError(
                f"runtime environment: {name} is {_REDACTED}, which Ray shows a browser in place of the value: jobs "
                "would get that text; give the value itself in --runtime-env-json, or set it on the nodes"
            )
        if storage.has_secret(value) and not name.startswith(_ENVIRONMENT):
            raise UserError(
                f"runtime environment: {name} {storage.public_uri(value)}: expected a URI without credentials, since "
                "the cluster's job records show it; put them into the environment of the nodes"
            )


def _texts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """All texts in a document, each with its dotted name."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, name)


def write_done(marker: str, command: list[str], seconds: float) -> None:
    """Writes down that a stage is done.

    Raises:
        RunError: the store refuses or fails.
    """
    document = {
        "command": command,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 1),
    }
    storage.write_bytes(marker, (json.dumps(document, indent=2) + "\n").encode())
