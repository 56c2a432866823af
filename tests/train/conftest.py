"""A tiny random Llama, its byte-level tokenizer and a small corpus: the real parts at a size tests can afford."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tagpr_data.records import CorpusManifest, Message, Sampling, Task, Trace
from tagpr_data.tables import content_hash, frame_from_records, sha256_text, write_json, write_table
from tagpr_data.tags import load_tagset, parse

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TASK = Task(
    name="colour",
    kind="classification",
    labels=("red", "blue"),
    answer_form="a colour",
    item_template="{label}: {text}",
)


def write_model(folder: Path, *, tied: bool = True, width: int = 32) -> Path:
    """Write a random Llama with a byte-level tokenizer (no merges) and a chat template into `folder`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    core = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate([*special, *alphabet])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|endoftext|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=tied,
            eos_token_id=0, pad_token_id=0, bos_token_id=1, initializer_range=0.2,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trace(number: int, split: str = "train") -> Trace:
    """Give a valid trace; the longer, the higher its number."""
    colour = ("red", "blue")[number % 2]
    text = (
        f"<think>\n<examine_examples>[P1] is {colour}{' indeed' * (number % 3)}.</examine_examples>\n"
        f"<infer_preference>Likes {colour}.</infer_preference>\n</think>\n{colour}"
    )
    parsed = parse(text, load_tagset(), k=1)
    assert parsed.is_valid, parsed.violations
    messages = (
        Message(role="system", content="Answer as this user would. Reason inside <think> and </think>."),
        Message(role="user", content=f"Past items of this user:\n[P1] {colour}: thing {number}\n\nWhich colour?"),
    )
    return Trace(
        id=sha256_text(f"{split}{number}"), example_id=f"e{number}", task="colour", user_id=f"u{number % 3}",
        retriever="bm25", k=1, item_ids=("i",), messages=messages, prompt_hash=sha256_text(str(messages)),
        teacher="scripted", teacher_revision="1", sampling=Sampling(), seed=0, attempt=0, text=text,
        finish_reason="stop", gold=colour, steps=parsed.steps, answer=parsed.answer, score=1.0, claims=0,
        grounded_claims=0,
    )  # fmt: skip


def write_corpus(folder: Path, *, train: int = 10, validation: int = 4) -> Path:
    """Write a corpus folder of synthetic traces."""
    tagset = load_tagset()
    files = {}
    for split, count in (("train", train), ("validation", validation)):
        frame = frame_from_records([trace(number, split) for number in range(count)], Trace)
        name = f"traces/{split}.parquet"
        files[name] = write_table(folder / name, frame, Trace, ["id"])
    manifest = CorpusManifest(
        name="colours", tagset=tagset.name, tagset_hash=tagset.hash, dataset="colours", dataset_hash="0" * 64,
        licence="ours", tasks=(TASK,), teachers={"scripted": "1"}, files=files,
        content_hash=content_hash([TASK], files, [tagset.hash]), candidates=train + validation,
        kept=train + validation, rejected={}, acceptance={"colour": 1.0}, claims=0, grounded_claims=0, parameters={},
    )  # fmt: skip
    write_json(folder / "manifest.json", manifest)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny model."""
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def untied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny model with a head of its own."""
    return write_model(tmp_path_factory.mktemp("untied") / "model", tied=False)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a corpus with 10 training and 4 validation traces."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "colours")


@pytest.fixture(scope="session")
def make_trace() -> Callable[..., Trace]:
    """The function `trace`."""
    return trace


@pytest.fixture
def make_corpus(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a fresh corpus to be spoilt."""

    def make(**counts: Any) -> Path:
        return write_corpus(tmp_path / "own-corpus", **counts)

    return make
