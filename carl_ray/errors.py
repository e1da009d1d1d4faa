"""The two ways a command can end badly, and the exit status of each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake that the user can mend: printed as one line, exit status 2."""


class RunError(Exception):
    """A failure of the work itself (storage, disk, bad videos beyond the budget): one line, exit status 1."""


def fail(message: str, status: int) -> None:
    """Prints one line to standard error and leaves with an exit status."""
    # Names from data may hold what a terminal would obey.
    line = "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))
    print(f"carl_ray: {line}", file=sys.stderr, flush=True)
    sys.exit(status)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns the errors of a command into one line on standard error: `UserError` exits 2, `RunError` 1."""
    try:
        yield
    except UserError as error:
        fail(str(error), 2)
    except RunError as error:
        fail(str(error), 1)
    except KeyboardInterrupt:
        fail("interrupted", 1)
