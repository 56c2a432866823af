"""A corpus folder as token ids: read, checked, tokenised with the model's chat template, batched by length.

One example is a prompt and a completion: the prompt is `Trace.messages` through the chat template with the opening of
the assistant's turn, as in evaluation; the completion is the trace's text and the template's end-of-turn token, so that
the model learns to stop. The targets `chain` (the trace's words without its tags) and `answer` have the system turn of
the prompt style that asks for them. Only completion tokens carry loss. Nothing is dropped or cut without being counted.

Dimensions: B batch, P prefix tokens (the prompt but for its last token), C completion tokens.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagpr_data.errors import InputError
from tagpr_data.prompts import PromptOptions, Style, chat_prompt
from tagpr_data.records import CorpusManifest, Message, Task, Trace
from tagpr_data.tables import read_json, read_records, sha256_file
from tagpr_data.tags import TagSet, load_tagset
from tagpr_train.config import TARGET_STYLES, Target

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of positions without loss, as in transformers."""

MIN_PROMPT_TOKENS = 16
"""A completion that leaves less room than this for its prompt is left out."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One tokenised example."""

    id: str
    """Id of the trace."""
    prompt: list[int]
    """Prompt tokens, at least one."""
    completion: list[int]
    """Completion tokens, the end-of-turn token last."""
    weights: list[float]
    """Loss weight of each completion token."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokenised examples and what had to be changed to make them."""

    examples: list[Tokens]
    counts: dict[str, int] = field(default_factory=dict[str, int])
    """`prompts_cut`, `completions_too_long`: how many examples each rule met."""


def read_manifest(corpus: Path) -> CorpusManifest:
    """Read a corpus' manifest; another grammar version is an InputError that says so."""
    path = corpus / "manifest.json"
    if not path.is_file():
        raise InputError(f"{path} does not exist; a corpus folder without it is not complete (tagpr-data build)")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(raw, dict) or raw.get("kind") != "corpus":
        raise InputError(f"{path} does not describe a corpus of traces; SFT needs one (tagpr-data build)")
    if raw.get("grammar_version") != 1:
        raise InputError(
            f"{path}: the traces are of tag grammar version {raw.get('grammar_version')!r}, this version reads 1"
        )
    return read_json(path, CorpusManifest)


def corpus_tagset(manifest: CorpusManifest, path: Path | None) -> TagSet:
    """Give the tag set a corpus was written in; InputError when `path` (None: the shipped one) is another."""
    tagset = load_tagset(path)
    if tagset.hash != manifest.tagset_hash:
        raise InputError(
            f"the corpus was written in tag set {manifest.tagset!r} ({manifest.tagset_hash[:12]}…), "
            f"{path or 'the shipped tag set'} is {tagset.name!r} ({tagset.hash[:12]}…); set `tagset` to its file"
        )
    return tagset


def read_traces(corpus: Path, manifest: CorpusManifest, split: str, tasks: Sequence[str] | None) -> list[Trace]:
    """Read the traces of a split, of `tasks` only if given; a split the corpus lacks has none. InputError when the
    file is not the one the manifest describes, or a task is unknown."""
    known = [task.name for task in manifest.tasks]
    if unknown := set(tasks or ()) - set(known):
        raise InputError(f"tasks {sorted(unknown)} are not in the corpus {corpus}; its tasks: {', '.join(known)}")
    name = f"traces/{split}.parquet"
    if name not in manifest.files:
        return []
    path = corpus / name
    if path.is_file() and sha256_file(path) != manifest.files[name].sha256:
        raise InputError(f"{path} is not the file manifest.json describes; build the corpus again")
    return [trace for trace in read_records(path, Trace) if tasks is None or trace.task in tasks]


def encode(
    traces: Sequence[Trace],
    tokenizer: "PreTrainedTokenizerBase",
    tagset: TagSet,
    *,
    context: int,
    target: Target = "trace",
    answer_weight: float = 1.0,
) -> Encoded:
    """Tokenise traces. A prompt that does not fit `context` tokens together with its completion loses its middle
    (the instruction and the question stay) and is counted; see `MIN_PROMPT_TOKENS` for the completion."""
    end = end_of_turn(tokenizer)
    examples: list[Tokens] = []
    cut = too_long = 0
    for trace in traces:
        messages, text = trace.messages, trace.text
        if target != "trace":
            messages = in_style(messages, TARGET_STYLES[target], tagset)
            text = chain_text(trace) if target == "chain" else trace.answer
        completion, weights = _completion(tokenizer, text, 1.0 if target == "answer" else answer_weight)
        completion, weights = [*completion, end], [*weights, weights[-1] if weights else 1.0]
        room = context - len(completion)
        if room < MIN_PROMPT_TOKENS:
            too_long += 1
            continue
        prompt = prompt_tokens(tokenizer, messages)
        if len(prompt) > room:
            prompt = prompt[: (room + 1) // 2] + prompt[len(prompt) - room // 2 :]
            cut += 1
        examples.append(Tokens(trace.id, prompt, completion, weights))
    return Encoded(examples, {"prompts_cut": cut, "completions_too_long": too_long})


def chain_text(trace: Trace) -> str:
    """Give a trace's reasoning and answer without its tags: one step a line inside the think block."""
    return "\n".join(("<think>", *(step.text for step in trace.steps), "</think>", trace.answer))


def prompt_tokens(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> list[int]:
    """Give the prompt as the chat template renders it, with the opening of the assistant's turn."""
    return _template(tokenizer, [message.model_dump() for message in messages], tokenize=True, open_turn=True)


def end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Give the token that ends the assistant's turn in the chat template; the tokenizer's EOS where it ends none."""
    mark = "tagpr"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}]
    rendered = _template(tokenizer, turns, tokenize=False, open_turn=False)
    after = tokenizer(rendered.rpartition(mark)[2], add_special_tokens=False)["input_ids"]
    if after and after[0] in tokenizer.added_tokens_decoder:  # `all_special_ids` lists the named ones only
        return after[0]
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer of {tokenizer.name_or_path} has no EOS token and its template ends no turn")
    return int(tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType] - one id, never a list


def batch_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int, group_batches: int = 32) -> list[int]:
    """Give the order of one epoch: batches of similar length, in random order; the same for the same arguments.

    Examples of `group_batches` batches are sorted by length together; 1 mixes all lengths. The longest batch of the
    epoch comes first, so that too little memory shows at once.
    """
    chance = random.Random(f"{seed}/{epoch}")
    indices = list(range(len(lengths)))
    chance.shuffle(indices)
    batches: list[list[int]] = []
    for start in range(0, len(indices), batch_size * group_batches):
        group = sorted(indices[start : start + batch_size * group_batches], key=lambda index: -lengths[index])
        batches += [group[first : first + batch_size] for first in range(0, len(group), batch_size)]
    whole = [batch for batch in batches if len(batch) == batch_size]
    rest = [batch for batch in batches if len(batch) < batch_size]
    chance.shuffle(whole)
    longest = max(range(len(whole)), key=lambda number: lengths[whole[number][0]], default=0)
    whole = whole[longest : longest + 1] + whole[:longest] + whole[longest + 1 :]
    return [index for batch in (*whole, *rest) for index in batch]


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes a batch of tensors out of examples: the prefix padded on the left, the completion on the right.

    prefix_ids, prefix_mask (B, P); input_ids (B, C): the prompt's last token and the completion but for its end, each
    position predicting `labels` (B, C); attention_mask (B, C); weights (B, C), 0 where no label is; ids of the traces.
    """

    pad: int
    """Token to pad with; masked everywhere."""

    def __call__(self, examples: Sequence[dict[str, Any]]) -> "dict[str, torch.Tensor | list[str]]":
        """Batch rows with the keys of `Tokens`."""
        import torch

        prefixes = [row["prompt"][:-1] for row in examples]
        inputs = [[row["prompt"][-1], *row["completion"][:-1]] for row in examples]
        width = max(len(prefix) for prefix in prefixes)
        length = max(len(row) for row in inputs)

        def left(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
            return torch.tensor([[fill] * (width - len(row)) + list(row) for row in rows], dtype=torch.long)

        def right(rows: Sequence[Sequence[float]], fill: float, dtype: torch.dtype = torch.long) -> torch.Tensor:
            return torch.tensor([list(row) + [fill] * (length - len(row)) for row in rows], dtype=dtype)

        return {
            "ids": [row["id"] for row in examples],
            "prefix_ids": left(prefixes, self.pad),
            "prefix_mask": left([[1] * len(prefix) for prefix in prefixes], 0),
            "input_ids": right(inputs, self.pad),
            "attention_mask": right([[1] * len(row) for row in inputs], 0),
            "labels": right([row["completion"] for row in examples], IGNORED),
            "weights": right([row["weights"] for row in examples], 0.0, torch.float32),
        }


def _completion(tokenizer: "PreTrainedTokenizerBase", text: str, answer_weight: float) -> tuple[list[int], list[float]]:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    answer_start = text.rfind("</think>") + len("</think>") if "</think>" in text else 0
    weights = [answer_weight if start >= answer_start else 1.0 for start, _ in encoded["offset_mapping"]]
    return list(encoded["input_ids"]), weights


def in_style(messages: Sequence[Message], style: Style, tagset: TagSet) -> tuple[Message, ...]:
    """Give the prompt with the system turn of another style; the user turn is the same in all."""
    nothing = Task(name="none", kind="generation", answer_form="", item_template="")
    system = chat_prompt(nothing, "", (), PromptOptions(style=style), tagset)[0]
    return (system, *(message for message in messages if message.role != "system"))


def _template(
    tokenizer: "PreTrainedTokenizerBase", turns: list[dict[str, Any]], *, tokenize: bool, open_turn: bool
) -> Any:
    if tokenizer.chat_template is None:
        raise InputError(f"the tokenizer of {tokenizer.name_or_path} has no chat template; name a chat-tuned model")
    options: dict[str, Any] = {"return_dict": False} if tokenize else {}
    return tokenizer.apply_chat_template(turns, tokenize=tokenize, add_generation_prompt=open_turn, **options)
