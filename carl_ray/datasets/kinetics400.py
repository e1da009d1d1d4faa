"""Index Kinetics-400 (Kay et al., 2017): official CSV files and the clips of any usual copy.

    python -m carl_ray.datasets.kinetics400 RAW --out MANIFEST

RAW is a folder, local or in an object store, that holds

- the CSV files, in itself or in a folder `annotations`: any names (train.csv, validate.csv, val.csv,
  test.csv, kinetics-400_train.csv, …) with the header label,youtube_id,time_start,time_end,split[,is_cc];
  that of the test split may lack the labels. A row's split counts (train, val or validate, test); a file
  without that column has it in its name.
- the clips, anywhere below it, named <YouTube id>_<start>_<end>.<any suffix of a video> with the times in
  seconds as six digits, as every known copy has them: CVDF's (train/, val/, test/ and
  replacement/replacement_for_corrupted_k400/), one folder a class with spaces or underscores in its name
  (ActivityNet's crawler, torchvision, MMAction2), or all in one folder. Only file names matter, not folders.

A clip is matched to the row with its id and times, else (copies of another edition of the CSV files) to the only
row with its id: no two clips of Kinetics are of the same video. Of several copies of a clip one that decodes is
used, first of all the one in a folder `replacement…`.

The manifest has a row for each listed clip that is there and decodes, with its split ("train", "validation",
"test") and label; clips that do not decode are in the rejects beside it. Clips without a row in the CSV files
are left out, since they might be of the test split. A list of broken videos, as in the released code, is not
needed. A second run reads only what is new or has changed.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from urllib.parse import unquote

from carl_ray import storage
from carl_ray.datasets.conversion import Conversion, converter_parser
from carl_ray.datasets.listed import Listed, find_lists, label_listed, publish_listed
from carl_ray.errors import UserError, one_line_errors

_NAMES_OF = {"train": ["train"], "validation": ["val", "validate", "validation"], "test": ["test"]}
_SPLITS = {name: split for split, names in _NAMES_OF.items() for name in names}
_LISTS = "the CSV files"
_HEADER = "label,youtube_id,time_start,time_end,split[,is_cc]"
_CLIP = re.compile(r"(?P<id>.+)_(?P<start>\d{6})_(?P<end>\d{6})")

Clip = tuple[str, int, int]
"""YouTube id, start and end in seconds."""


def read_lists(raw: str) -> dict[Clip, Listed]:
    """Read split and label of each clip from the CSV files in a folder and in its folder `annotations`.

    A clip that is listed twice is in the test split rather than in the validation split, and in that rather
    than in the training split.

    Args:
        raw: Path or URI of the folder.

    Raises:
        UserError: no CSV file has the official header, or a row is not as published.
        RunError: the store refuses or fails.
    """
    found = {
        uri: _read_list(uri)
        for name, uri in find_lists(raw, ["annotations"])
        if name.lower().endswith(".csv") and not name.startswith(".")
    }
    lists = [rows for rows in found.values() if rows is not None]
    if not lists:
        others = f"; {', '.join(map(_name, found))} have another header" if found else ""
        raise UserError(
            f"{storage.public_uri(raw)}: expected Kinetics-400, its CSV files with the header {_HEADER} "
            "and its clips <YouTube id>_<start>_<end>.mp4 in its folders; no such CSV file in it or in its "
            f"folder annotations{others}"
        )
    clips: dict[Clip, Listed] = {}
    for split in ("test", "validation", "train"):
        for clip, listed in (item for rows in lists for item in rows):
            if listed.split == split:
                clips.setdefault(clip, listed)
    return clips


def label_clips(
    clips: Mapping[Clip, Listed], video_ids: Sequence[str], rejects: Mapping[str, str]
) -> Conversion:
    """Select the files to use and label them; count what is missing or broken, by split.

    Args:
        clips: As `read_lists` returns them.
        video_ids: Files that decode, as paths inside the folder.
        rejects: Files that do not, with the reason.
    """
    by_id: dict[str, list[Clip]] = {}
    for clip in clips:
        by_id.setdefault(clip[0], []).append(clip)
    return label_listed(
        clips,
        lambda video_id: _clip_of(video_id, clips, by_id),
        video_ids,
        rejects,
        lists=_LISTS,
        shown=lambda clip: "{}_{:06d}_{:06d}".format(*clip),
        is_preferred=_is_replacement,
    )


def _read_list(uri: str) -> list[tuple[Clip, Listed]] | None:
    """Read the rows of a CSV file; None if it has another header."""
    shown = storage.public_uri(uri)
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if not {"youtube_id", "time_start", "time_end"} <= set(reader.fieldnames or ()):
        return None
    # Of a name like kinetics-400_val.csv; the column counts where there is one.
    of_file = next((word for word in re.split(r"[^a-z]+", _name(uri).lower()) if word in _SPLITS), "")
    rows: list[tuple[Clip, Listed]] = []
    for row in reader:
        split = _SPLITS.get((row.get("split") or of_file).strip().lower())
        try:
            # Some editions write the times as 10.0.
            clip = row["youtube_id"].strip(), int(float(row["time_start"])), int(float(row["time_end"]))
        except (TypeError, ValueError, AttributeError):
            split = None
        if split is None or not clip[0]:
            raise UserError(
                f"{shown}, line {reader.line_num}: expected {_HEADER} with a split of {', '.join(_SPLITS)}, "
                f"got {','.join(str(value) for value in row.values())[:100]!r}"
            )
        rows.append((clip, Listed(split, (row.get("label") or "").strip() or None)))
    return rows


def _clip_of(video_id: str, clips: Mapping[Clip, Listed], by_id: Mapping[str, list[Clip]]) -> Clip | None:
    stem = PurePosixPath(video_id).stem
    match = _CLIP.fullmatch(stem)
    if match and (clip := (match["id"], int(match["start"]), int(match["end"]))) in clips:
        return clip
    same = by_id.get(match["id"] if match else stem, [])
    return same[0] if len(same) == 1 else None


def _is_replacement(video_id: str) -> bool:
    return any(folder.startswith("replacement") for folder in PurePosixPath(video_id).parts[:-1])


def _name(uri: str) -> str:
    return unquote(PurePosixPath(storage.public_uri(uri).partition("?")[0]).name)


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    with one_line_errors():
        parser = converter_parser(
            "kinetics400",
            __doc__,
            raw="path or URI of the folder with CSV files and clips",
            out="path or URI of the manifest",
        )
        options = parser.parse_args(arguments)
        clips = read_lists(options.raw)
        label = partial(label_clips, clips)
        publish_listed(options.raw, options.out, "kinetics400", label, _LISTS)


if __name__ == "__main__":
    main()
