"""Who is who: the curator's map from pseudonyms to the users they stand for, kept apart from everything published.

A CSV with the columns `pseudonym` and `user`, readable by its owner alone. `construct events --user-map` writes it,
`forget --user-map` reads it, so that a person who asks to be forgotten is found by the name they know.
"""

import csv
from collections.abc import Iterable
from pathlib import Path

from tagpr_data.errors import InputError
from tagpr_data.tables import atomic_path

_COLUMNS = ["pseudonym", "user"]


def check_place(path: Path, folder: Path) -> None:
    """Raise InputError when the map would lie in a folder that is published, or on a file that is no such map."""
    if path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{path} lies in {folder}, which is to be shared; keep the map of users elsewhere")
    if path.exists():
        _header(path)


def write(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write (pseudonym, user) rows, atomically, for the owner's eyes alone."""
    with atomic_path(path) as temporary:
        temporary.touch(mode=0o600)
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            writer.writerows(rows)


def pseudonym_of(path: Path, user: str) -> str:
    """Give the pseudonym of a user. Raises InputError when the map is none or does not have them; other users are not
    named."""
    _header(path)
    with path.open(encoding="utf-8", newline="") as file:
        found = next((row[0] for row in csv.reader(file) if len(row) == 2 and row[1] == user), None)
    if found is None or found == _COLUMNS[0]:
        raise InputError(f"{path} has no user {user!r}; ids are compared letter by letter")
    return found


def _header(path: Path) -> None:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header = next(csv.reader(file), [])
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{path} cannot be read as a map of users: {error}") from None
    if header != _COLUMNS:
        raise InputError(f"{path} is no map of users: its first line is {header}, not pseudonym,user")
