"""Load a trained model with its tokenizer, from a folder or from the Hub: whole weights, or an adapter with its base.

What plain peft lacks: the embedded base model by its name, and room for added tokens before the adapter is put on.
Safetensors only, no code of models is run.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.peft_utils import find_adapter_config_file

from tagpr_data.errors import InputError
from tagpr_train import base_model


def load(
    name: str, *, revision: str | None = None, dtype: str | torch.dtype = "auto", is_trainable: bool = False
) -> tuple[Any, Any]:
    """Give model and tokenizer of a folder or OWNER/NAME; `is_trainable` leaves an adapter open to further training.
    InputError says what cannot be loaded."""
    what = f"model {name!r}"
    try:
        name = name if is_adapter(name, revision) else base_model.resolve(name)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        if not is_adapter(name, revision):
            options: dict[str, Any] = {"revision": revision, "dtype": dtype, "use_safetensors": True}
            return AutoModelForCausalLM.from_pretrained(name, **options), tokenizer
        adapter = find_adapter_config_file(name, revision=revision)
        assert adapter is not None, "just found"
        base = str(json.loads(Path(adapter).read_text(encoding="utf-8"))["base_model_name_or_path"])
        what = f"base model {base!r} of adapter {name!r}"
        model: Any = AutoModelForCausalLM.from_pretrained(base_model.resolve(base), dtype=dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{what} cannot be loaded: {str(error).splitlines()[0]}") from None
    from peft import PeftModel

    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    options = {"revision": revision, "is_trainable": is_trainable, "autocast_adapter_dtype": False}
    return PeftModel.from_pretrained(model, name, **options), tokenizer


def is_adapter(name: str, revision: str | None = None) -> bool:
    """Tell whether a folder or OWNER/NAME of the Hub holds an adapter."""
    if Path(name).is_dir() or name.count("/") != 1:
        return (Path(name) / "adapter_config.json").is_file()
    return find_adapter_config_file(name, revision=revision) is not None
