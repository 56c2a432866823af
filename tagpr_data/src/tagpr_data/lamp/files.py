"""LaMP's own files: question, output and prediction files, read as a stream and written back.

Guarantee: every row that is yielded has been checked (id, input, and in each profile item the fields the task
needs), every fault is an `InputError` that names file, row, field and value, and a written file appears under its
name only when it is whole. Price: memory is bounded by the largest single row (refused above 256 million
characters), whatever the size of the file.

A row of a question file that holds nothing but text is decoded by orjson, three times as fast as json; any other one
by json, which keeps all digits of a number and tells where a fault is.

    questions    [{"id", "input", "profile": [{"id", …}, …][, "user_id"]}, …]
    outputs      {"task": "LaMP_3", "golds": [{"id", "output"}, …]}        also predictions

Either content may stand in a bare list or under "golds" beside "task" (LaMP-6 writes its test questions so).
"""

import codecs
import json
import math
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

import orjson

from tagpr_data.errors import InputError, shorten
from tagpr_data.tables import atomic_path
from tagpr_data.tasks import LAMP_TASKS, canonical_name

ITEM_FIELDS: dict[str, tuple[str, ...]] = {
    "LaMP-1": ("title", "abstract"),
    "LaMP-2": ("tag", "description"),
    "LaMP-2-old": ("title", "text", "category"),
    "LaMP-3": ("text", "score"),
    "LaMP-4": ("title", "text"),
    "LaMP-5": ("title", "abstract"),
    "LaMP-6": ("text", "title"),
    "LaMP-7": ("text",),
}
"""What a profile item holds besides `id` and, in the time-based split, `date`."""

_INPUT_STARTS: dict[str, str] = {
    "LaMP-1": "For an author who has written the paper",
    "LaMP-2": "Which tag does this movie relate to",
    "LaMP-2-old": "Which category does this article relate to",
    "LaMP-3": "What is the score of the following review",
    "LaMP-4": "Generate a headline for the following article",
    "LaMP-5": "Generate a title for the following abstract",
    "LaMP-6": "Generate a subject for the following email",
    "LaMP-7": "Paraphrase the following tweet",
}
_CHUNK_BYTES = 1 << 20
_LONGEST_ROW = 1 << 28
_ROW_END = re.compile(r'\]\s*(?:,\s*"[^"\\]*"\s*:\s*(?:"(?:[^"\\]|\\.)*"|null)\s*)*\}')
"""A list's end, then fields of text until the object's end: how a row of a question file ends."""


@dataclass(frozen=True, slots=True)
class LampQuestion:
    """One row of a question file; all values are text."""

    id: str
    input: str
    profile: tuple[dict[str, str], ...]
    user_id: str | None = None
    """None on the user-based split, which names no users."""


class Outputs(NamedTuple):
    """The content of an output or prediction file."""

    task: str | None
    """Canonical task name; None for a bare list, which carries none."""
    outputs: dict[str, str]
    """Output by id, in the order of the file; of equal ids the last one wins, as in the official evaluator."""
    duplicates: tuple[str, ...]
    """Ids that occur more than once."""


def read_questions(path: Path, task: str, on_bytes: Callable[[int], object] | None = None) -> Iterator[LampQuestion]:
    """Yield the rows of a question file of the task of that name, in order; scores, dates and ids are cast to text.

    An empty profile is allowed, a repeated question id is not. `on_bytes` is told how many bytes each read brought.
    Raises InputError at the first faulty row, also when the file is plainly one of another task.
    """
    name = _lamp_name(task)
    seen: set[str] = set()
    stream = _Stream(path, on_bytes, holds_questions=True)
    for index, row in enumerate(stream.rows()):
        _check_task_key(path, stream.task, name)
        question = _question(path, name, index, row, stream.is_text)
        if question.id in seen:
            raise InputError(f"{path}, row {index}: id {question.id!r} occurs a second time; ids must be unique")
        seen.add(question.id)
        yield question
    _check_task_key(path, stream.task, name)


def read_rows(path: Path) -> Iterator[Any]:
    """Yield the rows of any LaMP file as JSON gives them, unchecked; InputError where it is no such file."""
    return _Stream(path, None).rows()


def read_outputs(path: Path) -> tuple[str | None, dict[str, str]]:
    """Give the task name (None for a bare list) and the output of each id. See `load_outputs`."""
    return load_outputs(path)[:2]


def load_outputs(path: Path) -> Outputs:
    """Read an output or prediction file; numbers are cast to text, anything else raises InputError."""
    stream = _Stream(path, None)
    outputs: dict[str, str] = {}
    duplicates: dict[str, None] = {}
    for index, row in enumerate(stream.rows()):
        if not isinstance(row, dict):
            raise InputError(f'{path}, row {index} is {shorten(row)}; it must be {{"id": …, "output": …}}')
        fields = cast(dict[str, Any], row)
        where = f"{path}, row {index}"
        key = _text(fields, "id", where)
        if not key:
            raise InputError(f"{where}: id is empty; it must be a text that names the row")
        if "output" not in fields and "input" in fields:
            raise InputError(f"{where} (id {key!r}) has 'input' but no 'output': this looks like a question file")
        if key in outputs:
            duplicates[key] = None
        outputs[key] = _text(fields, "output", f"{where} (id {key!r})")
    task = None if stream.task is None else canonical_name(stream.task)
    return Outputs(task, outputs, tuple(duplicates))


def write_outputs(path: Path, task: str, outputs: Mapping[str, str]) -> None:
    """Write outputs or predictions by id in LaMP's own shape, the task spelled `LaMP_3`, atomically."""
    value = {
        "task": canonical_name(task).replace("-", "_"),
        "golds": [{"id": key, "output": output} for key, output in outputs.items()],
    }
    write_json_lines(path, [json.dumps(value)])


def write_questions(path: Path, questions: Iterable[LampQuestion]) -> None:
    """Write a question file as a bare list, one row at a time, atomically."""

    def lines() -> Generator[str, None, None]:
        before = "["
        for question in questions:
            row: dict[str, Any] = {"id": question.id}
            if question.user_id is not None:
                row["user_id"] = question.user_id
            row |= {"input": question.input, "profile": question.profile}
            yield before + json.dumps(row)
            before = ","
        yield "]" if before == "," else "[]"

    write_json_lines(path, lines())


def write_json_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines of ASCII JSON atomically while they come: on any error nothing is left under `path`."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="ascii", newline="\n") as file:
        for line in lines:
            file.write(line)
            file.write("\n")


def _lamp_name(task: str) -> str:
    name = canonical_name(task)
    if name not in ITEM_FIELDS:
        raise InputError(f"task {task!r} is not a LaMP task; known: {', '.join(ITEM_FIELDS)}")
    return name


def _check_task_key(path: Path, found: str | None, name: str) -> None:
    """LaMP-2-old was called LaMP_2 in its own files, before the movies took the name."""
    if found is None or canonical_name(found) == name or (name, canonical_name(found)) == ("LaMP-2-old", "LaMP-2"):
        return
    raise InputError(f"{path} says that its task is {found!r}, not {name}; give the task of the file")


def _question(path: Path, name: str, index: int, row: Any, is_text: bool) -> LampQuestion:
    """Check a row. `is_text`: it is known to hold nothing but whole text."""
    if not isinstance(row, dict):
        raise InputError(f'{path}, row {index} is {shorten(row)}; it must be {{"id": …, "input": …, "profile": […]}}')
    fields = cast(dict[str, Any], row)
    where = f"{path}, row {index}"
    key = _text(fields, "id", where)
    if not key:
        raise InputError(f"{where}: id is empty; it must be a text that names the row")
    where = f"{where} (id {key!r})"
    if "input" not in fields and "output" in fields:
        raise InputError(f"{where} has 'output' but no 'input': this looks like an output file, not a question file")
    text = _text(fields, "input", where)
    for other, start in _INPUT_STARTS.items():
        if other != name and text.startswith(start):
            raise InputError(f"{where}: input {shorten(text, 60)} is one of {other}, not of {name}; wrong task or file")
    profile = fields.get("profile")
    if not isinstance(profile, list):
        raise InputError(f"{where}: profile is {shorten(profile)}; it must be a list of items")
    listed = cast(list[Any], profile)
    if _is_plain(name, listed, is_text):
        items = tuple(listed)
    else:
        items = tuple(_item(where, name, place, item) for place, item in enumerate(listed))
    user = None if fields.get("user_id") is None else _text(fields, "user_id", where)
    return LampQuestion(key, text, items, user)


def _is_plain(name: str, items: list[Any], is_text: bool) -> bool:
    """Whether all items have the fields of the task, and in each whole text, known or ASCII: nearly all have, and need
    no look at each field."""
    wanted = {"id", *ITEM_FIELDS[name]}
    if set(map(type, items)) - {dict} or any(set(fields) - {"date"} != wanted for fields in set(map(tuple, items))):
        return False
    if is_text:
        return True
    try:
        return "".join(chain.from_iterable(map(dict[str, Any].values, items))).isascii()
    except TypeError:  # a number
        return False


def _item(where: str, name: str, place: int, item: Any) -> dict[str, str]:
    if not isinstance(item, dict):
        raise InputError(f"{where}, profile item {place} is {shorten(item)}; it must hold {_needed(name)}")
    fields = cast(dict[str, Any], item)
    known = fields.keys() - {"id", "date"}
    if "id" not in fields or known != set(ITEM_FIELDS[name]):
        _explain_fields(f"{where}, profile item {place} (id {shorten(fields.get('id'))})", name, fields)
    values = cast(dict[str, str], fields)
    for field, value in fields.items():
        if type(value) is not str or not value.isascii():
            values[field] = _text(fields, field, f"{where}, profile item {place} (id {shorten(fields.get('id'))})")
    return values


def _explain_fields(where: str, name: str, fields: Mapping[str, Any]) -> None:
    """Raise when the fields are those of another task or one is missing; further fields are let through."""
    known = fields.keys() - {"id", "date"}
    fitting = [task.name for task in LAMP_TASKS if set(ITEM_FIELDS[task.name]) == known]
    if fitting and name not in fitting:
        raise InputError(f"{where} holds {sorted(known)}, as in {' or '.join(fitting)}; {name} needs {_needed(name)}")
    missing = [field for field in ("id", *ITEM_FIELDS[name]) if field not in fields]
    if missing:
        raise InputError(f"{where}: {missing[0]} is missing; found {sorted(fields)}, {name} needs {_needed(name)}")


def _needed(name: str) -> str:
    return ", ".join(("id", *ITEM_FIELDS[name]))


def _text(fields: Mapping[str, Any], field: str, where: str) -> str:
    """Give a field as text; numbers are cast (LaMP scores and ids are text, other people's often are not)."""
    if field not in fields:
        raise InputError(f"{where}: {field} is missing; found the fields {sorted(fields)}")
    value = fields[field]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise InputError(f"{where}: {field} is {value}; it must be text or a finite number")
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"{where}: {field} is {shorten(value)}; it must be text or a number")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: {field} has half a surrogate pair, {shorten(value[error.start])}, at character "
                f"{error.start}; that is no text, write the whole character"
            ) from None
    return value


def _holds_text_only(row: dict[str, Any]) -> bool:
    """Whether the values of a row are text, None, or lists of objects whose values are text."""
    for value in row.values():
        if isinstance(value, list):
            items = cast(list[Any], value)
            if set(map(type, items)) - {dict}:
                return False
            if set(map(type, chain.from_iterable(map(dict[str, Any].values, items)))) - {str}:
                return False
        elif value is not None and not isinstance(value, str):
            return False
    return True


class _Stream:
    """The objects of one JSON file, one at a time. After (or while) `rows` runs, `task` holds the "task" key."""

    def __init__(self, path: Path, on_bytes: Callable[[int], object] | None, holds_questions: bool = False) -> None:
        if not path.is_file():
            raise InputError(f"{path} does not exist or is no file; expected a LaMP JSON file")
        self.path = path
        self.task: str | None = None
        self.is_text = False
        """Whether the last row holds nothing but text, all of which UTF-8 can hold; may be False although it does."""
        self._holds_questions = holds_questions
        self._on_bytes = on_bytes
        self._decoder = json.JSONDecoder()
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._buffer = ""
        self._place = 0
        self._bytes_read = 0
        self._row = 0
        self._ended = False

    def rows(self) -> Iterator[Any]:
        """Yield the elements of the list, or of the list under "golds"."""
        with self.path.open("rb") as file:
            self._file = file
            first = self._next_character()
            if first == "[":
                yield from self._list()
            elif first == "{":
                yield from self._object()
            elif first == "<":
                raise InputError(
                    f"{self.path} is a web page, not JSON (it starts with {shorten(self._buffer[:40])}); "
                    "a wrong download address gives such a page: check the address and the file's size"
                )
            elif not first:
                raise InputError(f"{self.path} is empty; expected a LaMP JSON file")
            else:
                raise InputError(f"{self.path} is not JSON: it starts with {shorten(self._buffer[:40])}, not [ or {{")
            rest = self._next_character()
            if rest:
                raise InputError(f"{self.path} goes on after its end with {shorten(self._buffer[self._place :][:40])}")

    def _list(self) -> Iterator[Any]:
        self._place += 1
        if self._next_character() == "]":
            self._place += 1
            return
        while True:
            row = self._text_row() if self._holds_questions else None
            self.is_text = row is not None
            yield self._value() if row is None else row
            self._row += 1
            mark = self._next_character()
            self._place += 1
            if mark == "]":
                return
            if mark != ",":
                self._broken("',' or ']'", mark)

    def _object(self) -> Iterator[Any]:
        self._place += 1
        found = False
        mark = self._next_character()
        while mark != "}":
            key = self._value()
            mark = self._next_character()
            if mark != ":":
                self._broken(f"':' behind {shorten(key)}", mark)
            self._place += 1
            if key == "golds" and self._next_character() == "[":
                found = True
                yield from self._list()
            else:
                value = self._value()
                if key == "task":
                    if not isinstance(value, str):
                        raise InputError(f"{self.path}: task is {shorten(value)}; it must be a name like LaMP_3")
                    self.task = value
            mark = self._next_character()
            if mark == ",":
                self._place += 1
                self._next_character()
            elif mark != "}":
                self._broken("',' or '}'", mark)
        self._place += 1
        if not found:
            raise InputError(f'{self.path} is an object without a list "golds"; expected a list or {{"task", "golds"}}')

    def _next_character(self) -> str:
        """Skip white space; give the character now at hand, `""` at the end of the file."""
        while True:
            while self._place < len(self._buffer):
                if self._buffer[self._place] not in " \t\r\n":
                    return self._buffer[self._place]
                self._place += 1
            if not self._read(_CHUNK_BYTES):
                return ""

    def _text_row(self) -> Any:
        """Decode the row that starts here if it ends as those of a question file do and holds nothing but text; None
        where `_value` must look. No valid object is the start of another one, so what decodes is the whole row."""
        if self._next_character() != "{":
            return None
        looked_at, misses = 0, 0  # the former from the row's start, which moves in the buffer with each read
        while misses < 2:
            bracket = self._buffer.find("]", self._place + looked_at)
            found = _ROW_END.match(self._buffer, bracket) if bracket >= 0 else None
            if found:
                try:
                    row = orjson.loads(self._buffer[self._place : found.end()])
                except orjson.JSONDecodeError:
                    misses += 1
                else:
                    if not _holds_text_only(row):
                        return None
                    self._place = found.end()
                    return row
            elif bracket < 0 or (len(self._buffer) - bracket < _CHUNK_BYTES // 4 and not self._ended):
                held = len(self._buffer) - self._place
                looked_at = held if bracket < 0 else bracket - self._place
                if held > _LONGEST_ROW or (not self._read(max(_CHUNK_BYTES, held)) and bracket < 0):
                    return None
                continue
            looked_at = bracket + 1 - self._place
        return None

    def _value(self) -> Any:
        """Decode the value that starts here, reading on until it is whole; each retry reads as much again as it holds,
        so that a long row costs linear time."""
        if not self._next_character():
            self._truncated()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._place)
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated string") or error.pos >= len(self._buffer) - 16
                held = len(self._buffer) - self._place
                if unfinished and held > _LONGEST_ROW:
                    raise InputError(
                        f"{self.path}, row {self._row} is longer than {_LONGEST_ROW} characters, or a quote is missing"
                    ) from None
                if unfinished and self._read(max(_CHUNK_BYTES, held)):
                    continue
                if self._ended and unfinished:
                    self._truncated()
                raise InputError(
                    f"{self.path}, row {self._row} is not JSON: {error.msg} near "
                    f"{shorten(self._buffer[max(self._place, error.pos - 20) : error.pos + 20])}"
                ) from None
            except RecursionError:
                raise InputError(f"{self.path}, row {self._row} is nested too deeply to be a LaMP row") from None
            if end == len(self._buffer) and not self._ended and self._read(_CHUNK_BYTES):
                continue  # a number may go on behind the buffer
            self._place = end
            return value

    def _read(self, size: int) -> bool:
        """Append up to `size` more bytes to what is not yet used; False at the end of the file."""
        if self._ended:
            return False
        block = self._file.read(size)
        self._ended = not block
        if self._on_bytes is not None:
            self._on_bytes(len(block))
        try:
            text = self._utf8.decode(block, final=self._ended)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.path}, row {self._row}: byte {shorten(error.object[error.start : error.start + 1])} about "
                f"position {self._bytes_read + error.start} is not UTF-8; save the file as UTF-8"
            ) from None
        self._bytes_read += len(block)
        self._buffer = self._buffer[self._place :] + text
        self._place = 0
        return not self._ended

    def _truncated(self) -> None:
        raise InputError(
            f"{self.path} is truncated: it ends inside row {self._row} after {self._bytes_read} bytes; "
            "fetch it again and compare its size"
        )

    def _broken(self, expected: str, found: str) -> None:
        if not found:
            self._truncated()
        raise InputError(f"{self.path}, after row {self._row}: expected {expected}, found {shorten(found)}")
