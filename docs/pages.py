"""Hook of MkDocs: pages of the site that are files outside docs/, and links to and from them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).parents[1]
_PAGES = {"README.md": "index.md", "CHANGELOG.md": "CHANGELOG.md", "cluster/README.md": "cluster/README.md"}
"""Files that become pages, by their page."""
_FILES = ("LICENSE", "examples/*", "examples/notebooks/*")
"""Files that pages link to."""


def on_files(files: Files, config: Any) -> Files:
    """Add the files from outside; docs/ itself is the root of the site."""
    outside = {path.relative_to(_ROOT).as_posix() for pattern in _FILES for path in _ROOT.glob(pattern)}
    for source, page in (_PAGES | {name: name for name in outside}).items():
        if not (_ROOT / source).is_dir():
            files.append(File.generated(config, page, content=(_ROOT / source).read_bytes().decode()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Shift links by the folder that docs/ is not on the site."""
    if page.file.src_uri == "cluster/README.md":
        return re.sub(r"\]\(\.\./docs/", "](../", markdown)
    if page.file.src_uri in _PAGES.values():
        return re.sub(r"\]\(docs/", "](", markdown).replace("](examples)", "](guide.md#python)")
    return re.sub(r"\]\(\.\./", "](", markdown)
