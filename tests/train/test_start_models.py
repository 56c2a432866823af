"""What a run starts from: its content is noted and may not change, an adapter goes on being trained or is merged."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from tagpr_data.errors import InputError
from tagpr_data.records import ProfileItem, RunManifest
from tagpr_data.sources import personas
from tagpr_data.tables import read_json
from tagpr_train import pretrained, prmu_server, rl, sft
from tagpr_train.config import Rl, Sft
from tagpr_train.prmu import PRMU

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture
def own_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be changed."""
    return Path(shutil.copytree(tiny_model, tmp_path / "own-model"))


@pytest.fixture
def settings(corpus: Path, tmp_path: Path) -> Callable[..., Sft]:
    """A function that gives settings of SFT for 4 quick steps from a model."""

    def make(model: Path, output: str = "run", rate: float = 5e-3, **changes: Any) -> Sft:
        trainer = {"per_device_train_batch_size": 5, "num_train_epochs": 2, "learning_rate": rate}
        values: dict[str, Any] = {"corpus": corpus, "warmup_steps": 0, "dtype": "float32"} | changes
        return Sft(model=str(model), output=tmp_path / output, trainer=trainer, **values)

    return make


@pytest.fixture
def rl_settings(tmp_path: Path) -> Callable[..., Rl]:
    """A function that gives settings of RL for 2 quick steps from a model, rewarded by a PRMU where one is named."""
    personas.construct(tmp_path / "people", users=40, events=8)

    def make(model: Path, output: str = "rl", prmu: Path | None = None, rate: float = 1e-3, **changes: Any) -> Rl:
        trainer = {
            "num_generations": 2, "per_device_train_batch_size": 2, "max_completion_length": 4, "learning_rate": rate,
        }  # fmt: skip
        values: dict[str, Any] = {
            "dataset": tmp_path / "people", "tasks": ("personas-choice",), "k": 1, "steps": 2, "redraws": 0,
            "eval_examples": 2, "dtype": "float32", "ignore_gate": True, "prmu": prmu,
            "rewards": {"personal": 0.3 if prmu else 0.0},
        } | changes  # fmt: skip
        return Rl(model=str(model), output=tmp_path / output, trainer=trainer, **values)

    return make


@pytest.fixture
def prmu(tiny_model: Path, tmp_path: Path) -> Path:
    """Folder of a random PRMU."""
    torch.manual_seed(0)
    item = ProfileItem(profile_id="p", position=0, item_id="1", text="red lamp", label="warm")
    backbone, tokenizer = AutoModel.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    PRMU.from_backbone(backbone, tokenizer, {"ann": [item]}, max_tokens=200).save_pretrained(tmp_path / "prmu")
    return tmp_path / "prmu"


def stop_at_first_step(line: dict[str, Any]) -> None:
    if line["step"] == 1 and "loss" in line:
        os.kill(os.getpid(), signal.SIGTERM)


def spoil(weights: Path) -> None:
    """Change one number of a file of weights."""
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)


def first_loss(config: Sft) -> float:
    return json.loads((config.output / "metrics.jsonl").read_text().splitlines()[0])["loss"]


def adapter_of(config: Sft | Rl) -> dict[str, torch.Tensor]:
    return load_file(config.output / "model/adapter_model.safetensors")


def test_the_hash_is_that_of_what_a_model_computes_and_of_nothing_else(prmu: Path, tmp_path: Path) -> None:
    found = pretrained.content_hash(prmu)
    elsewhere = Path(shutil.copytree(prmu, tmp_path / "copy"))
    (elsewhere / "README.md").write_text("a card")
    assert pretrained.content_hash(elsewhere) == found and len(found) == 64
    for name in ("model.safetensors", "config.json", "users.json", "tokenizer.json"):
        changed = Path(shutil.copytree(prmu, tmp_path / f"changed-{name}"))
        spoil(changed / name)
        assert pretrained.content_hash(changed) != found, name


def test_a_run_notes_what_it_started_from_and_refuses_to_go_on_from_another(
    settings: Callable[..., Sft], own_model: Path
) -> None:
    config = settings(own_model)
    assert sft.train(config, report=stop_at_first_step).status == "running"
    noted = read_json(config.output / "run.json", RunManifest).models
    assert noted == {"model": pretrained.content_hash(own_model)}
    spoil(own_model / "model.safetensors")
    with pytest.raises(InputError, match=r"a run of other models: model is '\w+.*' there and"):
        sft.train(config, resume=True)
    spoil(own_model / "model.safetensors")
    finished = sft.train(config, resume=True)
    assert finished.status == "complete" and finished.models == noted
    text = (config.output / "model/README.md").read_text()
    assert noted["model"] in text
    assert sft.train(config, resume=True) == finished
    spoil(own_model / "model.safetensors")
    with pytest.raises(InputError, match="of other models"):
        sft.train(config, resume=True)  # it is finished, and not what these settings would give now
    shutil.rmtree(own_model)
    assert sft.train(config, resume=True) == finished


def test_rl_notes_its_prmu_and_refuses_another_one(
    rl_settings: Callable[..., Rl], tiny_model: Path, prmu: Path
) -> None:
    config = rl_settings(tiny_model, prmu=prmu)
    assert rl.train(config, report=stop_at_first_step).status == "running"
    noted = read_json(config.output / "run.json", RunManifest).models
    assert noted == {"model": pretrained.content_hash(tiny_model), "prmu": pretrained.content_hash(prmu)}
    served = prmu_server.describe(PRMU.from_pretrained(prmu), str(prmu), prmu)
    assert served["weights"] == noted["prmu"], "the same PRMU has the same name when it is served"
    users = (prmu / "users.json").read_bytes()
    (prmu / "users.json").write_text('{"bob": 0}')
    with pytest.raises(InputError, match=r"a run of other models: prmu is"):
        rl.train(config, resume=True)
    (prmu / "users.json").write_bytes(users)
    finished = rl.train(config, resume=True)
    text = (config.output / "model/README.md").read_text()
    assert f"| rewarded by the PRMU | `{prmu.parent.name}/prmu`, content `{noted['prmu']}` |" in text
    (prmu / "users.json").write_text('{"bob": 0}')
    with pytest.raises(InputError, match=r"a run of other models: prmu is"):
        rl.train(config, resume=True)
    other = rl_settings(tiny_model, "exploratory", prmu=prmu, stage="exploratory")
    assert "prmu" not in rl.train(other).models, "a PRMU that rewards nothing is none of the run's"
    assert finished.models == noted


@pytest.fixture
def adapter(settings: Callable[..., Sft], own_model: Path) -> Path:
    """Folder of an adapter that SFT made on `own_model`."""
    config = settings(own_model, "first")
    sft.train(config)
    return config.output / "model"


def test_sft_goes_on_with_an_adapter(settings: Callable[..., Sft], adapter: Path, own_model: Path) -> None:
    still, on = settings(adapter, "still", rate=0.0), settings(adapter, "on")
    manifest = sft.train(still)
    assert manifest.models == {
        "model": pretrained.content_hash(adapter),
        "base_model": pretrained.content_hash(own_model, weights_only=True),
    }
    start = load_file(adapter / "adapter_model.safetensors")
    kept = adapter_of(still)
    assert kept.keys() == start.keys() and all(torch.equal(kept[name], start[name]) for name in start)
    sft.train(on)
    assert first_loss(on) == first_loss(still) < 0.8 * first_loss(settings(own_model, "first"))
    moved = adapter_of(on)
    assert all(not torch.equal(moved[name], start[name]) for name in start if "lora_A" in name)
    settings_of_it = json.loads((on.output / "model/adapter_config.json").read_text())
    assert settings_of_it["base_model_name_or_path"] == str(own_model)
    pretrained.load(str(on.output / "model"))


def test_sft_from_an_adapter_stops_and_goes_on_as_if_nothing_had_been(
    settings: Callable[..., Sft], adapter: Path
) -> None:
    whole, parted = settings(adapter, "whole"), settings(adapter, "parted")
    sft.train(whole)
    assert sft.train(parted, report=stop_at_first_step).status == "running"
    sft.train(parted, resume=True)
    ours, theirs = adapter_of(parted), adapter_of(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_adapter_is_merged_where_every_weight_is_trained(
    settings: Callable[..., Sft], rl_settings: Callable[..., Rl], adapter: Path
) -> None:
    adapted, tokenizer = pretrained.load(str(adapter))
    expected = adapted.merge_and_unload().state_dict()
    tuned, reinforced = settings(adapter, rate=0.0, adapter="none"), rl_settings(adapter, rate=0.0, adapter="none")
    sft.train(tuned)
    rl.train(reinforced)
    for config in (tuned, reinforced):
        found = load_file(config.output / "model/model.safetensors")
        assert found.keys() <= expected.keys() and len(found) > 15
        assert all(torch.equal(found[name], expected[name]) for name in found)
        assert len(AutoTokenizer.from_pretrained(config.output / "model")) == len(tokenizer)


def test_rl_goes_on_with_an_adapter(rl_settings: Callable[..., Rl], adapter: Path) -> None:
    config = rl_settings(adapter, rate=0.0)
    manifest = rl.train(config)
    assert manifest.models.keys() == {"model", "base_model"}
    start, kept = load_file(adapter / "adapter_model.safetensors"), adapter_of(config)
    assert kept.keys() == start.keys() and all(torch.equal(kept[name], start[name]) for name in start)


def test_an_adapter_whose_base_is_missing_or_that_lacks_rows_is_refused_with_what_would_be_right(
    settings: Callable[..., Sft], rl_settings: Callable[..., Rl], adapter: Path, own_model: Path
) -> None:
    own_model.rename(own_model.with_name("moved"))
    says = (
        r"the base model of the adapter '.*first/model' is missing: .*own-model does not exist.*adapter_config\.json "
        r".*base_model_name_or_path\): bring it back, or write a folder or OWNER/NAME with the same weights there"
    )
    with pytest.raises(InputError, match=says):
        sft.train(settings(adapter))
    with pytest.raises(InputError, match=says):
        rl.train(rl_settings(adapter))
    own_model.with_name("moved").rename(own_model)
    bare = settings(own_model, "bare", single_token_tags=False)
    sft.train(bare)
    with pytest.raises(InputError, match=r"was trained without <think>, </think>.* set single_token_tags = false, or"):
        sft.train(settings(bare.output / "model", "marked"))
    assert sft.train(settings(bare.output / "model", "unmarked", single_token_tags=False)).status == "complete"
    merged = sft.train(settings(bare.output / "model", "merged", adapter="none"))
    assert merged.results["trainable_rows"] == 20
    with pytest.raises(InputError, match=r"model 'no-such' cannot be loaded"):
        sft.train(settings(Path("no-such"), "nothing"))
