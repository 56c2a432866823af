"""Retrieval: which of a user's items a prompt shows, as a full ranking of positions, best first.

`rank` takes the name of a retriever in `RETRIEVERS`; the caller keeps the first k. What each is, and how it relates to
the official LaMP code:

    none             no items at all: the control without a profile
    bm25             rank_bm25 0.2.2's `BM25Okapi` to the last bit, ties in the official order (`Bm25`)
    recency          latest date first; of equal dates the one later in the file first, like the official stable sort.
                     Officially k = 0 means the whole profile here (a slicing quirk); with us 0 items are 0 items.
    random           without replacement, drawn anew for each (seed, query): ours
    random-official  with replacement, so items may repeat; officially from one unseeded generator (`official_draw`)
    ranked, full     the given order. Officially `ranked` is a profile ranked beforehand, and there is no `full`.
    dense            dot product of vectors from an `encode` function that the caller brings; of equal scores the
                     earlier item first. Officially torch.topk, whose order of equal scores is undefined.
    hybrid           bm25 and dense joined by reciprocal rank fusion (`fuse`): ours, nothing official

Bm25's guarantee is equality, its price an index of some 20 bytes for each distinct word of each item. It reads about
15 million words a second: words are cut out of the UTF-8 bytes with numpy, numbered by Arrow, never Python strings.
"""

import hashlib
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tagpr_data.errors import InputError, shorten
from tagpr_data.introsort import argsort

Encode = Callable[[Sequence[str]], npt.NDArray[np.float32]]
"""N texts → their vectors, (N, D) float32. `tagpr_eval.encoders` has some, `embed_cache.py` remembers vectors."""

_K1, _B, _EPSILON = 1.5, 0.75, 0.25  # the defaults of rank_bm25, which the official code uses

_ASCII_SPACES = bytes(code for code in range(128) if chr(code).isspace())
_OTHER_SPACES = tuple(chr(code).encode() for code in range(128, 0x3001) if chr(code).isspace())


@dataclass(frozen=True)
class Request:
    """What a retriever may look at. `texts` and `dates` are in profile order."""

    query: str
    texts: Sequence[str]
    dates: Sequence[str | None] | None
    seed: int
    encode: Encode | None


def rank(
    retriever: str,
    query: str,
    texts: Sequence[str],
    *,
    dates: Sequence[str | None] | None = None,
    seed: int = 0,
    encode: Encode | None = None,
) -> list[int]:
    """Rank the items of one profile for one query: all positions in `texts`, best first (`none` gives an empty list,
    `random-official` may repeat positions). `dates` matter to `recency` only, `encode` to `dense` and `hybrid`, `seed`
    to the random ones, which mix it with the query, so that one seed serves a whole run. Raises InputError for an
    unknown name, a bad date, a missing encoder and vectors that are not finite."""
    if retriever not in RETRIEVERS:
        raise InputError(f"unknown retriever {shorten(retriever)}; known: {', '.join(RETRIEVERS)}")
    return RETRIEVERS[retriever](Request(query, texts, dates, seed, encode))


class Bm25:
    """BM25 over the items of one user; build once, ask often.

    Scores equal `rank_bm25.BM25Okapi([t.split() for t in texts]).get_scores(query.split())` to the last bit, so words
    keep case and punctuation, and a word that stands twice in the query counts twice. Two cases crash there and are
    defined here: no texts give no scores, and texts without any word give zeros.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        words, document_lengths = _words(texts)
        numbered = words.dictionary_encode()
        self._size = len(texts)
        self._vocabulary = numbered.dictionary  # in order of first appearance, which the sum of idf below depends on
        # Postings: each (term, document) pair once, sorted by term, then document. Words already stand in document
        # order, so a stable sort by term is enough.
        terms = numbered.indices.to_numpy()
        documents = np.repeat(np.arange(self._size, dtype=np.int32), document_lengths)
        order = _stable_argsort(terms)
        terms, documents = terms[order], documents[order]
        is_first = np.ones(len(terms), bool)
        is_first[1:] = (terms[1:] != terms[:-1]) | (documents[1:] != documents[:-1])
        firsts = np.flatnonzero(is_first)
        frequencies = np.diff(firsts, append=len(terms))
        terms, self._documents = terms[firsts], documents[firsts]
        self._document_frequencies = np.bincount(terms, minlength=len(self._vocabulary))
        self._starts = np.cumsum(self._document_frequencies) - self._document_frequencies
        if not len(words):
            self._weights = np.zeros(0)
            return
        # Same operations in the same order as rank_bm25, down to brackets, or the last bit differs.
        norm = _K1 * (1 - _B + _B * document_lengths / (len(words) / self._size))
        saturation = frequencies * (_K1 + 1) / (frequencies + norm[self._documents])
        self._weights = _idf(self._size, self._document_frequencies)[terms] * saturation

    def scores(self, query: str) -> npt.NDArray[np.float64]:
        """Score every item for the query: (N,) float64 in profile order, higher is better; may be negative."""
        words = _words([query])[0].dictionary_encode()
        number_of_word = np.full(len(words.dictionary), -1)
        found = pc.index_in(self._vocabulary, value_set=words.dictionary)
        number_of_word[found.drop_null().to_numpy()] = found.is_valid().to_numpy(zero_copy_only=False).nonzero()[0]
        terms = number_of_word[words.indices.to_numpy()]
        terms = terms[terms >= 0]
        counts = self._document_frequencies[terms]
        ends = np.cumsum(counts)
        # The postings of the query's words one after the other; bincount adds them up in this order, as rank_bm25 does.
        postings = np.arange(counts.sum()) + np.repeat(self._starts[terms] - ends + counts, counts)
        scores = np.bincount(self._documents[postings], weights=self._weights[postings], minlength=self._size)
        return scores.astype(np.float64, copy=False)  # of no posting at all, bincount gives integers

    def ranking(self, query: str) -> list[int]:
        """Give all positions, best first; equal scores in the order of the official code (`introsort.py`)."""
        return argsort(self.scores(query))[::-1].tolist()


def rank_recency(request: Request) -> list[int]:
    """Rank by date, latest first. Dates are numbers joined by "-" (`2014-5-1`, `2014-05`), compared number by number,
    or ISO date-times (without a zone: UTC), which come after the bare date of their day. Raises InputError where an
    item has no date or one that cannot be read."""
    size = len(request.texts)
    dates: Sequence[str | None] = request.dates if request.dates is not None else [None] * size
    if len(dates) != size:
        raise InputError(f"{len(dates)} dates for {size} profile items: give one date an item")
    keys = [_date_key(date, position, size) for position, date in enumerate(dates)]
    return sorted(range(size), key=keys.__getitem__)[::-1]


def rank_dense(request: Request) -> list[int]:
    """Rank by the dot product of query and item vectors, taken as the encoder gives them (normalised or not) and added
    up in float64; equal scores in profile order, so that equal texts keep it. Raises InputError without an encoder and
    for vectors of a wrong shape or not finite."""
    if request.encode is None:
        raise InputError("the retrievers dense and hybrid need an encoder, a function from texts to vectors")
    if not request.texts:
        return []
    vectors = np.asarray(request.encode([*request.texts, request.query]), np.float64)  # (N + 1, D)
    if vectors.ndim != 2 or len(vectors) != len(request.texts) + 1:
        raise InputError(f"the encoder gave vectors of shape {vectors.shape} for {len(request.texts) + 1} texts")
    if not np.isfinite(vectors).all():
        text = [*request.texts, request.query][int(np.isfinite(vectors).all(axis=1).argmin())]
        raise InputError(f"the encoder gave a vector that is not finite for {shorten(text)}")
    scores = (vectors[:-1] * vectors[-1]).sum(axis=1)  # not `@`: BLAS may give equal rows different last bits
    return np.argsort(-scores, kind="stable").tolist()


def fuse(*rankings: Sequence[int], constant: int = 60) -> list[int]:
    """Join full rankings of the same positions: sum over rankings of 1 / (constant + rank), rank from 1. Equal sums in
    the order of the first ranking. Source: Cormack, Clarke and Büttcher, Reciprocal Rank Fusion, SIGIR 2009."""
    scores = dict.fromkeys(rankings[0], 0.0)
    for ranking in rankings:
        for place, position in enumerate(ranking, start=1):
            scores[position] += 1 / (constant + place)
    return sorted(scores, key=scores.__getitem__, reverse=True)  # sorted keeps the order of equal ones, reversed too


def official_draw(generator: random.Random, size: int, k: int) -> list[int]:
    """Draw k positions out of `size` with replacement, as the official `random` retriever does; k may exceed `size`.
    That one draws from Python's global generator each time a sample is read: one `random.Random(seed)`, handed from
    sample to sample in data set order, repeats an official run that began with `random.seed(seed)`."""
    return generator.choices(range(size), k=k) if size else []


def _rank_bm25(request: Request) -> list[int]:
    return Bm25(request.texts).ranking(request.query)


def _rank_random(request: Request) -> list[int]:
    generator = _generator(request)
    draws = [generator.random() for _ in request.texts]  # the one method Python keeps equal between versions
    return sorted(range(len(draws)), key=draws.__getitem__)


def _rank_random_official(request: Request) -> list[int]:
    return official_draw(_generator(request), len(request.texts), len(request.texts))


def _rank_hybrid(request: Request) -> list[int]:
    return fuse(_rank_bm25(request), rank_dense(request))


def _rank_as_given(request: Request) -> list[int]:
    return list(range(len(request.texts)))


def _rank_none(_request: Request) -> list[int]:
    return []


RETRIEVERS: dict[str, Callable[[Request], list[int]]] = {
    "none": _rank_none,
    "bm25": _rank_bm25,
    "recency": rank_recency,
    "random": _rank_random,
    "random-official": _rank_random_official,
    "ranked": _rank_as_given,
    "full": _rank_as_given,
    "dense": rank_dense,
    "hybrid": _rank_hybrid,
}


def _words(texts: Sequence[str]) -> "tuple[pa.Array[Any], npt.NDArray[np.int64]]":
    """Split as `str.split()` does: all words as UTF-8 (surrogates kept), and how many of them each text has (N,)."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    joined = b"\n".join([b"", *encoded, b""])
    text_ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)) + 1)
    if not joined.isascii():
        for space in _OTHER_SPACES:
            joined = joined.replace(space, b" " * len(space))
    codes = np.frombuffer(joined, np.uint8)
    is_space = (codes == 0x20) | (codes - 0x09 < 5) | (codes - 0x1C < 4)  # unsigned: below the range wraps to large
    edges = np.flatnonzero(is_space[1:] != is_space[:-1])  # last byte before a word, last byte of it, …
    starts, lasts = edges[0::2], edges[1::2]
    offsets = np.zeros(len(starts) + 1, np.int64)
    np.cumsum(lasts - starts, out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets.data), pa.py_buffer(joined.translate(None, _ASCII_SPACES))]
    words = pa.Array.from_buffers(pa.large_binary(), len(starts), buffers)
    return words, np.diff(np.searchsorted(starts, text_ends), prepend=0)


def _stable_argsort(numbers: npt.NDArray[np.int32]) -> npt.NDArray[np.intp]:
    """Stable argsort of numbers from 0: two radix passes at most, which numpy has for 16 bits only."""
    order = np.argsort(numbers.astype(np.uint16), kind="stable")  # the cast keeps the low 16 bits
    if len(numbers) and numbers.max() >= 1 << 16:
        order = order[np.argsort((numbers >> 16).astype(np.uint16)[order], kind="stable")]
    return order


def _idf(size: int, document_frequencies: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Inverse document frequency of each term; negative ones become epsilon times the mean of all."""
    idf = _idf_by_frequency(size)[document_frequencies]
    # accumulate adds from left to right, as rank_bm25 does; np.sum adds pairwise and sum() of Python 3.12 compensates.
    mean = np.add.accumulate(idf)[-1] / len(idf)
    return np.where(idf < 0, _EPSILON * mean, idf)


@lru_cache(maxsize=256)
def _idf_by_frequency(size: int) -> npt.NDArray[np.float64]:
    return np.array([math.log(size - n + 0.5) - math.log(n + 0.5) for n in range(size + 1)])


def _date_key(date: str | None, position: int, size: int) -> tuple[int, ...]:
    where = f"profile item {position + 1} of {size}"
    if not date:
        raise InputError(
            f"recency needs a date on every item, but {where} has none; only LaMP's time-based split has dates"
        )
    if re.fullmatch(r"[0-9]{1,9}(-[0-9]{1,9})*", date):
        return tuple(map(int, date.split("-")))
    try:
        moment = datetime.fromisoformat(date)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment
    except (ValueError, OverflowError):  # the latter: year 1 or 9999 moved over the edge by its zone
        raise InputError(
            f"{where} has the date {shorten(date)}; recency reads YYYY-MM-DD or an ISO date-time"
        ) from None
    return (*moment.timetuple()[:6], moment.microsecond)


def _generator(request: Request) -> random.Random:
    """A generator of its own for each (seed, profile length, query), whatever the order of calls."""
    identity = f"{request.seed}\0{len(request.texts)}\0{request.query}".encode("utf-8", "surrogatepass")
    return random.Random(int.from_bytes(hashlib.sha256(identity).digest(), "big"))
