"""Load a trained model with its tokenizer, from a folder or from the Hub: whole weights, or an adapter with its base;
and say by a hash which one it was.

What plain peft lacks: the embedded base model by its name, and room for added tokens before the adapter is put on.
Safetensors only, no code of models is run.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from tagpr_data.errors import InputError
from tagpr_data.tables import canonical_json, sha256_file, sha256_text
from tagpr_train import base_model

ADAPTER = "adapter_config.json"

_WEIGHTS = ("model*.safetensors", "adapter_model*.safetensors", "config.json", ADAPTER)
_CONTENT = (*_WEIGHTS, "users.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""The files that say what a model or PRMU computes."""


def load(
    name: str, *, revision: str | None = None, dtype: str | torch.dtype = "auto", is_trainable: bool = False
) -> tuple[Any, Any]:
    """Give model and tokenizer of a folder or OWNER/NAME; `is_trainable` leaves an adapter open to further training.
    InputError says what cannot be loaded."""
    if not is_adapter(name, revision):
        folder = base_model.resolve(name)
        return _weights(folder, revision, dtype, f"model {name!r}"), _tokenizer(folder, revision)
    tokenizer = _tokenizer(name, revision)
    base, base_revision = _base_of(_files(name, ADAPTER, revision) / ADAPTER)
    try:
        model = _weights(base_model.resolve(base), base_revision, dtype, f"model {base!r}")
    except InputError as error:
        raise InputError(
            f"the base model of the adapter {name!r} is missing: {error}. {ADAPTER} of the adapter names it "
            "(base_model_name_or_path): bring it back, or write a folder or OWNER/NAME with the same weights there"
        ) from None
    from peft import PeftModel

    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    options: dict[str, Any] = {"revision": revision, "is_trainable": is_trainable, "autocast_adapter_dtype": False}
    return PeftModel.from_pretrained(model, name, **options), tokenizer


def is_adapter(name: str, revision: str | None = None) -> bool:
    """Tell whether a folder or OWNER/NAME of the Hub holds an adapter."""
    if Path(name).is_dir() or name.count("/") != 1:
        return (Path(name) / ADAPTER).is_file()
    try:
        return find_adapter_config_file(name, revision=revision) is not None
    except OSError:
        return False  # nothing can be got; who loads it will say why


def content_hash(folder: Path, *, weights_only: bool = False) -> str:
    """Give the hash of a model's or PRMU's content: weights, settings, tokenizer, users (`weights_only` leaves out the
    last two); not of its folder's name or of what else lies there. Price: the weights are read once."""
    files = sorted(path for pattern in (_WEIGHTS if weights_only else _CONTENT) for path in folder.glob(pattern))
    return sha256_text(canonical_json({path.name: sha256_file(path) for path in files}))


def content_hashes(name: str, revision: str | None = None, *, here_only: bool = False) -> dict[str, str]:
    """Give the content hash of a model as `model`, and the one of an adapter's base, whose tokenizer is not used, as
    `base_model`. Of the Hub's models those in the cache of its client, to be called after they were loaded; `here_only`
    leaves out what is no folder here."""
    if here_only and not Path(name).is_dir():
        return {}
    if not is_adapter(name, revision):
        return {"model": content_hash(_files(base_model.resolve(name), "config.json", revision))}
    folder = _files(name, ADAPTER, revision)
    found = {"model": content_hash(folder)}
    base, base_revision = _base_of(folder / ADAPTER)
    if not here_only or Path(base).is_dir():
        place = _files(base_model.resolve(base), "config.json", base_revision)
        found["base_model"] = content_hash(place, weights_only=True)
    return found


def _weights(name: str, revision: str | None, dtype: str | torch.dtype, what: str) -> Any:
    options: dict[str, Any] = {"revision": revision, "dtype": dtype, "use_safetensors": True}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **options)
    except (OSError, ValueError) as error:
        raise InputError(f"{what} cannot be loaded: {str(error).splitlines()[0]}") from None
    model, found = loaded
    refuse_missing(found, what)
    return model


def refuse_missing(found: Mapping[str, Any], what: str) -> None:
    """InputError where transformers' loading info says that weights were not in the files: it makes them up at random.
    A pooler may be missing; nothing here reads it."""
    if missing := sorted(key for key in found["missing_keys"] if "pooler" not in key):
        raise InputError(f"{what} lacks {len(missing)} of its weights, the first {missing[0]!r}: its files are damaged")


def _tokenizer(name: str, revision: str | None) -> Any:
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise InputError(f"the tokenizer of {name!r} cannot be loaded: {str(error).splitlines()[0]}") from None


def _base_of(adapter_config: Path) -> tuple[str, str | None]:
    """Give name and revision of the model an adapter was trained on."""
    settings = json.loads(adapter_config.read_text(encoding="utf-8"))
    return str(settings["base_model_name_or_path"]), settings.get("revision")


def _files(name: str, file: str, revision: str | None) -> Path:
    """Give the folder that holds `file` of a model, of the Hub's in its client's cache."""
    found = cached_file(name, file, revision=revision)
    assert found is not None, "cached_file raises where there is none"
    return Path(found).parent
