"""Examples × attempts × teachers → candidates, durably.

Guarantee: a candidate is in the journal as soon as it arrived; after `kill -9` at any point the same call goes on
where it stopped, asks for nothing twice, and writes the same table of candidates as an uninterrupted run, whatever the
order and the concurrency the answers came with. A limit stops it in good order: what is on its way is still taken in,
and the table holds what is there. A prompt that the server refuses (status 400, 413, 422) is an attempt without text,
free and never made again, and the run goes on; but where a teacher's first 20 are all refused, or no teacher answers
anything, the fault is taken to lie elsewhere: the run stops and keeps none of them. Price: memory holds about 200 bytes
an answer (where it lies in the journal) and one profile per user in reach, not the prompts and answers; a restart
judges the answers it finds again.

With `until_accepted` the attempts on a prompt are asked one after another, teacher by teacher, until enough of them
are accepted. What is asked then depends on nothing but answers and rules, so it stays reproducible where teachers are.
"""

import asyncio
import hashlib
import random
import signal
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Literal

from tagpr_data.budget import FREE, NO_LIMITS, Forecast, Limits, Pilot, Price, Purse, Usage, cost_of, forecast
from tagpr_data.chat_server import PromptRefused, Stopped
from tagpr_data.dataset import Dataset
from tagpr_data.errors import InputError, TagprError
from tagpr_data.journal import IndexedJournal, folder_lock
from tagpr_data.prompts import PromptOptions, chat_prompt, prompt_hash, visible_input, visible_item
from tagpr_data.records import Candidate, Example, Message, ProfileItem, Record, Sampling, Sha256, Split
from tagpr_data.tables import canonical_json, iter_records, sha256_text, table_writer
from tagpr_data.tags import TagSet
from tagpr_data.teachers import Assignment, Reply, Teacher

CANDIDATES = "candidates.parquet"
JOURNAL = "candidates.jsonl"
_PILOT_PROMPTS = 20
_MOST_REFUSED_AT_START = 20


class Prompt(Record):
    """One example made ready for a teacher; a row of the working file between the stages."""

    example_id: str
    """The example."""
    split: Split
    """Its split."""
    task: str
    """Its task."""
    user_id: str
    """Its user."""
    profile_id: str
    """Its profile."""
    profile_size: int
    """How many items of it lie before the query."""
    input: str
    """Its input, uncut."""
    date: str | None
    """When the input was written."""
    retriever: str
    """Which retriever chose the items."""
    k: int
    """Items asked for; 0 for the share that learns to do without a profile."""
    item_ids: tuple[str, ...]
    """Items in the prompt, `[P1]` first."""
    messages: tuple[Message, ...]
    """The prompt."""
    prompt_hash: Sha256
    """`prompts.prompt_hash(messages)`."""
    gold: str | None
    """The example's gold answer."""

    @property
    def example(self) -> Example:
        """The example it was made from."""
        return Example(
            id=self.example_id,
            task=self.task,
            user_id=self.user_id,
            profile_id=self.profile_id,
            profile_size=self.profile_size,
            input=self.input,
            output=self.gold,
            date=self.date,
        )


@dataclass(frozen=True)
class Retrieval:
    """How items are chosen for a prompt."""

    retriever: str
    """Name in `retrieve.RETRIEVERS`."""
    k: int
    """Items per prompt."""
    empty_share: float
    """Share of the examples, drawn by id, whose prompt shows no item."""
    seed: int
    """Seed of the draw and of random retrieval."""


def make_prompts(
    dataset: Dataset,
    examples: Iterable[tuple[Split, Example]],
    retrieval: Retrieval,
    options: PromptOptions,
    tagset: TagSet,
    skipped: Counter[str],
) -> Iterator[Prompt]:
    """Give the prompts of the examples in their order, and count in `skipped` those left out, by reason.

    Left out are examples without gold, with a prompt that another one has already (one prompt is answered once), and
    generation examples whose prompt holds the gold answer word for word (from 4 words on).
    """
    taken: set[bytes] = set()
    profiles = Profiles(dataset, most=_PROFILES_HELD)
    for split, example in examples:
        if example.output is None:
            skipped["no-gold"] += 1
            continue
        task = dataset.task(example.task)
        is_empty = _share(retrieval.seed, "empty", example.id) < retrieval.empty_share
        k = 0 if is_empty else retrieval.k
        items = _retrieved(example, profiles, retrieval)[:k] if k else []
        messages = chat_prompt(task, example.input, items, options, tagset)
        identity = prompt_hash(messages)
        if task.kind == "generation" and gives_away(messages, example.output):
            skipped["gold-in-prompt"] += 1
            continue
        if bytes.fromhex(identity) in taken:
            skipped["duplicate-prompt"] += 1
            continue
        taken.add(bytes.fromhex(identity))
        yield Prompt(
            example_id=example.id,
            split=split,
            task=task.name,
            user_id=example.user_id,
            profile_id=example.profile_id,
            profile_size=example.profile_size,
            input=example.input,
            date=example.date,
            retriever=retrieval.retriever,
            k=k,
            item_ids=tuple(item.item_id for item in items),
            messages=messages,
            prompt_hash=identity,
            gold=example.output,
        )


class Profiles:
    """The profiles of examples, each read once however many examples look back into it; with `most` only so many are
    held, the least used going first."""

    def __init__(self, dataset: Dataset, examples: Sequence[Example] = (), most: int | None = None) -> None:
        self._dataset = dataset
        self._most = most
        self._longest: dict[str, Example] = {}
        for example in examples:
            known = self._longest.get(example.profile_id)
            if known is None or known.profile_size < example.profile_size:
                self._longest[example.profile_id] = example
        self._items: OrderedDict[str, tuple[ProfileItem, ...]] = OrderedDict()

    def items(self, example: Example) -> tuple[ProfileItem, ...]:
        """Give the items the example may look at, in profile order."""
        held = self._items.get(example.profile_id)
        if held is None:
            length = max(example.profile_size, self._dataset.profile_length(example.profile_id))
            whole = example.model_copy(update={"profile_size": length})
            held = self._dataset.profile(self._longest.get(example.profile_id, whole))
            self._items[example.profile_id] = held
            if self._most is not None and len(self._items) > self._most:
                self._items.popitem(last=False)
        self._items.move_to_end(example.profile_id)
        return held[: example.profile_size]

    def chosen(self, example: Example, item_ids: Sequence[str]) -> tuple[ProfileItem, ...]:
        """Give the items of the example with these ids, in the order of the ids."""
        if not item_ids:
            return ()
        by_id = {item.item_id: item for item in self.items(example)}
        return tuple(by_id[item_id] for item_id in item_ids)


def retrieval_text(item: ProfileItem) -> str:
    """Give the text of an item that retrieval compares with the input: title and body."""
    return " ".join(part for part in (item.title, item.text) if part)


@dataclass(frozen=True)
class TeacherPlan:
    """One teacher's part in a generation."""

    teacher: Teacher
    """Who answers."""
    samplings: tuple[Sampling, ...]
    """How each attempt is sampled: as many attempts as samplings."""
    concurrency: int = 1
    """Most questions on their way at once."""
    price: Price = FREE
    """Price of a million tokens read, and written."""
    ahead: int = 0
    """Further questions made ready meanwhile: for a teacher whose client holds them back until there is room, so that
    the next one goes out before an answer is worked on."""


@dataclass
class Tally:
    """What has happened so far; what `watch` is shown after each answer."""

    planned: int
    """Answers that a complete run has; with `until_accepted` an upper bound that `spared` lowers."""
    spared: int = 0
    """Attempts that were not needed as an earlier one was accepted."""
    found: int = 0
    """Answers that an earlier call had left."""
    used: dict[tuple[str, str], Usage] = field(default_factory=dict)
    """(teacher, task) → answers, found ones included."""
    rejected: Counter[str] = field(default_factory=Counter[str])
    """Answers by the rule they break, of the rules that look at one answer alone."""
    new: Usage = field(default_factory=Usage)
    """Answers of this call."""

    @property
    def answers(self) -> int:
        """Answers in all."""
        return sum(usage.answers for usage in self.used.values())

    @property
    def accepted(self) -> int:
        """Answers that pass the rules that look at one answer alone."""
        return sum(usage.accepted for usage in self.used.values())

    @property
    def missing(self) -> int:
        """Answers still to come."""
        return self.planned - self.spared - self.answers


Judge = Callable[[Candidate, Prompt, Sequence[ProfileItem]], str | None]
"""Gives the rule that a candidate breaks by itself, or None; called with the items of its prompt."""


@dataclass(frozen=True)
class Generation:
    """How a call of `generate` ended."""

    status: Literal["complete", "partial", "pilot"]
    """`partial`: a limit was reached; `pilot`: only the pilot was asked for."""
    tally: Tally
    """The numbers."""
    spent: Usage
    """All that the journal holds, answers of earlier settings included: what limits count."""


def generate(
    folder: Path,
    prompts: Path,
    plans: Sequence[TeacherPlan],
    dataset: Dataset,
    options: PromptOptions,
    seed: int,
    judge: Judge,
    *,
    until_accepted: int | None = None,
    limits: Limits = NO_LIMITS,
    pilot_share: float = 0.0,
    is_pilot_only: bool = False,
    on_forecast: Callable[[Forecast], object] = lambda forecast: None,
    watch: Callable[[Tally], object] = lambda tally: None,
    say: Callable[[str], object] = lambda line: None,
) -> Generation:
    """Ask the teachers for every attempt on every prompt that `folder/candidates.jsonl` does not hold yet, and write
    the answers to `folder/candidates.parquet`: ordered as the prompts, then by teacher and attempt.

    prompts: Parquet file of `Prompt` rows. until_accepted: stop asking about a prompt when so many of its answers are
    accepted by `judge`. pilot_share: first answer this share of the prompts, at least 20, and hand a forecast to
    `on_forecast`. Answers of earlier settings stay in the journal. Raises InputError or CheckFailed when a teacher
    fails, KeyboardInterrupt on Ctrl-C; in both cases answers on their way are taken in first.
    """
    import pyarrow.parquet as pq

    names = [(plan.teacher.name, plan.teacher.revision, plan.samplings) for plan in plans]
    if len(set(names)) < len(names):
        raise InputError(f"two teachers are the same: {', '.join(plan.teacher.name for plan in plans)}")
    count = pq.read_metadata(prompts).num_rows
    with folder_lock(folder):
        purse = Purse(limits)
        prices = {(plan.teacher.name, plan.teacher.revision): plan.price for plan in plans}
        found: Counter[tuple[str, str]] = Counter()

        answered: set[tuple[str, str]] = set()

        def on_row(row: Candidate) -> None:
            found[row.teacher, row.teacher_revision] += 1
            if row.finish_reason != "refused":
                answered.add((row.teacher, row.teacher_revision))
            purse.pay(row, prices.get((row.teacher, row.teacher_revision), FREE))

        with IndexedJournal(folder / JOURNAL, Candidate, on_row) as journal:
            run = _Run(prompts, count, tuple(plans), dataset, options, seed, judge, until_accepted, purse, journal)
            run.watch, run.say, run.answered = watch, say, answered
            is_whole = asyncio.run(
                run.ask_all(_pilot_limit(pilot_share, count, plans), is_pilot_only, found, on_forecast)
            )
            if run.is_interrupted:
                raise KeyboardInterrupt
            run.write(folder / CANDIDATES)
        is_pilot = is_pilot_only and run.tally.missing and not run.is_over_budget
        status = "pilot" if is_pilot else "complete" if is_whole else "partial"
        return Generation(status, run.tally, purse.spent)


@dataclass(frozen=True, slots=True)
class _Answered:
    """An answer or a refusal, and where it belongs."""

    index: int
    row: int
    attempt: int
    prompt: Prompt
    items: Sequence[ProfileItem]
    candidate: Candidate


class _Run:
    """One call of `generate`; see there."""

    def __init__(
        self, prompts: Path, count: int, plans: tuple[TeacherPlan, ...], dataset: Dataset, options: PromptOptions,
        seed: int, judge: Judge, until_accepted: int | None, purse: Purse, journal: IndexedJournal[Candidate],
    ) -> None:  # fmt: skip
        self.prompts, self.count, self.plans, self.dataset, self.options = prompts, count, plans, dataset, options
        self.seed, self.judge, self.until_accepted, self.purse, self.journal = (
            seed, judge, until_accepted, purse, journal,
        )  # fmt: skip
        # asked once: a revision that is a file's hash must not change under a run
        self.teachers = [(plan.teacher.name, plan.teacher.revision) for plan in plans]
        self.watch: Callable[[Tally], object] = lambda tally: None
        self.say: Callable[[str], object] = lambda line: None
        self.profiles = Profiles(dataset, most=_PROFILES_HELD)
        self.rungs = sum(len(plan.samplings) for plan in plans)
        self.makers = [  # what the ids of a teacher's attempts share
            [_maker(*teacher, sampling) for sampling in plan.samplings]
            for plan, teacher in zip(plans, self.teachers, strict=True)
        ]
        self.verdicts = bytearray(count * self.rungs)  # 0 not there, 1 accepted, 2 rejected
        self.tally = Tally(planned=count * self.rungs)
        self.pilot: Pilot | None = None
        self.errors: list[Exception] = []
        self.answered: set[tuple[str, str]] = set()
        self.refused: dict[int, list[_Answered]] = {index: [] for index in range(len(plans))}
        self.refusal = ""
        self.is_interrupted = False
        self.is_over_budget = False
        self.settled = 0

    async def ask_all(
        self,
        pilot_limit: int,
        is_pilot_only: bool,
        found: Counter[tuple[str, str]],
        on_forecast: Callable[[Forecast], object],
    ) -> bool:
        """Ask for all that is missing, the pilot's prompts first; whether nothing is missing at the end."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        with suppress(ValueError, RuntimeError, NotImplementedError):  # not in the main thread: no signals there
            loop.add_signal_handler(signal.SIGINT, self._interrupt, task)
        try:
            if pilot_limit:
                self.pilot = Pilot()
                await self._phase(lambda prompt: _pilot_draw(self.seed, prompt) < pilot_limit)
                if not self._is_ending and self.pilot.by_prompt:
                    on_forecast(self._forecast(self.pilot, found))
                self.pilot = None
            if not (is_pilot_only or self._is_ending):
                await self._phase(lambda prompt: not pilot_limit or _pilot_draw(self.seed, prompt) >= pilot_limit)
            if not self._is_ending:
                self._take_refused_at_end()
        except asyncio.CancelledError:
            if not self.is_interrupted:
                raise
        finally:
            with suppress(ValueError, RuntimeError, NotImplementedError):
                loop.remove_signal_handler(signal.SIGINT)
            for plan in self.plans:
                await plan.teacher.close()
        if self.errors:
            raise self.errors[0]
        return not self.tally.missing

    def write(self, path: Path) -> None:
        """Write the table of candidates from what is in the journal."""
        with table_writer(path, Candidate) as write:
            for row, prompt in enumerate(_prompt_hashes(self.prompts)):
                for rung, (plan, attempt) in enumerate(self._ladder()):
                    if self.verdicts[row * self.rungs + rung]:
                        write(self.journal.read_fields(self._identity(plan, prompt, attempt)[0]))

    @property
    def _is_ending(self) -> bool:
        return bool(self.errors) or self.is_interrupted

    def _interrupt(self, task: "asyncio.Task[object] | None") -> None:
        if self.is_interrupted and task is not None:
            task.cancel()
            return
        self.is_interrupted = True
        self.say("stopping: answers on their way are taken in; once more Ctrl-C drops them")
        for plan in self.plans:
            plan.teacher.stop()

    async def _phase(self, is_in: Callable[[Prompt], bool]) -> None:
        """Go through the prompts of a phase: all teachers side by side, or with `until_accepted` one after another."""
        if self.until_accepted is None:
            await self._work(range(len(self.plans)), is_in)
            return
        for index in range(len(self.plans)):
            await self._work([index], is_in)

    async def _work(self, indices: Sequence[int], is_in: Callable[[Prompt], bool]) -> None:
        async def worker(index: int, chains: Iterator[tuple[int, Prompt, range]]) -> None:
            for row, prompt, attempts in chains:
                try:
                    await self._chain(index, row, prompt, attempts)
                except Stopped:  # made ready and never sent; why is known to who stopped it
                    return
                except TagprError as error:
                    self.errors.append(error)
                    for plan in self.plans:
                        plan.teacher.stop()
                if self._is_ending:
                    return

        async def part(index: int) -> None:
            started = perf_counter()
            chains = self._chains(index, is_in)
            async with asyncio.TaskGroup() as group:
                plan = self.plans[index]
                # the pilot times answers, so nothing waits in it
                for _ in range(plan.concurrency + (plan.ahead if self.pilot is None else 0)):
                    group.create_task(worker(index, chains))
                    await asyncio.sleep(0)  # the first question goes out before the last is made
            if self.pilot is not None:
                self.pilot.wall_seconds[index] = perf_counter() - started

        try:
            async with asyncio.TaskGroup() as group:
                for index in indices:
                    group.create_task(part(index))
        except BaseExceptionGroup as errors:
            raise _first(errors) from None

    def _chains(self, index: int, is_in: Callable[[Prompt], bool]) -> Iterator[tuple[int, Prompt, range]]:
        """Give what one teacher has to do: single attempts, or all attempts on a prompt where one waits for another."""
        attempts = len(self.plans[index].samplings)
        for row, prompt in enumerate(iter_records(self.prompts, Prompt, _ROWS_AT_ONCE)):
            if not is_in(prompt):
                continue
            if self.until_accepted is not None:
                yield row, prompt, range(attempts)
            else:
                yield from ((row, prompt, range(attempt, attempt + 1)) for attempt in range(attempts))

    async def _chain(self, index: int, row: int, prompt: Prompt, attempts: range) -> None:
        for attempt in attempts:
            if self.until_accepted is not None and self._accepted(row) >= self.until_accepted:
                self.tally.spared += len(attempts) - attempt
                return
            identity, seed = self._identity(index, prompt.prompt_hash, attempt)
            items = self.profiles.chosen(prompt.example, prompt.item_ids)
            if identity in self.journal:
                self._settle(index, row, attempt, prompt, items, self.journal.read(identity))
                self.tally.found += 1
                self.settled += 1
                if self.settled % 64 == 0:
                    await asyncio.sleep(0)  # let signals and answers in
            elif not self._is_ending and not self.is_over_budget:
                candidate = await self._ask(index, prompt, items, attempt, identity, seed)
                if candidate is None:
                    return
                self._take(_Answered(index, row, attempt, prompt, items, candidate))
            else:
                return

    async def _ask(
        self, index: int, prompt: Prompt, items: Sequence[ProfileItem], attempt: int, identity: str, seed: int
    ) -> Candidate | None:
        """Give the answer, or a refusal; None where a limit does not allow the question."""
        plan = self.plans[index]
        sampling = plan.samplings[attempt]
        read = sum(len(message.content) for message in prompt.messages) // 4
        written = sampling.max_new_tokens
        if not self.purse.hold(plan.price, Usage(1, 0, read, written, cost_of(read, written, plan.price))):
            self.is_over_budget = True
            return None
        task = self.dataset.task(prompt.task)
        started = perf_counter()
        try:
            reply = await plan.teacher.write(
                Assignment(
                    task=task,
                    input=visible_input(prompt.input, self.options),
                    items=tuple(visible_item(task, item, self.options) for item in items),
                    messages=prompt.messages,
                    gold=prompt.gold,
                    sampling=sampling,
                    seed=seed,
                    attempt=attempt,
                )
            )
        except PromptRefused as refusal:
            reply = Reply("", "refused", 0, 0)
            if not self.refusal:
                self.say(f"refused-by-server, the first: {refusal}")
            self.refusal = str(refusal)
        finally:
            self.purse.release(plan.price)
        teacher, revision = self.teachers[index]
        candidate = Candidate(
            id=identity, teacher=teacher, teacher_revision=revision, sampling=sampling,
            seed=seed, attempt=attempt, text=reply.text, finish_reason=reply.finish_reason,
            input_tokens=reply.input_tokens, output_tokens=reply.output_tokens,
            **{field: getattr(prompt, field) for field in _SHARED_FIELDS},
        )  # fmt: skip
        if self.pilot is not None:
            self.pilot.seconds.setdefault(index, []).append(perf_counter() - started)
        return candidate

    def _take(self, answer: "_Answered") -> None:
        """Keep and count an answer; a refusal waits until its teacher is known to answer at all."""
        teacher, waiting = self.teachers[answer.index], self.refused[answer.index]
        self.purse.pay(answer.candidate, self.plans[answer.index].price)
        if answer.candidate.finish_reason != "refused":
            self.answered.add(teacher)
        waiting.append(answer)
        if teacher in self.answered:
            while waiting:
                self._keep(waiting.pop(0))
        elif len(waiting) >= _MOST_REFUSED_AT_START:
            raise InputError(f"the first {len(waiting)} questions were all refused; the last: {self.refusal}")

    def _take_refused_at_end(self) -> None:
        """Keep the few refusals of a teacher that answered nothing, if another did: it may get hard prompts only."""
        for waiting in self.refused.values():
            if waiting and not self.answered:
                raise InputError(f"all {len(waiting)} questions were refused; the last: {self.refusal}")
            while waiting:
                self._keep(waiting.pop(0))

    def _keep(self, answer: "_Answered") -> None:
        self.journal.append(answer.candidate)
        self.tally.new.add(answer.candidate, self.plans[answer.index].price)
        self._settle(answer.index, answer.row, answer.attempt, answer.prompt, answer.items, answer.candidate)

    def _settle(
        self, index: int, row: int, attempt: int, prompt: Prompt, items: Sequence[ProfileItem], candidate: Candidate
    ) -> None:
        """Judge an answer and count it."""
        reason = self.judge(candidate, prompt, items)
        self.verdicts[row * self.rungs + self._rung(index, attempt)] = 1 if reason is None else 2
        price = self.plans[index].price
        counts = [self.tally.used.setdefault((candidate.teacher, candidate.task), Usage())]
        if self.pilot is not None:
            counts.append(self.pilot.by_prompt.setdefault((index, row), Usage()))
        for usage in counts:
            usage.add(candidate, price)
            usage.accepted += reason is None
        if reason is not None:
            self.tally.rejected[reason] += 1
        self.watch(self.tally)

    def _accepted(self, row: int) -> int:
        return self.verdicts[row * self.rungs : (row + 1) * self.rungs].count(1)

    def _ladder(self) -> Iterator[tuple[int, int]]:
        """Give (teacher, attempt) in the order of the table."""
        for index, plan in enumerate(self.plans):
            for attempt in range(len(plan.samplings)):
                yield index, attempt

    def _rung(self, index: int, attempt: int) -> int:
        return sum(len(plan.samplings) for plan in self.plans[:index]) + attempt

    def _identity(self, index: int, prompt: str, attempt: int) -> tuple[str, int]:
        """Give id and seed of an attempt on the prompt with this hash."""
        seed = derived_seed(self.seed, prompt, str(attempt))
        return _attempt_hash(prompt, self.makers[index][attempt], seed, attempt), seed

    def _forecast(self, pilot: Pilot, found: Counter[tuple[str, str]]) -> Forecast:
        rows = len({row for _, row in pilot.by_prompt})
        remaining: dict[int, int] = {}
        for index in range(len(self.plans)):
            answers = sum(usage.answers for (teacher, _), usage in pilot.by_prompt.items() if teacher == index)
            there = found[self.teachers[index]] + len(pilot.seconds.get(index, ()))
            remaining[index] = max(0, round(answers / rows * self.count) - there)
        return forecast(pilot, self.count, remaining, self.until_accepted is not None)


def attempt_id(prompt: str, teacher: str, revision: str, sampling: Sampling, seed: int, attempt: int) -> str:
    """Give the identity of one attempt: the hash of prompt, teacher, revision, sampling, seed and attempt."""
    return _attempt_hash(prompt, _maker(teacher, revision, sampling), seed, attempt)


def derived_seed(seed: int, *parts: str) -> int:
    """Give a seed in [0, 2³¹) that depends on `seed` and all parts, the same on every machine."""
    digest = hashlib.sha256(canonical_json([seed, *parts]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _attempt_hash(prompt: str, maker: str, seed: int, attempt: int) -> str:
    """Give the hash of the list [prompt, *maker, seed, attempt] in canonical JSON; `prompt` is a hash in hex."""
    return sha256_text(f'["{prompt}",{maker},{seed},{attempt}]')


def _maker(teacher: str, revision: str, sampling: Sampling) -> str:
    """Give who answers and how as the members of a list in canonical JSON."""
    return canonical_json([teacher, revision, sampling.model_dump(mode="json")])[1:-1]


_PROFILES_HELD = 512
_ROWS_AT_ONCE = 64
_SHARED_FIELDS = tuple(field for field in Prompt.model_fields if field in Candidate.model_fields)


def _retrieved(example: Example, profiles: Profiles, retrieval: Retrieval) -> list[ProfileItem]:
    """Give the profile in the retriever's order, best first."""
    from tagpr_data.retrieve import rank

    profile = profiles.items(example)
    order = rank(
        retrieval.retriever,
        example.input,
        [retrieval_text(item) for item in profile],
        dates=[item.date for item in profile],
        seed=derived_seed(retrieval.seed, "rank", example.id),
    )
    return [profile[position] for position in order]


def gives_away(messages: Sequence[Message], gold: str) -> bool:
    """Whether a prompt holds a gold answer of 4 words or more word for word."""
    gold = gold.strip()
    return len(gold.split()) >= 4 and any(gold in message.content for message in messages)


def _share(seed: int, *parts: str) -> float:
    return random.Random(derived_seed(seed, *parts)).random()


def _pilot_limit(share: float, prompts: int, plans: Sequence[TeacherPlan]) -> int:
    """Give the draw below which a prompt is in the pilot: `share` of them, at least 20, and enough to fill the
    teachers' concurrency twice, so that the time of an answer is that of a busy server."""
    if not share:
        return 0
    busy = max(2 * plan.concurrency // len(plan.samplings) for plan in plans)
    wanted = max(share * prompts, _PILOT_PROMPTS, busy)
    return round(min(1.0, wanted / prompts) * 2**31)


def _prompt_hashes(prompts: Path) -> Iterator[str]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(prompts) as file:
        for batch in file.iter_batches(columns=["prompt_hash"], use_threads=False):
            yield from (str(value) for value in batch.column(0).to_pylist())


def _pilot_draw(seed: int, prompt: Prompt) -> int:
    return derived_seed(seed, "pilot", prompt.prompt_hash)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Give the first error of a nested group."""
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
