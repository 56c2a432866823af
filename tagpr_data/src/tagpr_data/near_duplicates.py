"""Texts that are nearly the same: MinHash signatures (rensa), and the greedy choice of which of them to keep.

Two texts are near-duplicates where the share of equal signature places, an estimate of the Jaccard similarity of
their sets of `SHINGLE_WORDS`-word runs, reaches a threshold. A pair is looked at where one of `BANDS` bands is equal:
of pairs with similarity 0.9 that is 99.99 %, with 0.8 95 %, which is why thresholds below 0.8 are refused. The
estimate's standard error is at most 0.036 (at 0.8). Price: 256 bytes a text, and in the choice at most `MOST_LEADERS`
kept texts of a band are compared. Signatures are the same in every process and whatever else is in the batch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tagpr_data.words import shingles, words_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Signatures = npt.NDArray[np.uint8]
    Bands = npt.NDArray[np.uint64]

PERMUTATIONS = 128
BANDS = 16
SHINGLE_WORDS = 3
LEAST_THRESHOLD = 0.8
MOST_LEADERS = 256
_SEED = 42


def signatures(texts: Sequence[str]) -> "tuple[Signatures, Bands]":
    """Give the signatures (N, PERMUTATIONS) uint8, the low bytes of the hashes, and the bands (N, BANDS) uint64."""
    import numpy as np
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue] - its stub lacks it

    sets = [shingles(words_of(text), SHINGLE_WORDS) for text in texts]
    full = np.array(RMinHash.digests_from_token_sets(sets, PERMUTATIONS, _SEED), dtype=np.uint32)
    full = full.reshape(len(texts), PERMUTATIONS)
    bands = np.zeros((len(texts), BANDS), dtype=np.uint64)
    rows = PERMUTATIONS // BANDS
    for place in range(rows):
        bands *= np.uint64(0x9E3779B97F4A7C15)
        bands += full[:, place::rows].astype(np.uint64) + np.uint64(1)
    bands ^= np.arange(BANDS, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)  # a band is compared with itself only
    return (full & np.uint32(0xFF)).astype(np.uint8), bands


def similarity(signatures_: "Signatures", other: "Signatures") -> "npt.NDArray[np.float64]":
    """Give the estimated Jaccard similarity of each of (N, PERMUTATIONS) to one signature, in [0, 1]."""
    return (signatures_ == other).mean(axis=1)


class NearDuplicates:
    """The kept ones among some texts, asked and told one by one, the best first."""

    def __init__(
        self, signatures_: "Signatures", bands: "Bands", users: "npt.NDArray[np.int64]",
        within_user: float | None, across_users: float | None,
    ) -> None:  # fmt: skip
        self._signatures, self._bands, self._users = signatures_, bands, users
        self._within, self._across = within_user, across_users
        self._is_shared = _is_shared(bands)
        self._leaders: dict[int, list[int]] = {}

    def leader_of(self, row: int) -> int | None:
        """Give the kept text that this one is a near-duplicate of, the most similar and then first one, or None."""
        import numpy as np

        keys = self._bands[row][self._is_shared[row]].tolist()
        found = sorted({leader for key in keys for leader in self._leaders.get(key, ())})
        if not found:
            return None
        leaders = np.array(found)
        alike = similarity(self._signatures[leaders], self._signatures[row])
        is_own = self._users[leaders] == self._users[row]
        never = 2.0
        least = np.where(is_own, self._within or never, self._across or never)
        hits = alike >= least
        return int(leaders[hits][np.argmax(alike[hits])]) if hits.any() else None

    def keep(self, row: int) -> None:
        """Note that this text is kept."""
        for key in self._bands[row][self._is_shared[row]].tolist():
            leaders = self._leaders.setdefault(key, [])
            if len(leaders) < MOST_LEADERS:
                leaders.append(row)


def _is_shared(bands: "Bands") -> "npt.NDArray[np.bool_]":
    """Whether another text has the same band; most have not, and need no entry in the index."""
    import numpy as np

    shared = np.zeros(bands.shape, dtype=bool)
    for band in range(bands.shape[1]):
        _, inverse, counts = np.unique(bands[:, band], return_inverse=True, return_counts=True)
        shared[:, band] = counts[inverse] > 1
    return shared
