"""Index Something-Something v2 (Goyal et al., 2017): the four JSON files and the videos.

    python -m carl_ray.datasets.something_v2 RAW --out MANIFEST

RAW is a folder, local or in an object store, that holds

- the JSON files of https://www.qualcomm.com/developer/software/something-something-v-2-dataset, in itself or in a
  folder `labels`: train, validation and test, lists of {"id", "template", …} (test has ids alone), and labels, which
  maps each template without its brackets to a number. They are named `something-something-v2-train.json` or
  `train.json`, and so on.
- the videos `<id>.webm` anywhere below it.

The manifest has a row for each listed video that is there and decodes, with its split ("train", "validation", "test")
and its label: the template without its brackets ("Holding something next to something"); test videos have none. Labels
tell left from right and name whole videos: fine-tune with `--augment.flip_probability 0 --objective.span video`.
"""

from __future__ import annotations

import json
from typing import Any

from carl_ray import storage
from carl_ray.datasets.listed import Listed, find_lists, listed_command
from carl_ray.errors import UserError

_PARTS = ("train", "validation", "test", "labels")
_PREFIX = "something-something-v2-"


def read_lists(raw: str) -> dict[str, Listed]:
    """Read split and label of each video, by its id.

    Raises:
        UserError: a file is missing or not as published.
        RunError: the store refuses or fails.
    """
    uris = {
        name.removeprefix(_PREFIX).removesuffix(".json"): uri
        for name, uri in reversed(find_lists(raw, ["labels"]))
        if name.endswith(".json")
    }
    missing = [f"{_PREFIX}{part}.json" for part in _PARTS if part not in uris]
    if missing:
        raise UserError(
            f"{storage.public_uri(raw)}: expected Something-Something v2, {_PREFIX}train.json, validation, test and "
            f"labels in it or in its folder labels; there is no {', '.join(missing)}"
        )
    labels = _read_json(uris["labels"], dict)
    entries: dict[str, Listed] = {}
    for part in ("test", "validation", "train"):
        for number, video in enumerate(_read_json(uris[part], list)):
            video_id, template = (
                (video.get(key) for key in ("id", "template")) if isinstance(video, dict) else (None, None)
            )
            label = template.replace("[", "").replace("]", "") if isinstance(template, str) else None
            if video_id is None or (part != "test" and label not in labels):
                raise UserError(
                    f"{storage.public_uri(uris[part])}, entry {number}: expected an id and a template of the labels, "
                    f"got {str(video)[:100]!r}"
                )
            # A video that is listed twice is never trained on.
            entries.setdefault(str(video_id), Listed(part, None if part == "test" else label))
    return entries


def _read_json(uri: str, kind: type) -> Any:
    try:
        found = json.loads(storage.read_bytes(uri))
    except ValueError as error:
        raise UserError(f"{storage.public_uri(uri)}: not a JSON file ({error})") from None
    if not isinstance(found, kind):
        raise UserError(
            f"{storage.public_uri(uri)}: expected a {kind.__name__}, got a {type(found).__name__}"
        )
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    listed_command(
        "something_v2", __doc__, read_lists, arguments, preset="regions_kinetics400", lists="the JSON files"
    )


if __name__ == "__main__":
    main()
