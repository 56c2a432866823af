"""Preference pairs for a reward model with user embeddings (PRMU): two completions, one person, which is better?

metric   a kept trace against a rejected attempt on the same example that scores lower by the task metric
user     the answer that is right for this user against the one another user would give to the same query. Whose
         answer that is, best source first: the rule of a synthetic user, exactly; the other user's own gold answer
         to the same input; a rule-based guess from the other user's past items (no model needed)
gold     the gold answer against another label, drawn as often as labels are right, or another user's text

`form = "answer"` pairs answers and needs no teacher. `form = "trace"` pairs whole traces of the scripted teacher, the
rejected one written with the same honesty towards the other answer, so that only the person tells them apart.

Guarantee: the same input gives the same bytes; `train` and `unseen` share no user, `train` and `seen` no example; the
prompt shows no past item; in every split, task and kind the chosen completion is the longer one exactly as often as
the shorter one (surplus pairs are dropped by hash, and counted), so that length tells nothing by its sign. Examples of
the data set's test split are never used. The paper's pairs are not public; kinds, split and balance are ours.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field

from tagpr_data.config import Config
from tagpr_data.dataset import Dataset, atomic_folder
from tagpr_data.errors import InputError
from tagpr_data.generate import derived_seed, retrieval_text
from tagpr_data.lamp.metrics import reward
from tagpr_data.prompts import PromptOptions, visible_input, visible_item
from tagpr_data.records import (
    Attempt,
    CorpusManifest,
    Example,
    FileEntry,
    Message,
    PairKind,
    PairsManifest,
    PairSplit,
    PreferencePair,
    ProfileItem,
    Rejected,
    Task,
    Trace,
)
from tagpr_data.retrieve import rank
from tagpr_data.sources import personas
from tagpr_data.tables import (
    canonical_json,
    content_hash,
    frame_from_records,
    read_json,
    read_records,
    sha256_file,
    sha256_text,
    write_json,
    write_table,
)
from tagpr_data.tags import load_tagset, parse
from tagpr_data.teachers import scripted_trace

SPLITS: tuple[PairSplit, ...] = ("train", "seen", "unseen")
MANIFEST = "manifest.json"
PROFILES = "profiles.parquet"

_GUESS_ITEMS = 4  # past items a rule-based guess looks at
_CANDIDATES = 16  # other users or answers tried before an example is given up

_Source = Literal["corpus", "sampled", "rule", "same-input", "profile"]


class PairOptions(Config):
    """Which pairs are made."""

    kinds: tuple[PairKind, ...] = ("metric", "user", "gold")
    """Kinds to make; `metric` gives none without a corpus."""
    tasks: tuple[str, ...] | None = None
    """Tasks to make pairs of; None takes all."""
    form: Literal["answer", "trace"] = "answer"
    """What is compared; see the module docstring."""
    unseen_users: float = Field(default=0.15, gt=0, lt=1)
    """Share of users held out, where the data set itself does not hold users out for validation."""
    seen_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training users' examples held out, beside those of the validation split."""
    per_kind: int = Field(default=1, ge=1)
    """Most pairs an example gives in a kind."""
    prompt: PromptOptions = PromptOptions()
    """How long the question may be (`input_words`), and items in traces (`item_words`); a corpus brings its own."""
    seed: int = 0
    """Decides every draw."""


@dataclass
class Pairs:
    """What `make_pairs` gives."""

    rows: list[PreferencePair]
    """Sorted by id."""
    skipped: Counter[str] = field(default_factory=Counter[str])
    """What gave no pair, by kind and reason."""


def question(task: Task, input_text: str, options: PromptOptions) -> tuple[Message, ...]:
    """Give the prompt a PRMU reads: the task's question and the input, no past item and no instruction on form."""
    text = " ".join(part for part in (task.question, visible_input(input_text, options)) if part)
    return (Message(role="user", content=text),)


def split_of(dataset: Dataset, options: PairOptions) -> dict[str, PairSplit]:
    """Give the split of pairs for each example, by id, of the data set's train and validation splits.

    Users who have validation examples only are unseen. Where there are none, or fewer than half of the wanted share (a
    split by time leaves some by chance), that share of all users is drawn instead. Of the other users, validation
    examples and a drawn share of the training examples are `seen`.
    """
    examples = {name: dataset.examples(name) for name in dataset.splits if name != "test"}
    if not any(examples.values()):
        raise InputError(f"data set {dataset.folder} has no example in train or validation to make pairs of")
    trained = {example.user_id for example in examples.get("train", [])}
    everyone = trained | {example.user_id for example in examples.get("validation", [])}
    unseen = everyone - trained
    if not trained or len(unseen) < options.unseen_users * len(everyone) / 2:
        drawn = sorted(everyone, key=lambda user: (derived_seed(options.seed, "unseen", user), user))
        unseen = set(drawn[: max(1, round(len(drawn) * options.unseen_users))])
    limit = options.seen_share * 2**31
    splits: dict[str, PairSplit] = {}
    for name, rows in examples.items():
        for example in rows:
            is_later = name == "validation" and example.user_id in trained
            is_held_out = is_later or derived_seed(options.seed, "seen", example.id) < limit
            splits[example.id] = "unseen" if example.user_id in unseen else "seen" if is_held_out else "train"
    return splits


def make_pairs(
    dataset: Dataset, options: PairOptions, attempts: Sequence[Attempt] = (), corpus: CorpusManifest | None = None
) -> Pairs:
    """Give the pairs of a data set and why examples gave none. `attempts` are the traces and the rejected rows of
    `corpus`; their order does not matter."""
    maker = _Maker(dataset, options, attempts, corpus)
    distinct = {pair.id: pair for pair in maker.pairs()}
    kept = _balanced(list(distinct.values()), maker.skipped)
    return Pairs(sorted(kept, key=lambda pair: pair.id), maker.skipped)


def write_pairs(folder: Path, dataset: Dataset, options: PairOptions, corpus: Path | None = None) -> PairsManifest:
    """Make pairs and write them as a folder with the profiles they need; an earlier version is replaced.

    Raises InputError for a corpus of another data set, and when there is no pair to train on.
    """
    _check_target(folder)
    manifest, attempts = _read_corpus(corpus, dataset) if corpus else (None, [])
    made = make_pairs(dataset, options, attempts, manifest)
    by_split = {split: [pair for pair in made.rows if pair.split == split] for split in SPLITS}
    if not by_split["train"]:
        raise InputError(f"no pair to train on came out of {dataset.folder}; left out: {dict(made.skipped)}")
    used = {pair.task for pair in made.rows}
    tasks = tuple(task for task in dataset.manifest.tasks if task.name in used)
    with atomic_folder(folder) as temporary:
        files: dict[str, FileEntry] = {}
        for split, rows in by_split.items():
            name = f"pairs/{split}.parquet"
            files[name] = write_table(
                temporary / name, frame_from_records(rows, PreferencePair), PreferencePair, ["id"]
            )
        items = frame_from_records(_needed_items(dataset, made.rows), ProfileItem)
        files[PROFILES] = write_table(temporary / PROFILES, items, ProfileItem, ["profile_id", "position"])
        written = PairsManifest(
            name=dataset.manifest.name,
            dataset_hash=dataset.manifest.content_hash,
            corpus_hash=manifest.content_hash if manifest else None,
            licence=dataset.manifest.licence,
            tasks=tasks,
            files=files,
            content_hash=content_hash(tasks, files),
            pairs={
                split: dict(sorted(Counter(pair.kind for pair in rows).items())) for split, rows in by_split.items()
            },
            users={split: len({pair.user_id for pair in rows}) for split, rows in by_split.items()},
            skipped=dict(sorted(made.skipped.items())),
            parameters=options.model_dump(mode="json"),
        )
        write_json(temporary / MANIFEST, written)
    return written


class PairFolder:
    """A folder of pairs, open for reading; every file is hashed once."""

    def __init__(self, folder: Path) -> None:
        """Open a folder; InputError when it is incomplete or a file is not the one written."""
        if not folder.is_dir():
            raise InputError(f"pairs folder {folder} does not exist; make one with `tagpr-data pairs`")
        self.folder = folder
        self.manifest = read_json(folder / MANIFEST, PairsManifest)
        for name, entry in self.manifest.files.items():
            path = folder / name
            if not path.is_file() or sha256_file(path) != entry.sha256:
                raise InputError(f"{path} is missing or not the file {MANIFEST} describes; make the pairs again")
        self._items: dict[str, list[ProfileItem]] = defaultdict(list)
        for item in read_records(folder / PROFILES, ProfileItem):
            self._items[item.profile_id].append(item)

    def pairs(self, split: PairSplit) -> list[PreferencePair]:
        """Give the pairs of a split, ordered by id."""
        return read_records(self.folder / f"pairs/{split}.parquet", PreferencePair)

    def profile(self, profile_id: str, size: int) -> tuple[ProfileItem, ...]:
        """Give the first `size` items of a profile; fewer where fewer are stored."""
        return tuple(self._items.get(profile_id, [])[:size])


@dataclass(frozen=True, slots=True)
class _Lender:
    """Another user, with the longest look-back known in the split."""

    user_id: str
    profile_id: str
    profile_size: int

    def items(self, dataset: Dataset, example: Example) -> tuple[ProfileItem, ...]:
        """Give as many of the user's items as the example has, at least one, or all where there are fewer."""
        size = min(self.profile_size, max(1, example.profile_size))
        return dataset.profile(example.model_copy(update={"profile_id": self.profile_id, "profile_size": size}))


class _Maker:
    """All that the pairs of one data set have in common."""

    def __init__(
        self, dataset: Dataset, options: PairOptions, attempts: Sequence[Attempt], corpus: CorpusManifest | None
    ) -> None:
        self.dataset, self.options = dataset, options
        self.skipped: Counter[str] = Counter()
        self.splits = split_of(dataset, options)
        known = {task.name for task in dataset.manifest.tasks}
        if unknown := set(options.tasks or ()) - known:
            raise InputError(
                f"tasks {sorted(unknown)} are not in {dataset.folder}; its tasks: {', '.join(sorted(known))}"
            )
        wanted = known if options.tasks is None else set(options.tasks)
        rows = [
            row for name in dataset.splits if name != "test" for row in dataset.examples(name) if row.task in wanted
        ]
        self.examples = [example for example in rows if example.output is not None]
        if len(self.examples) < len(rows):
            self.skipped["example without a gold answer"] = len(rows) - len(self.examples)
        self.k, self.prompt = _GUESS_ITEMS, options.prompt
        if corpus is not None:
            self.k = int(corpus.parameters.get("k", _GUESS_ITEMS))
            self.prompt = PromptOptions.model_validate(corpus.parameters.get("prompt", options.prompt))
        self.tagset = load_tagset()
        self.attempts: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in sorted(attempts, key=lambda row: row.id):
            self.attempts[attempt.example_id].append(attempt)
        self.lenders = _lenders(self.examples, self.splits)
        self.same_input: dict[tuple[PairSplit, str, str], dict[str, str]] = defaultdict(dict)
        self.golds: dict[tuple[PairSplit, str], list[tuple[str, str]]] = defaultdict(list)
        """Gold answers of a split and task, and whose."""
        for example in self.examples:
            split = self.splits[example.id]
            self.same_input[split, example.task, example.input][example.user_id] = _gold(example)
            self.golds[split, example.task].append((_gold(example), example.user_id))
        self.preferences: Mapping[str, Mapping[str, Any]] = (
            dataset.manifest.parameters.get("preferences", {}) if dataset.manifest.name == "personas" else {}
        )

    def pairs(self) -> Iterable[PreferencePair]:
        makers: dict[PairKind, Callable[[Example, Task], Iterable[PreferencePair | str]]] = {
            "metric": self._metric_pairs,
            "user": self._user_pairs,
            "gold": self._gold_pairs,
        }
        for kind in self.options.kinds:
            if kind == "metric" and not self.attempts:
                self.skipped["metric: no corpus was given"] = len(self.examples)
                continue
            for example in self.examples:
                for found in makers[kind](example, self.dataset.task(example.task)):
                    if isinstance(found, str):
                        self.skipped[f"{kind}: {found}"] += 1
                    else:
                        yield found

    def _metric_pairs(self, example: Example, task: Task) -> Iterable[PreferencePair | str]:
        scored: list[tuple[float, str]] = []
        for attempt in self.attempts.get(example.id, []):
            answer = parse(attempt.text, self.tagset).answer.strip()
            if answer:
                text = answer if self.options.form == "answer" else attempt.text
                scored.append((reward(task, answer, _gold(example)), text))
        best = max(scored, default=None, key=lambda row: row[0])
        worse = [row for row in scored if best is not None and row[0] < best[0]]
        if best is None or not worse:
            yield "no attempt on the example is worse than another"
            return
        for row in worse[: self.options.per_kind]:
            yield self._pair(example, "metric", best, row, self._other(example), "corpus")

    def _user_pairs(self, example: Example, task: Task) -> Iterable[PreferencePair | str]:
        made = 0
        for other in self._others(example):
            answer, source = self._answer_of(other, example, task)
            if answer is None or (score := reward(task, answer, _gold(example))) >= 1.0:
                continue
            texts = self._texts(example, task, answer, other.items(self.dataset, example), exact=source != "profile")
            if texts is None:
                yield "no trace of the scripted teacher"
                return
            yield self._pair(example, "user", (1.0, texts[0]), (score, texts[1]), other, source)
            made += 1
            if made == self.options.per_kind:
                return
        if not made:
            yield "no other user was found who answers otherwise"

    def _gold_pairs(self, example: Example, task: Task) -> Iterable[PreferencePair | str]:
        pool = self.golds[self.splits[example.id], example.task]
        seen = {_gold(example).strip()}
        for place in range(_CANDIDATES):
            answer, author = pool[derived_seed(self.options.seed, "gold", example.id, str(place)) % len(pool)]
            if answer.strip() in seen or (score := reward(task, answer, _gold(example))) >= 1.0:
                continue
            seen.add(answer.strip())
            texts = self._texts(example, task, answer, None, exact=True)
            if texts is None:
                yield "no trace of the scripted teacher"
                return
            # a label is nobody's; a text is somebody's, and goes when they are forgotten
            other = self._lender(example, author) if task.kind == "generation" else None
            other = other or self._other(example)
            yield self._pair(example, "gold", (1.0, texts[0]), (score, texts[1]), other, "sampled")
            if len(seen) > self.options.per_kind:
                return
        if len(seen) == 1:
            yield "no other answer was found"

    def _texts(
        self, example: Example, task: Task, answer: str, items: Sequence[ProfileItem] | None, *, exact: bool
    ) -> tuple[str, str] | None:
        """Give (chosen, rejected) in the wanted form; None where there is no scripted trace to set against. The
        rejected trace looks at `items`, by default those of the chosen one; unless `exact` it finds its own answer."""
        if self.options.form == "answer":
            return _gold(example), answer
        kept = next((row for row in self.attempts.get(example.id, []) if isinstance(row, Trace)), None)
        if kept is None or not kept.teacher.startswith("scripted"):
            return None
        if items is None:
            profile = {item.item_id: item for item in self.dataset.profile(example)}
            shown = [profile[item_id] for item_id in kept.item_ids]
        else:
            shown = self._nearest(example, items)[: len(kept.item_ids)]
        visible = [visible_item(task, item, self.prompt) for item in shown]
        seed = derived_seed(self.options.seed, "trace", example.id, answer)
        query = visible_input(example.input, self.prompt)
        return kept.text, scripted_trace(task, query, visible, answer if exact else None, seed)

    def _answer_of(self, other: _Lender, example: Example, task: Task) -> tuple[str | None, _Source]:
        """Give what the other user would answer, and how that is known."""
        if other.user_id in self.preferences:
            return personas.answer(self.preferences[other.user_id], task.name, example.input), "rule"
        same = self.same_input[self.splits[example.id], example.task, example.input].get(other.user_id)
        if same is not None:
            return same, "same-input"
        items = other.items(self.dataset, example)
        if not items:
            return None, "profile"
        visible = [visible_item(task, item, self.prompt) for item in self._nearest(example, items)]
        query = visible_input(example.input, self.prompt)
        text = scripted_trace(task, query, visible, None, derived_seed(self.options.seed, "guess", example.id))
        return parse(text, self.tagset).answer.strip() or None, "profile"

    def _nearest(self, example: Example, items: Sequence[ProfileItem]) -> list[ProfileItem]:
        order = rank("bm25", example.input, [retrieval_text(item) for item in items])
        return [items[position] for position in order[: self.k]]

    def _others(self, example: Example) -> Iterable[_Lender]:
        """Give other users of the same split and task: those who met the same input first, then drawn ones."""
        key = (self.splits[example.id], example.task)
        lenders = self.lenders[key]
        draw = derived_seed(self.options.seed, "other", example.id)
        met = self.same_input[(*key, example.input)]
        first = [lender for lender in (_rotated(lenders, draw) if len(met) > 1 else ()) if lender.user_id in met]
        for lender in dict.fromkeys((*first, *_rotated(lenders, draw)[:_CANDIDATES])):
            if lender.user_id != example.user_id:
                yield lender

    def _other(self, example: Example) -> _Lender | None:
        return next(iter(self._others(example)), None)

    def _lender(self, example: Example, user: str) -> _Lender | None:
        """Give another user of the same split and task by name; None for the example's own."""
        if user == example.user_id:
            return None
        lenders = self.lenders[self.splits[example.id], example.task]
        return next(lender for lender in lenders if lender.user_id == user)

    def _pair(
        self,
        example: Example,
        kind: PairKind,
        chosen: tuple[float, str],
        rejected: tuple[float, str],
        other: _Lender | None,
        source: _Source,
    ) -> PreferencePair | str:
        if other is None:
            return "no other user in the split"
        if chosen[1].strip() == rejected[1].strip():
            return "both completions are the same"
        return PreferencePair(
            id=sha256_text(canonical_json([example.id, kind, chosen[1], rejected[1], other.user_id])),
            split=self.splits[example.id],
            kind=kind,
            task=example.task,
            example_id=example.id,
            user_id=example.user_id,
            profile_id=example.profile_id,
            profile_size=example.profile_size,
            other_user_id=other.user_id,
            other_profile_id=other.profile_id,
            other_profile_size=min(other.profile_size, max(1, example.profile_size)),
            prompt=question(self.dataset.task(example.task), example.input, self.prompt),
            chosen=chosen[1],
            rejected=rejected[1],
            chosen_score=chosen[0],
            rejected_score=rejected[0],
            margin=chosen[0] - rejected[0],
            rejected_from=source,
        )


def _gold(example: Example) -> str:
    return cast(str, example.output)  # examples without one are left out before


def _rotated(lenders: Sequence[_Lender], draw: int) -> list[_Lender]:
    start = draw % len(lenders)
    return [*lenders[start:], *lenders[:start]]


def _lenders(
    examples: Iterable[Example], splits: Mapping[str, PairSplit]
) -> dict[tuple[PairSplit, str], list[_Lender]]:
    best: dict[tuple[PairSplit, str, str], Example] = {}
    for example in examples:
        key = (splits[example.id], example.task, example.user_id)
        known = best.get(key)
        if known is None or (-example.profile_size, example.id) < (-known.profile_size, known.id):
            best[key] = example
    found: dict[tuple[PairSplit, str], list[_Lender]] = defaultdict(list)
    for (split, task, user), example in sorted(best.items()):
        found[split, task].append(_Lender(user, example.profile_id, example.profile_size))
    return found


def _balanced(pairs: Sequence[PreferencePair], skipped: Counter[str]) -> list[PreferencePair]:
    """Drop pairs until, in each split, task and kind, chosen is longer as often as shorter; lowest ids stay."""
    groups: dict[tuple[str, str, str], list[PreferencePair]] = defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: pair.id):
        groups[pair.split, pair.task, pair.kind].append(pair)
    kept: list[PreferencePair] = []
    for (_, _, kind), group in sorted(groups.items()):
        longer = [pair for pair in group if len(pair.chosen) > len(pair.rejected)]
        shorter = [pair for pair in group if len(pair.chosen) < len(pair.rejected)]
        count = min(len(longer), len(shorter))
        kept += [pair for pair in group if len(pair.chosen) == len(pair.rejected)] + longer[:count] + shorter[:count]
        if dropped := len(longer) + len(shorter) - 2 * count:
            skipped[f"{kind}: dropped for balance in length"] += dropped
    return kept


def _needed_items(dataset: Dataset, pairs: Sequence[PreferencePair]) -> list[ProfileItem]:
    """Give the items that the pairs look at, each once."""
    import polars as pl

    sizes: dict[str, int] = {}
    for pair in pairs:
        for profile_id, size in (
            (pair.profile_id, pair.profile_size),
            (pair.other_profile_id, pair.other_profile_size),
        ):
            sizes[profile_id] = max(size, sizes.get(profile_id, 0))
    longest = pl.DataFrame({"profile_id": list(sizes), "longest": list(sizes.values())})
    needed = dataset.profiles.join(longest, on="profile_id").filter(pl.col("position") < pl.col("longest"))
    return [ProfileItem.model_validate(row) for row in needed.drop("longest").iter_rows(named=True)]


def _read_corpus(corpus: Path, dataset: Dataset) -> tuple[CorpusManifest, list[Attempt]]:
    manifest = read_json(corpus / MANIFEST, CorpusManifest)
    if manifest.dataset_hash != dataset.manifest.content_hash:
        raise InputError(
            f"corpus {corpus} was built from data set {manifest.dataset!r} ({manifest.dataset_hash[:12]}…), "
            f"{dataset.folder} is {dataset.manifest.name!r} ({dataset.manifest.content_hash[:12]}…)"
        )
    rows: list[Attempt] = []
    for name in manifest.files:
        path = corpus / name
        if name.startswith("traces/"):
            rows += read_records(path, Trace)
        elif name.startswith("rejected/"):
            rows += read_records(path, Rejected)
    return manifest, rows


def _check_target(folder: Path) -> None:
    if folder.is_file():
        raise InputError(f"{folder} is a file; a folder of pairs is written, give a name that is free")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MANIFEST).is_file():
            raise InputError(f"{folder} is not empty and holds no pairs; give another folder")
        read_json(folder / MANIFEST, PairsManifest)
