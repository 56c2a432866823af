"""LaMP question files, with or without their outputs, as a data set folder.

Guarantee: nothing is dropped or reordered, so that rankings and prompts made from the folder are those of the file;
equal profiles are stored once, under the hash of their content. Ours: dates are filled up to ISO (`2015-3-7` →
`2015-03-07`), an item id that occurs again in its profile gets `#2`, `#3` … behind it. Profiles keep the file's order,
which in LaMP is not always the order of dates. Price: some 100,000 items stand in memory; the others wait in files
beside the folder until their turn, as the table is sorted by profile. Those files and the hashes of the published ones
are read and written by a second thread, beside the decoding and the compression.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tagpr_data.dataset import SPLITS, check_target, write_chunks
from tagpr_data.dates import interval
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.lamp.files import LampQuestion, load_outputs, read_questions
from tagpr_data.records import DatasetManifest, Example, ProfileItem, Split
from tagpr_data.tables import arrow_schema, sha256_file, sha256_text
from tagpr_data.tasks import canonical_name, find_task

if TYPE_CHECKING:
    import pyarrow as pa

LICENCE = "CC BY-NC-SA 4.0 (LaMP); the underlying sources keep their own terms"

_FLUSH_ITEMS = 20_000
_CHUNK_ITEMS = 40_000
_FULL_DATE = re.compile(r"(\d{4})-(\d{1,2})(?:-(\d{1,2}))?")


class _Fields(NamedTuple):
    """Which of LaMP's item fields become which of ours."""

    title: str | None
    text: str
    label: str | None


FIELDS: dict[str, _Fields] = {
    "LaMP-1": _Fields("title", "abstract", None),
    "LaMP-2": _Fields(None, "description", "tag"),
    "LaMP-2-old": _Fields("title", "text", "category"),
    "LaMP-3": _Fields(None, "text", "score"),
    "LaMP-4": _Fields("title", "text", None),
    "LaMP-5": _Fields("title", "abstract", None),
    "LaMP-6": _Fields("title", "text", None),
    "LaMP-7": _Fields(None, "text", None),
}


def import_lamp(
    task: str,
    questions: Path,
    outputs: Path | None,
    folder: Path,
    split: str,
    on_bytes: Callable[[int], object] | None = None,
) -> DatasetManifest:
    """Write `questions` and their gold `outputs` as the `split` of a data set folder named after the task.

    Without `outputs` (LaMP withholds those of the test split) all golds are None. Raises InputError for a faulty row or
    an unknown split, CheckFailed when the ids of the two files differ.
    """
    splits: dict[str, Split] = {known: known for known in SPLITS}
    if split not in splits:
        raise InputError(f"split {split!r} is unknown; known: {', '.join(splits)}")
    return import_lamp_files(task, {splits[split]: (questions, outputs)}, folder, on_bytes)


def published_files(folder: Path) -> dict[Split, tuple[Path, Path | None]]:
    """Give the (questions, outputs) of each split below a folder as `download lamp` leaves it for one task, for example
    `lamp/time/LaMP_3`. Outputs are None where there are none. Raises InputError when it has no question file."""
    names: dict[Split, str] = {"train": "train", "validation": "dev", "test": "test"}
    found: dict[Split, tuple[Path, Path | None]] = {}
    for split, name in names.items():
        for place in (folder / name, folder):
            questions, outputs = place / f"{name}_questions.json", place / f"{name}_outputs.json"
            if questions.is_file():
                found[split] = (questions, outputs if outputs.is_file() else None)
                break
    if not found:
        wanted = ", ".join(f"{name}/{name}_questions.json" for name in names.values())
        raise InputError(f"{folder} has no question file; expected one of {wanted}")
    return found


def import_lamp_files(
    task: str,
    files: Mapping[Split, tuple[Path, Path | None]],
    folder: Path,
    on_bytes: Callable[[int], object] | None = None,
) -> DatasetManifest:
    """Write the (questions, outputs) of each split as one data set folder. See `import_lamp`."""
    definition = find_task(task)
    name = definition.name.lower()
    check_target(folder, name)
    hashes: dict[str, Future[str]] = {}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as waiting,
        ThreadPoolExecutor(2) as aside,
    ):
        items = _Items(definition.name, Path(waiting), aside)
        examples: dict[Split, list[Example]] = {}
        for split, (questions, outputs) in files.items():
            golds = None if outputs is None else _golds(outputs, definition.name)
            prefix = "" if len(files) == 1 else f"{split}_"
            for kind, path in (("questions", questions), ("outputs", outputs)):
                if path is not None and path.is_file():  # `read_questions` says what is wrong
                    hashes[f"{prefix}{kind}_sha256"] = aside.submit(sha256_file, path)
            examples[split] = list(_examples(definition.name, questions, outputs, golds, items, on_bytes))
        return write_chunks(
            folder,
            name=name,
            source=f"{definition.name} question and output files as published by the LaMP benchmark",
            licence=LICENCE,
            tasks=[definition],
            chunks=_chunks(items, examples, aside),
            parameters={"split": ", ".join(files), **{name: value.result() for name, value in hashes.items()}},
            skipped={},
        )


def _examples(
    task: str,
    questions: Path,
    outputs: Path | None,
    golds: Mapping[str, str] | None,
    items: "_Items",
    on_bytes: Callable[[int], object] | None,
) -> Iterator[Example]:
    seen = 0
    for index, question in enumerate(read_questions(questions, task, on_bytes)):
        seen += 1
        try:
            profile_id = items.add(question)
        except InputError as error:
            raise InputError(f"{questions}, row {index} (id {question.id!r}): {error}") from None
        if golds is not None and question.id not in golds:
            raise CheckFailed(f"{questions}, row {index}: id {question.id!r} has no output in {outputs}")
        yield Example(
            id=question.id,
            task=task,
            user_id=question.user_id or profile_id,
            profile_id=profile_id,
            profile_size=len(question.profile),
            input=question.input,
            output=None if golds is None else golds[question.id],
        )
    if golds is not None and len(golds) > seen:
        with_question = {question.id for question in read_questions(questions, task)}
        extra = sorted(golds.keys() - with_question)
        raise CheckFailed(f"{outputs}: {len(extra)} outputs have no question in {questions}, for example {extra[0]!r}")


def _chunks(
    items: "_Items", examples: Mapping[Split, list[Example]], aside: ThreadPoolExecutor
) -> "Iterator[tuple[Mapping[Split, list[Example]], pa.Table | list[ProfileItem]]]":
    """The items in order of their profiles, the examples with the last of them."""
    tables = items.tables()
    table, after = next(tables, None), next(tables, None)
    while after is not None:
        following = aside.submit(next, tables, None)  # put together while `table` is written
        assert table is not None
        yield {}, table
        table, after = after, following.result()
    yield examples, [] if table is None else table


def profile_items(task: str, profile_id: str, profile: tuple[Mapping[str, str], ...]) -> Iterator[ProfileItem]:
    """Give LaMP's items as records, in the same order. InputError names an item whose date cannot be read."""
    fields = FIELDS[canonical_name(task)]
    seen: Counter[str] = Counter()
    for position, item in enumerate(profile):
        seen[item["id"]] += 1
        again = seen[item["id"]]
        yield ProfileItem(
            profile_id=profile_id,
            position=position,
            item_id=item["id"] if again == 1 else f"{item['id']}#{again}",
            date=_iso_date(item, position),
            title=None if fields.title is None else item[fields.title],
            text=item[fields.text],
            label=None if fields.label is None else item[fields.label],
        )


class _Items:
    """The items of the distinct profiles so far: the latest as columns, the others in files, both by the first
    character of their profile's id."""

    def __init__(self, task: str, folder: Path, aside: ThreadPoolExecutor) -> None:
        self._aside = aside
        self._written: Future[None] | None = None
        self._schema = arrow_schema(ProfileItem)
        self._fields = FIELDS[task]
        self._folder = folder
        self._known: set[str] = set()
        self._sizes: dict[str, list[tuple[str, int]]] = {}
        self._waiting: dict[str, dict[str, list[Any]]] = {}
        self._writers: dict[str, pa.RecordBatchStreamWriter] = {}
        self._count = 0

    def add(self, question: LampQuestion) -> str:
        """Keep the question's profile unless an equal one is there; give its id. InputError names an item whose date
        cannot be read."""
        profile = question.profile
        profile_id = _profile_hash(profile)
        if profile_id in self._known:
            return profile_id
        self._known.add(profile_id)
        columns = self._waiting.setdefault(profile_id[0], {name: [] for name in self._schema.names})
        size = len(profile)
        self._sizes.setdefault(profile_id[0], []).append((profile_id, size))
        columns["profile_id"] += [profile_id] * size
        columns["position"] += range(size)
        columns["item_id"] += _distinct([item["id"] for item in profile])
        columns["date"] += [
            _iso_date(item, position) if "date" in item else None for position, item in enumerate(profile)
        ]
        for column, field in zip(("title", "text", "label"), self._fields, strict=True):
            columns[column] += [None] * size if field is None else [item[field] for item in profile]
        self._count += size
        if self._count >= _FLUSH_ITEMS:
            self._flush()
        return profile_id

    def tables(self) -> "Iterator[pa.Table]":
        """Give all items once, sorted by profile and position; tables of `_CHUNK_ITEMS` items or a little more."""
        import pyarrow as pa

        self._flush()
        self._wait()
        for writer in self._writers.values():
            writer.close()
        found: list[pa.Table] = []
        for first in sorted(self._writers):
            with pa.OSFile(str(self._path(first)), "r") as file:
                items = pa.ipc.open_stream(file).read_all()
            start = 0
            places: list[tuple[str, int, int]] = []
            for profile_id, size in self._sizes[first]:
                places.append((profile_id, start, size))
                start += size
            found += [items.slice(start, size) for _, start, size in sorted(places)]
            if sum(map(len, found)) >= _CHUNK_ITEMS:
                yield pa.concat_tables(found).combine_chunks()
                found = []
        if found:
            yield pa.concat_tables(found).combine_chunks()

    def _flush(self) -> None:
        import pyarrow as pa

        batches = {first: pa.RecordBatch.from_pydict(columns, self._schema) for first, columns in self._waiting.items()}
        self._waiting = {}
        self._count = 0
        self._wait()
        self._written = self._aside.submit(self._write, batches)

    def _write(self, batches: "Mapping[str, pa.RecordBatch]") -> None:
        import pyarrow as pa

        for first, batch in batches.items():
            if first not in self._writers:
                self._writers[first] = pa.ipc.new_stream(str(self._path(first)), self._schema)
            self._writers[first].write_batch(batch)

    def _wait(self) -> None:
        if self._written is not None:
            self._written.result()

    def _path(self, first: str) -> Path:
        return self._folder / f"{first}.arrow"


def _profile_hash(profile: tuple[Mapping[str, str], ...]) -> str:
    """Name a profile by its content: field names and lengths come before the fields, which keeps them apart."""
    sorted_names = {fields: sorted(fields) for fields in set(map(tuple, profile))}
    names = [sorted_names[fields] for fields in map(tuple, profile)]
    values = [item[name] for item, known in zip(profile, names, strict=True) for name in known]
    shape = ";".join([",".join(map(",".join, names)), ",".join(map(str, map(len, values)))])
    return sha256_text("".join([shape, *values]))[:24]


def _distinct(ids: list[str]) -> list[str]:
    """Put `#2`, `#3` … behind an id that occurs again."""
    if len(set(ids)) == len(ids):
        return ids
    seen: Counter[str] = Counter()
    result: list[str] = []
    for item_id in ids:
        seen[item_id] += 1
        result.append(item_id if seen[item_id] == 1 else f"{item_id}#{seen[item_id]}")
    return result


def _golds(outputs: Path, task: str) -> dict[str, str]:
    found = load_outputs(outputs)
    if found.task is not None and found.task != task and (task, found.task) != ("LaMP-2-old", "LaMP-2"):
        raise InputError(f"{outputs} is of task {found.task}, not {task}; give the outputs of the questions")
    if found.duplicates:
        raise CheckFailed(f"{outputs}: id {found.duplicates[0]!r} has more than one output; each id must stand once")
    return found.outputs


def _iso_date(item: Mapping[str, str], position: int) -> str | None:
    date = item.get("date")
    if date is None:
        return None
    parts = _FULL_DATE.fullmatch(date)
    iso = "-".join(part.zfill(2) for part in parts.groups() if part) if parts else date
    try:
        interval(iso)
    except InputError as error:
        raise InputError(f"profile item {position} (id {item['id']!r}): {error}") from None
    return iso
