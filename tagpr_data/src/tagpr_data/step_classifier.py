"""A small classifier of sentences by tag, trained on a tagged corpus: logistic regression over hashed words.

It sees the words of a sentence and of the one before, where it stands in the chain, and how many items it cites.
Guarantee: the same corpus gives the same weights on the same machine; the model is one JSON file, which builds numbers
and runs nothing. How good it is, is measured on a fifth of the users that it was not trained on. Price: about 7 s of
one core for 39,000 sentences (7b4c8e0, loaded machine); 1.5 MB on disk. It knows the phrasing of its corpus:
on chains of another writer trust it as far as a look at them says. Needs scikit-learn (the extra `tagging`).
"""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tagpr_data import tags
from tagpr_data.chains import sentences
from tagpr_data.corpus import open_corpus
from tagpr_data.errors import InputError
from tagpr_data.records import Record, Trace
from tagpr_data.tables import explain, iter_records, sha256_text, write_text
from tagpr_data.tags import TagSet

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FEATURES = 2**15
_MOST_SENTENCES = 200_000
_HELD_OUT_OF = 5


class Quality(Record):
    """How well the classifier did on users that it was not trained on."""

    sentences: int
    """Sentences it was asked about."""
    users: int
    """Their users."""
    accuracy: float
    """Share of them it gave the corpus's tag."""
    majority: float
    """The same for the most frequent tag alone."""
    confusion: dict[str, dict[str, int]]
    """Tag of the corpus → tag it gave → sentences."""


class _File(Record):
    """The classifier on disk."""

    format: str = "tagpr step classifier 1"
    tagset_hash: str
    labels: tuple[str, ...]
    weights: str
    """Base64 of float32, little-endian, (labels, features)."""
    intercept: tuple[float, ...]
    quality: Quality


@dataclass(frozen=True)
class StepClassifier:
    """Weights; `train` or `load` makes it. Sizes: U sentences, T tags of the set, F features."""

    labels: tuple[str, ...]
    """The tags, in the order of the tag set."""
    weights: "NDArray[np.float32]"
    """(T, F)."""
    intercept: "NDArray[np.float32]"
    """(T,)."""
    tagset_hash: str
    quality: Quality

    @cached_property
    def revision(self) -> str:
        """Hash of the weights."""
        return hashlib.sha256(self.weights.tobytes() + self.intercept.tobytes()).hexdigest()[:16]

    def log_shares(self, pieces: Sequence[str]) -> "NDArray[np.float32]":
        """Give the logarithm of each tag's share for the sentences of one chain, (U, T)."""
        scores = _hashed(_features(pieces)) @ self.weights.T + self.intercept
        scores -= scores.max(axis=1, keepdims=True)
        return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        weights = base64.b64encode(self.weights.astype("<f4").tobytes()).decode("ascii")
        intercept = tuple(float(value) for value in self.intercept)
        stored = _File(
            tagset_hash=self.tagset_hash, labels=self.labels, weights=weights, intercept=intercept, quality=self.quality
        )
        write_text(path, json.dumps(stored.model_dump(), sort_keys=True, ensure_ascii=False) + "\n")


def load(path: Path, tagset: TagSet) -> StepClassifier:
    """Read a classifier; InputError when it is none or one of another tag set."""
    from pydantic import ValidationError

    try:
        stored = _File.model_validate_json(path.read_bytes())
        weights = np.frombuffer(base64.b64decode(stored.weights, validate=True), dtype="<f4")
        weights = weights.reshape(len(stored.labels), _FEATURES)
    except ValidationError as error:
        raise InputError(f"{path} is no step classifier: {explain(error)}") from None
    except ValueError as error:
        raise InputError(f"{path} is no step classifier: {error}") from None
    if stored.tagset_hash != tagset.hash or stored.format != _File.model_fields["format"].default:
        raise InputError(f"{path} was trained on another tag set than {tagset.name}, or by another version")
    intercept = np.array(stored.intercept, dtype=np.float32)
    return StepClassifier(stored.labels, weights.astype(np.float32), intercept, stored.tagset_hash, stored.quality)


def train(corpus: Path, tagset: TagSet) -> StepClassifier:
    """Train on the traces of a corpus folder; InputError when it is of another tag set or too small."""
    opened = open_corpus(corpus)
    if opened.manifest.tagset_hash != tagset.hash:
        raise InputError(f"{corpus} is tagged with {opened.manifest.tagset}, not with {tagset.name}; give its file")
    chains, count = [], 0
    for path in opened.of("traces"):
        for trace in iter_records(opened.folder / path.path, Trace):
            if count < _MOST_SENTENCES:
                chains.append(_Labelled.of(trace))
                count += len(chains[-1].pieces)
    held = [_is_held_out(chain.user) for chain in chains]
    if all(held) or not any(held):  # few users: hold out by chain
        held = [_is_held_out(chain.id) for chain in chains]
    known = [chain for chain, is_held in zip(chains, held, strict=True) if not is_held]
    unknown = [chain for chain, is_held in zip(chains, held, strict=True) if is_held]
    if not unknown or len({label for chain in known for label in chain.labels}) < 2:
        raise InputError(f"{corpus} has {len(chains)} traces, too few tags or traces to train a classifier and test it")
    quality = _quality(_fitted(known, tagset, None), unknown)
    return _fitted(chains, tagset, quality)


def best_labels(
    log_shares: "NDArray[np.float32]", pieces: Sequence[str], tagset: TagSet, k: int | None
) -> list[str] | None:
    """Give the most likely tags (T as in the tag set) for the sentences with which the steps are valid in the grammar:
    their number, citations and required tags. None where there are none. Takes time that grows with U²."""
    count, tag_count = log_shares.shape
    most = min(tagset.max_steps, count)
    required = np.array([not tagset.required_any or tag.name in tagset.required_any for tag in tagset.tags])
    total = np.vstack([np.zeros((1, tag_count)), np.cumsum(log_shares, axis=0, dtype=np.float64)])  # (U + 1, T)
    barred = _barred(pieces, tagset, k)  # (U + 1, U + 1, T): -inf where no such step may be
    # value[s, r, j, t]: the first j sentences in s steps, the last of tag t, r: with a required tag among them
    value = np.full((most + 1, 2, count + 1, tag_count), -np.inf)
    origin = np.zeros((most + 1, 2, count + 1, tag_count, 2), dtype=np.int32)  # (where the step begins, r before it)
    for steps in range(1, most + 1):
        before = [_without_own_tag(value[steps - 1, r]) for r in (0, 1)]
        if steps == 1:
            before[0][0] = 0.0
        for end in range(1, count + 1):
            gain = total[end] - total[:end] + barred[:end, end]
            for has in (0, 1):
                sums = before[has][:end] + gain
                begin = sums.argmax(axis=0)
                found = sums[begin, np.arange(tag_count)]
                for now in {has, 1} if has == 0 else {1}:
                    fits = (required if now > has else np.ones_like(required) if has else ~required) & (
                        found > value[steps, now, end]
                    )
                    value[steps, now, end][fits] = found[fits]
                    origin[steps, now, end][fits] = np.stack([begin, np.full(tag_count, has)], axis=1)[fits]
    last = value[:, 1, count].copy()
    last[: tagset.min_steps] = -np.inf
    steps, tag = (int(index) for index in np.unravel_index(last.argmax(), last.shape))
    if last[steps, tag] == -np.inf:
        return None
    labels: list[str] = []
    end, has = count, 1
    while steps:
        begin, earlier = (int(part) for part in origin[steps, has, end, tag])
        labels[:0] = [tagset.names[tag]] * (end - begin)
        steps, has, end = steps - 1, earlier, begin
        if steps:
            others = value[steps, has, end].copy()
            others[tag] = -np.inf
            tag = int(others.argmax())
    return labels


def _without_own_tag(value: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Give for each tag the best value among the other tags, (U + 1, T): neighbours of one tag would be one step."""
    first = value.argmax(axis=1)
    rows = np.arange(len(value))
    best = value[rows, first]
    others = value.copy()
    others[rows, first] = -np.inf
    second = others.max(axis=1)
    return np.where(np.arange(value.shape[1]) == first[:, None], second[:, None], best[:, None])


def _barred(pieces: Sequence[str], tagset: TagSet, k: int | None) -> "NDArray[np.float64]":
    cites = [set(tags.cited(piece)) for piece in pieces]
    count = len(pieces)
    numbers = np.zeros((count + 1, count + 1), dtype=np.int32)
    if any(cites):
        for begin in range(count):
            seen: set[int] = set()
            for end in range(begin + 1, count + 1):
                seen |= cites[end - 1]
                numbers[begin, end] = len(seen)
    least = {"required": 1, "pattern": 2 if k is not None and k >= 2 else 0}
    barred = np.zeros((count + 1, count + 1, len(tagset.tags)))
    for index, tag in enumerate(tagset.tags):
        is_bad = numbers > 0 if tag.cites == "no" else numbers < least.get(tag.cites, 0)
        barred[..., index][is_bad] = -np.inf
    return barred


@dataclass(frozen=True, slots=True)
class _Labelled:
    """One trace's sentences and their tags."""

    id: str
    user: str
    pieces: list[str]
    labels: list[str]

    @classmethod
    def of(cls, trace: Trace) -> "_Labelled":
        cut = [(piece, step.tag) for step in trace.steps for piece in sentences(step.text)]
        return cls(trace.id, trace.user_id, [piece for piece, _ in cut], [tag for _, tag in cut])


def _is_held_out(key: str) -> bool:
    return int(sha256_text(key)[:8], 16) % _HELD_OUT_OF == 0


def _fitted(chains: Sequence[_Labelled], tagset: TagSet, quality: Quality | None) -> StepClassifier:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise InputError("a classifier needs scikit-learn: pip install 'tagpr-data[tagging]'") from None
    wanted = [label for chain in chains for label in chain.labels]
    model = LogisticRegression(C=10.0, max_iter=2_000)
    model.fit(_hashed(token for chain in chains for token in _features(chain.pieces)), wanted)
    known = [str(label) for label in model.classes_]
    coefficients, offsets = np.asarray(model.coef_), np.asarray(model.intercept_)
    if len(known) == 2:  # scikit-learn keeps one row for two classes
        coefficients, offsets = np.vstack([-coefficients, coefficients]) / 2, np.concatenate([-offsets, offsets]) / 2
    weights = np.zeros((len(tagset.names), _FEATURES), dtype=np.float32)
    intercept = np.full(len(tagset.names), -50.0, dtype=np.float32)  # a tag that the corpus lacks: as good as never
    for row, label in enumerate(known):
        place = tagset.names.index(label)
        weights[place], intercept[place] = coefficients[row], offsets[row]
    quality = quality or Quality(sentences=0, users=0, accuracy=0.0, majority=0.0, confusion={})
    return StepClassifier(tagset.names, weights, intercept, tagset.hash, quality)


def _quality(model: StepClassifier, chains: Sequence[_Labelled]) -> Quality:
    pairs: Counter[tuple[str, str]] = Counter()
    for chain in chains:
        given = [model.labels[index] for index in model.log_shares(chain.pieces).argmax(axis=1)]
        pairs.update(zip(chain.labels, given, strict=True))
    count = pairs.total()
    true = Counter[str]()
    confusion: dict[str, dict[str, int]] = {}
    for (label, given), number in sorted(pairs.items()):
        true[label] += number
        confusion.setdefault(label, {})[given] = number
    right = sum(number for (label, given), number in pairs.items() if label == given)
    return Quality(
        sentences=count,
        users=len({chain.user for chain in chains}),
        accuracy=right / count,
        majority=max(true.values()) / count,
        confusion=confusion,
    )


def _features(pieces: Sequence[str]) -> Iterator[list[str]]:
    """Give the tokens that stand for each sentence of a chain."""
    before: list[str] = []
    for place, piece in enumerate(pieces):
        words = _WORD.findall(piece.lower())
        tokens = [*words, *(f"{first} {second}" for first, second in pairwise(words))]
        tokens += [f"<{word}" for word in before]
        tokens += [f"=place {min(9, 10 * place // len(pieces))}", f"=cites {min(3, len(tags.cited(piece)))}"]
        tokens += ["=first"] * (place == 0) + ["=last"] * (place == len(pieces) - 1) + ["=quote"] * ('"' in piece)
        yield tokens
        before = words


def _hashed(tokens: "Iterator[list[str]]") -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing: Any = HashingVectorizer  # its types know neither functions nor float32
    return hashing(analyzer=_itself, n_features=_FEATURES, alternate_sign=False, dtype=np.float32).transform(tokens)


def _itself(tokens: list[str]) -> list[str]:
    return tokens


_WORD = re.compile(r"[^\W_]+")
