"""Texts as words, and runs of words as 64-bit hashes: what near-duplicates and contamination are looked for by.

Guarantee: the same text gives the same words and hashes on every machine and in every process. Case, punctuation and
white space do not count; a character of a script without word boundaries (Chinese, Japanese, Korean) is a word.
Price: two runs may share a hash by chance, one pair in 10^19.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Hashes = npt.NDArray[np.uint64]

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")
_BASE = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def words_of(text: str) -> list[str]:
    """Give the words of a text in order, in lower case."""
    return _WORD.findall(text.lower())


def shingles(words: Sequence[str], length: int) -> list[str]:
    """Give every run of `length` words; of a shorter text, the whole of it; of an empty one, nothing."""
    if len(words) <= length:
        return [" ".join(words)] if words else []
    return [" ".join(words[start : start + length]) for start in range(len(words) - length + 1)]


def run_hashes(texts: Sequence[str], length: int, least: int) -> "tuple[Hashes, npt.NDArray[np.int64]]":
    """Give the hashes of all runs of `length` words, and for each the index of its text. A text that is shorter, but
    has `least` words or more, gives one hash of the whole of it; a still shorter one gives none."""
    import numpy as np

    hashes: list[int] = []
    owners: list[int] = []
    whole: list[int] = []
    whole_owners: list[int] = []
    for owner, text in enumerate(texts):
        words = words_of(text)
        if len(words) >= length:
            hashes += map(_word_hash, words)
            owners += [owner] * len(words)
        elif len(words) >= least:
            whole.append(_whole_hash(words))
            whole_owners.append(owner)
    word_hashes, owner_of_word = np.fromiter(hashes, np.uint64, len(hashes)), np.fromiter(owners, np.int64, len(owners))
    runs = max(len(hashes) - length + 1, 0)
    rolled = np.zeros(runs, dtype=np.uint64)
    for offset in range(length if runs else 0):
        rolled *= np.uint64(_BASE)  # modulo 2^64
        rolled += word_hashes[offset : offset + runs]
    is_inside = owner_of_word[:runs] == owner_of_word[length - 1 :] if runs else np.zeros(0, dtype=bool)
    return (
        np.concatenate([rolled[is_inside], np.array(whole, dtype=np.uint64)]),
        np.concatenate([owner_of_word[:runs][is_inside], np.array(whole_owners, dtype=np.int64)]),
    )


def _whole_hash(words: Iterable[str]) -> int:
    value = 1  # so that it is no hash of a run
    for word in words:
        value = (value * _BASE + _word_hash(word)) & _MASK
    return value


@lru_cache(maxsize=200_000)
def _word_hash(word: str) -> int:
    data = word.encode("utf-8", "surrogatepass")
    return (crc32(data) << 32 | crc32(data, 0x5BD1E995)) + 1
