"""Memory and speed of generation and build with the scripted teacher: peak memory must not grow with the candidates.

    .venv/bin/python tests/bench/bench_generate.py [--prompts 20000,100000] [--build] [--json]

For each size a data set is made (four examples a user, two tasks' worth of text, eight past items), then
`tagpr-data generate` (with --build also `tagpr-data build` after it, which selects, documents and validates) runs in a
process of its own, whose peak resident memory and processor time are read when it has ended. Printed beside them: what
one prompt more costs. No claim about seconds: the scripted teacher is our code too.
"""

import argparse
import json
import resource
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from tagpr_data.dataset import write_chunks
from tagpr_data.records import Example, ProfileItem, Task

TASK = Task(
    name="genre", kind="classification", labels=("rock", "jazz", "folk"), question="Which genre?",
    answer_form="one genre", item_template='"{title}" is filed under {label}',
)  # fmt: skip
EXAMPLES_PER_USER = 4
USERS_PER_CHUNK = 2_000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", default="20000,100000")
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sizes = [int(size) for size in options.prompts.split(",")]
    commands = ["generate", *(["build"] if options.build else [])]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            place = Path(folder) / str(size)
            make_dataset(place / "dataset", size)
            (place / "c.toml").write_text(
                f'name = "songs"\ndataset = "{place / "dataset"}"\noutput = "{place / "corpus"}"\n'
                "empty_profile_share = 0.0\n[selection]\nduplicates = false\npersonal_data = \"off\"\n"
            )  # fmt: skip
            for command in commands:
                results[f"{command} {size}"] = measure([command, str(place / "c.toml")])
    if options.json:
        print(json.dumps(results))
        return
    for name, (mib, seconds) in results.items():
        print(f"{name:<16} {mib:7,.0f} MiB at most, {seconds:7.1f} s of processor time, "
              f"{int(name.split()[1]) / seconds:,.0f} prompts/s")  # fmt: skip
    for command in commands if len(sizes) > 1 else ():
        first, last = (results[f"{command} {size}"][0] for size in (sizes[0], sizes[-1]))
        print(f"{command}: {(last - first) * 2**20 / (sizes[-1] - sizes[0]):,.0f} bytes for each further prompt")


def make_dataset(folder: Path, prompts: int) -> None:
    """Users with eight songs, of which the last four are asked for."""

    def chunk(first: int, last: int):
        items, examples = [], []
        for user in range(first, last):
            name = f"u{user:07}"
            for position in range(8):
                genre = TASK.labels[(user + position // 3) % 3]
                items.append(
                    ProfileItem(
                        profile_id=name, position=position, item_id=f"{name}-{position}",
                        date=f"2020-01-{position + 1:02}", title=f"{genre} song {position} of {user}",
                        text=f"a {genre} tune about road {user * 7 % 1000} and river {position}", label=genre,
                    )
                )  # fmt: skip
            examples += [
                Example(
                    id=f"{name}-{n}", task="genre", user_id=name, profile_id=name, profile_size=4 + n,
                    input=f"a song about road {user * 7 % 1000} and river {n}, number {user} in the list",
                    output=TASK.labels[(user + (4 + n) // 3) % 3], date=f"2020-01-{5 + n:02}",
                )
                for n in range(EXAMPLES_PER_USER)
            ]  # fmt: skip
        return {"train": examples}, items

    users = prompts // EXAMPLES_PER_USER
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_chunks(
        folder, name="songs", source="made up", licence="CC0-1.0", tasks=[TASK], parameters={}, skipped={},
        chunks=(chunk(n, min(n + USERS_PER_CHUNK, users)) for n in range(0, users, USERS_PER_CHUNK)),
    )  # fmt: skip


def measure(arguments: list[str]) -> tuple[float, float]:
    """Run a command; give its peak memory in MiB and its processor seconds, children of its own left out."""
    command = [str(Path(sysconfig.get_path("scripts")) / "tagpr-data"), *arguments]
    code = (
        "import json, resource, subprocess, sys; "
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "print(json.dumps([used.ru_maxrss / 1024, used.ru_utime + used.ru_stime]))"
    )
    output = subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True, text=True).stdout
    peak, seconds = json.loads(output)
    return peak, seconds


if __name__ == "__main__":
    assert resource.RUSAGE_CHILDREN
    main()
