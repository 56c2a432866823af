"""BM25 per user: ours beside rank_bm25 on the same real profiles, in one process, tokenisation included on both sides.

    .venv/bin/python tests/bench/bench_retrieve.py [--items 200] [--repeats 15] [--json]

Profiles are slices of real LaMP-3 users (`../shared/lamp`), the query is the review that follows the slice. Only slices
of at least 100 words an item count by default: the claim is about items of some 130 words. `--min-words 0` takes all.
Each repeat times both sides in turn on every profile; the figure is the median over repeats of the mean per profile.
Exit code 1 when scores differ or a ratio is below its claim.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from rank_bm25 import BM25Okapi

from tagpr_data.retrieve import Bm25

USERS = Path(__file__).resolve().parents[3] / "shared" / "lamp" / "LaMP_3_time_derived" / "user_profiles.json"
CLAIMS = {"index and one query": 3.0, "one more query on an index": 5.0}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--min-words", type=float, default=100, help="least mean words an item")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not USERS.is_file():
        sys.exit("the real users (shared/lamp beside the checkout) are not here")
    profiles = real_profiles(options.items, options.min_words)
    if not profiles:
        sys.exit(f"no user has {options.items} items in a row with {options.min_words} words on average")
    for texts, query in profiles:
        official = BM25Okapi([text.split() for text in texts]).get_scores(query.split())
        if Bm25(texts).scores(query).tobytes() != official.tobytes():
            sys.exit("scores differ from rank_bm25")
    results = {
        "index and one query": compare(official_once, ours_once, profiles, options.repeats),
        "one more query on an index": compare(
            lambda index, query: np.argsort(index.get_scores(query.split()))[::-1],
            lambda index, query: index.ranking(query),
            [(BM25Okapi([text.split() for text in texts]), query) for texts, query in profiles],
            options.repeats,
            [(Bm25(texts), query) for texts, query in profiles],
        ),
    }
    words = statistics.mean(len(text.split()) for texts, _ in profiles for text in texts)
    query_words = statistics.mean(len(query.split()) for _, query in profiles)
    if options.json:
        print(json.dumps({"profiles": len(profiles), "items": options.items, "words": words, "results": results}))
    else:
        print(
            f"{len(profiles)} profiles × {options.items} items × {words:.0f} words; queries of {query_words:.0f} words"
        )
        print(f"{'':28}{'rank_bm25':>12}{'ours':>12}{'ratio':>9}{'claim':>8}")
        for name, row in results.items():
            times = f"{row['rank_bm25_ms']:9.3f} ms{row['ours_ms']:9.3f} ms"
            print(f"{name:28}{times}{row['ratio']:8.1f}x{CLAIMS[name]:7.0f}x")
    sys.exit(any(row["ratio"] < CLAIMS[name] for name, row in results.items()))


def real_profiles(items, min_words, step=25):
    """Windows over each user's whole history: (texts, the next review as the query)."""
    profiles = []
    for user in json.loads(USERS.read_text()):
        texts = [item["text"] for item in user["profile_chronological"]]
        for start in range(0, len(texts) - items, step):
            window = texts[start : start + items]
            if sum(len(text.split()) for text in window) >= min_words * items:
                profiles.append((window, texts[start + items]))
    return profiles


def official_once(texts, query):
    scores = BM25Okapi([text.split() for text in texts]).get_scores(query.split())
    return np.argsort(scores)[::-1]


def ours_once(texts, query):
    return Bm25(texts).ranking(query)


def compare(official, ours, official_calls, repeats, our_calls=None):
    """Milliseconds a call of both sides, taken in turn so that a busy machine slows both."""
    seconds = {"official": [], "ours": []}
    gc.disable()
    for _ in range(repeats):
        for side, call, arguments in (
            ("official", official, official_calls),
            ("ours", ours, our_calls or official_calls),
        ):
            start = time.perf_counter()
            for pair in arguments:
                call(*pair)
            seconds[side].append((time.perf_counter() - start) / len(arguments))
    gc.enable()
    theirs, own = (statistics.median(seconds[side]) * 1e3 for side in ("official", "ours"))
    return {"rank_bm25_ms": theirs, "ours_ms": own, "ratio": theirs / own}


if __name__ == "__main__":
    main()
