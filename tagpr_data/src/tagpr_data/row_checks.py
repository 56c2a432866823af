"""What `validate` asks of every row of traces/: facts re-computed from the row, judged by great-expectations.

`RowFacts` is a function from Arrow batch to Arrow batch: it parses the text, hashes the prompt, looks items up, and
gives one short row of facts for each row; `engine.map_batches` runs it on all cores or on a Ray cluster.
great-expectations sees the facts only, 100,000 rows at once, so that neither time nor memory hang on the texts' length.
Price: about 40 µs a row and core (23 of them the tag parser), half a second and four more for the library's start.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tagpr_data.dataset import Dataset
from tagpr_data.engine import Engine, map_batches
from tagpr_data.errors import InputError
from tagpr_data.prompts import hash_of_turns
from tagpr_data.records import ProfileItem, Step
from tagpr_data.tags import TagSet, ground, parse

if TYPE_CHECKING:
    import pyarrow as pa

ROW_CHECKS = {
    "id_form": "Is every id a SHA-256 in hex?",
    "finished": "Did every kept completion end by itself?",
    "grammar": "Is every trace valid in the tag grammar, its citations within the prompt's items?",
    "steps_match": "Are the stored steps those of the text?",
    "answer_match": "Is the stored answer that of the text?",
    "prompt_hash": "Is every prompt hash that of the messages?",
    "roles": "Does every prompt end with the user's turn, with no turn of the assistant before?",
    "score_range": "Is every score between 0 and 1?",
    "grounding": "Are claims and grounded claims those one finds by looking the items up? (needs the data set)",
}
"""What great-expectations asks of every row of traces/, by name of the check."""

_EXPECTED = {
    "id": "64 hexadecimal digits", "finish_reason": "stop", "grammar": "valid", "score": "0 to 1",
    "roles": "user, or system and user",
}  # fmt: skip
"""What would be right, by column of facts; the others should match what is found again."""

LookUp = Callable[[str, Sequence[str]], tuple[tuple[ProfileItem, ...], str | None] | None]
"""Example id, item ids → the items and the query's date; None where the data set lacks one of them."""

SHOWN_ROWS = 20
"""Offending rows that a result names."""

_COLUMNS = (
    "id", "example_id", "finish_reason", "score", "text", "item_ids", "messages", "steps", "answer", "prompt_hash",
    "claims", "grounded_claims",
)  # fmt: skip
_CHUNK_ROWS = 100_000
_READ_ROWS = 2_000
"""Rows read at once: whole texts and prompts, some ten kilobytes each as Python objects."""


@dataclass(frozen=True)
class CheckResult:
    """What one check found."""

    name: str
    question: str
    status: Literal["passed", "failed", "crashed", "not-run"]
    offending: int = 0
    rows: tuple[str, ...] = ()
    """The first offending rows as `row: problem`; at most 20."""
    error: str = ""
    """Why it crashed or was not run."""


def check_rows(
    paths: Sequence[Path], tagset: TagSet, dataset: Dataset | None = None, engine: Engine | None = None
) -> list[CheckResult]:
    """Run `ROW_CHECKS` on the rows of Parquet files of traces; counts are summed over all. Where a file or the engine
    fails, all of them count as crashed."""
    import pyarrow as pa

    engine = engine or Engine()
    judge = _row_validation()
    found = {name: _Tally() for name in ROW_CHECKS}
    facts = map_batches(
        _batches(paths), RowFacts(tagset, dataset.folder if dataset is not None else None),
        engine=engine.name, workers=engine.workers, address=engine.address,
    )  # fmt: skip
    pending: list[pa.RecordBatch] = []
    try:
        for batch in facts:
            pending.append(batch)
            if sum(part.num_rows for part in pending) >= _CHUNK_ROWS:
                judge(pa.Table.from_batches(pending).to_pandas(), found)
                pending = []
    except InputError as error:
        return [CheckResult(name, question, "crashed", error=str(error)) for name, question in ROW_CHECKS.items()]
    if pending:
        judge(pa.Table.from_batches(pending).to_pandas(), found)
    results = [tally.result(name, ROW_CHECKS[name]) for name, tally in found.items()]
    if dataset is not None:
        return results
    without = CheckResult("grounding", ROW_CHECKS["grounding"], "not-run", error="no data set given")
    return [*(result for result in results if result.name != "grounding"), without]


class RowFacts:
    """From a batch of traces/ to a batch of facts, row by row: id, finish_reason, score (`in range` or the number),
    grammar (`valid` or codes), roles, and whether steps, answer, prompt_hash and grounding are as stated. Picklable;
    the data set is read when it is first needed."""

    def __init__(self, tagset: TagSet, dataset_folder: Path | None = None) -> None:
        self._tagset = tagset
        self._dataset_folder = dataset_folder

    def __call__(self, batch: "pa.RecordBatch") -> "pa.RecordBatch":
        """Give the facts of a batch that has the columns of `records.Trace`."""
        import pyarrow as pa

        item_counts = _lengths(batch["item_ids"])
        parsed = [
            parse(text, self._tagset, k=count) for text, count in zip(_values(batch, "text"), item_counts, strict=True)
        ]
        steps = [result.steps for result in parsed]
        prompts = _slices(batch["messages"], ("role", "content"))
        hashes = [hash_of_turns(turns) for turns in prompts]
        answers = [result.answer for result in parsed]
        facts = {
            "id": batch["id"].cast(pa.string()),  # files may have large strings, all facts the same
            "finish_reason": batch["finish_reason"].cast(pa.string()),
            # as words: great-expectations takes NaN for missing, which passes
            "score": ["in range" if 0 <= score <= 1 else f"{score:.6g}" for score in _values(batch, "score")],
            "grammar": [
                "valid" if result.is_valid else ", ".join(sorted({v.code for v in result.violations}))
                for result in parsed
            ],
            "steps": _compared(map(_plain, steps), map(_stored, _slices(batch["steps"], ("tag", "text", "cites")))),
            "answer": _compared(answers, _values(batch, "answer")),
            "prompt_hash": _compared(hashes, _values(batch, "prompt_hash")),
            "roles": [" ".join(str(role) for role, _ in turns) for turns in prompts],
            "grounding": ["match"] * batch.num_rows if self._dataset_folder is None else self._grounding(batch, steps),
        }
        return pa.RecordBatch.from_pydict(facts)

    def _grounding(self, batch: "pa.RecordBatch", steps: Sequence[tuple[Step, ...]]) -> list[str]:
        columns = ("example_id", "item_ids", "claims", "grounded_claims")
        rows = zip(*(_values(batch, name) for name in columns), steps, strict=True)
        return [
            "match"
            if _is_grounded_as_stated(example_id, item_ids, (claims, grounded), own, self._look_up)
            else "differs"
            for example_id, item_ids, claims, grounded, own in rows
        ]

    @cached_property
    def _look_up(self) -> LookUp:
        assert self._dataset_folder is not None
        return _item_lookup(Dataset.load(self._dataset_folder))

    def __getstate__(self) -> dict[str, Any]:
        return {"_tagset": self._tagset, "_dataset_folder": self._dataset_folder}


def great_expectations() -> Any:
    """Import great-expectations with its telemetry off; takes about four seconds."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its own imports of deprecated modules
        import great_expectations as gx

    return gx


def ephemeral_context() -> Any:
    """Give a context of great-expectations that keeps nothing on disk and shows no bars."""
    context = great_expectations().get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    return context


def _batches(paths: Sequence[Path]) -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in paths:
        try:
            yield from pq.ParquetFile(path).iter_batches(_READ_ROWS, columns=list(_COLUMNS))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def _values(batch: "pa.RecordBatch", column: str) -> list[Any]:
    return batch[column].to_pylist()


def _lengths(lists: Any) -> list[int]:
    import pyarrow.compute as pc

    return pc.list_value_length(lists).to_pylist()  # pyright: ignore[reportAttributeAccessIssue]  # not in the stubs


def _slices(lists: Any, fields: Sequence[str]) -> list[list[tuple[Any, ...]]]:
    """Give a column of lists of structs as a list of tuples for each row; by columns, a tenth of the time by rows."""
    structs = lists.flatten()
    values = list(zip(*(structs.field(name).to_pylist() for name in fields), strict=True))
    found: list[list[tuple[Any, ...]]] = []
    begin = 0
    for length in _lengths(lists):
        found.append(values[begin : begin + length])
        begin += length
    return found


def _plain(steps: Sequence[Step]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(step.tag, step.text, step.cites) for step in steps]


def _stored(steps: Sequence[tuple[Any, ...]]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(tag, text, tuple(cites or ())) for tag, text, cites in steps]


def _compared(one: Any, other: Any) -> list[str]:
    return ["match" if a == b else "differs" for a, b in zip(one, other, strict=True)]


def _is_grounded_as_stated(
    example_id: str, item_ids: Sequence[str], stated: tuple[int, int], steps: Sequence[Step], look_up: LookUp
) -> bool:
    found = look_up(example_id, item_ids)
    if found is None:
        return False
    claims = ground(steps, *found)
    return (len(claims), sum(claim.holds for claim in claims)) == stated


def _item_lookup(dataset: Dataset) -> LookUp:
    from tagpr_data.generate import Profiles

    examples = {example.id: example for split in dataset.splits for example in dataset.examples(split)}
    profiles = Profiles(dataset, list(examples.values()))

    def look_up(example_id: str, item_ids: Sequence[str]) -> tuple[tuple[ProfileItem, ...], str | None] | None:
        example = examples.get(example_id)
        if example is None or not set(item_ids) <= {item.item_id for item in profiles.items(example)}:
            return None
        return profiles.chosen(example, item_ids), example.date

    return look_up


@dataclass
class _Tally:
    """Sum of one row check over chunks."""

    offending: int = 0
    rows: tuple[str, ...] = ()
    error: str = ""

    def result(self, name: str, question: str) -> CheckResult:
        status = "crashed" if self.error else "failed" if self.offending else "passed"
        return CheckResult(name, question, status, self.offending, self.rows, self.error)


@cache
def _row_validation() -> Any:
    """Give a function (frame, tallies) that validates one chunk and adds what it finds to the tallies. Made once: a
    context of great-expectations takes half a second."""
    gx = great_expectations()
    expect = gx.expectations
    suite = gx.ExpectationSuite(
        name="rows",
        expectations=[
            expect.ExpectColumnValuesToMatchRegex(column="id", regex="^[0-9a-f]{64}$", **_named("id_form")),
            _in_set(expect, "finish_reason", ("stop",), "finished"),
            _in_set(expect, "grammar", ("valid",), "grammar"),
            _in_set(expect, "steps", ("match",), "steps_match"),
            _in_set(expect, "answer", ("match",), "answer_match"),
            _in_set(expect, "prompt_hash", ("match",), "prompt_hash"),
            _in_set(expect, "grounding", ("match",), "grounding"),
            _in_set(expect, "roles", ("user", "system user"), "roles"),
            _in_set(expect, "score", ("in range",), "score_range"),
        ],
    )
    context = ephemeral_context()
    batches = context.data_sources.add_pandas("corpus").add_dataframe_asset("traces")
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(
            name="rows", data=batches.add_batch_definition_whole_dataframe("chunk"), suite=context.suites.add(suite)
        )
    )
    return partial(_validate_chunk, definition)


def _named(name: str) -> dict[str, Any]:
    return {"description": ROW_CHECKS[name], "meta": {"check": name}}


def _in_set(expect: Any, column: str, values: tuple[str, ...], name: str) -> Any:
    return expect.ExpectColumnValuesToBeInSet(column=column, value_set=list(values), **_named(name))


def _validate_chunk(definition: Any, frame: Any, found: dict[str, _Tally]) -> None:
    outcome = definition.run(
        batch_parameters={"dataframe": frame},
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["id"]},
    )
    for result in outcome.results:
        tally = found[result.expectation_config.meta["check"]]
        error = _exception(result.exception_info)
        if error:
            tally.error = tally.error or error
        elif not result.success:
            column = result.expectation_config.kwargs["column"]
            rows = result.result.get("unexpected_index_list") or []
            tally.offending += result.result["unexpected_count"]
            shown = tuple(f"{row.get('id')}: {_problem(column, row.get(column))}" for row in rows[:SHOWN_ROWS])
            tally.rows = (*tally.rows, *shown)[:SHOWN_ROWS]


def _problem(column: str, found: object) -> str:
    if column in _EXPECTED:
        return f"{column} is {str(found)[:200]}; expected {_EXPECTED[column]}"
    return f"{column} is not what comes out of the row's text and prompt"


def _exception(info: Any) -> str:
    """Give the message of an exception inside an expectation, or "": it comes flat or one level down."""
    entries = [info] if "raised_exception" in info else list(info.values())
    return next((str(entry["exception_message"]) for entry in entries if entry.get("raised_exception")), "")
