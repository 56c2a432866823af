"""Chat prompts with numbered profile items: the only prompt code besides `lamp/prompts.py`.

Training and evaluation call the same function, so the training prompt is the evaluation prompt. The paper's
prompts are not public; this wording is ours.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

from tagpr_data.config import Config
from tagpr_data.records import Message, ProfileItem, Task
from tagpr_data.tables import canonical_json, sha256_text
from tagpr_data.tags import TagSet

Style = Literal["direct", "chain", "trace", "trace-explained"]
STYLES: tuple[Style, ...] = ("direct", "chain", "trace", "trace-explained")
"""direct: answer only. chain: reasoning without tags, for models trained on it (the ablation of the tags). trace:
tagged reasoning, for models trained on it. trace-explained: the same with the grammar spelled out, for teachers and
models that never saw it."""

_WORD_CHARACTERS = 24


class PromptOptions(Config):
    """How a chat prompt is built; part of the identity of everything made with it."""

    style: Style = "trace"
    """What the model is asked to write."""
    item_words: int | None = None
    """Cut each field of an item after so many words; None keeps all."""
    input_words: int | None = None
    """Cut the input after so many words; None keeps all."""


def chat_prompt(
    task: Task, input_text: str, items: Sequence[ProfileItem], options: PromptOptions, tagset: TagSet
) -> tuple[Message, ...]:
    """Give the system and the user turn for one example; `items` become `[P1]` … `[Pk]` in the given order."""
    question = " ".join(part for part in (task.question, _cut(input_text, options.input_words)) if part)
    user = f"{_profile(task, items, options.item_words)}\n\n{question}\nAnswer with {task.answer_form}."
    return (
        Message(role="system", content=_system(options.style, tagset)),
        Message(role="user", content=user),
    )


def visible_item(task: Task, item: ProfileItem, options: PromptOptions) -> ProfileItem:
    """Give an item as the prompt shows it: fields cut, and empty where the task's template leaves them out."""
    shown = {field: f"{{{field}}}" in task.item_template for field in ("title", "text", "label")}
    title = _cut(item.title, options.item_words) if shown["title"] and item.title is not None else None
    text = _cut(item.text, options.item_words) if shown["text"] else ""
    label = _cut(item.label, options.item_words) if shown["label"] and item.label is not None else None
    if (title, text, label) == (item.title, item.text, item.label):
        return item
    return item.model_copy(update={"title": title, "text": text, "label": label})


def visible_input(input_text: str, options: PromptOptions) -> str:
    """Give the input as the prompt shows it."""
    return _cut(input_text, options.input_words)


def prompt_hash(messages: Sequence[Message]) -> str:
    """Give the identity of a prompt: equal prompts are generated once, everywhere."""
    return hash_of_turns((message.role, message.content) for message in messages)


def hash_of_turns(turns: Iterable[tuple[str, str]]) -> str:
    """Do what `prompt_hash` does, for (role, content) of each message: SHA-256 over their `canonical_json`."""
    import orjson

    value = [{"content": content, "role": role} for role, content in turns]
    try:
        return hashlib.sha256(orjson.dumps(value)).hexdigest()  # of texts the same bytes, at a tenth of the time
    except TypeError:  # half a surrogate pair
        return sha256_text(canonical_json(value))


def _profile(task: Task, items: Sequence[ProfileItem], words: int | None) -> str:
    if not items:
        return "Nothing is known about this user."
    lines = [
        f"[P{number}] "
        + task.item_template.format(
            title=_cut(item.title or "", words),
            text=_cut(item.text, words),
            label=_cut(item.label or "", words),
        )
        for number, item in enumerate(items, start=1)
    ]
    return "Past items of this user:\n" + "\n".join(lines)


def _system(style: Style, tagset: TagSet) -> str:
    if style == "direct":
        return "Answer as this user would. Write only the answer."
    if style == "chain":
        return (
            "Answer as this user would. First reason about the user inside <think> and </think>, "
            "naming past items as [P1], then write only the answer."
        )
    short = (
        "Answer as this user would. First reason about the user in tagged steps inside <think> and </think>, "
        "naming past items as [P1], then write only the answer."
    )
    if style == "trace":
        return short
    steps = "\n".join(f"<{tag.name}>…</{tag.name}>: {tag.meaning}" for tag in tagset.tags)
    return (
        f"{short}\nWrite exactly one think block and nothing before it. Inside it write 2 to 12 steps, each of the "
        f"form <tag>text</tag>, no text between steps, no tag inside a step. The tags:\n{steps}\n"
        "Quote only words that occur in the item you name. After </think> write the answer without any tag."
    )


def _cut(text: str, words: int | None) -> str:
    """Cut to `words` words of at most 24 characters (addresses and hashes cost more tokens than they tell) on one
    line; without a limit keep the text. Control tokens of chat templates (`<|…|>`) are broken up in both cases,
    so that data cannot end a turn."""
    text = text.replace("<|", "< |")
    if words is None:
        return text
    parts = text.split()
    cut = " ".join(part[:_WORD_CHARACTERS] for part in parts[:words])
    return f"{cut} …" if len(parts) > words else cut
