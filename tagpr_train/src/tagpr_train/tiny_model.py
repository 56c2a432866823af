"""A small Llama from scratch: a tokenizer trained on one corpus, random weights, a chat template.

For the demonstration in which reinforcement learning visibly learns on two CPU cores: with a vocabulary of a few
hundred tokens a prompt is short, nearly all weights are layers, and a step takes seconds. The model knows nothing; SFT
on the corpus teaches it to read. Sizes and template are ours.

Guarantee: the same corpus, sizes, seed and versions give the same bytes; the folder appears whole or not at all.
Price: the tokenizer knows the corpus' words as single tokens and everything else as bytes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from tagpr_data.config import Config
from tagpr_data.errors import InputError
from tagpr_data.records import Trace
from tagpr_data.tags import TagSet
from tagpr_train import dataset, runs, tag_tokens

TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
END = "<|im_end|>"
_SPECIAL = ("<|endoftext|>", "<|im_start|>", END)
_PIECES = r' ?\[P\d+\]| ?"\w+"| ?\w+|\n| ?[^\w\s]|\s+'  # a citation, a quoted word: each can become one token


class TinyModel(Config):
    """Sizes of a model from scratch."""

    layers: int = Field(default=4, ge=1)
    """Decoder layers."""
    width: int = Field(default=128, ge=16)
    """Hidden size; a multiple of `heads`."""
    heads: int = Field(default=4, ge=1)
    """Attention heads."""
    vocabulary: int = Field(default=1024, ge=300)
    """Most tokens of the vocabulary; 256 of them are bytes."""
    context: int = Field(default=1024, ge=64)
    """Longest sequence in tokens."""
    seed: int = 0
    """Seed of the weights."""


def write_model(folder: Path, corpus: Path, sizes: TinyModel, tagset: TagSet) -> int:
    """Write a model for the words of `corpus` into `folder`; give its number of weights. InputError when the folder
    exists, or the sizes do not fit together."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    if folder.exists():
        raise InputError(f"{folder} exists; remove it or choose another place")
    if sizes.width % sizes.heads:
        raise InputError(f"width = {sizes.width} is not a multiple of heads = {sizes.heads}")
    manifest = dataset.read_manifest(corpus)
    tokenizer = _tokenizer(dataset.read_traces(corpus, manifest, "train", None), sizes, tagset)
    end, start = tokenizer.convert_tokens_to_ids([END, "<|im_start|>"])
    torch.manual_seed(sizes.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.width,
        intermediate_size=4 * sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        max_position_embeddings=sizes.context,
        tie_word_embeddings=True,
        initializer_range=sizes.width**-0.5 / 2,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=start, eos_token_id=end, pad_token_id=tokenizer.pad_token_id
    )
    with runs.atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return sum(weight.numel() for weight in model.parameters())


def _tokenizer(traces: Sequence[Trace], sizes: TinyModel, tagset: TagSet) -> Any:
    """Train a byte-level BPE on the prompts and completions; marks of the tag set are single tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    def texts() -> Iterator[str]:
        for trace in traces:
            yield from (message.content for message in trace.messages)
            yield trace.text
        yield from ("system\n", "user\n", "assistant\n")

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue] - a property without type
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue] - as above
    trainer = trainers.BpeTrainer(
        vocab_size=sizes.vocabulary,
        min_frequency=2,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts(), trainer)
    core.add_tokens([AddedToken(mark, normalized=False, special=False) for mark in tag_tokens.marks(tagset)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END, pad_token=_SPECIAL[0], chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
