"""Where data comes from, by one name, for training and evaluation alike:

    FOLDER            a data set, corpus or pairs folder; where pairs are wanted, also a corpus that holds some
    FOLDER            for a data set: LaMP's own files, {train,dev,test}_questions.json and _outputs.json of one task
    OWNER/NAME[@REV]  a data set repository of the Hub that holds one of these

LaMP's files are imported once into the user's cache, under the hash of their content; the Hub's are kept by its own
client, and only the files that are needed are fetched. What was fetched before is found again without a network. A
run folder remembers the name as given, and the content hash, so what it was made on is never in doubt.
"""

import re
from pathlib import Path
from typing import Literal

from tagpr_data.cache import cache_folder
from tagpr_data.dataset import MANIFEST
from tagpr_data.errors import InputError, shorten
from tagpr_data.lamp.convert import import_lamp_files
from tagpr_data.lamp.files import load_outputs
from tagpr_data.records import Split
from tagpr_data.tables import canonical_json, sha256_file, sha256_text

_SPLITS: dict[str, Split] = {"train": "train", "dev": "validation", "test": "test"}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_IMPORT_VERSION = 1
"""Raised when `import_lamp_files` gives other content for the same files."""


def find_dataset(name: str | Path, offline: bool = False) -> Path:
    """Give the data set folder of that name; `offline` takes of the Hub only what was fetched before. InputError says
    what was looked for."""
    folder = Path(name)
    if (folder / MANIFEST).is_file():
        return folder
    if folder.is_dir():
        if questions := [split for split in _SPLITS if (folder / f"{split}_questions.json").is_file()]:
            return _imported(folder, questions)
        raise InputError(
            f"{name} is no data set: it holds neither {MANIFEST} (a data set folder) nor train_, dev_ or "
            "test_questions.json (LaMP's own files)"
        )
    return _downloaded("data set", str(name), (MANIFEST, "profiles.parquet", "examples/*.parquet"), offline)


def find_corpus(name: str | Path, offline: bool = False) -> Path:
    """Give the corpus folder of that name, of the Hub's its manifest and traces only. InputError says what was looked
    for; what lies in the folder is for its reader to check."""
    folder = Path(name)
    return folder if folder.is_dir() else _downloaded("corpus", str(name), (MANIFEST, "traces/*.parquet"), offline)


def find_pairs(name: str | Path, offline: bool = False) -> Path:
    """Give the pairs folder of that name, or the one inside the corpus of that name. InputError says what was looked
    for; what lies in the folder is for its reader to check."""
    folder = Path(name)
    if not folder.is_dir():
        folder = _downloaded("pairs", str(name), (MANIFEST, "profiles.parquet", "pairs/*"), offline)
    inner = folder / "pairs"
    return inner if (inner / MANIFEST).is_file() else folder


def may_exist(name: str | Path) -> bool:
    """Whether something of that name is here, or may be on the Hub, which is not asked."""
    return Path(name).exists() or _HUB_NAME.fullmatch(str(name)) is not None


def _imported(folder: Path, splits: list[str]) -> Path:
    files: dict[Split, tuple[Path, Path | None]] = {
        _SPLITS[split]: (folder / f"{split}_questions.json", _if_there(folder / f"{split}_outputs.json"))
        for split in splits
    }
    tasks = {load_outputs(outputs).task for _, outputs in files.values() if outputs} - {None}
    if len(tasks) != 1:
        found = ", ".join(sorted(map(str, tasks))) or "none"
        raise InputError(
            f"{folder}: which LaMP task its files are of is read from the _outputs.json files; they name {found}. "
            "Otherwise import the files with `tagpr-data import lamp --task …` and give the folder that makes"
        )
    hashes = {split: [sha256_file(path) if path else None for path in pair] for split, pair in files.items()}
    identity = sha256_text(canonical_json([_IMPORT_VERSION, sorted(map(str, tasks)), hashes]))
    target = cache_folder() / "lamp" / identity[:24]
    if not (target / MANIFEST).is_file():
        import_lamp_files(str(tasks.pop()), files, target)
    return target


def _if_there(path: Path) -> Path | None:
    return path if path.is_file() else None


def _downloaded(what: str, name: str, wanted: tuple[str, ...], offline: bool) -> Path:
    folder = fetch(what, name, "dataset", wanted, offline)
    if not (folder / MANIFEST).is_file() and not (folder / "pairs" / MANIFEST).is_file():
        raise InputError(f"repository {name} is no {what} folder: it has no {MANIFEST} at its top")
    return folder


def fetch(
    what: str,
    name: str,
    repo_type: Literal["dataset", "model"],
    wanted: tuple[str, ...] | None = None,
    offline: bool = False,
) -> Path:
    """Give the folder with the files (of the patterns `wanted`, if given) of OWNER/NAME[@REVISION], in the cache of the
    Hub's client. InputError, in which it is called `what`, when it cannot be got."""
    if Path(name).exists() or not _HUB_NAME.fullmatch(name):
        raise InputError(f"{what} {name} does not exist: it is no folder here and no OWNER/NAME of the Hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = name.partition("@")
    kind = "data set repository" if repo_type == "dataset" else "model repository"
    problem = f"{what} {name!r} is neither a folder here nor a {kind} that can be got"
    try:
        return Path(
            snapshot_download(
                repository,
                repo_type=repo_type,
                revision=revision or None,
                allow_patterns=list(wanted) if wanted else None,
                local_files_only=offline,
            )
        )
    except LocalEntryNotFoundError:
        raise InputError(
            f"{problem}: the Hub cannot be reached (or HF_HUB_OFFLINE is set) and it was not fetched before; fetch it "
            "once where there is a network, or give a folder"
        ) from None
    except RevisionNotFoundError:
        raise InputError(f"{problem}: {repository} has no revision {revision or 'main'!r}") from None
    except RepositoryNotFoundError:
        raise InputError(f"{problem}: there is no such {kind}, or the token (HF_TOKEN) may not see it") from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{problem}: {shorten(reason, 200)}") from None
