"""A corpus in another tag set: tags renamed or merged, every word as it was.

For experiments on the choice and the number of tags: the same chains under five tags, under one, under names that mean
nothing. Guarantee: without its marks every text is what it was before, every trace is valid in the new tag set with the
items of its prompt (or nothing is written), prompts that list the tags list the new ones, and the same input gives the
same bytes. Rows keep the ids of the attempts they were; the manifest says what they were made from. Price: one parse a
trace. Rejected rows are relabelled too and keep their reasons: what the old grammar refused is not judged again.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagpr_data.card import FACTS
from tagpr_data.corpus import Corpus, Kind
from tagpr_data.errors import CheckFailed, InputError, shorten
from tagpr_data.merge import of, write_corpus
from tagpr_data.prompts import PromptOptions, chat_prompt, hash_of_turns
from tagpr_data.records import CorpusManifest, Task
from tagpr_data.tags import TagSet, parse

if TYPE_CHECKING:
    import pyarrow as pa

REST = "*"
"""Stands in a map for every old tag that is neither named there nor in the new tag set."""

_EXAMPLES = 3


def relabel(
    corpus: Corpus, old: TagSet, new: TagSet, names: Mapping[str, str], output: Path, name: str | None = None
) -> CorpusManifest:
    """Write a corpus under the tag set `new` to `output`; give its manifest.

    `names`: old tag → new tag; tags of both sets keep their name where it is not given, `REST` takes all others.
    InputError when `old` is not the corpus' tag set or a tag has no new name, CheckFailed with row ids when a trace
    would not be valid.
    """
    if corpus.manifest.tagset_hash != old.hash:
        raise InputError(
            f"{corpus.folder} is written in the tag set {corpus.manifest.tagset} "
            f"({corpus.manifest.tagset_hash[:12]}…), not in {old.name} ({old.hash[:12]}…); give its file with --from"
        )
    renamed = full_map(old, new, names)
    base = corpus.manifest.model_copy(
        update={
            "name": name or f"{corpus.manifest.name}-{new.name}",
            "tagset": new.name,
            "tagset_hash": new.hash,
            "parameters": corpus.manifest.parameters
            | {
                "relabelled": {
                    "from": corpus.manifest.content_hash,
                    "tagset": old.name,
                    "tagset_hash": old.hash,
                    "names": renamed,
                }
            },
        }
    )
    sources = {place: list(paths) for place, paths in of(corpus).items()}
    facts = corpus.folder / FACTS
    text = facts.read_text(encoding="utf-8") if facts.is_file() else None
    return write_corpus(output, sources, base, corpus.pairs, text, keep=_renamer(old, new, renamed))


def full_map(old: TagSet, new: TagSet, names: Mapping[str, str]) -> dict[str, str]:
    """Give old tag → new tag for every tag of `old`; InputError for a name that neither set has, or a tag without."""
    for was, becomes in names.items():
        if was != REST and was not in old.names:
            raise InputError(
                f"--map {was}={becomes}: {was!r} is no tag of {old.name}; its tags: {', '.join(old.names)}"
            )
        if becomes not in new.names:
            raise InputError(
                f"--map {was}={becomes}: {becomes!r} is no tag of {new.name}; its tags: {', '.join(new.names)}"
            )
    found: dict[str, str] = {}
    for tag in old.names:
        becomes = names.get(tag, tag if tag in new.names else names.get(REST))
        if becomes is None:
            raise InputError(
                f"tag {tag!r} of {old.name} is not in {new.name}; say what it becomes with --map {tag}=…, one of "
                f"{', '.join(new.names)}"
            )
        found[tag] = becomes
    return found


def renamed_marks(text: str, names: Mapping[str, str]) -> str:
    """Give a text with `<old>` and `</old>` written `<new>` and `</new>`; nothing else changes."""
    return _marks(names).sub(lambda mark: f"<{mark[1]}{names[mark[2]]}>", text)


def _marks(names: Mapping[str, str]) -> re.Pattern[str]:
    return re.compile(f"<(/?)({'|'.join(re.escape(name) for name in names)})>")


def _renamer(old: TagSet, new: TagSet, names: Mapping[str, str]) -> "Callable[[Kind, pa.RecordBatch], pa.RecordBatch]":
    """Give the function that renames a batch of one kind of rows."""
    import pyarrow as pa

    listed, relisted = (_instruction(tagset) for tagset in (old, new))

    def prompt(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [turn | {"content": turn["content"].replace(listed, relisted)} for turn in turns]

    def renamed(kind: Kind, batch: "pa.RecordBatch") -> "pa.RecordBatch":
        if kind == "profiles":
            return batch
        rows = batch.to_pylist()
        wrong: list[str] = []
        for row in rows:
            if kind == "pairs":
                row |= {side: renamed_marks(row[side], names) for side in ("chosen", "rejected")}
                continue
            before = row["text"]
            row["text"] = renamed_marks(before, names)
            turns = prompt(row["messages"])
            if turns != row["messages"]:
                row["messages"] = turns
                row["prompt_hash"] = hash_of_turns((turn["role"], turn["content"]) for turn in turns)
            if kind == "traces":
                parsed = parse(row["text"], new, k=len(row["item_ids"]))
                row["steps"] = [step | {"tag": names[step["tag"]]} for step in row["steps"]]
                if not parsed.is_valid:
                    first = parsed.violations[0]
                    wrong.append(f"{row['id'][:12]}: {first.code} at {first.position}: {shorten(first.message, 80)}")
                else:
                    assert _words(row["text"], new) == _words(before, old), "a word was changed"
        if wrong:
            raise CheckFailed(
                f"{len(wrong)} of {len(rows)} traces are not valid in {new.name}: {'; '.join(wrong[:_EXAMPLES])}; "
                f"change the rules of the tag set or the map"
            )
        return pa.RecordBatch.from_pylist(rows, schema=batch.schema)

    return renamed


def _words(text: str, tagset: TagSet) -> str:
    """Give a text without the marks of a tag set."""
    return _marks(dict.fromkeys(tagset.names, "")).sub("", text)


def _instruction(tagset: TagSet) -> str:
    """Give the system turn that lists the tags of a set (style trace-explained)."""
    nothing = Task(name="none", kind="generation", answer_form="", item_template="")
    return chat_prompt(nothing, "", (), PromptOptions(style="trace-explained"), tagset)[0].content
