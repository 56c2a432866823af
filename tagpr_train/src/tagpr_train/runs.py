"""Run folders: what a run was, where it stands, and how to repeat it.

    run.json         records.RunManifest, written at the start, rewritten at the end
    metrics.jsonl    one line per logged step
    tensorboard/     the same numbers under the same names, as TensorBoard event files
    checkpoints/     step-N folders that a run continues from; each appears whole or not at all, with contents.json,
                     the size and hash of every file in it
    model/           what the run produced; its presence means the run got to its end

Guarantee: a folder is used by one run at a time (whose ranks share it) and by one configuration ever; what a `kill -9`
cut short is never found under a final name, and is cleared away when the run goes on; a checkpoint that is not what was
written is refused by name. Price: every checkpoint is read once more when it is written and when a run goes on from it.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from tagpr_data.config import Config
from tagpr_data.errors import InputError, shorten
from tagpr_data.journal import folder_lock
from tagpr_data.provenance import git_revision, versions
from tagpr_data.records import RunManifest
from tagpr_data.tables import read_json, sha256_file, write_json, write_text
from tagpr_train import ranks

PACKAGES = ("tagpr-data", "tagpr-train", "torch", "transformers", "trl", "peft", "accelerate", "tokenizers")
"""Whose versions a manifest lists."""


CONTENTS = "contents.json"
_TORCH_CANNOT_WRITE = ("iostream error", "PytorchStreamWriter failed")  # it swallows the system's reason


@contextmanager
def held(folder: Path) -> Generator[None, None, None]:
    """Hold a run's folder: one lock for all ranks; clears what an earlier process left half-written."""
    with ExitStack() as stack:
        stack.enter_context(ranks.lost_ranks_named())

        def take() -> None:
            stack.enter_context(folder_lock(folder))
            for place in (folder, folder / "checkpoints", folder / "best"):
                for left in place.glob(".*.tmp"):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()

        ranks.first_does(take)
        try:
            yield
        except SafetensorError as error:  # of what the run starts from; its own checkpoints are checked before
            raise InputError(f"weights that this run reads are damaged ({error}); fetch or make them again") from error


def open_run(
    folder: Path, kind: Literal["sft", "prmu", "rl"], config: Config, data: Mapping[str, str], seed: int, resume: bool
) -> RunManifest:
    """Give the manifest of the run in `folder`: a new one, written now, or with `resume` the one found there. A run
    that ended before its first step (something it needs was refused) is no run, and a new one takes its place.

    InputError when the folder holds an unfinished run and `resume` is off, a run of other settings or data, or one
    whose newest checkpoint is damaged.
    """
    return ranks.first_does(lambda: _open_run(folder, kind, config, data, seed, resume))


def _open_run(
    folder: Path, kind: Literal["sft", "prmu", "rl"], config: Config, data: Mapping[str, str], seed: int, resume: bool
) -> RunManifest:
    path = folder / "run.json"
    settings = config.model_dump(mode="json")
    found = read_json(path, RunManifest) if path.exists() else None
    metrics = folder / "metrics.jsonl"
    has_begun = (folder / "checkpoints").exists() or (metrics.exists() and metrics.stat().st_size > 0)
    if found is not None and (has_begun or found.status != "running"):
        if not resume:
            state = "a finished run" if found.status == "complete" else "an unfinished run; --resume continues it"
            raise InputError(f"{folder} holds {state}; choose another output folder or remove it")
        _same(folder, "stage", {"kind": found.kind}, {"kind": kind})
        _same(folder, "settings", found.config, settings)
        _same(folder, "data", found.data, dict(data))
        if found.status == "running":
            _check_newest(folder / "checkpoints")
        return found
    manifest = RunManifest(
        kind=kind,
        status="running",
        config=settings,
        data=dict(data),
        seed=seed,
        versions=versions(PACKAGES),
        git_revision=git_revision(),
    )
    write_json(path, manifest)
    return manifest


def same_models(folder: Path, manifest: RunManifest, models: Callable[[], Mapping[str, str]]) -> RunManifest:
    """Note in the manifest which models the run reads (`models` gives their content hashes; the first rank asks), and
    give it; once they are noted, InputError when they are others. A finished run is compared only."""

    def compare() -> RunManifest:
        found = dict(models())
        if manifest.status != "running":
            _same(folder, "models", {name: manifest.models.get(name, value) for name, value in found.items()}, found)
            return manifest
        if manifest.models:
            _same(folder, "models", manifest.models, found)
            return manifest
        noted = manifest.model_copy(update={"models": found})
        write_json(folder / "run.json", noted)
        return noted

    return ranks.first_does(compare)


def finish_run(
    folder: Path, manifest: RunManifest, status: Literal["complete", "partial"], results: dict[str, Any]
) -> RunManifest:
    """Rewrite the manifest with how the run ended, and give it."""
    finished = manifest.model_copy(update={"status": status, "results": results})
    write_json(folder / "run.json", finished)
    return finished


@contextmanager
def atomic_folder(folder: Path, *, shared: bool = False) -> Generator[Path, None, None]:
    """Give a temporary folder beside `folder` to fill; it takes the name at the end, replacing an older one.

    `shared`: all ranks fill it, and it takes its name when the last one is done, with a list of its contents, by which
    damage is found later. On any error it is removed; a full disk is an OSError (ENOSPC) whatever the library
    underneath raised.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    if shared:
        temporary = ranks.from_first(temporary)
    leads = not shared or ranks.is_first()
    if leads:
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had the same number
        temporary.mkdir(parents=True)
    try:
        if shared:
            ranks.wait()
        yield temporary
        if shared:
            ranks.wait()
        if leads:
            if shared:
                _list_contents(temporary)
            _take_name(temporary, folder)
        if shared:
            ranks.wait()
    except Exception as error:  # torch and safetensors report a full disk as errors of their own
        if not isinstance(error, OSError):
            for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                if os.strerror(number) in str(error):
                    raise OSError(number, os.strerror(number), str(folder)) from error
            if any(words in f"{error} {error.__context__}" for words in _TORCH_CANNOT_WRITE):
                raise OSError(
                    errno.ENOSPC, "a file could not be written whole; is the disk full?", str(folder)
                ) from error
        raise
    finally:
        if leads:
            shutil.rmtree(temporary, ignore_errors=True)


def _list_contents(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = {path.relative_to(folder).as_posix(): [path.stat().st_size, sha256_file(path)] for path in files}
    write_text(folder / CONTENTS, json.dumps(listed, indent=0))


def _check_newest(checkpoints: Path) -> None:
    found = list(checkpoints.glob("step-*"))
    for path in found:
        if not path.name.removeprefix("step-").isdecimal():
            raise InputError(f"{path} is no checkpoint of this run; move it away")
    if not found:
        return
    newest = max(found, key=lambda path: int(path.name.removeprefix("step-")))
    if damage := _damage(newest):
        rest = "the checkpoint before it" if len(found) > 1 else "the start"
        raise InputError(f"{newest} is damaged: {damage}; remove this folder, then --resume goes on from {rest}")


def _damage(checkpoint: Path) -> str | None:
    """Say in what a checkpoint differs from what was written; None where it does not."""
    try:
        listed = json.loads((checkpoint / CONTENTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"its {CONTENTS} is missing or cannot be read"
    for name, (size, digest) in listed.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} of {size} bytes"
        if sha256_file(path) != digest:
            return f"{name} is not what was written"
    return None


def _take_name(temporary: Path, folder: Path) -> None:
    """Bring a filled folder to the disk and give it its name; an older one of that name is never half there."""
    for file in temporary.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    older = folder.with_name(f".{folder.name}.older.{os.getpid()}.tmp")
    if folder.exists():
        folder.rename(older)
    temporary.rename(folder)
    shutil.rmtree(older, ignore_errors=True)


class Metrics:
    """The file metrics.jsonl, one JSON object a line, flushed as it is written, and beside it tensorboard/ with the
    same numbers, written by a thread of its own (flushed by `flush`, by `close` and every ten seconds)."""

    def __init__(self, path: Path, after_step: int = 0) -> None:
        """Open for appending; what was written after `after_step` (of steps that a resumed run takes again) is dropped:
        lines from the file, events by a mark that makes readers of event files forget them."""
        from torch.utils.tensorboard import SummaryWriter

        kept = [line for line in _lines(path) if line.get("step", 0) <= after_step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8", buffering=1)
        forget = {"purge_step": after_step + 1} if after_step else {}
        self._events = SummaryWriter(path.with_name("tensorboard"), flush_secs=10, **forget)  # pyright: ignore[reportArgumentType]

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line; its numbers become scalars of its step, by their own names."""
        self._file.write(json.dumps(line) + "\n")
        for name, value in line.items():
            if name not in ("step", "steps") and isinstance(value, (int, float)):
                self._events.add_scalar(name, value, line["step"])

    def flush(self) -> None:
        """Write what the thread still holds: a checkpoint must not be ahead of its metrics."""
        self._events.flush()

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        self._events.close()


def _lines(path: Path) -> Generator[dict[str, Any], None, None]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return  # a torn last line, written again by the resumed run


def _same(folder: Path, what: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            raise InputError(
                f"{folder} holds a run of other {what}: {key} is {shorten(found.get(key))} there and "
                f"{shorten(wanted.get(key))} now; choose another output folder"
            )
