"""Time and memory of `forget` on a large corpus: one user of many is taken out, and the proof of it is made.

    .venv/bin/python tests/bench/bench_forget.py CORPUS [--rows 50000 200000]

Rows are those of a real corpus, over and over, each with its own id, example, user, prompt and prompt hash
(`bench_validate.py`). Each size runs in a fresh process; memory is that process's own peak (VmHWM). Claim: at most
1 GB. Exit code 1 when it fails.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
from bench_validate import make

MEGABYTES = 1_000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(measure(options.folder)))
        return
    most = 0.0
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "corpus"
            make(options.corpus, folder, rows)
            command = [sys.executable, __file__, str(options.corpus), "--folder", str(folder)]
            found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        most = max(most, found["megabytes"])
        print(
            f"{rows:>9,} traces: {found['seconds']:6.1f} s, {found['cpu_seconds']:6.1f} s of processors, "
            f"{found['megabytes']:,.0f} MB at the peak; {found['gone']} rows of one user gone"
        )
    if most > MEGABYTES:
        sys.exit(f"above {MEGABYTES} MB")


def measure(folder: Path) -> dict[str, float]:
    from tagpr_data.corpus import open_corpus
    from tagpr_data.forget import forget

    traces = pq.ParquetFile(folder / "traces/train.parquet")
    user = traces.read_row_group(traces.num_row_groups // 2, columns=["user_id"])["user_id"][0].as_py()
    begin, corpus = time.monotonic(), open_corpus(folder)
    manifest, _ = forget(corpus, user, folder.with_name("without"))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "seconds": time.monotonic() - begin,
        "cpu_seconds": time.process_time(),
        "megabytes": int(status["VmHWM"].split()[0]) / 1024,
        "gone": corpus.manifest.kept - manifest.kept,
    }


if __name__ == "__main__":
    main()
