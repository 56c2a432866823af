"""PRMU training end to end: what it writes, that it resumes, how it refuses, and that it learns who is asked."""

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tagpr_data.config import load
from tagpr_data.dataset import Dataset
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.pairs import PairFolder, PairOptions, write_pairs
from tagpr_data.records import Rollout, RunManifest
from tagpr_data.sources import personas
from tagpr_data.tables import read_json, read_records
from tagpr_data.tags import load_tagset
from tagpr_train import prmu_eval, prmu_fit, rl, rl_judge, rl_prompts
from tagpr_train.config import Prmu, Rl
from tagpr_train.prmu import PRMU

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def write_word_model(folder: Path, texts: Sequence[str], width: int = 32, layers: int = 2) -> Path:
    """Write a random Llama whose tokens are the words of `texts`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    splitter = pre_tokenizers.Whitespace()
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text)})
    vocabulary = {word: number for number, word in enumerate(["<eos>", "<unk>", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = splitter
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    config = LlamaConfig(
        vocab_size=len(vocabulary), max_position_embeddings=128, initializer_range=0.1, **shape, **heads
    )
    LlamaModel(config).save_pretrained(folder)
    return folder


def texts_of(folder: Path) -> list[str]:
    return [text for pair in PairFolder(folder).pairs("train") for text in (pair.prompt[0].content, pair.chosen)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of 24 synthetic users."""
    folder = tmp_path_factory.mktemp("pairs")
    personas.construct(folder / "dataset", users=24, events=9)
    write_pairs(folder / "pairs", Dataset.load(folder / "dataset"), PairOptions())
    return folder / "pairs"


@pytest.fixture(scope="module")
def backbone(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_word_model(tmp_path_factory.mktemp("backbone") / "model", texts_of(pairs))


@pytest.fixture
def settings(pairs: Path, backbone: Path, tmp_path: Path) -> Callable[..., Prmu]:
    """A function that gives settings for six quick steps over two epochs."""

    def make(output: str = "run", trainer: dict[str, Any] | None = None, **changes: Any) -> Prmu:
        options = {"per_device_train_batch_size": 48, "num_train_epochs": 2, "learning_rate": 5e-3} | (trainer or {})
        values = {"model": str(backbone), "pairs": pairs, "warmup_steps": 1} | changes
        return Prmu(output=tmp_path / output, trainer=options, **values)

    return make


def _lines(config: Prmu) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]


def _weights(config: Prmu) -> dict[str, torch.Tensor]:
    return load_file(config.output / "prmu" / "model.safetensors")


def _stop_at(step: int) -> Callable[[dict[str, Any]], None]:
    def report(line: dict[str, Any]) -> None:
        if line["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return report


def test_run_folder_holds_a_prmu_that_loads_and_what_it_was_measured_at(settings: Callable[..., Prmu]) -> None:
    config = settings()
    manifest = prmu_fit.train(config)
    assert read_json(config.output / "run.json", RunManifest) == manifest
    assert manifest.kind == "prmu" and manifest.status == "complete"
    lines = [line for line in _lines(config) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, manifest.results["steps"] + 1))
    assert {"accuracy", "tokens_per_second", "memory_gib"} <= lines[0].keys()
    prmu = PRMU.from_pretrained(config.output / "prmu")
    assert not any("lora" in name for name in prmu.state_dict())
    folder = PairFolder(config.pairs)
    train = folder.pairs("train")
    assert sorted(prmu.users) == sorted({pair.user_id for pair in train})
    scores = torch.tensor(prmu_eval.pair_scores(prmu, folder, train).right)
    assert prmu.config.score_mean == pytest.approx(scores.mean().item(), abs=1e-5)
    assert prmu.config.score_std == pytest.approx(scores.std().item(), abs=1e-5)
    evaluation = json.loads((config.output / "prmu_eval.json").read_text())
    assert evaluation == json.loads(json.dumps(prmu_eval.evaluate(prmu, folder)))
    assert (config.output / "prmu_eval.svg").read_text().startswith("<svg")
    card = (config.output / "prmu" / "README.md").read_text()
    assert f"{len(train)} training pairs" in card and "Gate for RL" in card
    assert not (config.output / "checkpoints").exists()


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_stopped_and_resumed_run_equals_an_uninterrupted_one(settings: Callable[..., Prmu], adapter: str) -> None:
    shared = {"adapter": adapter, "lora": {"dropout": 0.1}}
    whole, parted = settings("whole", **shared), settings("parted", **shared)
    steps = prmu_fit.train(whole).results["steps"]
    for step in (2, steps - 1):  # in the first and in the second epoch
        stopped = prmu_fit.train(parted, resume=step > 2, report=_stop_at(step))
        assert stopped.status == "running" and not (parted.output / "prmu").exists()
    assert prmu_fit.train(parted, resume=True).status == "complete"
    expected, found = ([line["loss"] for line in _lines(config)] for config in (whole, parted))
    assert found == pytest.approx(expected, abs=1e-6)
    for name, weight in _weights(whole).items():
        torch.testing.assert_close(_weights(parted)[name], weight, rtol=0, atol=1e-6, msg=name)


def test_seed_fixes_every_bit(settings: Callable[..., Prmu]) -> None:
    configs = [settings("a"), settings("b"), settings("c", seed=1)]
    for config in configs:
        prmu_fit.train(config)
    first, second, other = ((c.output / "prmu" / "model.safetensors").read_bytes() for c in configs)
    assert first == second != other


def test_accumulated_batches_are_averaged_not_added(settings: Callable[..., Prmu]) -> None:
    """The norm of the first gradient over 48 pairs is the same in one batch and in two halves of it."""
    options = {"max_steps": 1, "max_grad_norm": 1e9}
    whole = settings("whole", trainer=options, adapter="none", user_dropout=0.0)
    halves = settings(
        "halves",
        trainer=options | {"per_device_train_batch_size": 24, "gradient_accumulation_steps": 2},
        adapter="none",
        user_dropout=0.0,
    )
    prmu_fit.train(whole)
    prmu_fit.train(halves)
    assert _lines(halves)[0]["grad_norm"] == pytest.approx(_lines(whole)[0]["grad_norm"], rel=1e-4)


def test_a_pair_meets_the_user_as_known_before_the_example(pairs: Path, settings: Callable[..., Prmu]) -> None:
    """Else the answer would stand in the profile, and training would teach to look it up."""
    from tagpr_train.user_embedding import hashed_profile

    config, folder = settings(), PairFolder(pairs)
    train = folder.pairs("train")
    model = prmu_fit.make_model(config.model, config, folder, train)
    batches = prmu_fit.encode(model, folder, [*train, *folder.pairs("unseen")])
    for pair, row in zip(train[:20], batches.rows, strict=False):
        items = folder.profile(pair.profile_id, pair.profile_size)
        assert len(items) == pair.profile_size and all(item.text not in pair.prompt[0].content for item in items)
        expected = torch.from_numpy(hashed_profile(items))
        torch.testing.assert_close(batches.profiles[row["profile_row"]], expected, rtol=0, atol=1e-6)
        assert row["user_index"] == model.users[pair.user_id]
    assert {row["user_index"] for row in batches.rows[len(train) :]} == {-1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": ("metric",)}, r"holds no training pairs of kind \['metric'\]; it has: \['gold', 'user'\]"),
        ({"trainer": {"learning_rat": 1.0}}, "is not an option of trl.RewardConfig; did you mean 'learning_rate'"),
        ({"model": "./nowhere"}, "does not exist; give a folder"),
        ({"pairs": Path("nowhere")}, "pairs nowhere does not exist"),
        ({"encoder": "/nowhere"}, "encoder '/nowhere' cannot be loaded: .*; known: hashed"),
        ({"lora": {"target_modules": ("q_prj",)}}, r"lora.target_modules = \('q_prj',\) does not fit the model"),
    ],
)
def test_wrong_settings_are_refused(settings: Callable[..., Prmu], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prmu_fit.train(settings(**changes))


def test_changed_pairs_and_other_settings_are_refused(settings: Callable[..., Prmu], tmp_path: Path) -> None:
    config = settings()
    done = prmu_fit.train(config)
    with pytest.raises(InputError, match="holds a finished run"):
        prmu_fit.train(config)
    assert prmu_fit.train(config, resume=True) == done
    with pytest.raises(InputError, match="other settings: seed is 0 there and 3 now"):
        prmu_fit.train(settings(seed=3), resume=True)


def test_loss_that_is_not_finite_stops_and_saves_the_batch(
    settings: Callable[..., Prmu], pairs: Path, tmp_path: Path
) -> None:
    broken = write_word_model(tmp_path / "broken", texts_of(pairs))
    weights = load_file(broken / "model.safetensors")
    save_file(
        {name: value * float("nan") for name, value in weights.items()}, broken / "model.safetensors", {"format": "pt"}
    )
    config = settings(model=str(broken))
    with pytest.raises(CheckFailed, match="the loss is nan in step 1"):
        prmu_fit.train(config)
    assert len(json.loads((config.output / "bad_batch.json").read_text())["ids"]) == 48


def test_shipped_configs_are_valid_and_open_with_what_they_are(root: Path) -> None:
    paths = sorted((root / "tagpr_train" / "configs").glob("*prmu*.toml"))
    assert paths
    for path in paths:
        prmu_fit.trainer_arguments(load(Prmu, path))
        text = path.read_text()
        assert (
            text.startswith("# ")
            and "# Hardware:" in text
            and f"tagpr-train prmu tagpr_train/configs/{path.name}" in text
        )


@pytest.fixture(scope="module")
def known_people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of right and wrong answers of 1,500 synthetic people, 150 of them in no training pair."""
    folder = tmp_path_factory.mktemp("known")
    personas.construct(folder / "dataset", users=1500, events=12)
    write_pairs(folder / "pairs", Dataset.load(folder / "dataset"), PairOptions(kinds=("user",), per_kind=2))
    return folder / "pairs"


@pytest.fixture(scope="module")
def knowing_prmu(known_people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a PRMU trained on them: random backbone below 2 M weights, one core."""
    folder = tmp_path_factory.mktemp("knowing")
    backbone = write_word_model(folder / "backbone", texts_of(known_people), width=64)
    options = {"per_device_train_batch_size": 64, "num_train_epochs": 3, "learning_rate": 3e-3}
    config = Prmu(
        pairs=known_people, output=folder / "run", model=str(backbone), adapter="none", threads=1, warmup_steps=30,
        trainer=options,
    )  # fmt: skip
    prmu_fit.train(config)
    return config.output


@pytest.mark.slow
def test_prmu_tells_right_user_from_wrong_user_and_not_without_the_user(knowing_prmu: Path) -> None:
    """The users that are judged were never trained on."""
    prmu = PRMU.from_pretrained(knowing_prmu / "prmu")
    assert sum(weight.numel() for weight in prmu.parameters()) < 2_000_000
    evaluation = json.loads((knowing_prmu / "prmu_eval.json").read_text())
    unseen = evaluation["splits"]["unseen"]["groups"]["kind user"]
    assert unseen["right"]["low"] >= 0.9, unseen
    assert abs(unseen["user_off"]["estimate"] - 0.5) < 0.06, unseen
    assert unseen["swapped"]["high"] < 0.15, unseen  # the other user's answer is the rejected one
    assert prmu_eval.gate(evaluation).passed


@pytest.mark.slow
def test_rl_takes_a_prmu_that_passed_its_gate_and_rewards_what_fits_the_user(
    known_people: Path, knowing_prmu: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Data, pairs, PRMU, gate, RL: nothing is told to look away. In RL's own words the right answer earns more."""
    config = Rl(
        dataset=known_people.parent / "dataset", output=tmp_path / "rl", model=str(tiny_model), adapter="none",
        dtype="float32", prmu=str(knowing_prmu / "prmu"), tasks=("personas-choice",), k=1, steps=1, redraws=0,
        eval_examples=2, eval_split="test", rewards={"personal": 0.3},
        trainer={"num_generations": 2, "per_device_train_batch_size": 4, "max_completion_length": 8},
    )  # fmt: skip
    assert not config.ignore_gate
    manifest = rl.train(config)
    assert manifest.status == "complete" and "prmu" in manifest.models
    rows = list(read_records(config.output / "completions/step-00000.parquet", Rollout))
    assert all(row.personal_reward is not None and 0 < row.personal_reward < 1 for row in rows)
    dataset = Dataset.load(config.dataset)
    asked, _ = rl_prompts.questions(dataset, "test", 60, config, load_tagset(), lambda _: True)
    judge = rl_judge.Judge(config, load_tagset(), 100, rl_judge.load_prmu(config))
    wrong = [next(label for label in question.task.labels if label != question.gold) for question in asked]
    right, other = (
        [row.reward.personal or 0.0 for row in judge(asked, answers, [8] * len(asked))]
        for answers in ([question.gold for question in asked], wrong)
    )
    assert sum(a > b for a, b in zip(right, other, strict=True)) > 0.8 * len(asked)
