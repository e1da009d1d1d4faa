"""Videos of a manifest by the names that files of labels give them."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from urllib.parse import unquote, urlsplit

from carl_ray import storage
from carl_ray.data.manifest import VIDEO_SUFFIXES
from carl_ray.options import nearest

_MOST_HINTS = 3
"""Unknown names that are compared with all videos, each in a second or so where there are many."""


class VideoNames:
    """Videos by id, file name and relative path, and by these without a suffix."""

    def __init__(self, ids: list[str], uris: list[str]) -> None:
        self._in_order = ids
        self._ids = {video_id: row for row, video_id in enumerate(ids)}
        self._rows: dict[str, set[int]] = defaultdict(set)
        self._hints = _MOST_HINTS
        for row, (video_id, uri) in enumerate(zip(ids, uris, strict=True)):
            path = unquote(urlsplit(uri).path) if storage.is_remote(uri) else uri
            for parts in (video_id.split("/"), path.split("/")):
                for start in range(len(parts)):
                    name = unicodedata.normalize("NFC", "/".join(parts[start:]))
                    self._rows[name].add(row)
                    self._rows[name.rpartition(".")[0] or name].add(row)

    def row(self, name: str) -> int:
        """Row of the video of this name; `ValueError` where none or several have it."""
        if name in self._ids:
            return self._ids[name]
        path = unicodedata.normalize("NFC", name).replace("\\", "/").removeprefix("file://")
        is_absolute = path.startswith("/") or path[1:2] == ":"
        path = re.sub(r"^(\.\.?/)+", "", path)
        # Exports have the paths of whoever labelled: what they end with counts.
        parts = path.split("/")
        ends = ["/".join(parts[start:]) for start in range(len(parts) if is_absolute else 1)]
        _, dot, suffix = parts[-1].rpartition(".")
        if dot and f".{suffix.lower()}" not in VIDEO_SUFFIXES:
            ends += [end.removesuffix(dot + suffix) for end in ends]
        found = next((self._rows[end] for end in ends if end in self._rows), set())
        if not found:
            self._hints -= 1
            hint = nearest(path, self._in_order, files=True) if self._hints >= 0 else ""
            raise ValueError(f"no video {name!r}{hint}")
        if len(found) > 1:
            shown = [self._in_order[row] for row in sorted(found)[:5]]
            shown += [f"{len(found) - 5:,} more"] if len(found) > 5 else []
            raise ValueError(f"{name!r} may be any of {', '.join(shown)}: name the id")
        return min(found)
