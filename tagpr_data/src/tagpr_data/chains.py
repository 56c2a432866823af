"""Untagged chains: reading them, cutting them into sentences, putting tags around these without changing a word.

A chain is `<think>reasoning</think>answer`, or the reasoning alone with its answer beside it or unknown.

Sentences: a cut falls behind line breaks, and behind `.`, `!`, `?`, `…` (with closing quotes and brackets) and white
space unless the next character is a lower-case letter or the full stop ends a lone letter or number ("1.", "J.");
`。`, `！`, `？` need no white space. What would show nothing belongs to the sentence before it. Guarantee: joined, the
sentences are the text, white space included; of a tagged chain `untagged` gives the chain back, and `tagged` checks
that it does. Both take linear time. The rule is ours, and knows no abbreviations: "e.g. Paris" is cut.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagpr_data import tags
from tagpr_data.errors import InputError, shorten
from tagpr_data.records import AnsweringChain, Attempt, ChainRow, Record
from tagpr_data.tags import TagSet

if TYPE_CHECKING:
    import pyarrow as pa

REASONS = {
    "empty": "the chain has no visible character",
    "has-markup": "the chain holds a tag of the set, or think markers that do not enclose it",
    "too-long": "the chain has more characters than allowed",
    "refused-by-server": "the teacher's server refused the prompt (status 400, 413 or 422)",
    "cut-off": "the teacher's reply was cut at its length limit or ended in an error",
    "unreadable-reply": "a line of the teacher's reply is not `number: tag`",
    "unknown-tag": "the teacher's reply names a tag that the set does not have",
    "missing-sentence": "the teacher's reply leaves a sentence out",
    "repeated-sentence": "the teacher's reply labels a sentence twice",
    "unknown-sentence": "the teacher's reply labels a sentence that there is not",
    "grammar": "the tagged chain breaks the tag grammar; the detail names the first violation",
    "gold-in-prompt": "the prompt of the example and the items it names holds the gold answer (with a data set)",
    "duplicate-prompt": "the prompt of the example and the items it names is another example's too (with a data set)",
    "words-changed": "without its tags the tagged chain is not the chain",
}
"""Why a chain was not annotated."""

MAX_CHARACTERS = 20_000
"""Longest chain that is annotated, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a chain cannot be annotated."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain taken apart: `head + body + tail` is a trace without tags."""

    head: str
    """Up to and with `<think>`."""
    body: str
    """The reasoning."""
    tail: str
    """From `</think>` on."""
    has_answer: bool
    """Whether anything follows `</think>`."""

    @property
    def text(self) -> str:
        """All of it."""
        return self.head + self.body + self.tail


def sentences(text: str) -> list[str]:
    """Cut a text into sentences; joined they are the text. A text that shows nothing is one sentence, an empty one
    none."""
    pieces: list[str] = []
    start = 0
    for boundary in _BOUNDARY.finditer(text):
        end = boundary.end()
        if end < len(text) and _is_end(text, boundary):
            pieces.append(text[start:end])
            start = end
    if start < len(text):
        pieces.append(text[start:])
    whole: list[str] = []
    for piece in pieces:
        if whole and not (tags.shows(piece) and tags.shows(whole[-1])):
            whole[-1] += piece
        else:
            whole.append(piece)
    return whole


def take_apart(row: ChainRow, tagset: TagSet, max_characters: int = MAX_CHARACTERS) -> Chain | Fault:
    """Give head, body and tail of a chain, or why it cannot be annotated."""
    text = row.text
    if len(text) > max_characters:
        return Fault("too-long", f"{len(text)} characters, at most {max_characters}")
    chain = _think_block(text) or Chain(
        "<think>",
        text,
        "</think>" + (f"\n{row.answer}" if row.answer is not None else ""),
        tags.shows(row.answer or ""),
    )
    markup = _markup(tagset.names)
    found = markup.search(chain.body) or markup.search(chain.tail, len("</think>")) or markup.search(row.answer or "")
    if found:
        return Fault("has-markup", f"{found[0]} stands in the chain already")
    if not tags.shows(chain.body):
        return Fault("empty", "nothing to label")
    return chain


def tagged(chain: Chain, labels: Sequence[str], tagset: TagSet, k: int | None) -> tags.Parsed | Fault:
    """Put tags around the sentences of a chain; `labels` names one tag each. Neighbours with one tag are one step,
    white space at a step's edges stays outside. Gives the parsed trace, or what is wrong with it."""
    pieces = sentences(chain.body)
    assert len(pieces) == len(labels), "one label per sentence"
    parts: list[str] = []
    for tag, group in groupby(zip(labels, pieces, strict=True), key=lambda pair: pair[0]):
        words = "".join(piece for _, piece in group)
        core = words.strip()
        lead = words[: len(words) - len(words.lstrip())]
        parts.append(f"{lead}<{tag}>{core}</{tag}>{words[len(lead) + len(core) :]}")
    text = chain.head + "".join(parts) + chain.tail
    if untagged(text, tagset) != chain.text:
        return Fault("words-changed", "the chain and its tags cannot be told apart")
    parsed = tags.parse(text, tagset, k)
    wrong = [found for found in parsed.violations if chain.has_answer or found.code != "empty-answer"]
    if wrong:
        return Fault("grammar", f"{wrong[0].code}: {wrong[0].message}")
    return parsed


def untagged(text: str, tagset: TagSet) -> str:
    """Remove the tags of a set from a text; think markers stay."""
    return _step_markup(tagset.names).sub("", text)


def read_chains(
    path: Path, rows: int = 1_000, answering: Callable[[AnsweringChain], Attempt | Fault] | None = None
) -> "Iterator[pa.RecordBatch]":
    """Read chains from JSON lines or Parquet as batches with the columns of `ChainRow` and `row`, the row as JSON where
    it is an attempt, else null. With `answering` every other row must be an `AnsweringChain`, and `row` is the attempt
    it makes of that; `reason` and `detail` are why it makes none.

    Raises InputError that names file and row for anything else, and for an id that occurs twice.
    """
    from pydantic import ValidationError

    from tagpr_data.tables import explain

    seen: set[str] = set()
    waiting: list[dict[str, Any]] = []
    for where, value in _values(path):
        try:
            attempt: Attempt | Fault | None = None
            if "prompt_hash" in value:
                attempt = Attempt.model_validate(_only(value, Attempt))
                row = _chain_of(attempt)
            elif answering is None:
                row = ChainRow.model_validate(_only(value, ChainRow))
            else:
                chain = AnsweringChain.model_validate(_only(value, AnsweringChain))
                attempt = answering(chain)
                asked = _question_of(attempt) if isinstance(attempt, Attempt) else None
                row = chain.model_copy(update={"k": len(chain.item_ids), "question": chain.question or asked})
            for text in (row.id, row.question, row.text, row.answer):
                (text or "").encode()
        except ValidationError as error:
            form = (
                "a chain has id, text and perhaps question, answer, k"
                if answering is None
                else "with --dataset a chain has id, text, example_id and perhaps item_ids, question, answer, teacher"
            )
            raise InputError(f"{where}: {explain(error)}; {form}") from None
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        except UnicodeEncodeError as error:
            raise InputError(f"{where}: a text is not Unicode: {error}") from None
        if row.id in seen:
            raise InputError(f"{where}: the id {shorten(row.id)} occurs twice; each chain needs its own")
        seen.add(row.id)
        waiting.append(
            {name: getattr(row, name) for name in ChainRow.model_fields}
            | ({"row": attempt.model_dump_json()} if isinstance(attempt, Attempt) else {})
            | ({"reason": attempt.reason, "detail": attempt.detail} if isinstance(attempt, Fault) else {})
        )
        if len(waiting) == rows:
            yield batch_from_rows(waiting)
            waiting = []
    if not seen:
        raise InputError(f"{path} holds no chain")
    if waiting:
        yield batch_from_rows(waiting)


def batch_from_rows(rows: Sequence[Mapping[str, Any]]) -> "pa.RecordBatch":
    """Give rows as a batch with the columns of `ChainRow` and `row`, `labels` (a tag per sentence), `tagged`, `reason`,
    `detail`; what a row lacks is null."""
    import pyarrow as pa

    names = ("id", "question", "text", "answer", "row", "tagged", "reason", "detail")
    fields = [*((name, pa.string()) for name in names), ("k", pa.int64()), ("labels", pa.list_(pa.string()))]
    return pa.RecordBatch.from_pylist([dict(row) for row in rows], schema=pa.schema(fields))


def _chain_of(attempt: Attempt) -> ChainRow:
    return ChainRow(id=attempt.id, question=_question_of(attempt), text=attempt.text, k=len(attempt.item_ids))


def _question_of(attempt: Attempt) -> str:
    return "\n\n".join(turn.content for turn in attempt.messages if turn.role == "user")


def _only(value: dict[str, Any], model: type[Record]) -> dict[str, Any]:
    """Leave out what the record does not know; `k` of an attempt is another thing and stays with it."""
    return {name: value[name] for name in model.model_fields if name in value}


def _values(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise InputError(f"{path} does not exist or is a folder; expected chains as JSON lines or Parquet")
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        number = 0
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(1_000, use_threads=False):
                    for value in batch.to_pylist():
                        yield f"{path}, row {number}", value
                        number += 1
        except pa.ArrowInvalid as error:
            raise InputError(f"{path} is not a whole Parquet file: {str(error).splitlines()[0]}") from None
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    value = json.loads(line.decode("utf-8"))
                except (ValueError, RecursionError) as error:
                    raise InputError(
                        f"{path}, line {number}: not JSON in UTF-8 ({error}): {shorten(line[:200])}"
                    ) from None
                if not isinstance(value, dict):
                    raise InputError(f"{path}, line {number}: {shorten(value)} is no object with id and text")
                yield f"{path}, line {number}", value


def _think_block(text: str) -> Chain | None:
    """Give the parts of `<think>…</think>…`; None where nothing but white space before `<think>` does not hold."""
    start = text.find("<think>")
    end = text.find("</think>", start)
    if start < 0 or end < 0 or text[:start].strip():
        return None
    tail = text[end:]
    return Chain(text[: start + 7], text[start + 7 : end], tail, tags.shows(tail[len("</think>") :]))


def _is_end(text: str, boundary: re.Match[str]) -> bool:
    if boundary["line"] or boundary["wide"] or "\n" in boundary[0]:
        return True
    if text[boundary.end()].islower():
        return False
    return not (boundary["stop"] == "." and _LONE.search(text, max(0, boundary.start() - 12), boundary.start()))


@lru_cache(maxsize=64)
def _markup(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"</?(?:think|{'|'.join(map(re.escape, names))})>")


@lru_cache(maxsize=64)
def _step_markup(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"</?(?:{'|'.join(map(re.escape, names))})>")


_BOUNDARY = re.compile(
    r"(?P<line>\n\s*+)|(?P<wide>(?<![。！？])[。！？]++[」』”’）]*+\s*+)"
    r"|(?<![.!?…])(?P<stop>[.!?…]++)[\"'”’»)\]]*+\s++"
)
_LONE = re.compile(r"(?:^|[\s(\[])(?:[^\W\d_]|\d{1,3})\Z")
