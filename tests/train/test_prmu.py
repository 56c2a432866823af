"""PRMU: numbers by hand, one user against another, unseen users, and the folder it lives in."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from tagpr_data.errors import InputError
from tagpr_data.records import Message, ProfileItem
from tagpr_train.prmu import PRMU, pad, pairwise_loss
from tagpr_train.user_embedding import HASHED_FEATURES, hashed_profile

WORDS = ["<eos>", "red", "blue", "warm", "cold", "lamp", "what", "?", "is", "it"]


def items(label: str, count: int = 3) -> list[ProfileItem]:
    return [
        ProfileItem(profile_id="p", position=n, item_id=str(n), text=f"red lamp {n}", label=label) for n in range(count)
    ]


def make(kind: str = "llama", **settings: object) -> PRMU:
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="?")
    sizes = {"vocab_size": 16, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    if kind == "llama":
        backbone = LlamaModel(LlamaConfig(**sizes, num_hidden_layers=2, num_key_value_heads=2))
    else:
        backbone = BertModel(BertConfig(**sizes, num_hidden_layers=2), add_pooling_layer=False)
    model = PRMU.from_backbone(backbone.eval(), fast, {"ann": items("warm"), "bob": items("cold")}, **settings)
    return model.eval()


def test_pairwise_loss_by_hand() -> None:
    one, two = torch.tensor([1.0]), torch.tensor([2.0])
    assert pairwise_loss(two, one).item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert pairwise_loss(two, one, margin=1.0).item() == pytest.approx(math.log(2))
    assert pairwise_loss(two, one, centring=0.1).item() == pytest.approx(math.log(1 + math.exp(-1)) + 0.1 * 9)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_another_user_gets_another_score(kind: str) -> None:
    model = make(kind)
    assert abs(model.score("ann", "what is it ?", "warm") - model.score("bob", "what is it ?", "warm")) > 1e-4


def test_without_the_user_vector_all_users_are_one() -> None:
    model = make(use_user=False)
    assert model.score("ann", "what", "warm") == model.score("bob", "what", "warm") == model.score([], "what", "warm")


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_score_does_not_depend_on_its_batch(kind: str) -> None:
    model = make(kind)
    completions = ["warm", "cold cold cold", "it is red", "warm lamp is it blue red"]
    users = ["ann", "bob", items("warm", 2), "ann"]
    together = model.score_batch(users, ["what ?"] * 4, completions)
    alone = [model.score(user, "what ?", completion) for user, completion in zip(users, completions, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("settings", [{}, {"use_user": False}, {"max_tokens": 5}])
def test_sharing_a_prompt_among_completions_changes_no_score(kind: str, settings: dict[str, Any]) -> None:
    model = make(kind, **settings)
    users = ["ann", "ann", "ann", "bob", "bob", "ann", "ann"]
    prompts = ["what is it ?"] * 5 + ["what"] * 2
    completions = ["warm", "cold cold cold", "", "warm", "it is red", "warm lamp", "cold"]
    together = model.score_batch(users, prompts, completions, batch_size=4)
    alone = [model.score(*case) for case in zip(users, prompts, completions, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    fronts = {(user, (1, 2)): [(0, [3])] for user in users}
    assert model._shares_prompts(fronts) == (kind == "llama")


def test_a_table_user_whose_row_is_zero_scores_as_an_unseen_user_with_the_same_items() -> None:
    model = make()
    assert model.score("ann", "what", "warm") == pytest.approx(model.score(items("warm"), "what", "warm"), abs=1e-6)
    with torch.no_grad():
        model.user_table.weight[model.users["ann"]] += 1.0
    assert model.score("ann", "what", "warm") != pytest.approx(model.score(items("warm"), "what", "warm"), abs=1e-4)


def test_user_dropout_leaves_rows_out_only_in_training() -> None:
    model = make(user_dropout=1.0)
    with torch.no_grad():
        model.user_table.weight.fill_(3.0)
    index = torch.tensor([0])
    projected = model.projected(model.profiles[index])
    assert torch.allclose(model.known_users(index), projected + 3.0)
    assert torch.allclose(model.train().known_users(index), projected)


def test_the_folder_brings_back_the_same_scores(tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    again = PRMU.from_pretrained(tmp_path)
    cases = (["ann", "bob", items("cold", 1)], ["what ?"] * 3, ["warm", "cold", "it is red"])
    assert again.score_batch(*cases) == pytest.approx(model.score_batch(*cases), abs=1e-6)
    assert {path.name for path in tmp_path.iterdir()} >= {"config.json", "model.safetensors", "users.json"}


def test_a_long_prompt_loses_its_front_and_never_the_completion() -> None:
    model = make(max_tokens=5)
    ids = model.encode("what is it ? red blue", "warm lamp")
    assert [WORDS[n] for n in ids] == ["red", "blue", "warm", "lamp", "<eos>"]


def test_a_chat_prompt_equals_its_user_turn() -> None:
    model = make()
    chat = (Message(role="user", content="what is it ?"),)
    assert model.score("ann", chat, "warm") == model.score("ann", "what is it ?", "warm")


def test_an_unknown_user_and_a_folder_of_something_else_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'carl' is not among the 2 users"):
        make().score("carl", "what", "warm")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match=r"is not a PRMU: it has no users\.json"):
        PRMU.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("users.json", b"{", "JSONDecodeError"),
        ("users.json", b"[1]", "TypeError"),
        ("config.json", None, "is not a whole PRMU"),
        ("config.json", b'{"model_type": "prmu"}', "KeyError"),
        ("model.safetensors", b"half", "SafetensorError"),
        ("tokenizer.json", None, "is not a whole PRMU"),
    ],
)
def test_a_damaged_folder_is_told(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    model = make("llama")
    model.save_pretrained(tmp_path)
    path = tmp_path / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        PRMU.from_pretrained(tmp_path)


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    """transformers would give the head random weights and warn."""
    make("llama").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["head.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"its weights lack head\.weight"):
        PRMU.from_pretrained(tmp_path)


def test_padding_is_masked() -> None:
    ids, mask = pad([[5, 6], [7]])
    assert ids.tolist() == [[5, 6], [7, 0]]
    assert mask.tolist() == [[1, 1], [1, 0]]


def test_hashed_profiles_see_which_label_goes_with_which_word() -> None:
    """Same words, same labels, other pairing: a bag of words could not tell them apart."""

    def user(red: str, blue: str) -> list[ProfileItem]:
        pairs = (("red lamp", red), ("blue lamp", blue))
        return [
            ProfileItem(profile_id="p", position=n, item_id=str(n), text=text, label=label)
            for n, (text, label) in enumerate(pairs)
        ]

    one, other = hashed_profile(user("warm", "cold")), hashed_profile(user("cold", "warm"))
    assert abs(one - other).max() > 0.05
    assert hashed_profile(user("warm", "cold")[::-1]) == pytest.approx(one)
    assert hashed_profile([]).shape == (HASHED_FEATURES,)
    assert not hashed_profile([]).any()
