"""Index UCF101 (Soomro et al., 2012): the official lists of a split, and the videos of any copy.

    python -m carl_ray.datasets.ucf101 RAW --out MANIFEST --split 1

RAW is a folder, local or in an object store, that holds

- the lists of https://www.crcv.ucf.edu/data/UCF101.php, in itself or in a folder `ucfTrainTestlist`: `classInd.txt`
  ("1 ApplyEyeMakeup"), `trainlist0K.txt` ("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1") and `testlist0K.txt`, the
  same without the number of the class.
- the videos `v_<Class>_gGG_cCC.avi` anywhere below it (`UCF-101/<Class>/` in the published archive). Only file names
  matter, without case and suffix: the class HandstandPushups has the files v_HandStandPushups_….

The manifest has a row for each listed video that is there and decodes, with its split ("train", "test"), its label
(the class) and its `group` (g01 to g25). Clips of one group are cut from one video: hold-outs of training videos must
keep groups whole. The other two splits are other manifests: nothing is decoded again where --out is the same.
"""

from __future__ import annotations

import re

from carl_ray import storage
from carl_ray.datasets.listed import Listed, check_counts, find_lists, listed_command, read_lines
from carl_ray.errors import UserError

PUBLISHED = {
    1: {"train": 9537, "test": 3783},
    2: {"train": 9586, "test": 3734},
    3: {"train": 9624, "test": 3696},
}
"""Videos in the lists of each split."""

_ROW = re.compile(r"(?P<label>[^/\s]+)/(?P<stem>[^/]+)\.\w+?(?:\s+(?P<number>\d+))?")
_GROUP = re.compile(r"_(g\d+)_c\d+$")


def read_lists(raw: str, split: int) -> dict[str, Listed]:
    """Read split, class and group of each video of one of the three splits, by CLASS/NAME without suffix.

    Raises:
        UserError: a list is missing, or a row is not as published.
        RunError: the store refuses or fails.
    """
    names = {"train": f"trainlist0{split}.txt", "test": f"testlist0{split}.txt"}
    uris = dict(reversed(find_lists(raw, ["ucfTrainTestlist"])))
    missing = [name for name in ("classInd.txt", *names.values()) if name not in uris]
    if missing:
        raise UserError(
            f"{storage.public_uri(raw)}: expected UCF101, its lists classInd.txt, {' and '.join(names.values())} in it "
            f"or in its folder ucfTrainTestlist; there is no {', '.join(missing)}"
        )
    labels: dict[str, str] = {}
    for place, line in read_lines(uris["classInd.txt"]):
        number, _, label = line.partition(" ")
        if not number.isdigit() or not label:
            raise UserError(f"{place}: expected a number and a class, got {line[:100]!r}")
        labels[number] = label.strip()
    classes = {label.casefold(): label for label in labels.values()}
    entries: dict[str, Listed] = {}
    for part, name in names.items():
        for place, line in read_lines(uris[name]):
            row = _ROW.fullmatch(line)
            known = classes.get(row["label"].casefold()) if row else None
            if row is None or known is None or (row["number"] and labels.get(row["number"]) != known):
                raise UserError(
                    f"{place}: expected CLASS/VIDEO.avi of a class of classInd.txt, with its number if any, "
                    f"got {line[:100]!r}"
                )
            group = _GROUP.search(row["stem"])
            listed = Listed(part, known, group[1] if group else None)
            if entries.setdefault(f"{known}/{row['stem']}", listed).split != part:
                raise UserError(f"{place}: {row['stem']} is in the other list of the split, too")
    check_counts(entries, PUBLISHED[split])
    return entries


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    listed_command("ucf101", __doc__, read_lists, arguments, preset="regions_ucf101")


if __name__ == "__main__":
    main()
