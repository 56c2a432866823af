"""The rules of selection that look at one candidate alone: each candidate gets the first reason that applies, or none.

`judge` applies them to one candidate, `Judge` to Arrow batches, the same on one machine or many. Guarantee: the verdict
on a candidate depends on nothing but it, the rules and the data set. Price: about 0.1 ms a candidate on one core; with
`language` 0.2 ms more. The rules are ours.
"""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tagpr_data import tags
from tagpr_data.config import Config
from tagpr_data.contamination import Evaluations, OwnEvaluation, question_text, read_evaluations
from tagpr_data.dataset import Dataset
from tagpr_data.errors import InputError
from tagpr_data.lamp.metrics import reward
from tagpr_data.language import check_language, foreign_language, is_other_script
from tagpr_data.near_duplicates import LEAST_THRESHOLD, signatures
from tagpr_data.personal_data import Finder, Kind, read_names
from tagpr_data.phrases import stems
from tagpr_data.prompts import prompt_hash
from tagpr_data.records import Candidate, Message, ProfileItem, Step, Task, TaskKind, Trace
from tagpr_data.tables import arrow_schema, sha256_file
from tagpr_data.tags import TagSet

if TYPE_CHECKING:
    import pyarrow as pa

REASONS: dict[str, str] = {
    "refused-by-server": "the server refused this one prompt (status 400, 413 or 422), as one too long for its model",
    "cut-off": "the completion was cut at its length limit or ended in an error",
    "grammar": "the text breaks the tag grammar; the detail names the first violation and all codes",
    "no-gold": "the example has no gold answer to be measured against",
    "leaks-gold": "a step speaks of the gold answer as given (`the gold is …`), or quotes it before the reasoning does",
    "too-long": "the trace has more characters, words or steps than allowed",
    "too-short": "the trace has fewer words or steps than asked for",
    "foreign-language": "the steps are in another language, or the answer in another script, than the task's",
    "contaminated": "a later split asks the question again; or its user, or a run of words of it, is in an evaluation",
    "personal-data": "the row holds mail addresses, phone numbers, links that name a user, or names of people",
    "low-score": "the answer scores below the task's threshold",
    "ungrounded": "a claim about a cited item does not hold",
    "unsupported": "no item of the prompt carries the answer as its label, so the profile cannot speak for it",
    "duplicate": "another candidate of this user and task has the same text",
    "not-best": "another attempt on the same prompt was better",
    "near-duplicate": "a better trace of the same task, kept, has nearly the same words",
}
"""Every reason for rejection, in the order they are tried."""

LEAKS = Path(__file__).parent / "leaks.toml"
"""Phrases by which a teacher that was told the gold gives itself away."""

ITEM_FIELDS = ("date", "title", "text", "label")
"""What the rules look at of an item."""
_CONTEXT = ("split", "date", "question", "items")
_LEAST_GOLD_WORDS = 3
_MOST_KNOWN = 50_000
"""Texts whose contamination is remembered, some 20 MB."""


class Selection(Config):
    """Which candidates are good enough. A rule is off where its value is null, empty or false."""

    min_score: dict[TaskKind, float] = Field(default={"classification": 1.0, "rating": 1.0, "generation": 0.3})
    """Least reward (`lamp.metrics.reward`) by kind of task; a kind that is not named needs none."""
    task_min_score: dict[str, float] = Field(default={})
    """Least reward by name of the task; wins over `min_score`."""
    max_characters: int = 4000
    """Longest completion."""
    min_words: int = Field(default=0, ge=0)
    """Fewest words of all steps together."""
    max_words: int | None = Field(default=None, ge=1)
    """Most words of all steps together."""
    min_steps: int = Field(default=0, ge=0)
    """Fewest steps, where the tag set allows fewer."""
    max_steps: int | None = Field(default=None, ge=1)
    """Most steps, where the tag set allows more."""
    best_of: int = Field(default=1, ge=1)
    """Traces kept per prompt."""
    require_grounded: bool = True
    """Whether one claim that does not hold is enough to reject."""
    require_support: bool = False
    """Whether a label must be carried by an item of the prompt, where items are labelled: what a teacher with
    hindsight argues without any is guesswork, and a small model learns to guess from it. Prompts without items are
    exempt."""
    least_quoted: float = Field(default=0.0, ge=0, le=1)
    """Least share of the words of a generated answer (tasks without labels) that stand between quotation marks in its
    steps, endings aside: an answer made of other words does not follow from its reasoning, and a small model learns to
    make words up. 0 asks for none."""
    refuse_leaks: bool = True
    """Whether to look for phrases of `leak_phrases`, and for the gold (a label in quotation marks, or any text of 3
    words) in the first step or in a step that must cite items, where neither the question nor a shown item has it."""
    leak_phrases: Path | None = None
    """TOML file of phrases by language; null is the shipped one (`leaks.toml`)."""
    language: str | None = None
    """Language of the steps (ISO 639-1), by py3langid; the answer must be in the script of the gold."""
    task_language: dict[str, str] = Field(default={})
    """Language by name of the task; wins over `language`."""
    duplicates: bool = True
    """Whether of equal texts of a user and task one is kept."""
    near_duplicates_within: float | None = Field(default=None, ge=LEAST_THRESHOLD, le=1)
    """Similarity (Jaccard over 3-word runs of steps and answer) from which two traces of a user and task are one."""
    near_duplicates_across: float | None = Field(default=None, ge=LEAST_THRESHOLD, le=1)
    """The same for traces of two users; equal texts have similarity 1."""
    contamination_own: bool = True
    """Whether rows of a question are kept out that a later split of the data set asks again: of the same user in the
    same words, or with the same gold if it has `contamination_words` words or more."""
    contamination: tuple[Path, ...] = ()
    """Evaluations to keep out: data set folders (validation and test count) and folders with LaMP's own files."""
    contamination_words: int = Field(default=8, ge=5)
    """Words in a row that make a text contaminated."""
    contamination_users: bool = True
    """Whether users of these evaluations are kept out altogether. A split by time shares its users by design."""
    personal_data: Literal["off", "report", "mask", "drop"] = "report"
    """What is done with prompts, golds and completions that hold any: recorded in the row, replaced by `(mail)` and
    the like, or rejected."""
    personal_kinds: tuple[Kind, ...] = ("mail", "phone", "link", "name")
    """What is looked for; `handle` (@someone) besides."""
    names: Path | None = None
    """List of people's full names, one a line; without it names are found after `Signed-off-by:` and the like."""


@dataclass(frozen=True, slots=True)
class Row:
    """What the rules look at, of one candidate."""

    text: str
    finish_reason: str
    gold: str | None
    task: Task
    user_id: str
    question: str
    items: Sequence[ProfileItem]
    date: str | None
    may_leak: bool = True
    """Whether a phrase of the leak file may be in the text; False where that was ruled out before."""


@dataclass(slots=True)
class Judged:
    """One candidate after the rules that look at it alone."""

    parsed: tags.Parsed
    score: float
    claims: int
    grounded_claims: int
    reason: str | None
    detail: str
    personal_data: tuple[Kind, ...] = ()


def judge(
    candidate: Candidate,
    task: Task,
    items: Sequence[ProfileItem],
    date: str | None,
    rules: Selection,
    tagset: TagSet,
    question: str = "",
) -> Judged:
    """Apply the rules to one candidate, but for contamination and personal data: those want batches. `items` are those
    of the prompt; `date` and `question` are the example's."""
    leaks = _known_leaks(rules.leak_phrases) if rules.refuse_leaks else ()
    row = Row(candidate.text, candidate.finish_reason, candidate.gold, task, candidate.user_id, question, items, date)
    return Judge(rules, [task], tagset, leaks).judge(row)


class Judge:
    """The rules that look at one candidate alone, as a function from Arrow batch to Arrow batch.

    Takes what `with_context` gives. Gives the columns of `Trace`, `split`, and: `reason` (null where all rules hold),
    `detail`; `grounded` (share of claims that hold) and `text_key`, by which candidates are compared; `signature` and
    `bands`, where near-duplicates are looked for. With masking, every text is the masked one.
    """

    def __init__(
        self, rules: Selection, tasks: Sequence[Task], tagset: TagSet, leaks: Sequence[str] = (),
        evaluations: Evaluations | None = None, finder: Finder | None = None, own: OwnEvaluation | None = None,
    ) -> None:  # fmt: skip
        self.rules, self.tagset = rules, tagset
        self.tasks = {task.name: task for task in tasks}
        self.leaks, self.evaluations, self.finder, self.own = tuple(leaks), evaluations, finder, own
        self._is_shared: dict[str, bool] = {}  # texts of questions and items recur

    @classmethod
    def prepare(cls, rules: Selection, dataset: Dataset, tagset: TagSet, work: Path) -> "Judge":
        """Read the files that the rules name; hashes of evaluations go into `work`."""
        known = {task.name for task in dataset.manifest.tasks}
        for name in sorted({*rules.task_min_score, *rules.task_language} - known):
            raise InputError(f"selection names the task {name!r}; the data set has: {', '.join(sorted(known))}")
        for language in {rules.language, *rules.task_language.values()} - {None}:
            check_language(language or "")
        evaluations = None
        if rules.contamination:
            evaluations = read_evaluations(rules.contamination, rules.contamination_words, work / "evaluations")
        names = read_names(rules.names) if rules.names is not None else ()
        finder = None if rules.personal_data == "off" else Finder(rules.personal_kinds, names)
        leaks = read_leaks(rules.leak_phrases) if rules.refuse_leaks else ()
        own = OwnEvaluation(dataset, rules.contamination_words) if rules.contamination_own else None
        return cls(rules, dataset.manifest.tasks, tagset, leaks, evaluations, finder, own)

    def __call__(self, batch: "pa.RecordBatch") -> "pa.RecordBatch":
        """Judge a batch."""
        import pyarrow as pa

        rows = self._rows(batch, self._may_leak(batch))
        judged = [self.judge(row) for row in rows]
        columns: dict[str, Any] = {
            name: column for name, column in zip(batch.schema.names, batch.columns, strict=True) if name not in _CONTEXT
        }
        columns["split"] = batch["split"]
        if self.own is not None:
            splits: list[Any] = batch["split"].to_pylist()
            self._refuse_asked_again(splits, rows, judged)
        if self.evaluations is not None:
            self._refuse_contaminated(rows, judged)
        if self.finder is not None:
            columns |= self._refuse_or_mask_personal_data(columns, rows, judged)
        schema = arrow_schema(Trace)
        kept = [found.parsed.steps if found.reason is None else () for found in judged]
        steps = [[{"tag": s.tag, "text": s.text, "cites": s.cites} for s in row] for row in kept]
        reasons = [found.reason for found in judged]
        columns |= {
            "steps": pa.array(steps, schema.field("steps").type),
            "answer": pa.array([found.parsed.answer for found in judged], pa.string()),
            "score": pa.array([found.score for found in judged], pa.float64()),
            "claims": pa.array([found.claims for found in judged], pa.int64()),
            "grounded_claims": pa.array([found.grounded_claims for found in judged], pa.int64()),
            "personal_data": pa.array([found.personal_data for found in judged], schema.field("personal_data").type),
            "reason": pa.array(reasons, pa.string()),
            "detail": pa.array([found.detail for found in judged], pa.string()),
            "grounded": pa.array(
                [found.grounded_claims / found.claims if found.claims else 1.0 for found in judged], pa.float64()
            ),
            "text_key": pa.array(
                [_text_key(row, found.parsed.text) for row, found in zip(rows, judged, strict=True)], pa.binary(16)
            ),
        }
        if self.rules.near_duplicates_within is not None or self.rules.near_duplicates_across is not None:
            columns |= _signature_columns([_prose(found) if found.reason is None else "" for found in judged])
        return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))

    def judge(self, row: Row) -> Judged:
        """Apply the rules to one candidate, but for contamination and personal data."""
        parsed = tags.parse(row.text, self.tagset, k=len(row.items))
        judged = Judged(parsed, 0.0, 0, 0, None, "")
        if parsed.is_valid and row.gold is not None:
            judged.score = reward(row.task, parsed.answer, row.gold)
        fault = self._fault(row, judged)
        if fault is not None:
            judged.reason, judged.detail = fault
        return judged

    def _fault(self, row: Row, judged: Judged) -> tuple[str, str] | None:
        """Give the first rule that is broken and what was found; claims are counted where no earlier rule is broken."""
        parsed, rules = judged.parsed, self.rules
        if row.finish_reason == "refused":
            return "refused-by-server", "status 400, 413 or 422; there is no text"
        if row.finish_reason != "stop":
            return "cut-off", f"finish reason {row.finish_reason}"
        if parsed.violations:
            first = parsed.violations[0]
            codes = ", ".join(sorted({violation.code for violation in parsed.violations}))
            return "grammar", f"{first.code} at {first.position}: {first.message} (all: {codes})"
        if row.gold is None:
            return "no-gold", "the example has no output"
        if rules.refuse_leaks and (leak := self._leak(row, parsed.steps)):
            return "leaks-gold", leak
        words = sum(len(step.text.split()) for step in parsed.steps)
        steps = len(parsed.steps)
        for length, unit, most in (
            (len(row.text), "characters", rules.max_characters),
            (words, "words", rules.max_words),
            (steps, "steps", rules.max_steps),
        ):
            if most is not None and length > most:
                return "too-long", f"{length} {unit}, at most {most}"
        for length, unit, least in ((words, "words", rules.min_words), (steps, "steps", rules.min_steps)):
            if length < least:
                return "too-short", f"{length} {unit}, at least {least}"
        language = rules.task_language.get(row.task.name, rules.language)
        if language is not None and (foreign := _foreign(parsed, row.gold, language)):
            return "foreign-language", foreign
        threshold = rules.task_min_score.get(row.task.name, rules.min_score.get(row.task.kind, 0.0))
        if judged.score < threshold:
            return "low-score", f"score {judged.score:.3f}, at least {threshold:g}"
        claims = tags.ground(parsed.steps, row.items, row.date)
        false = [claim for claim in claims if not claim.holds]
        judged.claims, judged.grounded_claims = len(claims), len(claims) - len(false)
        if false and rules.require_grounded:
            return "ungrounded", f"step {false[0].step}, [P{false[0].item}]: {false[0].reason}"
        if rules.require_support and row.task.labels:
            labels = {item.label for item in row.items if item.label is not None}
            if labels and parsed.answer not in labels:
                return "unsupported", f"the answer {parsed.answer!r} is not among {sorted(labels)}"
        if rules.least_quoted and not row.task.labels:
            share = _quoted_share(parsed)
            if share < rules.least_quoted:
                return "unsupported", f"{share:.2f} of the answer's words are quoted, at least {rules.least_quoted:g}"
        return None

    def _leak(self, row: Row, steps: Sequence[Step]) -> str:
        """Give how the gold is given away, or an empty text."""
        if row.may_leak and self._leak_pattern is not None:
            said = " ".join(" ".join(step.text for step in steps).lower().split())
            if phrase := self._leak_pattern.search(said):
                return f"a step says {phrase[0]!r}"
        words = (row.gold or "").lower().split()
        gold = " ".join(words)
        if not gold or (not row.task.labels and len(words) < _LEAST_GOLD_WORDS):
            return ""
        marks = [f'"{gold}"', f"“{gold}”"] if row.task.labels else [gold]
        for index, step in enumerate(steps):
            if index and self.tagset.by_name[step.tag].cites not in ("required", "pattern"):
                continue
            text = " ".join(step.text.lower().split())
            if any(mark in text for mark in marks):
                seen = [
                    row.question,
                    *(part for item in row.items for part in (item.title, item.text, item.label) if part),
                ]
                if not any(gold in " ".join(part.lower().split()) for part in seen):
                    return f"step {index} quotes the gold before the reasoning reaches it"
        return ""

    @cached_property
    def _leak_pattern(self) -> re.Pattern[str] | None:
        return _any_of(self.leaks) if self.leaks else None

    def _may_leak(self, batch: "pa.RecordBatch") -> list[bool]:
        """Whether each text may hold a phrase: all phrases at once, in time linear in the text."""
        import pyarrow.compute as pc

        if not self.leaks:
            return [False] * batch.num_rows
        phrases = (r"\s+".join(re.escape(word) for word in phrase.split()) for phrase in self.leaks)
        text: Any = batch["text"]
        return pc.match_substring_regex(text, "|".join(phrases), ignore_case=True).to_pylist()

    def _rows(self, batch: "pa.RecordBatch", may_leak: Sequence[bool]) -> list[Row]:
        items: Any = batch["items"]
        flat = items.flatten()
        fields = list(zip(*(flat.field(place).to_pylist() for place in range(len(ITEM_FIELDS))), strict=True))
        known = {  # those of a prompt recur with its attempts, those of a user with its prompts
            (date, title, text, label): ProfileItem.model_construct(
                profile_id="", position=0, item_id="", date=date, title=title, text=text, label=label
            )
            for date, title, text, label in set(fields)
        }
        built = [known[shown] for shown in fields]
        ends = [end - items.offsets[0].as_py() for end in items.offsets.to_pylist()]
        names = ("text", "finish_reason", "gold", "task", "user_id", "question", "date")
        columns = (batch[name].to_pylist() for name in names)
        return [
            Row(
                text,
                finish,
                gold,
                self.tasks[task],
                user,
                question,
                built[ends[index] : ends[index + 1]],
                date,
                may_leak[index],
            )
            for index, (text, finish, gold, task, user, question, date) in enumerate(zip(*columns, strict=True))
        ]

    def _refuse_asked_again(self, splits: Sequence[str], rows: Sequence[Row], judged: Sequence[Judged]) -> None:
        assert self.own is not None
        for split, row, found in zip(splits, rows, judged, strict=True):
            if not _outranks("contaminated", found.reason):
                continue
            if self.own.has(split, row.task.name, row.user_id, row.question, row.gold):
                found.reason, found.detail = "contaminated", f"the question of this {split} row is asked again later"

    def _refuse_contaminated(self, rows: Sequence[Row], judged: Sequence[Judged]) -> None:
        """Question, gold, trace and shown items against the evaluations; each text is looked up once."""
        assert self.evaluations is not None
        texts: list[str] = []
        owners: list[tuple[int, str]] = []
        for index, (row, found) in enumerate(zip(rows, judged, strict=True)):
            if not _outranks("contaminated", found.reason):
                continue
            if self.rules.contamination_users and row.user_id in self.evaluations.users:
                found.reason, found.detail = "contaminated", f"user {row.user_id!r} is in an evaluation"
                continue
            parts = [("question", question_text(row.task.name, row.question)), ("gold", row.gold or "")]
            parts += [("trace", step.text) for step in found.parsed.steps]
            parts += [(f"item [P{n}]", f"{item.title or ''} {item.text}") for n, item in enumerate(row.items, start=1)]
            texts += [text for _, text in parts]
            owners += [(index, what) for what, _ in parts]
        distinct = [text for text in dict.fromkeys(texts) if text not in self._is_shared]
        self._is_shared |= zip(distinct, self.evaluations.shared(distinct), strict=True)
        for (index, what), text in zip(owners, texts, strict=True):
            if self._is_shared[text] and judged[index].reason != "contaminated":
                run = f"{self.rules.contamination_words} words in a row"
                judged[index].reason = "contaminated"
                judged[index].detail = f"the {what} shares {run}, or all of a short text, with an evaluation"
        if len(self._is_shared) > _MOST_KNOWN:
            self._is_shared.clear()

    def _refuse_or_mask_personal_data(
        self, columns: dict[str, Any], rows: Sequence[Row], judged: list[Judged]
    ) -> dict[str, Any]:
        """Look through prompts, golds and completions; give the columns that masking changes."""
        import pyarrow as pa
        import pyarrow.compute as pc

        assert self.finder is not None
        messages = columns["messages"]
        prompts: dict[int, list[dict[str, str]]] = {}
        is_hit = pc.match_substring_regex(messages.flatten().field("content"), self.finder.sign)
        owners: Any = pc.list_parent_indices(messages)
        for index in sorted(set(owners.filter(is_hit).to_pylist())):
            prompts[index] = messages[index].as_py()
        changed: dict[str, dict[int, Any]] = {"text": {}, "gold": {}, "messages": {}, "prompt_hash": {}}
        own = [pc.match_substring_regex(columns[name], self.finder.sign) for name in ("text", "gold")]
        hits = {index for flags in own for index, is_hit in enumerate(flags.to_pylist()) if is_hit} | prompts.keys()
        for index in sorted(hits):
            row, found = rows[index], judged[index]
            text, kinds = self.finder.mask(row.text)
            gold, more = self.finder.mask(row.gold or "")
            turns = [self.finder.mask(turn["content"]) for turn in prompts.get(index, ())]
            every = {*kinds, *more, *(kind for _, of_turn in turns for kind in of_turn)}
            if not every:
                continue
            found.personal_data = tuple(kind for kind in self.finder.kinds if kind in every)
            if self.rules.personal_data == "drop" and _outranks("personal-data", found.reason):
                found.reason, found.detail = "personal-data", f"holds {', '.join(found.personal_data)}"
            if self.rules.personal_data != "mask":
                continue
            if kinds:
                changed["text"][index] = text
                found.parsed = tags.parse(text, self.tagset, k=len(row.items))
                claims = tags.ground(found.parsed.steps, row.items, row.date)
                found.claims, found.grounded_claims = len(claims), sum(claim.holds for claim in claims)
            if more:
                changed["gold"][index] = gold
            if turns:
                prompt = [turn | {"content": masked} for turn, (masked, _) in zip(prompts[index], turns, strict=True)]
                changed["messages"][index] = prompt
                changed["prompt_hash"][index] = prompt_hash([Message.model_validate(turn) for turn in prompt])
        return {
            name: pa.array([new.get(i, old) for i, old in enumerate(columns[name].to_pylist())], columns[name].type)
            for name, new in changed.items()
            if new
        }


def described(rules: Selection) -> dict[str, Any]:
    """Give the rules for a manifest: files and folders by their names, without the way to them."""
    settings = rules.model_dump(mode="json")
    settings["contamination"] = [folder.name for folder in rules.contamination]
    return settings | {key: Path(settings[key]).name for key in ("leak_phrases", "names") if settings[key] is not None}


def files_of(rules: Selection) -> dict[str, str]:
    """Give the hash of each file that the rules name or that lies in an evaluation folder, by name: what the outcome of
    a selection depends on besides its settings. Raises InputError for a path that does not exist."""
    found: dict[str, str] = {}
    for path in (rules.leak_phrases or LEAKS, rules.names, *rules.contamination):
        if path is None:
            continue
        if not path.exists():
            raise InputError(f"selection: {path} does not exist")
        inside = [path] if path.is_file() else sorted(path.rglob("*"))
        found |= {
            f"{path.name}/{file.relative_to(path).as_posix()}": sha256_file(file)
            for file in inside
            if file.is_file() and file.suffix != ".tmp"
        }
    return found


def read_leaks(path: Path | None = None) -> tuple[str, ...]:
    """Read the phrases of a leak file, all languages together; None is the shipped one. Raises InputError."""
    path = path or LEAKS
    if not path.is_file():
        raise InputError(f"leak phrases {path} do not exist; the shipped file is used when none is named")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"leak phrases {path} are not TOML: {error}") from None
    phrases: dict[str, None] = {}
    for language, found in content.items():
        if not isinstance(found, list) or not all(isinstance(phrase, str) and phrase.strip() for phrase in found):
            raise InputError(f"leak phrases {path}: {language} must be a list of texts, not {found!r}")
        phrases |= dict.fromkeys(" ".join(phrase.lower().split()) for phrase in found)
    return tuple(phrases)


def _signature_columns(texts: Sequence[str]) -> dict[str, Any]:
    import pyarrow as pa

    signature, bands = signatures(texts)
    return {
        name: pa.array([row.tobytes() for row in matrix], pa.binary(matrix.shape[1] * matrix.itemsize))
        for name, matrix in (("signature", signature), ("bands", bands))
    }


def _prose(judged: Judged) -> str:
    """Give the words of a trace without tags and citations."""
    steps = (_CITATION.sub(" ", step.text) for step in judged.parsed.steps)
    return " ".join((*steps, judged.parsed.answer))


def _foreign(parsed: tags.Parsed, gold: str, language: str) -> str:
    """Give in what way steps or answer are in another language, or an empty text. Quoted words are the user's own."""
    prose = _QUOTED.sub(" ", " ".join(_CITATION.sub(" ", step.text) for step in parsed.steps))
    found = foreign_language(prose, language)
    if found:
        return f"the steps are in {found}, not in {language}"
    if is_other_script(parsed.answer, gold):
        return "the answer is in another script than the gold"
    return ""


def _quoted_share(parsed: tags.Parsed) -> float:
    """Give the share of the answer's words that stand in what the steps quote; 1 for an answer without words."""
    quotes = [quote for step in parsed.steps for quote in re.findall(r'["“]([^"“”]+)["”]', step.text)]
    known, wanted = set(stems(" ".join(quotes))), stems(parsed.answer)
    return sum(word in known for word in wanted) / len(wanted) if wanted else 1.0


def _text_key(row: Row, text: str) -> bytes:
    """Give what equal texts of one user and task have in common."""
    parts = (part.encode("utf-8", "surrogatepass") for part in (row.task.name, row.user_id, text))
    return sha256(b"\0".join(parts)).digest()[:16]


def _outranks(reason: str, other: str | None) -> bool:
    """Whether a reason is tried before another; any is before none."""
    return other is None or _RANK[reason] < _RANK[other]


@lru_cache(maxsize=8)
def _any_of(phrases: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(phrase) for phrase in phrases))


@lru_cache(maxsize=8)
def _known_leaks(path: Path | None) -> tuple[str, ...]:
    return read_leaks(path)


_RANK = {reason: rank for rank, reason in enumerate(REASONS)}
_CITATION = re.compile(r"\[P\d+\]")
_QUOTED = re.compile(r'"[^"\n]*"|“[^“”\n]*”')
