"""Speed and memory of the selection and of the data-set audit, on candidates of real shape: prompts with four items,
traces of the scripted teacher, each varied by ten words, a quarter of them spoilt.

    .venv/bin/python tests/bench/bench_select.py [--candidates 100000] [--workers 2] [--folder DIR] [--json]
        [--claims-only]

Claims: with all rules but `language`, selection of the candidates and audit of their data set together take at least
5,000 candidates/s on 2 cores, and the whole tree of processes at most 2 GB. Each run is a process of its own; its wall
time, the CPU time of all its processes, and the peak of their memory (sum of RSS, sampled every 50 ms) are measured.
On a machine shared with others the wall time says little: `cores in use` tells how much of two cores a run had, and
`per 2 cores` is what it would make with both. Exit code 1 when a claim fails (by `per 2 cores` where less than 1.5
cores were to be had).
"""

import argparse
import asyncio
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from hashlib import sha256
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tagpr_data.audit import audit
from tagpr_data.dataset import Dataset, write_dataset
from tagpr_data.judge import Selection
from tagpr_data.prompts import PromptOptions, chat_prompt, prompt_hash
from tagpr_data.records import Candidate, Example, ProfileItem, Sampling, Task
from tagpr_data.select import candidate_batches, select
from tagpr_data.tags import load_tagset
from tagpr_data.teachers import Assignment, ScriptedTeacher

LABELS = ("rock", "jazz", "folk", "blues", "opera", "metal")
GENRE = Task(
    name="genre", kind="classification", labels=LABELS, question="Which genre?", answer_form="one genre",
    item_template='"{title}" is filed under {label}',
)  # fmt: skip
TITLE = Task(
    name="title", kind="generation", question="Which title?", answer_form="a title", item_template='"{title}": {text}'
)
USERS, ITEMS, EXAMPLES = 250, 20, 4
ALL_RULES = {"near_duplicates_within": 0.9, "near_duplicates_across": 0.95, "personal_data": "mask", "max_words": 500}
LANGUAGE_CANDIDATES = 20_000
JOBS = {
    "selection, default rules": {"file": "candidates.parquet", "rules": {}},
    "selection, all rules": {"file": "candidates.parquet", "rules": ALL_RULES, "against": ["evaluation"]},
    "selection, with language": {"file": "few.parquet", "rules": {**ALL_RULES, "language": "en"}},
    "audit": {"audit": True},
}
CLAIMED = ("selection, all rules", "audit")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the candidates lie meanwhile (3 KB each)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--claims-only", action="store_true", help="only the two runs that the claims are about")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(json.loads(options.run))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        names = CLAIMED if options.claims_only else tuple(JOBS)
        results = compare(Path(folder), options.candidates, options.workers, names)
    if options.json:
        print(json.dumps(results))
    else:
        for name, result in results.items():
            print(f"{name:<26}", "  ".join(f"{key} {value:,.1f}" for key, value in result.items()))
    both = [results[name] for name in CLAIMED]
    seconds = sum(result["seconds"] for result in both)
    cpu = sum(result["cpu_seconds"] for result in both)
    rate = options.candidates / (seconds if cpu / seconds > 1.5 else cpu / 2)
    peak = max(result["peak_mb"] for result in both)
    print(f"selection + audit: {rate:,.0f} candidates/s, peak {peak:,.0f} MB")
    if rate < 5000 or peak > 2000:
        sys.exit("below 5,000 candidates/s or above 2 GB")


def compare(folder: Path, count: int, workers: int, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    random.seed(0)
    dataset = make_dataset(folder / "dataset", "u")
    make_dataset(folder / "evaluation", "e")
    base = pl.concat(pl.from_arrow(batch) for batch in candidate_batches(make_candidates(dataset)))
    write_candidates(folder / "candidates.parquet", base, count)
    write_candidates(folder / "few.parquet", base, LANGUAGE_CANDIDATES)
    settings = {"folder": str(folder), "workers": workers}
    return {name: measured(settings | JOBS[name], count) for name in names}


def measured(job: dict, count: int) -> dict[str, float]:
    rows = LANGUAGE_CANDIDATES if job.get("file") == "few.parquet" else count
    begin = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = subprocess.Popen(
        [sys.executable, __file__, "--run", json.dumps(job)], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    peaks = [0.0]
    watcher = threading.Thread(target=watch, args=(child.pid, peaks), daemon=True)
    watcher.start()
    if child.wait():
        sys.exit(f"{job} failed")
    seconds = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "candidates_per_second": rows / seconds, "seconds": seconds, "cpu_seconds": cpu, "cores_in_use": cpu / seconds,
        "per_2_cores": 2 * rows / cpu, "peak_mb": peaks[0],
    }  # fmt: skip


def watch(pid: int, peaks: list[float]) -> None:
    while True:
        sizes = [resident_mb(process) for process in descendants(pid)]
        if not sizes:
            return
        peaks[0] = max(peaks[0], sum(sizes))
        time.sleep(0.05)


def descendants(pid: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = [pid] if pid in parents else []
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def resident_mb(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


def run(job: dict) -> None:
    """One selection or audit, in a process of its own."""
    folder = Path(job["folder"])
    dataset = Dataset.load(folder / "dataset")
    if job.get("audit"):
        assert audit(dataset).rows
        return
    file = pq.ParquetFile(folder / job["file"])
    rules = job["rules"] | {"contamination": [str(folder / name) for name in job.get("against", [])]}
    _, counts = select(
        file.iter_batches(2000), dataset, Selection.model_validate(rules), load_tagset(), folder / "corpus",
        ["train"], work=folder / "work", expected=file.metadata.num_rows, workers=job["workers"],
    )  # fmt: skip
    assert counts.candidates == file.metadata.num_rows and counts.kept > counts.candidates // 10
    print(f"{counts.kept:,} kept; {counts.rejected}", file=sys.stderr)
    shutil.rmtree(folder / "corpus")


def words(count: int) -> str:
    """Words of a vocabulary of 20,000, some commoner than others."""
    return " ".join(f"w{int(20_000 ** random.random()):x}ord" for _ in range(count))


def make_dataset(folder: Path, prefix: str) -> Dataset:
    examples, items = [], []
    for user in range(USERS):
        name = f"{prefix}{user:05}"
        habits = random.sample(LABELS, 2)
        for position in range(ITEMS):
            items.append(
                ProfileItem(
                    profile_id=name, position=position, item_id=f"{name}-{position}", date=f"2020-01-{position + 1:02}",
                    title=words(6), text=words(45), label=random.choice(habits),
                )
            )  # fmt: skip
        for number in range(EXAMPLES):
            for task, gold in ((GENRE, random.choice(habits)), (TITLE, words(6))):
                examples.append(
                    Example(
                        id=f"{task.name}-{name}-{number}", task=task.name, user_id=name, profile_id=name,
                        profile_size=ITEMS, input=words(60), output=gold, date=f"2020-02-0{number + 1}",
                    )
                )  # fmt: skip
    split = "train" if prefix == "u" else "test"
    write_dataset(
        folder, name="bench", source="made up", licence="CC0-1.0", tasks=[GENRE, TITLE], examples={split: examples},
        items=items, parameters={}, skipped={},
    )  # fmt: skip
    return Dataset.load(folder)


def make_candidates(dataset: Dataset):
    """Two attempts of the scripted teacher on every example, the second with hindsight."""
    teacher, tagset, options = ScriptedTeacher(hindsight=True, blind_attempts=1), load_tagset(), PromptOptions()
    for example in dataset.examples("train"):
        task, items = dataset.task(example.task), dataset.profile(example)[-4:]
        messages = chat_prompt(task, example.input, items, options, tagset)
        for attempt in range(2):
            assignment = Assignment(
                task=task, input=example.input, items=items, messages=messages, gold=example.output,
                sampling=Sampling(), seed=0, attempt=attempt,
            )  # fmt: skip
            reply = asyncio.run(teacher.write(assignment))
            yield Candidate(
                id=sha256(f"{example.id} {attempt}".encode()).hexdigest(), example_id=example.id, task=task.name,
                user_id=example.user_id, retriever="recency", k=4, item_ids=tuple(item.item_id for item in items),
                messages=messages, prompt_hash=prompt_hash(messages), teacher="scripted", teacher_revision="1",
                sampling=Sampling(), seed=0, attempt=attempt, text=reply.text, finish_reason=reply.finish_reason,
                gold=example.output,
            )  # fmt: skip


def write_candidates(path: Path, base: pl.DataFrame, count: int) -> None:
    """Copies of the base candidates, each with ids, prompt hash and ten words of its own."""
    random.seed(1)
    schema = None
    writer = None
    for copy in range(-(-count // base.height)):
        part = base.head(min(base.height, count - copy * base.height))
        text = [varied(text) for text in part["text"]]
        part = part.with_columns(
            text=pl.Series(text),
            id=pl.Series([rehashed(value, copy) for value in part["id"]]),
            prompt_hash=pl.Series([rehashed(value, copy) for value in part["prompt_hash"]]),
        )
        table = part.to_arrow()
        if writer is None:
            schema = table.schema
            writer = pq.ParquetWriter(path, schema, compression="zstd")
        writer.write_table(table.cast(schema), row_group_size=2000)
    assert writer is not None
    writer.close()
    assert isinstance(schema, pa.Schema)


def varied(text: str) -> str:
    """Ten more words in the last step; one text in four is spoilt in some way."""
    at = text.rfind("</", 0, text.rfind("</think>"))
    text = f"{text[:at]} {words(10)}{text[at:]}"
    spoilt = random.random()
    if spoilt < 0.1:
        return text.replace("</think>", "")
    if spoilt < 0.15:
        return text[:at] + " the gold answer" + text[at:]
    if spoilt < 0.2:
        return text[:at] + " mail ann.lee@site.org" + text[at:]
    return text.replace("[P1]", "[P9]") if spoilt < 0.25 else text


def rehashed(value: str, copy: int) -> str:
    return sha256(f"{value} {copy}".encode()).hexdigest()


if __name__ == "__main__":
    main()
