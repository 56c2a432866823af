"""Errors a user can act on, and the one place where they become exit codes.

    TagprError            base; never raised itself
    ├── InputError        used wrongly, or a file, row or server answer is not what it should be → exit 2
    └── CheckFailed       the input was readable, was checked, and is bad → exit 1

Everything else is a fault of ours and keeps its traceback.
"""

import errno
import sys
from collections.abc import Callable

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WRONG_PLACE = (errno.EACCES, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


class TagprError(Exception):
    """A problem described so that the user can mend it: what is wrong, where, the value, what would be right."""

    exit_code = 2


class InputError(TagprError):
    """Wrong use or unreadable input."""

    exit_code = 2


class CheckFailed(TagprError):
    """Readable input that was checked and found bad."""

    exit_code = 1


def shorten(value: object, limit: int = 80) -> str:
    """Give `repr(value)` cut to `limit` characters, for error messages."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def run_cli(app: Callable[[], object]) -> None:
    """Run a typer app; print a `TagprError`, a full disk or an interrupt as one message instead of a traceback."""
    try:
        app()
    except TagprError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the shell of every command
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        if error.errno not in (*_DISK_FULL, *_WRONG_PLACE):
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror}{where}; nothing was left under a final name", file=sys.stderr)  # noqa: T201
        raise SystemExit(1 if error.errno in _DISK_FULL else 2) from None
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != 130:  # typer makes 130 of an interrupt, without a word
            raise
        print("interrupted; the same command continues where it stopped", file=sys.stderr)  # noqa: T201
        raise SystemExit(130) from None
