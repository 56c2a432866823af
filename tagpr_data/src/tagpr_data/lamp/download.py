"""Fetch LaMP's published files: by task, split and kind of split, resumable, and only what really is LaMP.

Guarantee: a file appears under its name only when it has the length the server states, begins and ends as JSON and,
for questions, its first row has the fields of the task (so news are not taken for movies, and a page of HTML that came
with status 200 not for data); a published size, where we know it, is compared. After a cut or a kill the same command
asks for the missing bytes only, and begins again where the server's file is another one by now. Whole files are not
asked for again. Price: one connection at a time.

Addresses and sizes: the benchmark's own download page (sizes of the user split's dev files, as of 2025). The outputs
of test are withheld by the benchmark; LaMP-6 comes as file names of the Avocado collection, which is licensed apart.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Literal

from tagpr_data.errors import InputError, shorten
from tagpr_data.lamp.files import read_outputs, read_questions
from tagpr_data.tables import write_text
from tagpr_data.tasks import canonical_name

if TYPE_CHECKING:
    import httpx

BASE_URL = "https://ciir.cs.umass.edu/downloads/LaMP"
"""Where the benchmark's authors publish it."""

Published = Literal["train", "dev", "test"]
By = Literal["user", "time"]
SPLITS: tuple[Published, ...] = ("train", "dev", "test")

SIZES = {
    "LaMP_1/dev/dev_questions.json": 273_443_200,
    "LaMP_1/dev/dev_outputs.json": 86_416,
    "LaMP_2/new/dev/dev_questions.json": 9_493_217,
    "LaMP_2/new/dev/dev_outputs.json": 27_502,
    "LaMP_3/dev/dev_questions.json": 401_034_862,
    "LaMP_3/dev/dev_outputs.json": 81_416,
    "LaMP_5/dev/dev_questions.json": 272_410_629,
    "LaMP_5/dev/dev_outputs.json": 248_614,
}
"""Bytes of published files, where known."""

WAITS_SECONDS = (1.0, 5.0, 20.0)
"""Pauses before the next attempts after a cut connection or a busy server."""


@dataclass(frozen=True)
class LampFile:
    """One published file."""

    task: str
    """Its task, as `LaMP-3`."""
    path: str
    """Its path below the base address, and below the folder it is saved in."""
    is_questions: bool
    """Questions or outputs."""


def lamp_files(tasks: Iterable[str], splits: Iterable[Published], by: By) -> list[LampFile]:
    """Give the files of tasks (either spelling; `LaMP-2` are the movies, `LaMP-2-old` the news) and splits."""
    files: list[LampFile] = []
    for name in tasks:
        task = canonical_name(name)
        number = task.removeprefix("LaMP-").removesuffix("-old")
        if not task.startswith("LaMP-") or number not in "1234567":
            raise InputError(f"task {name!r} is not one of LaMP; known: LaMP-1 … LaMP-7, and LaMP-2-old for the news")
        folder = f"{'time/' if by == 'time' else ''}LaMP_{number}{'/new' if task == 'LaMP-2' else ''}"
        for split in splits:
            files.append(LampFile(task, f"{folder}/{split}/{split}_questions.json", True))
            if split != "test":
                files.append(LampFile(task, f"{folder}/{split}/{split}_outputs.json", False))
    return files


def download(
    file: LampFile,
    folder: Path,
    base_url: str = BASE_URL,
    on_bytes: Callable[[int, int | None], object] = lambda have, total: None,
    any_size: bool = False,
    waits_seconds: Sequence[float] = WAITS_SECONDS,
) -> bool:
    """Fetch one file to `folder / file.path`; False when it was there. `on_bytes` is told bytes so far and in all.

    Raises InputError that names address and cause; what came so far stays in `….part` for the next time, unless it is
    not LaMP.
    """
    import httpx

    path, url = folder / file.path, f"{base_url.rstrip('/')}/{file.path}"
    if path.is_file():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with httpx.Client(timeout=60, follow_redirects=True, headers={"Accept-Encoding": "identity"}) as client:
        for wait in (*waits_seconds, None):
            try:
                _fetch(client, url, part, on_bytes)
                break
            except (httpx.TransportError, _Passing) as error:
                if wait is None:
                    raise InputError(
                        f"{url}: {type(error).__name__.strip('_')}: {shorten(str(error))}; "
                        f"{_size(part):,} bytes are kept, the same command goes on"
                    ) from None
                sleep(wait)
    _check(file, part, url, any_size)
    part.replace(path)
    _notes(part).unlink(missing_ok=True)
    return True


class _Passing(Exception):
    """A fault that may be gone at the next attempt."""


def _fetch(client: "httpx.Client", url: str, part: Path, on_bytes: Callable[[int, int | None], object]) -> None:
    """Bring `part` up to the whole file, from where it ends if the server's file is still the same."""
    have, mark = _size(part), _mark(part, url)
    headers = {"Range": f"bytes={have}-", "If-Range": mark} if have and mark else {}
    with client.stream("GET", url, headers=headers) as response:
        status = response.status_code
        if status in (408, 429) or status >= 500:
            raise _Passing(f"status {status}")
        if status == 416:  # nothing is missing, or the server's file is shorter now
            _discard(part)
            raise _Passing("the server's file is another one by now")
        if status not in (200, 206):
            raise InputError(f"{url}: status {status}; the address is wrong, or the benchmark has moved it")
        if "html" in response.headers.get("content-type", ""):
            _discard(part)
            raise InputError(f"{url}: came as HTML with status {status}, not as JSON; the address is wrong")
        start = have if status == 206 else 0
        length = response.headers.get("content-length")
        total = start + int(length) if length else None
        mark = response.headers.get("etag") or response.headers.get("last-modified") or ""
        write_text(_notes(part), json.dumps({"url": url, "mark": "" if mark.startswith("W/") else mark}))
        with part.open("r+b" if start else "wb") as out:
            out.seek(start)
            for piece in response.iter_raw():  # as they arrive, so that a kill loses none
                out.write(piece)
                out.flush()
                on_bytes(out.tell(), total)
            if total is not None and out.tell() != total:
                raise _Passing(f"{out.tell():,} of {total:,} bytes came")


def _check(file: LampFile, part: Path, url: str, any_size: bool) -> None:
    """Raise InputError, and throw the bytes away, unless they are the file we asked for."""
    size, known = _size(part), SIZES.get(file.path)
    with part.open("rb") as content:
        first = content.read(64).lstrip()
        content.seek(max(0, size - 64))
        last = content.read().rstrip()
    problem = None
    if first[:1] not in (b"[", b"{"):
        problem = f"begins with {shorten(first[:20].decode('utf-8', 'replace'))}, not as JSON; the address is wrong"
    elif last[-1:] != {b"[": b"]", b"{": b"}"}[first[:1]]:
        problem = f"ends with {shorten(last[-20:].decode('utf-8', 'replace'))}, not as JSON; it is cut off"
    elif known is not None and size != known and not any_size:
        problem = f"has {size:,} bytes, published were {known:,}; if it was published anew, say --any-size"
    elif file.task != "LaMP-6":  # the public files of LaMP-6 lack the fields its licence protects
        try:
            if file.is_questions:
                next(iter(read_questions(part, file.task)), None)
            else:
                read_outputs(part)
        except InputError as error:
            problem = f"is not the file of {file.task}: {error}"
    if problem:
        _discard(part)
        raise InputError(f"{url}: {problem}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _notes(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _mark(part: Path, url: str) -> str:
    """What told the server's file from others when `part` was begun; "" where nothing did."""
    try:
        notes = json.loads(_notes(part).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return ""
    return str(notes.get("mark", "")) if notes.get("url") == url else ""


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _notes(part).unlink(missing_ok=True)
