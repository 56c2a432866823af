"""Time and memory of `validate` on a corpus of a million traces: the table checks, then the row checks on all cores.

    .venv/bin/python tests/bench/bench_validate.py CORPUS [--rows 1000000] [--folder DIR] [--workers N]

Rows are those of a real corpus, over and over, each with its own id, example, user, prompt and prompt hash, so that the
checks find what they find there: nothing. Each part runs in a fresh process; memory is that process's peak, of the row
checks with the peak of one worker. Claim: the table checks take at most 15 s and 1 GB. Exit code 1 when it fails.
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tagpr_data.records import CorpusManifest, FileEntry, Trace
from tagpr_data.tables import (
    arrow_schema,
    canonical_json,
    content_hash,
    read_json,
    sha256_file,
    sha256_text,
    write_json,
)

SECONDS, BYTES = 15, 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="keep the corpus there for another run")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--part", choices=("tables", "rows"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measure(options.part, options.folder, options.workers)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "manifest.json").is_file():
            make(options.corpus, folder, options.rows)
        files = list(folder.rglob("*.parquet"))
        rows = sum(pq.read_metadata(path).num_rows for path in files)
        print(f"{rows:,} traces, {sum(path.stat().st_size for path in files) / 1e6:,.0f} MB, {os.cpu_count()} cores")
        results = {}
        for part in ("tables", "rows"):
            command = [sys.executable, __file__, str(options.corpus), "--folder", str(folder), "--part", part]
            if options.workers:
                command += ["--workers", str(options.workers)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results[part] = found = json.loads(done.stdout.splitlines()[-1])
            speed = "" if part == "tables" else f"  {rows / found['seconds']:,.0f} traces/s"
            print(
                f"{part:<7} {found['seconds']:7.1f} s, {found['cpu_seconds']:7.1f} s of processors, "
                f"{found['bytes'] / 1e9:.2f} GB + {found['worker_bytes'] / 1e9:.2f} GB a worker{speed}"
            )
        tables = results["tables"]
        if tables["seconds"] > SECONDS or tables["bytes"] > BYTES:
            sys.exit(f"above {SECONDS} s or {BYTES / 1e9:.0f} GB")


def measure(part: str, folder: Path, workers: int | None) -> dict[str, float]:
    from tagpr_data.row_checks import Engine, check_rows
    from tagpr_data.tags import load_tagset
    from tagpr_data.validate import check_tables

    begin = time.monotonic()
    if part == "tables":
        results = check_tables(folder, read_json(folder / "manifest.json", CorpusManifest))
    else:
        results = check_rows(sorted(folder.glob("traces/*")), load_tagset(), None, Engine(workers=workers))
    seconds = time.monotonic() - begin
    bad = [result for result in results if result.status in ("failed", "crashed")]
    assert not bad, bad
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": seconds,
        "cpu_seconds": own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime,
        "bytes": own.ru_maxrss * 1024,
        "worker_bytes": others.ru_maxrss * 1024,
    }


def make(source: Path, folder: Path, rows: int) -> None:
    """Write a corpus of so many traces: copies of the source's, each copy of other users, examples and prompts."""
    schema = arrow_schema(Trace)
    base = pa.concat_tables(pq.read_table(path) for path in sorted(source.glob("traces/*.parquet"))).combine_chunks()
    path = folder / "traces/train.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    totals = {"claims": 0, "grounded_claims": 0}
    tasks: dict[str, int] = {}
    written = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for copy in range(-(-rows // base.num_rows)):
            table = copied(base, copy)[: rows - written]
            written += table.num_rows
            for name in totals:
                totals[name] += sum(table[name].to_pylist())
            for task in table["task"].to_pylist():
                tasks[task] = tasks.get(task, 0) + 1
            writer.write_table(table.cast(schema), row_group_size=10_000)
    files = {"traces/train.parquet": FileEntry(rows=written, sha256=sha256_file(path))}
    manifest = read_json(source / "manifest.json", CorpusManifest)
    changed = {
        "files": files, "content_hash": content_hash(manifest.tasks, files, [manifest.tagset_hash]),
        "candidates": written, "kept": written, "rejected": {}, "acceptance": dict.fromkeys(tasks, 1.0), **totals,
    }  # fmt: skip
    write_json(folder / "manifest.json", manifest.model_copy(update=changed))


def copied(base: pa.Table, copy: int) -> pa.Table:
    """Give the table with other users and prompts, the rest as it is."""
    columns = {name: base[name].combine_chunks() for name in base.column_names}
    lists = columns["messages"]
    roles = lists.flatten().field("role").to_pylist()
    contents = [
        text + f"\n(copy {copy})" if role == "user" else text
        for role, text in zip(roles, lists.flatten().field("content").to_pylist(), strict=True)
    ]
    turns = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
    offsets = lists.offsets.to_pylist()
    hashes = [sha256_text(canonical_json(turns[a:b])) for a, b in itertools.pairwise(offsets)]
    structs = pa.StructArray.from_arrays([pa.array(roles), pa.array(contents)], names=["role", "content"])
    columns["messages"] = pa.ListArray.from_arrays(lists.offsets, structs)
    columns["prompt_hash"] = pa.array(hashes)
    # the copies one after another are in the order of their ids, as all tables of ours are
    columns["id"] = pa.array([f"{copy:08x}{sha256_text(f'{name}/{copy}')[8:]}" for name in columns["id"].to_pylist()])
    for name in ("example_id", "user_id"):
        columns[name] = pa.array([f"{value}#{copy}" for value in columns[name].to_pylist()])
    return pa.table(columns).sort_by("id")


if __name__ == "__main__":
    main()
