"""A corpus as token ids: what is trained on, what is cut, in which order."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tagpr_data.errors import InputError
from tagpr_data.records import Task
from tagpr_data.tags import load_tagset
from tagpr_train import dataset


def test_completion_is_the_text_and_the_end_of_the_turn_the_template_writes(
    tiny_model: Path, make_trace: Callable
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    trace = make_trace(0)
    (example,) = dataset.encode([trace], tokenizer, load_tagset(), context=1024).examples
    assert tokenizer.decode(example.completion) == trace.text + "<|im_end|>"  # its EOS token is <|endoftext|>
    expected = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in trace.messages)
    assert tokenizer.decode(example.prompt) == expected + "<|im_start|>assistant\n"


def test_answer_target_trains_the_answer_under_the_direct_prompt(tiny_model: Path, make_trace: Callable) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    (example,) = dataset.encode([make_trace(0)], tokenizer, load_tagset(), context=1024, target="answer").examples
    assert tokenizer.decode(example.completion) == "red<|im_end|>"
    prompt = tokenizer.decode(example.prompt)
    assert "Write only the answer" in prompt and "think" not in prompt
    assert "[P1] red: thing 0" in prompt


def test_chain_target_trains_the_same_words_without_tags_under_a_prompt_that_asks_for_none(
    tiny_model: Path, make_trace: Callable
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    (example,) = dataset.encode(
        [make_trace(0)], tokenizer, load_tagset(), context=1024, target="chain", answer_weight=2.0
    ).examples
    text = "<think>\n[P1] is red.\nLikes red.\n</think>\nred"
    assert tokenizer.decode(example.completion) == text + "<|im_end|>"
    assert example.weights == [1.0] * (len(text) - len("\nred")) + [2.0] * len("\nred ")
    prompt = tokenizer.decode(example.prompt)
    assert "reason about the user inside <think>" in prompt and "tag" not in prompt and "[P1] red: thing 0" in prompt


def test_what_a_chain_model_writes_opens_the_gate_and_is_answered_as_an_evaluation_reads_it(
    make_trace: Callable,
) -> None:
    """Prompt, completion, reward and extractor agree on what reasoning without tags is."""
    from tagpr_data import answers
    from tagpr_data.prompts import PromptOptions, chat_prompt
    from tagpr_data.tags import parse
    from tagpr_train import rewards
    from tagpr_train.config import TARGET_STYLES

    trace, tagset = make_trace(1), load_tagset()
    task = Task(name="colour", kind="classification", labels=("red", "blue"), answer_form="x", item_template="{text}")
    text = dataset.chain_text(trace)
    assert answers.parsed(text, task).answer == "blue"
    reward = rewards.composite(task, text, "blue", (), "", tagset, rewards.RewardWeights())
    assert reward.gate_open and reward.answer == 1.0 and reward.tags == 0.0
    assert {violation.code for violation in parse(text, tagset, k=1).violations} >= {"stray-text"}
    asked = chat_prompt(task, "Which colour?", (), PromptOptions(style=TARGET_STYLES["chain"]), tagset)
    assert dataset.in_style(trace.messages, "chain", tagset)[0] == asked[0]


def test_prompt_longer_than_the_context_loses_its_middle_and_is_counted(tiny_model: Path, make_trace: Callable) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    whole = dataset.encode([make_trace(0)], tokenizer, load_tagset(), context=1024).examples[0]
    context = len(whole.completion) + 41
    encoded = dataset.encode([make_trace(0)], tokenizer, load_tagset(), context=context)
    assert encoded.counts == {"prompts_cut": 1, "completions_too_long": 0}
    assert encoded.examples[0].prompt == whole.prompt[:21] + whole.prompt[-20:]
    assert encoded.examples[0].completion == whole.completion


def test_completion_without_room_for_a_prompt_is_left_out_and_counted(tiny_model: Path, make_trace: Callable) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    length = len(dataset.encode([make_trace(0)], tokenizer, load_tagset(), context=1024).examples[0].completion)
    encoded = dataset.encode([make_trace(0)], tokenizer, load_tagset(), context=length + dataset.MIN_PROMPT_TOKENS - 1)
    assert encoded.examples == [] and encoded.counts["completions_too_long"] == 1


def test_batch_pads_prefixes_left_and_completions_right() -> None:
    rows = [
        {"id": "a", "prompt": [1, 2, 3], "completion": [4, 9], "weights": [1.0, 2.0]},
        {"id": "b", "prompt": [5], "completion": [6, 7, 9], "weights": [1.0, 1.0, 1.0]},
    ]
    batch = dataset.Collator(pad=0)(rows)
    assert batch.pop("ids") == ["a", "b"]
    assert {name: value.tolist() for name, value in batch.items()} == {
        "prefix_ids": [[1, 2], [0, 0]],
        "prefix_mask": [[1, 1], [0, 0]],
        "input_ids": [[3, 4, 0], [5, 6, 7]],
        "attention_mask": [[1, 1, 0], [1, 1, 1]],
        "labels": [[4, 9, -100], [6, 7, 9]],
        "weights": [[1.0, 2.0, 0.0], [1.0, 1.0, 1.0]],
    }


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 900), max_size=400), st.integers(1, 9), st.integers(0, 3))
def test_order_holds_every_example_once_and_the_longest_batch_first(lengths: list[int], size: int, epoch: int) -> None:
    order = dataset.batch_order(lengths, size, seed=7, epoch=epoch)
    assert sorted(order) == list(range(len(lengths)))
    assert order == dataset.batch_order(lengths, size, seed=7, epoch=epoch)
    if len(lengths) >= size:
        whole = len(lengths) // size * size
        longest = max(lengths[index] for index in order[:whole])
        assert max(lengths[index] for index in order[:size]) == longest


def test_order_changes_with_epoch_and_seed_and_wastes_little_padding() -> None:
    lengths = [(n * 37) % 400 + 1 for n in range(600)]
    order = dataset.batch_order(lengths, 6, seed=0, epoch=0)
    assert order != dataset.batch_order(lengths, 6, seed=0, epoch=1)
    assert order != dataset.batch_order(lengths, 6, seed=1, epoch=0)
    batches = [[lengths[index] for index in order[start : start + 6]] for start in range(0, 600, 6)]
    assert sum(6 * max(batch) for batch in batches) < 1.05 * sum(lengths)


def test_without_grouping_a_batch_mixes_lengths() -> None:
    """Two kinds of example, told apart by length: grouped batches hold one kind, ungrouped ones mostly both."""
    lengths = [100] * 300 + [300] * 300

    def mixed(group_batches: int) -> float:
        order = dataset.batch_order(lengths, 6, 0, 0, group_batches)
        batches = [{lengths[index] for index in order[start : start + 6]} for start in range(0, 600, 6)]
        return sum(len(batch) == 2 for batch in batches) / len(batches)

    assert mixed(32) < 0.1
    assert mixed(1) > 0.9  # 1 - 2 · 0.5⁶ = 0.97 expected


def test_corpus_of_another_grammar_version_is_refused(make_corpus: Callable) -> None:
    path = make_corpus() / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"grammar_version": 2}))
    with pytest.raises(InputError, match="grammar version 2, this version reads 1"):
        dataset.read_manifest(path.parent)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), ("<html>", "is not JSON"), ('{"kind": "dataset"}', "does not describe a corpus")],
)
def test_folder_that_is_no_corpus_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=message):
        dataset.read_manifest(tmp_path)


def test_corpus_in_another_tag_set_is_refused(corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text('name = "other"\nmax_steps = 3\n[[tags]]\nname = "a"\nmeaning = "b"\ncites = "no"\n')
    with pytest.raises(InputError, match="written in tag set 'tagpr-9'"):
        dataset.corpus_tagset(dataset.read_manifest(corpus), other)


def test_changed_traces_and_unknown_tasks_are_refused(make_corpus: Callable) -> None:
    corpus = make_corpus()
    manifest = dataset.read_manifest(corpus)
    assert len(dataset.read_traces(corpus, manifest, "train", ["colour"])) == 10
    assert dataset.read_traces(corpus, manifest, "test", None) == []
    with pytest.raises(InputError, match=r"tasks \['taste'\] are not in the corpus .*colour"):
        dataset.read_traces(corpus, manifest, "train", ["taste"])
    (corpus / "traces/train.parquet").write_bytes((corpus / "traces/validation.parquet").read_bytes())
    with pytest.raises(InputError, match=r"is not the file manifest.json describes"):
        dataset.read_traces(corpus, manifest, "train", None)


def test_tokenizer_without_chat_template_is_refused(tiny_model: Path, make_trace: Callable) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="has no chat template"):
        dataset.encode([make_trace(0)], tokenizer, load_tagset(), context=1024)
