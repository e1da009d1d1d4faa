"""The commands of a pipeline in a folder, and which of its stages are done. Free of Ray."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import runpy
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from carl_ray import storage
from carl_ray.errors import UserError
from carl_ray.pipelines.shipped import SHIPPED, Stages

PIPELINE_JOB = "pipeline"
"""Name of the job that runs a pipeline, beside the names of its stages."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_REDACTED = "<redacted>"


@dataclass(frozen=True)
class Plan:
    """A pipeline in a folder: the command of each stage, in order."""

    pipeline: str
    folder: str
    commands: Stages

    def to_json(self) -> str:
        """The plan as text; equal plans have equal texts."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that `to_json` wrote."""
        return Plan(**json.loads(text))

    def job_prefix(self, name: str) -> str:
        """Id of the jobs of a stage, or of `PIPELINE_JOB`, without the number of the attempt, which counts from 1."""
        digest = hashlib.blake2b(self.folder.encode(), digest_size=4).hexdigest()
        return f"carl-{self.pipeline}-{digest}-{name}-a"

    def marker(self, stage: str) -> str:
        """URI of the file that marks a stage as done; job records end with their cluster, storage does not."""
        return storage.join(self.folder, "stages", f"{stage}.json")

    def is_done(self, stage: str) -> bool:
        """Whether a stage is done.

        Raises:
            UserError: it was done with another command.
            RunError: the store refuses or fails.
        """
        if not storage.exists(self.marker(stage)):
            return False
        before, command = json.loads(storage.read_bytes(self.marker(stage)))["command"], self.commands[stage]
        if before != command:
            raise UserError(
                f"{storage.public_uri(self.folder)}: stage {stage} was done as `{shlex.join(before)}`, and is now "
                f"`{shlex.join(command)}`: submit the pipeline as before, or into another --folder"
            )
        return True

    def mark_done(self, stage: str, seconds: float) -> None:
        """Write the file that marks a stage as done. Raises as `storage.write_bytes`."""
        finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        document = {"command": self.commands[stage], "finished": finished, "seconds": round(seconds, 1)}
        storage.write_bytes(self.marker(stage), (json.dumps(document, indent=2) + "\n").encode())


def find_pipeline(name: str) -> Callable[..., Any]:
    """A shipped pipeline, or the function of a file: `FILE.py:FUNCTION`, or `FILE.py` for the one of its name.

    Raises:
        UserError: there is none of that name, or the file cannot be run.
    """
    if name in SHIPPED:
        return SHIPPED[name]
    file, _, function = name.partition(":")
    if not file.endswith(".py"):
        raise UserError(
            f"unknown pipeline {storage.public_uri(name)!r}: expected one of {', '.join(SHIPPED)}, or FILE.py:FUNCTION"
        )
    function = function or Path(file).stem
    try:
        found = runpy.run_path(file).get(function)
    except Exception as error:  # Whatever the user's file raises.
        raise UserError(f"{file}: {type(error).__name__}: {error}") from error
    if not inspect.isfunction(found):
        raise UserError(f"{file}: expected a function {function} in it")
    return found


def make_plan(name: str, folder: str, values: Mapping[str, str] | None = None) -> Plan:
    """The plan that a pipeline's function returns.

    Args:
        name: As `find_pipeline` takes it.
        folder: URI of the folder of all that the pipeline writes.
        values: Of its parameters; None, where only the names of the stages are needed, gives those without a default
            their names.

    Raises:
        UserError: there is no such pipeline, it lacks a parameter or has none of a name, what it returns is not a
            command by stage, or one holds credentials, which all users of the cluster could read.
    """
    pipeline = find_pipeline(name)
    folder = storage.join(storage.absolute(folder))
    parameters = list(inspect.signature(pipeline).parameters.values())[1:]
    if values is None:
        values = {p.name: p.name for p in parameters if p.default is p.empty}
    for unknown in values.keys() - {p.name for p in parameters}:
        known = ", ".join(p.name for p in parameters) or "none"
        raise UserError(f"pipeline {pipeline.__name__} has no parameter {unknown!r} (it has {known})")
    for parameter in parameters:
        if parameter.default is parameter.empty and not values.get(parameter.name):
            found = re.search(rf"^ *{parameter.name}: (.*)$", pipeline.__doc__ or "", re.MULTILINE)
            described = found[1] if found else "it has no default"
            raise UserError(f"pipeline {pipeline.__name__} needs --set {parameter.name}=VALUE: {described}")
    try:
        commands = pipeline(folder, **values)
    except (TypeError, ValueError) as error:
        raise UserError(f"pipeline {pipeline.__name__}: {error}") from error
    _check_commands(pipeline.__name__, commands)
    return Plan(pipeline.__name__, folder, commands)


def _check_commands(pipeline: str, commands: Any) -> None:
    if not isinstance(commands, dict) or not commands:
        raise UserError(f"pipeline {pipeline}: expected commands by stage, got {type(commands).__name__}")
    for stage, command in commands.items():
        if not isinstance(stage, str) or not _NAME.fullmatch(stage) or stage == PIPELINE_JOB:
            expected = f"a name of letters, digits, - and _ other than {PIPELINE_JOB}"
            raise UserError(f"pipeline {pipeline}: expected {expected}, got {stage!r}")
        if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
            raise UserError(f"pipeline {pipeline}: stage {stage}: expected a module and arguments as texts")
        for word in command:
            _refuse_credentials(f"stage {stage}: ", word)


def _refuse_credentials(where: str, text: str) -> None:
    if storage.has_secret(text):
        raise UserError(
            f"{where}{storage.public_uri(text)}: expected a URI without credentials, since the cluster's job records "
            "show it; put them into the environment of the nodes, or --runtime-env-json"
        )


def check_runtime_env(value: Any, name: str = "") -> None:
    """Refuse a runtime environment with credentials outside `env_vars`, or with values that Ray has redacted.

    Args:
        value: The environment, or a part of it.
        name: Dotted name of the part.

    Raises:
        UserError: a text is Ray's placeholder for one that it does not show, or a URI with credentials.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_runtime_env(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for inner in value:
            check_runtime_env(inner, name)
    elif value == _REDACTED:
        raise UserError(
            f"runtime environment: {name} is {_REDACTED}, which Ray shows a browser in place of the value: jobs would "
            "get that text; give the value itself in --runtime-env-json, or set it on the nodes"
        )
    elif isinstance(value, str) and not name.startswith("env_vars."):
        _refuse_credentials(f"runtime environment: {name} ", value)
