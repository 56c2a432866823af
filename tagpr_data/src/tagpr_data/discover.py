"""A tag set out of a sample of chains: open labels by a teacher, gathered into groups, proposed as a file to edit.

The teacher says for each sentence in a few words of its own what it does. Distinct labels are compared by the words and
word parts they share (TF-IDF over words and character trigrams) and joined bottom up (average linkage, cosine
distance); the distance at which groups stay apart is the one with the best mean silhouette, unless a number of groups
is given. A group's tag is named after its most frequent label.

What is reported: how often each group occurs and where, how many chains it touches, the coverage (share of sentences
in groups that the proposal keeps), and the stability (adjusted Rand index between the groups and those found on
resamples of the chains; near 1: another sample gives the same groups).

Guarantee: the same labels give the same proposal; replies are journalled as in `generate`. Price: one question a
chain; groups cost time and memory with the square of the distinct labels (5,000: matrices of 200 MB). TF-IDF sees no
synonyms: "weighs options" and "compares alternatives" stay two groups for a person to merge. It was taken over sentence
vectors because it needs neither torch nor a download and works in any language. Method and wording are ours.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

import numpy as np

from tagpr_data.annotate import AnnotatingTeacher, chains_as_dataset, check_target
from tagpr_data.budget import FREE, NO_LIMITS, Limits, Price
from tagpr_data.chains import MAX_CHARACTERS, Fault, read_chains, sentences, take_apart
from tagpr_data.errors import InputError, shorten
from tagpr_data.generate import CANDIDATES, Prompt, Tally, TeacherPlan, generate
from tagpr_data.journal import folder_lock
from tagpr_data.prompts import PromptOptions, prompt_hash
from tagpr_data.records import Candidate, ChainRow, Message, ProfileItem, Sampling
from tagpr_data.tables import iter_records, table_writer, write_text
from tagpr_data.tags import Tag, TagSet

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_LABELS = 8_000
_RESAMPLES = 20
_DISTANCES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_SENTENCES = "The sentences:\n"
_NO_TAGS = TagSet(name="none", tags=(Tag(name="none", meaning="nothing", cites="optional"),), max_steps=1)


@dataclass(frozen=True)
class Labelled:
    """One chain with the teacher's own label for each sentence."""

    chain: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """One group of labels."""

    name: str
    """The tag's name, made from its most frequent label."""
    labels: dict[str, int]
    """Label → sentences, most frequent first."""
    sentences: int
    chains: int
    """Chains with such a sentence."""
    place: float
    """Mean place in the chain, 0 for the first sentence, 1 for the last."""
    is_kept: bool
    """Whether it is frequent enough for the proposal."""


NOT_ASKED = "not-asked"
"""Why a chain has no labels where a limit was reached before it."""


@dataclass(frozen=True)
class Discovery:
    """What was found."""

    groups: tuple[Group, ...]
    """Most frequent first."""
    coverage: float
    """Share of sentences in kept groups."""
    stability: float
    """Mean adjusted Rand index over resamples; 1: always the same groups."""
    stability_low: float
    """The 5th percentile of it."""
    silhouette: float
    """Mean silhouette of the labels in their groups, in [-1, 1]."""
    chains: int
    sentences: int
    unlabelled: dict[str, int]
    """Chains without usable labels, by reason; `NOT_ASKED` where a limit left them out."""

    def as_json(self) -> str:
        """All of it as JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def discover_tags(
    sample: Path, output: Path, teacher: AnnotatingTeacher, *, groups: int | None = None, min_share: float = 0.01,
    seed: int = 0, concurrency: int = 8, limits: Limits = NO_LIMITS, price: Price = FREE,
    samplings: Sequence[Sampling] = (Sampling(),), watch: Callable[[Tally], object] = lambda tally: None,
) -> Discovery:  # fmt: skip
    """Ask for open labels of a sample of chains and write `tagset.toml` and `discovery.json` into the folder `output`.

    groups: number of groups; None lets the silhouette decide. min_share: kept are groups with at least this share of
    the sentences. Raises InputError when too few labels came back to make groups of.
    """
    import pyarrow.parquet as pq

    check_target(output)
    work = output / ".work"
    with folder_lock(output):
        with table_writer(work / "prompts.parquet", Prompt) as write:
            faults = _write_prompts(sample, write)
        outcome = generate(
            work, work / "prompts.parquet", [TeacherPlan(teacher, tuple(samplings), concurrency, price)],
            chains_as_dataset(work), PromptOptions(), seed, _judge, until_accepted=1, limits=limits, watch=watch,
        )  # fmt: skip
        labelled: dict[str, Labelled] = {}
        failed: dict[str, str] = {}
        for row in iter_records(work / CANDIDATES, Candidate):
            labels = _labels_of(row)
            if isinstance(labels, Fault):
                failed[row.example_id] = labels.reason
            else:
                labelled[row.example_id] = Labelled(row.example_id, tuple(labels))
        faults.update(reason for chain, reason in failed.items() if chain not in labelled)
        asked = pq.read_metadata(work / "prompts.parquet").num_rows
        if not_asked := asked - len(labelled.keys() | failed.keys()):
            faults[NOT_ASKED] = not_asked
        found = group(list(labelled.values()), groups=groups, min_share=min_share, seed=seed, unlabelled=faults)
        write_text(output / "discovery.json", found.as_json())
        about = f"{found.chains} chains labelled by {teacher.name}" + (
            ", a part of the sample: a limit was reached" if outcome.status != "complete" else ""
        )
        write_text(output / "tagset.toml", tagset_file(found, output.name, about))
    return found


def group(
    chains: Sequence[Labelled], *, groups: int | None = None, min_share: float = 0.01, seed: int = 0,
    unlabelled: Mapping[str, int] | None = None,
) -> Discovery:  # fmt: skip
    """Gather open labels into groups; see the module docstring."""
    counts = Counter(label for chain in chains for label in chain.labels)
    labels = sorted(counts)
    least = 3 if groups is None else groups
    if len(labels) < least:
        raise InputError(
            f"{len(chains)} chains gave {len(labels)} distinct labels, at least {least} are needed; "
            "give a larger sample"
        )
    if len(labels) > _MOST_LABELS:
        raise InputError(f"{len(labels)} distinct labels, at most {_MOST_LABELS} are grouped; give a smaller sample")
    distances = _distances(labels)
    cut, silhouette = _best_cut(distances, groups)
    of_label = dict(zip(labels, (int(index) for index in cut), strict=True))
    total = counts.total()
    made = [
        _group([label for label in labels if of_label[label] == index], counts, chains, min_share * total)
        for index in sorted(set(of_label.values()))
    ]
    made.sort(key=lambda entry: (-entry.sentences, entry.name))
    stabilities = _stabilities(chains, labels, distances, cut, groups, seed)
    return Discovery(
        groups=tuple(_with_own_names(made)),
        coverage=sum(entry.sentences for entry in made if entry.is_kept) / total,
        stability=float(np.mean(stabilities)),
        stability_low=float(np.quantile(stabilities, 0.05)),
        silhouette=silhouette,
        chains=len(chains),
        sentences=total,
        unlabelled=dict(sorted((unlabelled or {}).items())),
    )


def tagset_file(found: Discovery, name: str, about: str) -> str:
    """Give the proposal as a tag-set file (TOML, `tags.load_tagset` reads it), with what a person needs to edit it as
    comments."""
    kept = [entry for entry in found.groups if entry.is_kept]
    safe = re.sub(r"[^A-Za-z0-9_.-]", "-", name).lstrip("_.-") or "discovered"
    low = f"{found.stability_low:.2f}"
    lines = [
        f"# Proposed from {_comment(about)}. A proposal: name the tags, merge what means the same, set `cites`",
        "# (required, pattern, optional, no) and required_any, then use it with --tagset.",
        f"# {len(kept)} of {len(found.groups)} groups, covering {found.coverage:.1%} of {found.sentences} sentences;",
        f"# stability {found.stability:.2f} (adjusted Rand index over resamples, lowest 5 %: {low}).",
        "",
        f"name = {json.dumps(safe)}",
        "required_any = []",
        "min_steps = 1",
        "max_steps = 12",
    ]
    for entry in kept:
        often = "; ".join(f"{label} ({count})" for label, count in list(entry.labels.items())[:5])
        lines += [
            "",
            f"# {entry.sentences} sentences in {entry.chains} chains, mean place {entry.place:.2f}: {_comment(often)}",
            "[[tags]]",
            f"name = {_toml(entry.name)}",
            f"meaning = {_toml(next(iter(entry.labels)))}",
            'cites = "optional"',
        ]
    dropped = [f"{entry.name} ({entry.sentences})" for entry in found.groups if not entry.is_kept]
    if dropped:
        lines += ["", f"# Too rare for the proposal: {_comment(', '.join(dropped))}"]
    return "\n".join(lines) + "\n"


def read_open_labels(reply: str, count: int) -> list[str] | Fault:
    """Read a teacher's reply: a label of at most 8 words for each of `count` sentences, in lower case, without
    punctuation at the ends; or what is wrong with it."""
    begin, marker, rest = reply.partition("</think>")
    body = rest if marker and begin.lstrip().startswith("<think>") else reply
    labels: dict[int, str] = {}
    for line in body.splitlines():
        if not line.strip() or line.strip().startswith("```"):
            continue
        found = _LINE.fullmatch(line)
        label = " ".join(found["label"].lower().split()).strip(" .,;:!?\"'`*<>") if found else ""
        if found is None or not 1 <= len(label.split()) <= 8 or len(label) > 80:
            return Fault("unreadable-reply", f"the line {shorten(line)} is not `3: a few words`")
        number = int(found["number"])
        if not 1 <= number <= count:
            return Fault("unknown-sentence", f"sentence {number}; there are 1 to {count}")
        if number in labels:
            return Fault("repeated-sentence", f"sentence {number} has two labels")
        labels[number] = label
    if len(labels) < count:
        return Fault("missing-sentence", f"{count - len(labels)} of {count} sentences have no label")
    return [labels[number] for number in range(1, count + 1)]


_LINE = re.compile(r"\s*(?:[-*]\s+)?(?P<number>[0-9]{1,6})\s*[:.)|]\s*(?P<label>\S.{0,200})")


def _write_prompts(sample: Path, write: Callable[[Prompt], None]) -> Counter[str]:
    faults: Counter[str] = Counter()
    taken: set[str] = set()
    for batch in read_chains(sample):
        for value in batch.to_pylist():
            row = ChainRow(**{name: value[name] for name in ChainRow.model_fields})
            chain = take_apart(row, _NO_TAGS, MAX_CHARACTERS)
            if isinstance(chain, Fault):
                faults[chain.reason] += 1
                continue
            messages = _prompt(row, sentences(chain.body))
            identity = prompt_hash(messages)
            if identity in taken:  # a chain that occurs twice counts once
                faults["duplicate"] += 1
                continue
            taken.add(identity)
            prompt = Prompt(
                example_id=row.id, split="train", task="annotate", user_id="", profile_id="", profile_size=0, input="",
                date=None, retriever="none", k=0, item_ids=(), messages=messages, prompt_hash=identity, gold=None,
            )  # fmt: skip
            write(prompt)
    return faults


def _prompt(row: ChainRow, pieces: Sequence[str]) -> tuple[Message, ...]:
    system = (
        "For each sentence of someone's reasoning about a person, say in two to four words what the sentence does in "
        "the reasoning, not what it is about; use the same words for sentences that do the same. "
        "Answer with one line per sentence and nothing else: its number, a colon, these words."
    )
    lines = "\n".join(f"{number}: {json.dumps(piece, ensure_ascii=False)}" for number, piece in enumerate(pieces, 1))
    asked = f"The question was:\n{row.question}\n\n" if row.question else ""
    user = f"{asked}{_SENTENCES}{lines}".replace("<|", "< |")  # control tokens of chat templates
    return Message(role="system", content=system), Message(role="user", content=user)


def _judge(candidate: Candidate, prompt: Prompt, items: Sequence[ProfileItem]) -> str | None:
    labels = _labels_of(candidate)
    return labels.reason if isinstance(labels, Fault) else None


def _labels_of(candidate: Candidate) -> list[str] | Fault:
    if candidate.finish_reason == "refused":
        return Fault("refused-by-server", "status 400, 413 or 422; there is no reply")
    if candidate.finish_reason != "stop":
        return Fault("cut-off", f"finish reason {candidate.finish_reason}")
    count = candidate.messages[-1].content.rpartition(_SENTENCES)[2].count("\n") + 1
    return read_open_labels(candidate.text, count)


def _distances(labels: Sequence[str]) -> "NDArray[np.float64]":
    """Give the cosine distances between labels, (L, L), in [0, 1]."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        raise InputError("discover-tags needs scikit-learn: pip install 'tagpr-data[tagging]'") from None
    parts: Any = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3)).fit_transform(labels)
    words: Any = TfidfVectorizer(token_pattern=r"\S+").fit_transform(labels)
    likeness = np.asarray((parts @ parts.T).todense() + (words @ words.T).todense()) / 2
    distances = np.clip(1 - likeness, 0, 1)
    np.fill_diagonal(distances, 0)
    return distances


def _best_cut(distances: "NDArray[np.float64]", groups: int | None) -> "tuple[NDArray[np.int64], float]":
    """Give the group of each label and the mean silhouette; with `groups` None the cut with the best silhouette."""
    from sklearn.metrics import silhouette_score

    best: tuple[NDArray[np.int64], float] | None = None
    for cut in [_cut(distances, groups, None)] if groups else [_cut(distances, None, at) for at in _DISTANCES]:
        count = len(set(cut.tolist()))
        score = float(silhouette_score(distances, cut, metric="precomputed")) if 1 < count < len(cut) else -1.0
        if best is None or score > best[1] + 1e-9:
            best = cut, score
    assert best is not None, "there is at least one cut"
    return best


def _cut(distances: "NDArray[np.float64]", groups: int | None, at: float | None) -> "NDArray[np.int64]":
    from sklearn.cluster import AgglomerativeClustering

    clustering: Any = AgglomerativeClustering  # its types know no n_clusters=None
    model = clustering(n_clusters=groups, distance_threshold=at, metric="precomputed", linkage="average")
    return np.asarray(model.fit_predict(distances), dtype=np.int64)


def _stabilities(
    chains: Sequence[Labelled], labels: Sequence[str], distances: "NDArray[np.float64]", cut: "NDArray[np.int64]",
    groups: int | None, seed: int,
) -> list[float]:  # fmt: skip
    """Give the adjusted Rand index between the groups and those of each resample of the chains, over its sentences."""
    from sklearn.metrics import adjusted_rand_score

    place = {label: index for index, label in enumerate(labels)}
    rng = np.random.default_rng(seed)
    found: list[float] = []
    for _ in range(_RESAMPLES):
        drawn = [chains[index] for index in rng.integers(len(chains), size=len(chains))]
        counts = Counter(place[label] for chain in drawn for label in chain.labels)
        present = sorted(counts)
        if len(present) < max(3, groups or 0):
            continue
        again, _ = _best_cut(distances[np.ix_(present, present)], groups)
        weights = [counts[index] for index in present]
        found.append(float(adjusted_rand_score(np.repeat(cut[present], weights), np.repeat(again, weights))))
    return found or [0.0]


def _group(members: Sequence[str], counts: Counter[str], chains: Sequence[Labelled], least: float) -> Group:
    inside = set(members)
    places: list[float] = []
    touched = 0
    for chain in chains:
        here = [index for index, label in enumerate(chain.labels) if label in inside]
        touched += bool(here)
        places += [index / max(1, len(chain.labels) - 1) for index in here]
    labels = dict(sorted(((label, counts[label]) for label in members), key=lambda pair: (-pair[1], pair[0])))
    count = sum(labels.values())
    return Group(_name(next(iter(labels))), labels, count, touched, sum(places) / len(places), count >= least)


def _name(label: str) -> str:
    """Give a tag name: the letters and digits of a label, words joined by underscores, a letter first."""
    words = "".join(c if c.isalpha() or c.isdecimal() else " " for c in normalize("NFC", label)).split()
    name = "_".join(words)[:58].strip("_")
    return name if name[:1].isalpha() else f"step_{name}".rstrip("_")


def _with_own_names(groups: Sequence[Group]) -> list[Group]:
    """Number names that occur twice, or are the think block's."""
    taken = {"think"}
    named: list[Group] = []
    for entry in groups:
        name, number = entry.name, 1
        while name.casefold() in taken:
            number += 1
            name = f"{entry.name}_{number}"
        taken.add(name.casefold())
        named.append(replace(entry, name=name))
    return named


def _comment(text: str) -> str:
    """Give a text as one line of a TOML comment."""
    return "".join(character if character.isprintable() else " " for character in text)


def _toml(text: str) -> str:
    """Give a text as a TOML string: JSON's escapes are TOML's, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
