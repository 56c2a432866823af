"""Speed of the tag parser on one core: whole traces, valid and broken, of the size models write and of long ones.

    .venv/bin/python tests/bench/bench_tags.py [--repeats 5] [--json]

Claim: at least 20,000 traces/s or 50 MB/s (1 MB = 10^6 bytes of UTF-8) for every kind; "12 steps" is the most steps a
trace may have, of which nine cite. Best of the repeats, process time. Exit code 1 when a claim fails.
"""

import argparse
import json
import random
import sys
import time

from tagpr_data.records import ProfileItem, Step
from tagpr_data.tags import cited, ground, load_tagset, parse, render

K = 6
TAGSET = load_tagset()
ITEMS = [
    ProfileItem(profile_id="p", position=n, item_id=str(n), text="the quick fox " * 40, label="glx") for n in range(K)
]
CLAIMED = ("short", "12 steps", "long", "broken", "cut")
TAGS = ("examine_examples", "identify_patterns", "infer_preference", "analyze_query", "verify_answer")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    short = [trace(seed, words=18) for seed in range(5000)]
    kinds = {
        "short": short,
        "12 steps": [twelve_steps(text) for text in short],
        "long": [trace(seed, words=2000) for seed in range(100)],
        "broken": [text.replace("</infer_preference>", "</draft_answer> so") for text in short],
        "cut": [text[: len(text) * 2 // 3] for text in short],
    }
    results = {name: measure(texts, options.repeats) for name, texts in kinds.items()}
    grounded = [parse(text, TAGSET, K).steps for text in short[:1000]]
    begin = time.process_time()
    claims = sum(len(ground(steps, ITEMS, "2020")) for steps in grounded)
    seconds = time.process_time() - begin
    results["ground (short)"] = {"traces_per_second": 1000 / seconds, "claims": claims}
    if options.json:
        print(json.dumps(results))
    else:
        for name, result in results.items():
            print(f"{name:<15}", "  ".join(f"{key} {value:,.1f}" for key, value in result.items()))
    slow = [name for name in CLAIMED if not is_fast(results[name])]
    if slow:
        sys.exit(f"below 20,000 traces/s and 50 MB/s: {', '.join(slow)}")


def is_fast(result: dict[str, float]) -> bool:
    return result["traces_per_second"] >= 20_000 or result["mb_per_second"] >= 50


def trace(seed: int, words: int) -> str:
    """A valid trace of five steps of so many words, a third of them citing."""
    rng = random.Random(seed)
    steps = []
    for tag in TAGS:
        said = [
            rng.choice(("the", "quick", '"fox"', "prefers", "<X11/Xlib.h>", "shorter", "labels")) for _ in range(words)
        ]
        if tag != "analyze_query":
            said[:0] = [f"[P{number}]" for number in rng.sample(range(1, K + 1), 2)]
        text = " ".join(said)
        steps.append(Step(tag=tag, text=text, cites=cited(text)))
    return render(steps, "glx")


def twelve_steps(text: str) -> str:
    parsed = parse(text, TAGSET, K)
    return render((parsed.steps * 3)[:12], parsed.answer)


def measure(texts: list[str], repeats: int) -> dict[str, float]:
    """Best of the repeats; what was parsed is checked once, so that the right work is timed."""
    size = sum(len(text.encode()) for text in texts)
    kept = sum(len(step.text) for text in texts for step in parse(text, TAGSET, K).steps)
    assert kept > size // 2
    best = min(seconds_to_parse(texts) for _ in range(repeats))
    return {
        "traces_per_second": len(texts) / best,
        "mb_per_second": size / best / 1e6,
        "bytes_per_trace": size / len(texts),
        "valid_share": sum(parse(text, TAGSET, K).is_valid for text in texts) / len(texts),
    }


def seconds_to_parse(texts: list[str]) -> float:
    begin = time.process_time()
    for text in texts:
        parse(text, TAGSET, K)
    return time.process_time() - begin


if __name__ == "__main__":
    main()
