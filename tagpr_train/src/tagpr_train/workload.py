"""What a stage will read: its batches, steps and tokens, from the settings and from the data where it is at hand.

Texts are counted with the model's own tokenizer file, so no model library is loaded; where it is missing a token is
taken for four characters. Batches are those of the training (`dataset.batch_order`), padded as there, as far as
`SIMULATED` goes; a longer run repeats their mean. Of a large data set `SAMPLED` examples at even distances stand for
all. Without the data, or for data of the Hub that was never fetched, every example is as long as the settings allow.

Price: well under a second for `SAMPLED` examples. All of it is ours. B rows, P prompt and C completion positions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagpr_data import data_source
from tagpr_data.errors import InputError
from tagpr_data.records import Message, PreferencePair, Trace
from tagpr_train import dataset, rl_prompts
from tagpr_train.config import PRMU_BATCH_SIZE, RL_DEFAULTS, SFT_BATCH_SIZE, TARGET_STYLES, Prmu, Rl, Sft

SAMPLED = 1000
"""Examples that are tokenised at most."""

SIMULATED = 4096
"""Batches that are formed one by one at most."""

_QUESTIONS = 64  # sampled prompts of RL: their items must be ranked
_CHARACTERS = 4  # per token, where there is no tokenizer
_PLAIN_TURN = 5  # tokens around a turn whose markers are unknown


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward and backward pass of one process reads."""

    rows: int
    """Sequences, B."""
    prompts: int
    """Prompts that are computed; a group of completions shares one."""
    prompt: int
    """Prompt positions, P, padding included."""
    completion: int
    """Completion positions, C, padding included."""
    labels: int
    """Positions whose logits are made."""
    tokens: int
    """Tokens without padding."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """What RL writes: completions, in rounds."""

    rounds: float
    """How often completions are drawn."""
    groups: int
    """Prompts in a round of one process."""
    copies: int
    """Completions of each."""
    prompt: float
    """Mean tokens of a prompt."""
    completion: float
    """Mean tokens of a completion, as assumed."""
    held_out: int
    """Held-out answers written in the whole run."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One stage's work, for one of `processes` processes."""

    steps: int | None
    """Optimiser steps; None where the data is needed to tell and not at hand."""
    passes: int
    """Forward and backward passes of one process in all steps."""
    batches: tuple[Batch, ...]
    """The first passes, or all."""
    largest: Batch
    """The pass that takes the most memory."""
    examples: int
    """Examples (traces, pairs, completions) that are learned from, all passes and processes together."""
    tokens: int
    """Tokens of them without padding, as the run counts them."""
    data_tokens: int = 0
    """Tokens of the data set that are held in memory."""
    users: int = 0
    """Users in a PRMU's table."""
    drawing: Drawing | None = None
    """What RL writes."""
    notes: tuple[str, ...] = ()
    """What was assumed."""


def of_sft(config: Sft, model: Path | None, context: int, processes: int = 1) -> Workload:
    """Give the work of an SFT stage on a model whose folder (with a tokenizer) is `model`, of `context` positions."""
    room = min(config.max_tokens or context, context)
    size = _option(config, "per_device_train_batch_size", SFT_BATCH_SIZE)
    counter = _Counter(model, "trace" if config.single_token_tags else None, config.tagset)
    notes = [*counter.notes]
    found = _stored(lambda: data_source.find_corpus(config.corpus, offline=True), notes)
    if found is None:
        lengths, number = [(room * 3 // 4, room - room * 3 // 4)], None
    else:
        rows, number = _sample(found / "traces/train.parquet", Trace, config.tasks)
        prompts = counter.prompts([_as_asked(row, config, counter) for row in rows])
        texts = {
            "trace": lambda row: row.text,
            "chain": dataset.chain_text,
            "answer": lambda row: row.answer,
        }
        completions = [count + 1 for count in counter.counts([texts[config.target](row) for row in rows])]
        fitting = [
            (min(prompt, room - completion), completion)
            for prompt, completion in zip(prompts, completions, strict=True)
            if room - completion >= dataset.MIN_PROMPT_TOKENS
        ]
        if not fitting:
            raise InputError(f"{config.corpus} holds no trace that fits {room} tokens (tasks: {config.tasks or 'all'})")
        lengths, number = fitting, round(number * len(fitting) / max(1, len(rows)))
    totals = [prompt + completion for prompt, completion in lengths]

    def batch(indices: Sequence[int]) -> Batch:
        chosen = [lengths[index] for index in indices]
        return Batch(
            rows=len(chosen), prompts=len(chosen), prompt=max(p for p, _ in chosen) - 1,
            completion=max(c for _, c in chosen), labels=sum(c for _, c in chosen),
            tokens=sum(p + c - 1 for p, c in chosen),
        )  # fmt: skip

    return _run_through(config, totals, number, size, processes, batch, notes)


def of_prmu(config: Prmu, model: Path | None, context: int, processes: int = 1) -> Workload:
    """Give the work of a PRMU stage; a batch of pairs has twice as many rows, and one position for the user."""
    room = min(config.max_tokens or context, context) - config.use_user
    size = _option(config, "per_device_train_batch_size", PRMU_BATCH_SIZE)
    counter = _Counter(model, None, None)
    notes = [*counter.notes]
    users = 0
    found = _stored(lambda: data_source.find_pairs(config.pairs, offline=True), notes)
    if found is None:
        lengths, number = [(room, room)], None
    else:
        path = found / "pairs/train.parquet"
        rows, number = _sample(path, PreferencePair, None, kinds=config.kinds)
        users = _distinct(path, "user_id")
        fronts = counter.prompts([row.prompt for row in rows])

        def read(text: str) -> str:
            return text.rpartition("</think>")[2].strip() if config.reads == "answer" else text

        sides = [counter.counts([read(getattr(row, side)) for row in rows]) for side in ("chosen", "rejected")]
        if not rows:
            raise InputError(f"{config.pairs} holds no training pairs (kinds: {config.kinds or 'all'})")
        lengths = [
            (min(front + chosen + 1, room), min(front + rejected + 1, room))
            for front, chosen, rejected in zip(fronts, *sides, strict=True)
        ]
    totals = [chosen + rejected for chosen, rejected in lengths]

    def batch(indices: Sequence[int]) -> Batch:
        chosen = [lengths[index] for index in indices]
        width = max(max(pair) for pair in chosen) + config.use_user
        return Batch(2 * len(chosen), 0, 0, width, 0, sum(map(sum, chosen)))

    work = _run_through(config, totals, number, size, processes, batch, notes)
    return _with(work, users=users)


def of_rl(
    config: Rl, model: Path | None, context: int, processes: int = 1, completion_tokens: float | None = None
) -> Workload:
    """Give the work of an RL stage. Completions are taken to be `completion_tokens` long on average; None: as long as
    they may be. Groups that are drawn again come on top."""
    options = RL_DEFAULTS | config.trainer
    size, copies = int(options["per_device_train_batch_size"]), int(options["num_generations"])
    accumulation = _option(config, "gradient_accumulation_steps", 1)
    per_generation = int(options.get("steps_per_generation") or accumulation)
    repeats = per_generation * int(options.get("num_iterations", 1))
    longest = int(options["max_completion_length"])
    mean = min(completion_tokens or longest, longest)
    counter = _Counter(model, None, None)
    notes = [*counter.notes]
    if completion_tokens is None:
        notes.append(f"completions are taken to be {longest} tokens, the longest that is allowed")
    found = _stored(lambda: data_source.find_dataset(config.dataset, offline=True), notes)
    prompts = [context - longest]
    if found is not None:
        from tagpr_data.dataset import Dataset
        from tagpr_data.tags import load_tagset

        tagset = load_tagset(config.tagset)
        data = Dataset.load(found)
        asked, _ = rl_prompts.questions(data, config.split, _QUESTIONS, config, tagset, lambda _: True)
        prompts = [min(count, context - longest) for count in counter.prompts([row.messages for row in asked])]
    mean_prompt = sum(prompts) / len(prompts)
    passes = config.steps * accumulation
    rounds = -(-passes // repeats)
    groups = max(1, size * per_generation // copies)
    shared = -(-size // copies)
    batch = Batch(
        size, shared, round(mean_prompt), round(mean), round(size * mean), round(shared * mean_prompt + size * mean)
    )
    measurements = 1 + -(-config.steps // config.eval_every_steps if config.eval_every_steps else 1)
    tokens = rounds * processes * groups * (mean_prompt + copies * mean)
    return Workload(
        steps=config.steps,
        passes=passes,
        batches=(batch,),
        largest=Batch(size, shared, max(prompts), longest, size * longest, shared * max(prompts) + size * longest),
        examples=rounds * processes * groups * copies,
        tokens=round(tokens),
        data_tokens=0,
        drawing=Drawing(rounds, groups, copies, mean_prompt, mean, measurements * config.eval_examples),
        notes=(*notes, *(["groups that are drawn again are not counted"] if config.redraws else [])),
    )


def _run_through(
    config: Sft | Prmu,
    lengths: list[int],
    number: int | None,
    size: int,
    processes: int,
    batch: Callable[[Sequence[int]], Batch],
    notes: list[str],
) -> Workload:
    """Form the batches of a run over `number` examples (None: unknown), of which those of `lengths` are a sample."""
    accumulation = _option(config, "gradient_accumulation_steps", 1)
    step_size = size * accumulation * processes
    steps = _option(config, "max_steps", -1)
    epochs = float(config.trainer.get("num_train_epochs", 10_000 if config.max_minutes else 1))
    if number is None:
        if steps <= 0:
            notes.append("steps need the data, or trainer.max_steps")
        one = batch([0] * size)
        passes = max(0, steps) * accumulation
        examples = passes * one.rows
        return Workload(
            steps if steps > 0 else None, passes, (one,), one, examples, passes * one.tokens, notes=tuple(notes)
        )
    per_epoch = -(-number // step_size)
    if steps <= 0:
        steps = -(-int(epochs * per_epoch * 1000) // 1000)
        if config.max_minutes:
            notes.append(f"ends after max_minutes = {config.max_minutes:g} at the latest")
    if number > len(lengths):
        notes.append(f"{len(lengths)} of {number} examples were counted")
    passes_per_epoch = -(-number // (size * processes))
    passes = _passes(steps, per_epoch, passes_per_epoch, accumulation)
    formed: list[Batch] = []
    for rows in _first_batches(config, lengths, size, step_size, processes):
        if len(formed) == min(passes, SIMULATED):
            break
        formed.append(batch(rows))
    share = passes / len(formed)
    rows = sum(one.rows for one in formed) * share * processes / (2 if isinstance(config, Prmu) else 1)
    return Workload(
        steps=steps,
        passes=passes,
        batches=tuple(formed),
        largest=max(formed, key=lambda one: one.rows * (one.prompt + one.completion)),
        examples=round(rows),
        tokens=round(sum(one.tokens for one in formed) * share * processes),
        data_tokens=round(sum(lengths) / len(lengths) * number),
        notes=tuple(notes),
    )


def _passes(steps: int, steps_per_epoch: int, passes_per_epoch: int, accumulation: int) -> int:
    """Give the passes of so many steps; the last step of an epoch may hold fewer."""
    epochs, rest = divmod(steps, steps_per_epoch)
    return epochs * passes_per_epoch + min(rest * accumulation, passes_per_epoch)


def _first_batches(
    config: Sft | Prmu, lengths: list[int], size: int, step_size: int, processes: int
) -> Iterator[list[int]]:
    epoch = 0
    while True:
        order = dataset.batch_order(lengths, step_size, config.seed, epoch, config.length_group_batches)
        for start in range(0, len(order), size * processes):
            yield order[start : start + size * processes][::processes]
        epoch += 1


class _Counter:
    """Counts tokens with a tokenizer file."""

    def __init__(self, model: Path | None, marks: str | None, tagset: Path | None) -> None:
        from tagpr_data.tags import load_tagset

        self.tagset = load_tagset(tagset)
        self.notes: list[str] = []
        self._tokenizer: Any = None
        path = model / "tokenizer.json" if model else None
        if path is None or not path.is_file():
            self.notes.append(f"no tokenizer at hand: {_CHARACTERS} characters are taken for a token")
            return
        from tokenizers import AddedToken, Tokenizer

        self._tokenizer = Tokenizer.from_file(str(path))
        if marks:
            from tagpr_train.tag_tokens import marks as all_marks

            self._tokenizer.add_tokens(
                [AddedToken(one, normalized=False, special=False) for one in all_marks(self.tagset)]
            )

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Give the number of tokens of each text."""
        if self._tokenizer is None:
            return [-(-len(text) // _CHARACTERS) for text in texts]
        return [len(one.ids) for one in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def prompts(self, chats: Sequence[Sequence[Message]]) -> list[int]:
        """Give the number of tokens of each chat with the opening of an answer."""
        contents = iter(self.counts([message.content for chat in chats for message in chat]))
        return [
            sum(next(contents) + self._around(message.role) for message in chat) + self._opening() for chat in chats
        ]

    def _has_chatml(self) -> bool:
        return self._tokenizer is not None and self._tokenizer.token_to_id("<|im_start|>") is not None

    def _around(self, role: str) -> int:
        return self.counts([f"<|im_start|>{role}\n<|im_end|>\n"])[0] if self._has_chatml() else _PLAIN_TURN

    def _opening(self) -> int:
        return self.counts(["<|im_start|>assistant\n"])[0] if self._has_chatml() else _PLAIN_TURN


def _as_asked(trace: Trace, config: Sft, counter: _Counter) -> Sequence[Message]:
    if config.target == "trace":
        return trace.messages
    return dataset.in_style(trace.messages, TARGET_STYLES[config.target], counter.tagset)


def _sample(
    path: Path, kind: Any, tasks: Sequence[str] | None, kinds: Sequence[str] | None = None
) -> tuple[list[Any], int]:
    """Give at most `SAMPLED` records at even distances, and how many there are."""
    import polars as pl

    try:
        frame = pl.scan_parquet(path)
        if tasks is not None:
            frame = frame.filter(pl.col("task").is_in(tasks))
        if kinds is not None:
            frame = frame.filter(pl.col("kind").is_in(kinds))
        number = int(frame.select(pl.len()).collect().item())
        rows = frame.gather_every(max(1, -(-number // SAMPLED))).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    return [kind.model_validate(row) for row in rows.iter_rows(named=True)], number


def _distinct(path: Path, column: str) -> int:
    import polars as pl

    return int(pl.scan_parquet(path).select(pl.col(column).n_unique()).collect().item())


def _stored(find: Callable[[], Path], notes: list[str]) -> Path | None:
    """Give the data's folder; None, with a note, where it is not on this machine."""
    try:
        return find()
    except InputError as error:
        notes.append(f"data not at hand ({str(error).partition(';')[0]}): every example as long as is allowed")
        return None


def _option(config: Sft | Prmu | Rl, name: str, default: int) -> int:
    return int(config.trainer.get(name, default))


def _with(work: Workload, **changes: Any) -> Workload:
    import dataclasses

    return dataclasses.replace(work, **changes)
