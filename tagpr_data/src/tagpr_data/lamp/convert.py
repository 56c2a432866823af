"""A LaMP question file, with or without its outputs, as a data set folder.

Guarantee: nothing is dropped or reordered, so that rankings and prompts made from the folder are those of the file;
equal profiles are stored once, under the hash of their content. Ours: dates are filled up to ISO (`2015-3-7` →
`2015-03-07`), an item id that occurs again in its profile gets `#2`, `#3` … behind it. Profiles keep the file's order,
which in LaMP is not always the order of dates. Price: the distinct profiles stand in memory once, as columns.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tagpr_data.dataset import SPLITS, check_target, write_dataset
from tagpr_data.dates import interval
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.lamp.files import LampQuestion, load_outputs, read_questions
from tagpr_data.records import DatasetManifest, Example, ProfileItem, Split
from tagpr_data.tables import canonical_json, frame_from_records, sha256_file, sha256_text
from tagpr_data.tasks import canonical_name, find_task

if TYPE_CHECKING:
    import polars as pl

LICENCE = "CC BY-NC-SA 4.0 (LaMP); the underlying sources keep their own terms"

_FLUSH_ITEMS = 20_000
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
    definition = find_task(task)
    name = definition.name.lower()
    check_target(folder, name)
    golds = None if outputs is None else _golds(outputs, definition.name)
    examples: list[Example] = []
    items = _Items()
    for index, question in enumerate(read_questions(questions, task, on_bytes)):
        try:
            profile_id = items.add(definition.name, question)
        except InputError as error:
            raise InputError(f"{questions}, row {index} (id {question.id!r}): {error}") from None
        if golds is not None and question.id not in golds:
            raise CheckFailed(f"{questions}, row {index}: id {question.id!r} has no output in {outputs}")
        examples.append(
            Example(
                id=question.id,
                task=definition.name,
                user_id=question.user_id or profile_id,
                profile_id=profile_id,
                profile_size=len(question.profile),
                input=question.input,
                output=None if golds is None else golds[question.id],
            )
        )
    if golds is not None and len(golds) > len(examples):
        extra = sorted(golds.keys() - {example.id for example in examples})
        raise CheckFailed(f"{outputs}: {len(extra)} outputs have no question in {questions}, for example {extra[0]!r}")
    hashes = {"questions_sha256": sha256_file(questions)}
    if outputs is not None:
        hashes["outputs_sha256"] = sha256_file(outputs)
    return write_dataset(
        folder,
        name=name,
        source=f"{definition.name} question and output files as published by the LaMP benchmark",
        licence=LICENCE,
        tasks=[definition],
        examples={splits[split]: examples},
        items=items.frame(),
        parameters={"split": split, **hashes},
        skipped={},
    )


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
    """The distinct profiles so far, as frames."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._pending: list[ProfileItem] = []
        self._frames: list[pl.DataFrame] = []

    def add(self, task: str, question: LampQuestion) -> str:
        """Keep the question's profile unless an equal one is there; give its id."""
        profile_id = sha256_text(canonical_json(question.profile))[:24]
        if profile_id not in self._known:
            self._known.add(profile_id)
            self._pending.extend(profile_items(task, profile_id, question.profile))
            if len(self._pending) >= _FLUSH_ITEMS:
                self._flush()
        return profile_id

    def frame(self) -> "pl.DataFrame":
        """Give all items."""
        import polars as pl

        self._flush()
        return pl.concat(self._frames)

    def _flush(self) -> None:
        self._frames.append(frame_from_records(self._pending, ProfileItem))
        self._pending = []


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
