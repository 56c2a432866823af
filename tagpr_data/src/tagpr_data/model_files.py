"""Where a model's files lie and what is in them: a folder here, or a repository of the Hub.

Guarantee: the same files give the same hash, wherever they lie. Price: hashing reads the weights once.
"""

from pathlib import Path

from tagpr_data.errors import InputError
from tagpr_data.tables import canonical_json, sha256_file, sha256_text

_IDENTITY_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
_NOT_IDENTITY = ("trainer_state.json", "run.json", "README.json")


def model_folder(place: str) -> Path:
    """Give the folder of a model; a repository id is looked up in the Hub's cache, then downloaded."""
    folder = Path(place)
    if folder.is_dir():
        if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
            raise InputError(f"{folder} is no model folder: it has neither config.json nor adapter_config.json")
        return folder
    if folder.exists() or place.startswith((".", "/", "~")) or place.count("/") > 1:
        raise InputError(f"model folder {place} does not exist or is no folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(place, allow_patterns=list(_IDENTITY_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"model {place!r} is neither a folder here nor a repository that can be got: {said}") from None


def files_hash(folder: Path) -> str:
    """Hash the content of all files that decide answers, by their names."""
    files = sorted({path for pattern in _IDENTITY_FILES for path in folder.glob(pattern)})
    entries = {path.name: sha256_file(path) for path in files if path.name not in _NOT_IDENTITY}
    if not any(name.endswith(".safetensors") for name in entries):
        raise InputError(f"{folder} holds no *.safetensors; other weight formats are not read")
    return sha256_text(canonical_json(entries))
