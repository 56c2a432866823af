"""Scoring files with a PRMU: the same numbers as in Python, keys kept, bad lines named."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from tagpr_data.errors import InputError
from tagpr_data.records import ProfileItem
from tagpr_train.prmu import PRMU
from tagpr_train.score import read_requests, score_file

ITEM = ProfileItem(profile_id="p", position=0, item_id="1", text="red lamp", label="warm")


@pytest.fixture(scope="module")
def prmu() -> PRMU:
    torch.manual_seed(0)
    words = {word: number for number, word in enumerate(["<eos>", "what", "warm", "cold"])}
    core = Tokenizer(models.WordLevel(words, unk_token="what"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    backbone = LlamaModel(LlamaConfig(vocab_size=4, num_key_value_heads=2, **sizes))
    users = {"ann": [ITEM], "bob": [ITEM.model_copy(update={"label": "cold"})]}
    model = PRMU.from_backbone(backbone, PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>"), users)
    model.config.score_mean, model.config.score_std = 1.0, 2.0
    return model.eval()


def test_a_file_gets_the_scores_python_gets(prmu: PRMU, tmp_path: Path) -> None:
    items = [ITEM.model_dump()]
    lines = [
        {"prompt": "what", "completion": "warm", "user": "ann", "note": "kept"},
        {"prompt": [{"role": "user", "content": "what"}], "completion": "cold", "items": items},
        {"prompt": "what", "completion": "cold", "user": "bob", "items": items},
    ]
    path, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert score_file(prmu, read_requests(path), output) == 3
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [{**line, "score": 0, "standardised": 0} for line in found] == [
        {**line, "score": 0, "standardised": 0} for line in lines
    ]
    users = ["ann", [ITEM], prmu.embed_user("bob", [ITEM])]
    expected = [prmu.score(user, "what", line["completion"]) for user, line in zip(users, lines, strict=True)]
    assert [line["score"] for line in found] == pytest.approx(expected, abs=1e-5)
    assert [line["standardised"] for line in found] == pytest.approx([(s - 1) / 2 for s in expected], abs=1e-5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "what", "completion": "warm"}', "line 2: `user` or `items` must say who is asked for"),
        ('{"prompt": "what", "user": "ann"}', "line 2: completion: Field required"),
        ('{"prompt": ', "line 2: .*Invalid JSON"),
        (
            '{"prompt": "w", "completion": "x", "items": [{"text": "a"}]}',
            r"line 2: items\.0\.profile_id: Field required",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "what", "completion": "warm", "user": "ann"}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        read_requests(path)


def test_a_user_the_table_lacks_leaves_no_output(prmu: PRMU, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "what", "completion": "warm", "user": "carl"}\n')
    with pytest.raises(InputError, match="'carl' is not among the 2 users"):
        score_file(prmu, read_requests(path), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
