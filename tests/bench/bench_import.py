"""A LaMP-3 dev set in its own shape: import to Parquet beside json.load and pandas, and BM25 over all of it beside
rank_bm25, tokenisation included.

    .venv/bin/python tests/bench/bench_import.py [--examples 2500] [--items 185] [--official-examples 40] [--json]

The file is generated: review texts of made-up words, some 900 bytes of JSON an item, 400 MB in all. Each side of the
import runs in a process of its own, in turn, twice, and the faster time counts; memory is the process's peak. The other
side is the plain way to the same end: json.load, two pandas frames, to_parquet; its time without the latter is told
too. rank_bm25 is timed on a part only, ours on the same part and on all.
Exit code 1 when a figure misses its claim.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLAIMS = {"import": 1.0, "memory": 600.0, "ranking": 3.0}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=2500)
    parser.add_argument("--items", type=int, default=185)
    parser.add_argument("--words", type=int, default=140, help="mean words an item")
    parser.add_argument("--official-examples", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return run_side(*options.side)
    with tempfile.TemporaryDirectory(prefix="bench-import-") as name:
        folder = Path(name)
        generate(folder, options.examples, options.items, options.words)
        megabytes = (folder / "dev_questions.json").stat().st_size / 1e6
        found = {"pandas": [], "pandas-parquet": [], "ours": []}
        for _ in range(2):
            for side, runs in found.items():
                command = [sys.executable, __file__, "--side", side, str(folder), str(folder / "data")]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs.append(json.loads(done.stdout))
        ranking = rank_all(folder / "data", options.official_examples)
    best = {side: min(run["seconds"] for run in runs) for side, runs in found.items()}
    cpu = {side: min(run["cpu"] for run in runs) for side, runs in found.items()}
    peak = {side: max(run["megabytes"] for run in runs) for side, runs in found.items()}
    ratio, cpu_ratio = best["ours"] / best["pandas-parquet"], cpu["ours"] / cpu["pandas-parquet"]
    without = cpu["ours"] / cpu["pandas"]
    results = {
        "file_megabytes": megabytes, "seconds": best, "peak_megabytes": peak, "import_ratio": ratio,
        "cpu_seconds": cpu, "import_cpu_ratio": cpu_ratio,
        "import_cpu_ratio_without_parquet": without, "ranking": ranking,
    }  # fmt: skip
    if options.json:
        print(json.dumps(results))
    else:
        print(f"{options.examples} examples × {options.items} items, {megabytes:.0f} MB")
        for name, side in (
            ("json.load + pandas frames", "pandas"),
            ("the same, and to_parquet", "pandas-parquet"),
            ("import to Parquet", "ours"),
        ):
            print(f"{name:26}{best[side]:7.1f} s, of the processor {cpu[side]:6.1f} s  {peak[side]:7.0f} MB")
        print(f"ratio {ratio:.2f}, of processor time {cpu_ratio:.2f}; without their to_parquet {without:.2f}")
        print(
            f"BM25, ms an example: rank_bm25 {ranking['official_ms']:.1f} on {ranking['official_examples']}, "
            f"ours {ranking['ours_ms']:.1f} on the same, {ranking['all_ms']:.1f} on all {ranking['examples']}; "
            f"ratio {ranking['ratio']:.1f}"
        )
    missed = (ratio > CLAIMS["import"], peak["ours"] > CLAIMS["memory"], ranking["ratio"] < CLAIMS["ranking"])
    return sys.exit(any(missed))


def generate(folder, examples, items, words):
    """Write dev_questions.json and dev_outputs.json; word frequencies fall off as 1 / rank."""
    generator = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["".join(generator.choices(letters, k=generator.randint(2, 9))) for _ in range(30_000)]
    weights = [1 / rank for rank in range(1, len(vocabulary) + 1)]
    drawn = generator.choices(vocabulary, weights, k=1_000_000)

    def text():
        start = generator.randrange(len(drawn) - 4 * words)
        return " ".join(drawn[start : start + max(5, int(generator.expovariate(1 / words)) % (4 * words))])

    outputs = []
    with (folder / "dev_questions.json").open("w") as file:
        for number in range(examples):
            profile = [
                {"id": f"{number:05d}{place:04d}", "text": text(), "score": str(generator.randint(1, 5))}
                for place in range(max(1, round(generator.gauss(items, items / 4))))
            ]
            question = "What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, "
            question += f"or 5 without further explanation. review: {text()}"
            row = {"id": f"2{number:05d}", "input": question, "profile": profile, "user_id": str(number)}
            file.write(("[" if number == 0 else ", ") + json.dumps(row))
            outputs.append({"id": row["id"], "output": str(generator.randint(1, 5))})
        file.write("]")
    (folder / "dev_outputs.json").write_text(json.dumps({"task": "LaMP_3", "golds": outputs}))


def run_side(side, folder, target):
    """One import in this process; prints seconds (imports of modules included on both sides) and peak memory."""
    folder, start, cpu = Path(folder), time.perf_counter(), time.process_time()
    if side == "ours":
        from tagpr_data.lamp.convert import import_lamp

        import_lamp("LaMP-3", folder / "dev_questions.json", folder / "dev_outputs.json", Path(target), "validation")
    else:
        import pandas as pd

        with (folder / "dev_questions.json").open() as file:
            rows = json.load(file)
        examples = pd.DataFrame([{key: value for key, value in row.items() if key != "profile"} for row in rows])
        items = pd.DataFrame([{"example": row["id"], **item} for row in rows for item in row["profile"]])
        if side == "pandas-parquet":
            examples.to_parquet(f"{target}-examples.parquet", compression="zstd")
            items.to_parquet(f"{target}-items.parquet", compression="zstd")
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "cpu": cpu, "megabytes": megabytes}))


def rank_all(folder, official_examples):
    """Rank the profile of every example for its input."""
    import numpy as np
    from rank_bm25 import BM25Okapi

    from tagpr_data.dataset import Dataset
    from tagpr_data.retrieve import Bm25

    dataset = Dataset.load(folder)
    examples = dataset.examples("validation")
    texts = dict(dataset.profiles.group_by("profile_id").agg("text").iter_rows())
    seconds = {"official": 0.0, "ours": 0.0, "all": 0.0}
    few = examples[:: max(1, len(examples) // official_examples)][:official_examples]
    for example in few:
        start = time.perf_counter()
        index = BM25Okapi([text.split() for text in texts[example.profile_id]])
        official = index.get_scores(example.input.split())
        np.argsort(official)[::-1].tolist()  # which orders equal scores by the processor's kind, so it is not compared
        middle = time.perf_counter()
        Bm25(texts[example.profile_id]).ranking(example.input)
        seconds["official"] += middle - start
        seconds["ours"] += time.perf_counter() - middle
        if Bm25(texts[example.profile_id]).scores(example.input).tobytes() != official.tobytes():
            sys.exit(f"the scores of example {example.id} differ")
    start = time.perf_counter()
    for example in examples:
        Bm25(texts[example.profile_id]).ranking(example.input)
    seconds["all"] = time.perf_counter() - start
    return {
        "official_examples": len(few), "examples": len(examples),
        "official_ms": seconds["official"] / len(few) * 1e3, "ours_ms": seconds["ours"] / len(few) * 1e3,
        "all_ms": seconds["all"] / len(examples) * 1e3, "ratio": seconds["official"] / seconds["ours"],
    }  # fmt: skip


if __name__ == "__main__":
    main()
