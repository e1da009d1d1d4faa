"""Index HMDB51 (Kuehne et al., 2011): the official lists of a split, and the videos of any copy.

    python -m carl_ray.datasets.hmdb51 RAW --out MANIFEST --split 1

RAW is a folder, local or in an object store, that holds

- the lists of https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database, in itself or in a folder
  `testTrainMulti_7030_splits`, also inside `test_train_splits`: 51 files `<class>_test_splitK.txt` with rows
  "NAME.avi FLAG", where the flag is 1 for training, 2 for test and 0 for videos that the split does not use.
- the videos, anywhere below it. They are published as an archive with one archive a class inside: unpack all of them.
  Only file names matter, without case and suffix; where two classes list a name, the folder decides.

The manifest has a row for each listed video that is there and decodes, with its split ("train", "test") and its label
(the class). Videos that the split does not use are left out; `--unused` keeps them as the split "unused", on which
nothing trains or is measured unless it is named.
"""

from __future__ import annotations

import re

from carl_ray import storage
from carl_ray.datasets.listed import Listed, check_counts, find_lists, listed_command, read_lines
from carl_ray.errors import UserError

PUBLISHED = {"train": 3570, "test": 1530}
"""Videos in the lists of each of the three splits, which do not use 1,666 others."""

_FOLDERS = [
    "testTrainMulti_7030_splits",
    "test_train_splits",
    "test_train_splits/testTrainMulti_7030_splits",
]
_ROW = re.compile(r"(?P<stem>\S.*)\.\w+\s+(?P<flag>[012])")


def read_lists(raw: str, split: int, *, unused: bool = False) -> dict[str, Listed]:
    """Read split and class of each video of one of the three splits, by CLASS/NAME without suffix.

    Videos that it does not use are in no split, or with `unused` in that of this name.

    Raises:
        UserError: there are no lists, or a row is not as published.
        RunError: the store refuses or fails.
    """
    name_of = re.compile(rf"(?P<label>[^.].*)_test_split{split}\.txt")
    lists = {
        match["label"]: uri
        for name, uri in reversed(find_lists(raw, _FOLDERS))
        if (match := name_of.fullmatch(name))
    }
    if not lists:
        raise UserError(
            f"{storage.public_uri(raw)}: expected HMDB51, its lists CLASS_test_split{split}.txt in it or in its folder "
            f"{_FOLDERS[0]}; there are none"
        )
    splits = {"0": "unused" if unused else None, "1": "train", "2": "test"}
    entries: dict[str, Listed] = {}
    for label, uri in sorted(lists.items()):
        for place, line in read_lines(uri):
            row = _ROW.fullmatch(line)
            if row is None:
                raise UserError(f"{place}: expected NAME.avi and 0, 1 or 2, got {line[:100]!r}")
            entries[f"{label}/{row['stem']}"] = Listed(splits[row["flag"]], label)
    check_counts(entries, PUBLISHED)
    return entries


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    listed_command("hmdb51", __doc__, read_lists, arguments, preset="regions_ucf101")


if __name__ == "__main__":
    main()
