"""Find an objective by its name, and read its options. No torch here.

A name is one of `OBJECTIVES`, that of an entry point of the group `carl_ray.objectives`, or an import path
`module:Class`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Annotated, Any

from pydantic import PlainValidator, SerializeAsAny, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from carl_ray.objectives.base import Objective, ObjectiveOptions

GROUP = "carl_ray.objectives"
"""Entry points of installed packages."""
DEFAULT = "scl"
OBJECTIVES = {
    "scl": "scl:SequenceContrast",
    "contrastive": "contrastive:FrameContrast",
    "tcn": "tcn:TimeContrast",
    "shuffle_and_learn": "shuffle_and_learn:ShuffleAndLearn",
    "tcc": "tcc:CycleConsistency",
    "lav": "lav:AlignVideos",
    "gta": "gta:GlobalAlignment",
    "weak_scl": "weak:WeakSequenceContrast",
    "supervised": "supervised:FrameClassification",
    "vsp": "vsp:BrownianBridge",
    "regions": "regions:RegionContrast",
    "csvr": "csvr:Csvr",
    "clip_contrast": "clips:ClipContrast",
    "clip_classes": "clips:ClipClassification",
}
"""The objectives of this package: name to module and class."""

EARLIER: dict[str, Any] = {
    "temperature": 0.1,
    "variance": 10.0,
    "negatives": "video",
    "window": 5.0,
    "cycle": "regression",
    "smoothing": 0.1,
    "weak_weight": 1.0,
    "weak_warmup": 1.0,
    "max_match_cost": 0.3,
    "regularization": 1.0,
    "cycle_weight": 0.5,
    "num_classes": None,
}
"""Defaults of the options when every config had all of them."""


@cache
def find_objective(name: str) -> type[Objective]:
    """The class of an objective.

    Raises:
        ValueError: there is none of this name, or it cannot be imported.
    """
    path = f"carl_ray.objectives.{OBJECTIVES[name]}" if name in OBJECTIVES else name
    if ":" not in path:
        installed = {point.name: point.value for point in entry_points(group=GROUP)}
        if name not in installed:
            known = [*OBJECTIVES, *sorted(installed)]
            close = get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(
                f"unknown objective {name!r}{hint} (objectives: {', '.join(known)}; or module:Class)"
            )
        path = installed[name]
    module, _, class_name = path.partition(":")
    try:
        found = getattr(import_module(module), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"objective {name!r} cannot be imported: {error}; its folder must be on PYTHONPATH"
        ) from None
    if not (isinstance(found, type) and issubclass(found, Objective) and hasattr(found, "Options")):
        raise ValueError(f"objective {name!r}: expected a subclass of Objective with Options, got {found!r}")
    if "__pydantic_fields__" not in vars(found.Options):
        raise ValueError(f"objective {name!r}: {class_name}.Options is not decorated with @options")
    return found


def option_fields(kind: type[Objective]) -> dict[str, Any]:
    """Pydantic's description of every option of an objective, by name."""
    options: Any = kind.Options
    return options.__pydantic_fields__


def objective_options(name: str = DEFAULT, /, **options: Any) -> ObjectiveOptions:
    """The options of an objective by its name.

    Raises:
        ValueError: there is no such objective or option, or a value is invalid; the message begins with the field.
    """
    try:
        kind = find_objective(name)
    except ValueError as error:
        raise ValueError(f"objective.name: {error}") from None
    known = option_fields(kind)
    for option in options:
        if option not in known:
            valid = ", ".join(own for own in known if own != "name") or "none"
            raise ValueError(f"objective.{option}: not an option of objective {name} (its options: {valid})")
    try:
        return TypeAdapter(kind.Options).validate_python({"name": name} | options)
    except ValidationError as error:
        if error.errors()[0]["loc"] == ("name",):
            own = option_fields(kind)["name"].annotation
            raise ValueError(
                f"objective.name: {kind.__qualname__}.Options.name is {own}, not {name!r}"
            ) from None
        raise ValueError(complaint(error, ("objective",))) from None


def read_options(value: Any) -> ObjectiveOptions:
    """The section `objective` of a config, also of a config of earlier versions, which had all options of all."""
    if isinstance(value, ObjectiveOptions):
        return value
    try:
        if not isinstance(value, Mapping):
            raise ValueError(f"objective: expected a table of options, got {reprlib.repr(value)}")
        options = {"name": DEFAULT} | dict(value)
        name = options.pop("name")
        if not isinstance(name, str):
            raise ValueError(f"objective.name: expected a name, got {reprlib.repr(name)}")
        if name in OBJECTIVES:
            known, is_old = option_fields(find_objective(name)), EARLIER.keys() <= options.keys()
            for option, default in EARLIER.items():
                if option not in known and option in options and (is_old or options[option] == default):
                    del options[option]
        return objective_options(name, **options)
    except ValueError as error:
        raise PydanticCustomError("objective", "{text}", {"text": str(error)}) from None


AnyOptions = Annotated[SerializeAsAny[ObjectiveOptions], PlainValidator(read_options)]
"""Type of a config's section `objective`: a union discriminated by `name`, open to other packages."""


def complaint(error: ValidationError, section: tuple[str, ...] = ()) -> str:
    """Message of the first validation error: field, what was expected, what was given."""
    first = error.errors()[0]
    name = ".".join(map(str, (*section, *first["loc"]))) or "document"
    match first["type"]:
        case "unexpected_keyword_argument":
            return f"{name}: unknown field"
        case "value_error":  # Raised by a section's own check, whose message names the values.
            return f"{name}: {first['msg'].removeprefix('Value error, ')}"
        case "objective":
            return first["msg"]
        case "json_invalid" | "missing":
            return f"{name}: {first['msg']}"
        case _:
            return f"{name}: {first['msg']}, got {reprlib.repr(first['input'])}"
