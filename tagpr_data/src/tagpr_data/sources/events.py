"""Any table of dated user events → a data set: generation, classification, rating, choice or paraphrase.

The table (CSV, TSV, JSON lines, Parquet) is read, cleaned and sorted by DuckDB on disk, then goes user by user through
`construct.history`; memory holds a few thousand events, whatever the table's size, beside the list of users. Users
become u0001, u0002, … by their first event. What a task asks of which column: ours, modelled on LaMP's tasks.

    classification  text → label             every distinct label of the table is allowed
    rating          text → score             every distinct score, lowest first
    generation      text → title
    paraphrase      plain → text             `plain` says the same neutrally, as LaMP-7's machine-written tweets do
    choice          [1] or [2]               which of two titles (texts, where there is no title column) is this user's;
                                             the other one is some other user's, both drawn by seed
"""

import codecs
import gzip
import hashlib
import itertools
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tagpr_data import pseudonyms
from tagpr_data.config import Config
from tagpr_data.construct import Event, SplitOptions, history, roles
from tagpr_data.dataset import check_target, write_chunks
from tagpr_data.errors import InputError, shorten
from tagpr_data.records import DatasetManifest, Example, ProfileItem, Split, Task, TaskKind

if TYPE_CHECKING:
    import duckdb

Form = Literal["classification", "rating", "generation", "paraphrase", "choice"]
_NEEDS: Mapping[Form, str | None] = {
    "classification": "label", "rating": "score", "generation": "title", "paraphrase": "plain", "choice": None,
}  # fmt: skip
_KINDS: Mapping[Form, TaskKind] = {
    "classification": "classification", "rating": "rating", "generation": "generation",
    "paraphrase": "generation", "choice": "classification",
}  # fmt: skip
_QUESTIONS: Mapping[Form, tuple[str, str, str]] = {
    "classification": ("Which label would this user give?", "one of: {labels}", "{text}: {label}"),
    "rating": ("Which score would this user give?", "one of: {labels}", "{text}: {label}"),
    "generation": ("Which title would this user write?", "a title", '"{title}": {text}'),
    "paraphrase": ("How would this user say it?", "the text in this user's words", "{text}"),
    "choice": ("Which of the two is by this user?", "[1] or [2]", "{text}"),
}
"""Default question, answer form and item template."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_ENCODINGS = {"utf-8": "utf-8", "utf-8-sig": "utf-8", "ascii": "utf-8", "iso8859-1": "latin-1", "utf-16": "utf-16"}
"""Python's names of encodings → DuckDB's."""
MAX_LABELS = 100
CHUNK_EVENTS = 20_000
"""So many events, and those of one more user, are in memory at once."""
MEMORY_LIMIT = "512MB"
"""What DuckDB may hold before it goes to disk."""


class EventColumns(Config):
    """Which column of the table holds what; None: there is none."""

    user: str
    time: str
    """ISO date or date-time (without zone: UTC), a year, seconds since 1970, or what `time_format` says."""
    text: str
    label: str | None = None
    title: str | None = None
    score: str | None = None
    plain: str | None = None
    id: str | None = None
    """Id of the event, unique for its user; without it the number of the row."""


def construct(
    folder: Path,
    file: Path,
    *,
    name: str,
    form: Form,
    columns: EventColumns,
    question: str | None = None,
    licence: str = "unknown; for local use",
    time_format: str | None = None,
    encoding: str = "utf-8",
    options: SplitOptions | None = None,
    user_map: Path | None = None,
    report: Callable[[str], None] = lambda _line: None,
) -> DatasetManifest:
    """Write the data set; its one task is called `name`. `user_map` is a CSV to write, readable by its owner alone:
    which user became which pseudonym. It leads back to people, so it may not lie in the data set.

    Rows without user, time, text or the task's column, with a time that cannot be read, that are no rows at all (CSV
    or JSON that breaks, bytes that are not `encoding`), or that repeat an earlier id are left out and counted;
    `report` names the first of each kind. InputError when the file, a column or every row is unusable; a column is
    that in JSON lines whose values are neither text nor numbers, or text in one row and a number in another, as nobody
    can say what was meant (`1234` beside `"2020-01-01"`).
    """
    options = options or SplitOptions()
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{shorten(name)} is no name for a task; it is made of letters without accents, digits, '_', '-' and '.', "
            f"and begins with a letter or digit (--name)"
        )
    check_target(folder, name)
    if user_map is not None:
        pseudonyms.check_place(user_map, folder)
    encoding = _encoding(encoding)
    needed = _NEEDS[form]
    if needed and getattr(columns, needed) is None:
        raise InputError(f"a {form} task needs the column that holds the {needed}: give --{needed} COLUMN")
    if not file.is_file():
        raise InputError(f"event table {file} does not exist")
    folder.resolve().parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".events.", dir=folder.resolve().parent) as work,
        _database(Path(work)) as database,
    ):
        skipped = _load(database, file, columns, time_format, encoding, report)
        skipped.update(_clean(database, needed, report))
        if not database.execute("SELECT count(*) FROM event").fetchall()[0][0]:
            raise InputError(f"{file}: no row is usable; left out: {_listed(skipped)}")
        task = _task(database, name, form, question, columns)
        skipped.update(_count_short(database, options))
        if form == "choice":
            _pair(database, columns, options.seed)
        manifest = write_chunks(
            folder,
            name=name,
            source=f"event table with the columns {', '.join(sorted(_named(columns).values()))}",
            licence=licence,
            tasks=(task,),
            chunks=_chunks(database, task, form, options, skipped),
            parameters={
                **options.model_dump(mode="json"),
                "form": form,
                "columns": _named(columns),
                "file_sha256": _hash(file),
            },
            skipped=skipped,
        )
        if user_map is not None:
            width = _width(database)
            cursor = database.execute("SELECT number, who FROM person ORDER BY number")
            rows = itertools.chain.from_iterable(iter(lambda: cursor.fetchmany(2_000), []))
            pseudonyms.write(user_map, ((f"u{number:0{width}}", who) for number, who in rows))
        return manifest


def default_name(file: Path, form: Form) -> str:
    """Give a task the name of its table, as far as a name may hold it: `my posts.csv` → `my-posts-rating`."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', file.name.partition('.')[0]).strip('-._') or 'events'}-{form}"


def read_columns(file: Path, encoding: str = "utf-8") -> list[str]:
    """Give the column names of a table: the header of a CSV, the keys of the first JSON object, Parquet's schema."""
    kind = _kind(file)
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return list(pq.read_schema(file).names)
        except pa.ArrowInvalid as error:
            raise InputError(f"{file} is not a whole Parquet file: {str(error).splitlines()[0]}") from None
    first = _first_line(file, encoding)
    if kind == "json":
        import json

        try:
            keys = json.loads(first)
        except ValueError:
            keys = None
        if not isinstance(keys, dict):
            raise InputError(f"{file}, line 1 is not a JSON object: {shorten(first)}")
        return [str(key) for key in keys]
    import csv

    if first.count('"') % 2:
        raise InputError(f"{file}, line 1 opens a quote that it does not close; column names stand on one line")
    return next(csv.reader([first], delimiter=_delimiter(first)), [])


def _encoding(name: str) -> str:
    """Give an encoding as DuckDB calls it."""
    try:
        known = _ENCODINGS.get(codecs.lookup(name).name)
    except LookupError:
        known = None
    if known is None:
        raise InputError(f"--encoding {name!r} is not one that is read; a table is utf-8, latin-1 or utf-16")
    return known


def _load(
    database: "duckdb.DuckDBPyConnection",
    file: Path,
    columns: EventColumns,
    time_format: str | None,
    encoding: str,
    report: Callable[[str], None],
) -> Counter[str]:
    """Fill the table `raw` (row, all columns as text, moment in seconds) and count what are no rows."""
    found = read_columns(file, encoding)
    for role, column in _named(columns).items():
        if column not in found:
            raise InputError(f"{file} has no column {column!r} (for the {role}); it has: {', '.join(found)}")
        if found.count(column) > 1:
            raise InputError(
                f"{file} has {found.count(column)} columns {column!r} (for the {role}); rename all but one"
            )
    kind = _kind(file)
    skipped: Counter[str] = Counter()
    if kind == "json":
        source, given = "read_ndjson_objects($file, ignore_errors = true)", {}
    elif kind == "parquet":
        source, given = "read_parquet($file)", {}
    else:
        # nothing is guessed: a guess fails on the whole table for one row without an end or of many megabytes
        source = (
            "read_csv($file, auto_detect = false, columns = $columns, header = true, delim = $delimiter, quote = '\"', "
            "escape = '\"', encoding = $encoding, store_rejects = true, ignore_errors = true, strict_mode = true)"
        )
        given = {
            "delimiter": _delimiter(_first_line(file, encoding)),
            "encoding": encoding,
            "columns": {f"column {place}": "VARCHAR" for place in range(len(found))},
        }
    parts = ["row_number() OVER () AS row"]
    for role in EventColumns.model_fields:
        column = _named(columns).get(role)
        if column is None:
            parts.append(f'CAST(NULL AS VARCHAR) AS "{role}"')
        elif kind == "json":
            parts.append(
                f'json ->> {_pointer(column)} AS "{role}", json_type(json, {_pointer(column)}) AS "{role}_type"'
            )
        else:
            own = f"column {found.index(column)}" if kind == "csv" else column
            parts.append(f'CAST({_quote(own, chr(34))} AS VARCHAR) AS "{role}"')
    if kind == "json":
        parts.append("json IS NULL AS is_broken")
    else:
        parts.append("false AS is_broken")
    if kind == "parquet":
        _check_parquet_types(file, columns)
    database.execute(f"CREATE TABLE raw AS SELECT {', '.join(parts)} FROM {source}", {"file": str(file), **given})
    if kind == "json":
        _check_json_types(database, file, columns)
    if kind == "csv":
        rejects = database.execute(
            "SELECT lower(error_type), count(DISTINCT line), min(line) FROM reject_errors GROUP BY 1 ORDER BY 1"
        ).fetchall()
        for reason, count, line in rejects:
            skipped[f"not a row: {reason}"] = count
            report(f"{file.name}, line {line}: not a row ({reason})")
        if skipped["not a row: invalid encoding"]:
            report(f"{file.name} is not all {encoding}; if it is latin-1 or utf-16 throughout, say --encoding")
    database.execute("CREATE MACRO parse_time(value) AS " + _time_expression(time_format))
    return skipped


_TEXT_ROLES = ("text", "title", "plain")
"""Columns that people read: a number there is a wrong column."""


def _check_json_types(database: "duckdb.DuckDBPyConnection", file: Path, columns: EventColumns) -> None:
    """Raise InputError unless each column holds text throughout or numbers throughout; null is missing."""
    for role, column in _named(columns).items():
        found = database.execute(
            f"""SELECT CASE "{role}_type" WHEN 'VARCHAR' THEN 'text' WHEN 'BOOLEAN' THEN 'true or false'
                    WHEN 'ARRAY' THEN 'a list' WHEN 'OBJECT' THEN 'an object' ELSE 'a number' END AS type,
                min(row) AS first, arg_min("{role}", row)
            FROM raw WHERE "{role}_type" <> 'NULL' GROUP BY type ORDER BY first"""
        ).fetchall()
        allowed = ("text",) if role in _TEXT_ROLES else ("text", "a number")
        for type_, row, value in found:
            if type_ not in allowed:
                raise InputError(
                    f"{file}, data row {row}: {column!r} (the {role}) is {type_}, {shorten(value)}; "
                    f"expected {' or '.join(allowed)}"
                )
        if len(found) > 1:
            (first, first_row, first_value), (other, row, value) = found
            raise InputError(
                f"{file}, data row {row}: {column!r} (the {role}) is {other}, {shorten(value)}, while in data row "
                f"{first_row} it is {first}, {shorten(first_value)}; write it as text in all rows, or as a number"
            )


def _check_parquet_types(file: Path, columns: EventColumns) -> None:
    """Raise InputError for a column that holds something else than text, numbers or times."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(file)
    for role, column in _named(columns).items():
        found: Any = schema.field(column).type
        found = found.value_type if pa.types.is_dictionary(found) else found
        is_number = pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_decimal(found)
        is_text = pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)
        is_right = is_text or pa.types.is_null(found) or (is_number and role not in _TEXT_ROLES)
        if not is_right and not (role == "time" and (pa.types.is_date(found) or pa.types.is_timestamp(found))):
            allowed = (
                "text" if role in _TEXT_ROLES else "text, numbers or times" if role == "time" else "text or numbers"
            )
            raise InputError(f"{file}: the column {column!r} (the {role}) is of type {found}; expected {allowed}")


def _time_expression(time_format: str | None) -> str:
    if time_format is not None:
        return f"epoch(try_strptime(value, {_quote(time_format, chr(39))}))"
    return (
        "CASE WHEN regexp_full_match(value, '[0-9]{4}') THEN epoch(try_cast(value || '-01-01' AS TIMESTAMPTZ)) "
        "WHEN regexp_full_match(value, '[0-9]{4}-[0-9]{2}') THEN epoch(try_cast(value || '-01' AS TIMESTAMPTZ)) "
        "WHEN regexp_full_match(value, '[0-9]{5,11}([.][0-9]*)?') THEN try_cast(value AS DOUBLE) "
        "ELSE epoch(try_cast(value AS TIMESTAMPTZ)) END"
    )


def _clean(database: "duckdb.DuckDBPyConnection", needed: str | None, report: Callable[[str], None]) -> dict[str, int]:
    """Make the table `event` of usable rows and count the others by reason."""
    script = files("tagpr_data.sources").joinpath("events.sql").read_text(encoding="utf-8")
    for statement in script.split(";\n"):
        if statement.strip():
            given = {"needed": needed or ""} if "$needed" in statement else None
            database.execute(statement, given)
    skipped: dict[str, int] = {}
    rows = database.execute("SELECT reason, rows, row, value FROM bad_row ORDER BY reason").fetchall()
    for reason, count, row, value in rows:
        skipped[reason] = count
        report(f"data row {row}: {reason}" + (f" ({shorten(value)})" if value is not None else ""))
    return skipped


def _task(
    database: "duckdb.DuckDBPyConnection", name: str, form: Form, question: str | None, columns: EventColumns
) -> Task:
    labels: tuple[str, ...] | None = None
    if form == "choice":
        labels = ("[1]", "[2]")
    elif form in ("classification", "rating"):
        order = "try_cast(label AS DOUBLE), label" if form == "rating" else "label"
        found = database.execute(
            f"SELECT label FROM event GROUP BY label ORDER BY {order} LIMIT {MAX_LABELS + 1}"
        ).fetchall()
        labels = tuple(str(row[0]) for row in found)
        if len(labels) > MAX_LABELS:
            raise InputError(
                f"the {'score' if form == 'rating' else 'label'} column has more than {MAX_LABELS} different values, "
                f"for example {shorten(labels[:3])}; a {form} task needs a closed set"
            )
    asked, answer_form, template = _QUESTIONS[form]
    if form == "choice" and columns.title is not None:
        template = _QUESTIONS["generation"][2]
    return Task(
        name=name,
        kind=_KINDS[form],
        labels=labels,
        question=question or asked,
        answer_form=answer_form.format(labels=", ".join(labels or ())),
        item_template=template,
    )


def _count_short(database: "duckdb.DuckDBPyConnection", options: SplitOptions) -> dict[str, int]:
    """Take users with too short a history out of `event` and number the others by first event."""
    short = database.execute(
        "SELECT coalesce(sum(events), 0) FROM (SELECT count(*) AS events FROM event GROUP BY who) WHERE events < ?",
        [options.min_history],
    ).fetchall()[0][0]
    database.execute(
        "CREATE TABLE person AS SELECT who, row_number() OVER (ORDER BY min(moment), min(row)) AS number "
        "FROM event GROUP BY who HAVING count(*) >= ?",
        [options.min_history],
    )
    return {f"user with fewer than {options.min_history} events": int(short)} if short else {}


def _pair(database: "duckdb.DuckDBPyConnection", columns: EventColumns, seed: int) -> None:
    """Give each event another user's text: its neighbour in an order drawn by seed, up to three places on."""
    shown = "title" if columns.title else "text"
    candidates = ", ".join(
        f"CASE WHEN lead(who, {step}) OVER drawn <> who AND lead({shown}, {step}) OVER drawn <> {shown} "
        f"THEN lead({shown}, {step}) OVER drawn END"
        for step in (1, 2, 3)
    )
    database.execute(
        f"CREATE TABLE paired AS SELECT *, {shown} AS mine, coalesce({candidates}) AS other FROM event "
        f"WINDOW drawn AS (ORDER BY md5('{int(seed)}/' || row))"
    )
    database.execute("DROP TABLE event")
    database.execute("ALTER TABLE paired RENAME TO event")


def _chunks(
    database: "duckdb.DuckDBPyConnection", task: Task, form: Form, options: SplitOptions, skipped: Counter[str]
) -> Iterator[tuple[dict[Split, list[Example]], list[ProfileItem]]]:
    width = _width(database)
    numbers = database.execute("SELECT number FROM person ORDER BY number").fetchall()
    split_of = roles((f"u{number:0{width}}" for (number,) in numbers), options)
    extra = "mine, other" if form == "choice" else "NULL, NULL"
    cursor = database.execute(
        f"SELECT number, event_id, moment, title, text, label, plain, {extra} "
        "FROM event JOIN person USING (who) ORDER BY number, moment, event_id"
    )
    rows = itertools.chain.from_iterable(iter(lambda: cursor.fetchmany(2_000), []))
    examples: dict[Split, list[Example]] = {"train": [], "validation": [], "test": []}
    items: list[ProfileItem] = []
    for number, own in itertools.groupby(rows, key=lambda row: row[0]):
        user = f"u{number:0{width}}"
        events = [_event(user, form, options.seed, row[1:]) for row in own]
        usable = [event for event in events if event is not None]
        if len(usable) < len(events):
            skipped["no other user's text at hand"] += len(events) - len(usable)
        if not usable:
            continue
        result = history(task, usable, split_of[user], options)
        for split, made in result.examples.items():
            examples[split].extend(made)
        items.extend(result.items)
        if len(items) >= CHUNK_EVENTS:
            yield examples, items
            examples, items = {"train": [], "validation": [], "test": []}, []
    yield examples, items


def _width(database: "duckdb.DuckDBPyConnection") -> int:
    """Digits of a pseudonym."""
    return max(4, len(str(database.execute("SELECT count(*) FROM person").fetchall()[0][0])))


def _event(user: str, form: Form, seed: int, row: tuple[Any, ...]) -> Event | None:
    event_id, moment, title, text, label, plain, mine, other = row
    answer = {"classification": label, "rating": label, "generation": title, "paraphrase": text}
    asked = plain if form == "paraphrase" else text
    if form == "choice":
        if other is None:
            return None
        first = hashlib.sha256(f"{seed}/{user}/{event_id}".encode()).digest()[0] % 2 == 0
        pair = (mine, other) if first else (other, mine)
        asked = f'[1]: "{pair[0]}" [2]: "{pair[1]}"'
        answer["choice"] = "[1]" if first else "[2]"
    return Event(
        user_id=user,
        event_id=event_id,
        moment=moment,
        date=datetime.fromtimestamp(moment, UTC).isoformat(),
        input=asked,
        output=answer[form],
        title=title,
        text=text,
        label=label,
    )


@contextmanager
def _database(work: Path) -> Generator["duckdb.DuckDBPyConnection"]:
    """Open a database file in `work`; its errors become ours, a full disk stays an OSError."""
    import duckdb

    database = duckdb.connect(str(work / "events.duckdb"))
    try:
        database.execute("SET autoinstall_known_extensions = false; SET threads = 1; SET TimeZone = 'UTC'")
        database.execute("SET enable_progress_bar = false")  # it would go to stdout, where results are
        database.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
        database.execute(f"SET temp_directory = {_quote(str(work), chr(39))}")
        yield database
    except duckdb.Error as error:
        if "No space left" in str(error):
            raise OSError(28, "No space left on device", str(work)) from None
        raise InputError(f"the event table cannot be read: {str(error).splitlines()[0]}") from None
    finally:
        database.close()


def _kind(file: Path) -> Literal["csv", "json", "parquet"]:
    kinds: dict[str, Literal["csv", "json", "parquet"]] = {
        ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet",
    }  # fmt: skip
    suffix = next((part for part in reversed(file.suffixes) if part != ".gz"), "")
    if suffix not in kinds:
        raise InputError(f"{file}: {suffix or 'no'} suffix; an event table is one of {', '.join(kinds)} (or .gz of it)")
    return kinds[suffix]


def _first_line(file: Path, encoding: str) -> str:
    """Read the first line; InputError when it is no text in that encoding."""
    try:
        opened = gzip.open if file.suffix == ".gz" else Path.open
        with opened(file, "rt", encoding=encoding, errors="surrogateescape") as text:
            line = text.readline(1_000_000).removeprefix("\ufeff").rstrip("\r\n")
        line.encode("utf-8")
    except (UnicodeError, gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"{file}, line 1 cannot be read as {encoding} ({error}); is --encoding right?") from None
    if not line.strip():
        raise InputError(f"{file} is empty or begins with an empty line; its first line must name the columns")
    return line


def _delimiter(header: str) -> str:
    return max(",\t;|", key=header.count)


def _named(columns: EventColumns) -> dict[str, str]:
    return {role: column for role, column in columns.model_dump().items() if column is not None}


def _pointer(column: str) -> str:
    """Give the JSON pointer to a key, quoted."""
    return _quote("/" + column.replace("~", "~0").replace("/", "~1"), "'")


def _quote(text: str, mark: str) -> str:
    return f"{mark}{text.replace(mark, mark * 2)}{mark}"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} × {reason}" for reason, count in sorted(counts.items())) or "nothing; the table is empty"


def _hash(file: Path) -> str:
    from tagpr_data.tables import sha256_file

    return sha256_file(file)
