"""Publish what a run made (model, adapter or PRMU) on the Hub: weights, card, settings, metrics and results.

    README.md, weights, tokenizer     what loads by the three lines in the card
    training/config.toml, run.json    how it was made, with names in place of this machine's folders
    training/metrics.jsonl            its curves
    prmu_eval.json, .md, .svg         of a PRMU: what RL's gate reads
    .eval_results/*.yaml              scores of `tagpr-eval`, where the run folder holds them

Guarantee: all of `tagpr_data.publish`'s (dry run, one commit, no-op when unchanged); a run that is not finished or
whose card is stale is refused, and so is a package in which a place or the name of this machine is found. An adapter's
config, which holds the folder of its base model, is published with a name that others can load.
"""

import json
import re
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tagpr_data import publish
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.publish import Package
from tagpr_train import model_card
from tagpr_train.model_card import ADAPTER, README, RESULTS, Trained

OWNED = (
    "training/*", f"{RESULTS}/*", "*.safetensors", "*.safetensors.index.json", ADAPTER, "config.json", "users.json",
    "generation_config.json", "prmu_eval.*", "chat_template.jinja", "added_tokens.json", "special_tokens_map.json",
)  # fmt: skip
"""Paths on the Hub that belong to a trained model: those it no longer has are deleted by the commit."""

_TEXTS = (".json", ".jsonl", ".jinja", ".txt", ".md", ".svg", ".toml", ".yaml", ".yml")
_KINDS = (*_TEXTS, ".safetensors", ".model")
"""Endings of the files a product may hold; anything else (a pickle above all) is refused."""

_PATH = re.compile(r"(?<![\w./:<&])~?(?:/[\w.+@-]+){2,}|(?<!\w)[A-Za-z]:\\[\w\\.-]+")
"""An absolute path: at least two names after a slash that begins a word, or a Windows drive."""

_VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt", "users.json", "chat_template.jinja")
"""Files of texts, in which anything may look like a path or a name; only long paths of this machine are looked for."""


def collect(folder: Path, repo_id: str) -> Package:
    """Give the files of a finished run as they are published, the card naming `repo_id`.

    Raises CheckFailed for a stale card and for a place of this machine in a file, InputError where the base model or
    encoder is known by a folder only.
    """
    trained = model_card.open_run(folder)
    if problems := model_card.stale(trained):
        raise CheckFailed(
            f"{folder} has a card that does not fit the run: {'; '.join(problems)}; write it anew with: "
            f"tagpr-train card {folder}"
        )
    files = dict(_files(trained, repo_id))  # a later content of the same path replaces an earlier one
    if leaks := [f"{path}: {leak}" for path, content in files.items() for leak in places(path, content)]:
        raise CheckFailed(
            f"{folder} cannot be published, its files name places of this machine:\n  " + "\n  ".join(leaks[:20])
        )
    uploads = tuple(publish.upload(path, content) for path, content in sorted(files.items(), key=lambda file: file[0]))
    weights = next(upload.sha256 for upload in uploads if upload.path.endswith(".safetensors"))
    return Package("model", uploads, OWNED, f"{trained.manifest.kind} {trained.kind}: weights {weights[:12]}")


def places(path: str, content: Path | bytes) -> list[str]:
    """Give what in a file names this machine or a place on it; a weights file is looked at in its header."""
    is_vocabulary = path.endswith(_VOCABULARY)
    own = [name for name in _own_names() if not is_vocabulary or name.count("/") > 1]
    if path.endswith(_TEXTS):
        text = (content.read_bytes() if isinstance(content, Path) else content).decode("utf-8", "replace")
    elif path.endswith(".safetensors") and isinstance(content, Path):
        with content.open("rb") as file:
            text = file.read(int.from_bytes(file.read(8), "little")).decode("utf-8", "replace")
    else:
        return []
    found = [name for name in own if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)]
    if not is_vocabulary and path.endswith(_TEXTS):
        found += [match[0] for match in _PATH.finditer(text)]
    return list(dict.fromkeys(found))[:5]


def _files(trained: Trained, repo_id: str) -> Iterator[tuple[str, Path | bytes]]:
    """Give path on the Hub and content of everything that is published."""
    folder, product = trained.folder, trained.product
    for file in sorted(product.rglob("*")):
        path = file.relative_to(product).as_posix()
        if not file.is_file() or path == README:
            continue
        if not path.endswith(_KINDS):
            raise CheckFailed(f"{file} is not a file of a model ({', '.join(_KINDS)}); remove it")
        yield path, file
    if not list(product.glob("*.safetensors")):
        raise InputError(f"{product} holds no weights (*.safetensors); the run is not whole")
    yield from _renamed(trained)
    yield README, model_card.card(trained, repo_id).encode()
    yield "training/config.toml", model_card.settings_file(trained).encode()
    manifest = trained.manifest.model_copy(update={"config": model_card.public_config(trained)})
    yield "training/run.json", (json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True) + "\n").encode()
    for name in ("prmu_eval.json", "prmu_eval.md", "prmu_eval.svg"):
        if (folder / name).is_file():
            yield name, folder / name
    if (folder / "metrics.jsonl").is_file():
        yield "training/metrics.jsonl", folder / "metrics.jsonl"
    for file in (folder / RESULTS).glob("*.yaml"):
        yield f"{RESULTS}/{file.name}", file


def _renamed(trained: Trained) -> Iterator[tuple[str, bytes]]:
    """Give the configs that name another model, with a name that others can load."""
    toml = trained.folder / model_card.FACTS
    if trained.kind == "adapter":
        config = trained.read(ADAPTER)
        base = model_card.base_model(trained)
        if base is None:
            raise InputError(
                f"the adapter's base model is a folder of this machine ({config['base_model_name_or_path']}), which "
                f'nobody else can load; say which model of the Hub it is, base_model = "OWNER/NAME" in {toml}, then '
                f"tagpr-train card {trained.folder}; or publish merged weights (merge = true)"
            )
        yield ADAPTER, _json(config | {"base_model_name_or_path": base})
    if trained.kind == "prmu":
        config = trained.read("config.json")
        name = model_card.encoder(trained)
        if name is None:
            raise InputError(
                f"the PRMU's profile encoder is a folder of this machine ({config['profile_encoder']}), which nobody "
                f'else can load; say which model of the Hub it is, encoder = "OWNER/NAME" in {toml}, then '
                f"tagpr-train card {trained.folder}"
            )
        yield "config.json", _json(config | {"profile_encoder": name})


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _own_names() -> list[str]:
    """Give what this machine and the user's places on it are called, but for names too short to tell anything."""
    host = socket.gethostname()
    names = {host, host.partition(".")[0]} - {"localhost"}
    folders = {str(Path.home()), str(Path.cwd()), tempfile.gettempdir(), sys.prefix}
    return sorted({name for name in names if len(name) > 5} | {name for name in folders if len(name) > 3})
