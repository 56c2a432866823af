"""One row of a corpus for the terminal: prompt with its items, steps in colour, answer, fate and lineage."""

from typing import TYPE_CHECKING, Any

from tagpr_data.corpus import Corpus
from tagpr_data.errors import InputError
from tagpr_data.records import PreferencePair, Record, Rejected, Trace
from tagpr_data.tags import TagSet, parse

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

COLOURS = ("cyan", "dark_orange3", "medium_purple", "green", "hot_pink3", "dodger_blue2", "gold3", "grey62", "red3")
"""Colour of each tag, in the order of the tag set."""


def find(corpus: Corpus, row_id: str) -> tuple[str, Record]:
    """Give (split, row) whose id, or example id, begins with `row_id`; InputError when there is none or several."""
    if not row_id:
        raise InputError("an id is needed, or its beginning")
    models: dict[str, type[Trace] | type[Rejected] | type[PreferencePair]] = {
        "traces": Trace,
        "rejected": Rejected,
        "pairs": PreferencePair,
    }
    connection = corpus.connect()
    try:
        matches: list[tuple[str, str, str]] = connection.execute(
            " UNION ALL ".join(
                f"SELECT '{kind}', split, id FROM {kind} WHERE starts_with(id, $1) OR example_id = $1"
                for kind in models
            )
            + " ORDER BY ALL LIMIT 6",
            [row_id],
        ).fetchall()
        if len(matches) != 1:
            known = ", ".join(f"{found[:16]}… ({kind}, {split})" for kind, split, found in matches)
            raise InputError(
                f"{corpus.folder}: {row_id!r} stands for several rows: {known}; give more of the id"
                if matches
                else f"{corpus.folder} has no row whose id begins with {row_id!r}, and no such example"
            )
        kind, split, found = matches[0]
        result = connection.execute(f"SELECT * FROM {kind} WHERE id = ?", [found])
        names = [column[0] for column in result.description or ()]
        (values,) = result.fetchall()
    finally:
        connection.close()
    model = models[kind]
    return split, model.model_validate(
        {name: value for name, value in zip(names, values, strict=True) if name in model.model_fields}
    )


def render(split: str, row: Record, tagset: TagSet) -> "Group":
    """Give a row as what rich prints; texts of the corpus are never read as markup."""
    from rich.console import Group

    if isinstance(row, PreferencePair):
        return Group(*_pair(row))
    assert isinstance(row, (Trace, Rejected))
    fate = (
        [("kept", "bold green"), f", score {row.score:.3f}, {row.grounded_claims} of {row.claims} claims hold"]
        if isinstance(row, Trace)
        else [("rejected", "bold red"), f": {row.reason}; {row.detail}"]
    )
    sampling = row.sampling
    return Group(
        _text((row.example_id, "bold"), f"  {row.task} · user {row.user_id} · {split} · ", *fate),
        _heading("prompt"),
        *(_prompt(turn.role, turn.content, row.text) for turn in row.messages),
        _heading("completion"),
        *_completion(row.text, tagset),
        _heading("gold"),
        _text(row.gold if row.gold is not None else ("none", "dim")),
        _heading("lineage"),
        _text(
            (
                f"id {row.id}\nprompt {row.prompt_hash}\nteacher {row.teacher} at {row.teacher_revision}\n"
                f"{row.retriever}, k = {row.k}, items {', '.join(row.item_ids) or 'none'}\n"
                f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g}, at most {sampling.max_new_tokens} "
                f"tokens, seed {row.seed}, attempt {row.attempt}, ended by {row.finish_reason}"
                + "".join(f"\nmade from {parent}" for parent in row.parents),
                "dim",
            )
        ),
    )


def _pair(row: PreferencePair) -> list["Text"]:
    return [
        _text((row.example_id, "bold"), f"  {row.task} · user {row.user_id} · {row.split} · {row.kind}"),
        _heading("prompt"),
        *(_prompt(turn.role, turn.content, "") for turn in row.prompt),
        _heading(f"chosen (score {row.chosen_score:.3f}, margin {row.margin:.3f})"),
        _text((row.chosen, "green")),
        _heading(f"rejected (score {row.rejected_score:.3f}, from {row.rejected_from})"),
        _text((row.rejected, "red")),
        _heading("people"),
        _text((f"{row.user_id}: first {row.profile_size} items of {row.profile_id}\n"
               f"against {row.other_user_id}: first {row.other_profile_size} items of {row.other_profile_id}", "dim")),
    ]  # fmt: skip


def _prompt(role: str, content: str, completion: str) -> "Text":
    """A turn; items that the completion cites stand out."""
    text = _text((f"[{role}] ", "dim"))
    for line in content.split("\n"):
        number, bracket, rest = line.partition("]")
        is_item = line.startswith("[P") and bracket and number[2:].isdigit()
        if is_item:
            text.append(f"{number}]", style="bold cyan" if f"{number}]" in completion else "cyan")
        text.append(f"{rest if is_item else line}\n")
    text.rstrip()
    return text


def _completion(text: str, tagset: TagSet) -> list["Text"]:
    parsed = parse(text, tagset)
    if not parsed.is_valid:
        codes = ", ".join(sorted({violation.code for violation in parsed.violations}))
        return [_text(text), _text((f"not valid: {codes}", "red"))]
    colours = {tag.name: COLOURS[place % len(COLOURS)] for place, tag in enumerate(tagset.tags)}
    width = max(len(tag.name) for tag in tagset.tags)
    steps = [
        _text((f"{step.tag:<{width}}  ", f"bold {colours[step.tag]}"), (step.text, colours[step.tag]))
        for step in parsed.steps
    ]
    return [*steps, _text((f"{'answer':<{width}}  ", "bold"), parsed.answer)]


def _heading(title: str) -> "Text":
    return _text((f"\n{title}", "bold dim"))


def _text(*parts: Any) -> "Text":
    from rich.text import Text

    return Text.assemble(*parts)
