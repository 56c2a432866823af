"""Time and memory of `construct events` on generated CSV files: the peak must not grow with the table.

    .venv/bin/python tests/bench/bench_construct.py [--mb 30 300] [--folder DIR]

Each table has 20,011 users, texts of about 180 characters, one row in 1,000 without a user and one with a time that
cannot be read. Each is constructed in a fresh process; memory is its peak, temporary files on disk are not counted.
Claim: the largest table's peak is below 1 GB, whatever its size. Exit code 1 when it is not.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_BYTES = 1e9
WORDS = "the quick brown fox jumps over the lazy dog while it rains " * 3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, nargs="+", default=[30, 300])
    parser.add_argument("--folder", type=Path, help="where to write the tables (default: a temporary folder)")
    parser.add_argument("--table", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        print(json.dumps(measure(options.table)))
        return
    peaks = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for size in options.mb:
            table = Path(folder) / f"events-{size}.csv"
            rows = make(table, size * 1_000_000)
            command = [sys.executable, __file__, "--table", str(table)]
            found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            peaks.append(found["bytes"])
            print(
                f"{table.stat().st_size / 1e6:7,.0f} MB, {rows:>10,} rows: {found['seconds']:6.1f} s, "
                f"{rows / found['seconds']:9,.0f} rows/s, peak {found['bytes'] / 1e9:.2f} GB, "
                f"{found['examples']:,} examples, left out {found['skipped']}"
            )
    if len(peaks) > 1:
        print(f"{options.mb[-1] / options.mb[0]:.0f} times the table, {peaks[-1] / peaks[0]:.2f} times the memory")
    if peaks[-1] > LIMIT_BYTES:
        sys.exit(f"the peak is above {LIMIT_BYTES / 1e9:.0f} GB")


def make(path: Path, size: int) -> int:
    """Write a table of about so many bytes; give its rows."""
    rows = written = 0
    with path.open("w", encoding="utf-8") as file:
        file.write("who,when,what,tag\n")
        while written < size:
            user = "" if rows % 1000 == 7 else f"user {rows % 20_011}"
            when = "some day" if rows % 1000 == 8 else 1_500_000_000 + rows
            written += file.write(f"{user},{when},{WORDS}{rows},tag {rows % 7}\n")
            rows += 1
    return rows


def measure(table: Path) -> dict[str, object]:
    from tagpr_data.construct import SplitOptions
    from tagpr_data.sources.events import EventColumns, construct

    begin = time.monotonic()
    manifest = construct(
        table.with_suffix(""),
        table,
        name="big",
        form="classification",
        columns=EventColumns(user="who", time="when", text="what", label="tag"),
        options=SplitOptions(min_history=3, min_earlier=1, held_out=1),
    )
    return {
        "seconds": time.monotonic() - begin,
        "bytes": peak_bytes(),
        "examples": sum(entry.rows for name, entry in manifest.files.items() if name.startswith("examples")),
        "skipped": manifest.skipped,
    }


def peak_bytes() -> int:
    """Peak resident memory of this process alone; getrusage would begin with that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main()
