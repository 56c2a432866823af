"""What a user wrote, and where it stands in rows of others: in a question which of two texts is whose, above all.

A user's texts are the golds of their open questions, titles and texts of the past items that their prompts and
profiles show, and in a question between `[1]: "…"` and `[2]: "…"` the one that is theirs. Other users' rows may hold
such a text too. It is theirs alone unless somebody else's own words hold it: their items, their questions (a film many
have rated), all but the option that is not theirs.

Guarantee: a text of theirs that another row shows is found, whatever the field; a text of fewer than four words and 24
characters only where it stands in quotes. Price: every row is looked at once, with one automaton of all texts.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from tagpr_data.corpus import Corpus, Kind

if TYPE_CHECKING:
    import pyarrow as pa

_LONG_WORDS, _LONG_CHARACTERS = 4, 24
_OPTIONS = re.compile(r'\[1\]: "(?P<one>.*)" \[2\]: "(?P<two>.*)"', re.DOTALL)


def written(corpus: Corpus, gone: Mapping[Kind, set[str]], batch_rows: int) -> frozenset[str]:
    """Give the user's texts as they would stand in another row, short ones in quotes. gone: the keys of the user's
    rows by kind; batch_rows: rows in memory at once."""
    kinds = {task.name: (task.kind, task.item_template) for task in corpus.manifest.tasks}
    texts: set[str] = set()
    for kind, batch in _batches(corpus, batch_rows):
        for row in batch.filter(_is_in(kind, batch, gone)).to_pylist():
            texts |= _of_profile(row) if kind == "profiles" else _of_row(row, *kinds.get(row["task"], ("", "")))
    return frozenset(_as_searched(text) for text in texts if text)


def only_theirs(
    corpus: Corpus, gone: Mapping[Kind, set[str]], texts: frozenset[str], batch_rows: int
) -> frozenset[str]:
    """Give those of the user's texts that stand in rows of others, but in nobody else's own words."""
    import polars as pl
    import pyarrow.compute as pc

    if not texts:
        return texts
    patterns = sorted(texts)
    found, common = set[str](), set[str]()
    for kind, batch in _batches(corpus, batch_rows):
        others = batch.filter(pc.invert(_is_in(kind, batch, gone)))
        rows = others.to_pylist()
        everything = pl.Series(["\n".join(_strings(row)) for row in rows], dtype=pl.String)
        hits = everything.str.extract_many(patterns, overlapping=True)
        for row, held in zip(rows, hits, strict=True):
            if len(held):
                found |= set(held)
                own = "\n".join(_of_profile(row)) if kind == "profiles" else _own_words(row)
                common |= {text for text in held if text in own or text.strip('"') in own.split("\n")}
    return frozenset(found - common)


def _batches(corpus: Corpus, rows: int) -> "Iterator[tuple[Kind, pa.RecordBatch]]":
    import pyarrow.parquet as pq

    for table in corpus.tables:
        with pq.ParquetFile(corpus.folder / table.path) as file:
            for batch in file.iter_batches(rows, use_threads=False):
                yield table.kind, batch


def _is_in(kind: Kind, batch: "pa.RecordBatch", gone: Mapping[Kind, set[str]]) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.is_in(batch["profile_id" if kind == "profiles" else "id"], pa.array(sorted(gone[kind]), pa.string()))


def _of_profile(row: Mapping[str, Any]) -> set[str]:
    return {value.strip() for value in (row["title"], row["text"]) if value}


def _of_row(row: Mapping[str, Any], kind: str, template: str) -> set[str]:
    """Give the texts of who is asked: the gold of an open question, their items, their option."""
    question = _question(row)
    texts = {value for shown in _item(template).finditer(question) for value in shown.groupdict().values() if value}
    if kind == "generation" and row.get("gold"):
        texts.add(row["gold"])
    if options := _OPTIONS.search(question):
        texts |= {options[name] for name in _own_option(row)}
    return {text.removesuffix(" …").strip() for text in texts}


def _own_words(row: Mapping[str, Any]) -> str:
    """Give what a row shows of its user: prompt and gold, without the option that is another's."""
    question = _question(row)
    own = _own_option(row)
    if own and (options := _OPTIONS.search(question)):
        other = "two" if own == ["one"] else "one"
        question = question[: options.start(other)] + question[options.end(other) :]
    return "\n".join((question, row.get("gold") or ""))


def _own_option(row: Mapping[str, Any]) -> list[str]:
    """Give the group of `_OPTIONS` that is the user's: the right answer, of a pair the better one."""
    answer = row["gold"] if "gold" in row else row["chosen"].rpartition("</think>")[2].strip()
    return {"[1]": ["one"], "[2]": ["two"]}.get(answer, [])


def _question(row: Mapping[str, Any]) -> str:
    messages = row["messages"] if "messages" in row else row["prompt"]
    return messages[-1]["content"] if messages else ""


@cache
def _item(template: str) -> re.Pattern[str]:
    """Match a past item in a prompt, with its title and text."""
    pattern = re.escape(template)
    for name, inside in (("title", "(?P<title>.*?)"), ("text", "(?P<text>.*?)"), ("label", ".*?")):
        pattern = pattern.replace(re.escape(f"{{{name}}}"), inside, 1)
    return re.compile(rf"^\[P\d+\] {pattern}$", re.MULTILINE)


def _as_searched(text: str) -> str:
    is_long = len(text.split()) >= _LONG_WORDS or len(text) >= _LONG_CHARACTERS
    return text if is_long else f'"{text}"'


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
