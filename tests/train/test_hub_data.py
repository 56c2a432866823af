"""Training on data named as on the Hub, from a stand-in of it on this machine.

The client runs in processes of its own, as `huggingface_hub` reads its environment when it is imported.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tagpr_data.dataset import Dataset
from tagpr_data.pairs import PairFolder, PairOptions, write_pairs
from tagpr_data.records import RunManifest
from tagpr_data.sources import personas
from tagpr_data.tables import read_json
from tagpr_train import dataset, pretrained, sft
from tagpr_train.config import Sft


@pytest.fixture
def hub(root: Path) -> Iterator[Any]:
    """The stand-in of the Hub, without repositories."""
    spec = spec_from_file_location("hub_stand_in", root / "tests/data/hub_stand_in.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["hub_stand_in"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    with module.HubStandIn() as server:

        def add(name: str, folder: Path, kind: str = "datasets") -> None:
            repo = server.repos[name] = module.Repo(private=True, kind=kind)
            files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
            repo.branches["main"] = repo.tags["v1"] = repo.commit(files, "data")

        server.add = add
        yield server


@pytest.fixture
def tagpr(hub: Any, tmp_path: Path) -> Any:
    """Run `tagpr-train` against the Hub."""

    def run(*arguments: object, **changes: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1", **changes}
        command = [sys.executable, "-c", "from tagpr_train.cli import main; main()", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    return run


def config(path: Path, **settings: Any) -> Path:
    """Write settings as TOML."""
    path.write_text("".join(f"{name} = {value!r}\n" for name, value in settings.items()))
    return path


@pytest.mark.slow
def test_sft_takes_its_corpus_from_the_hub_and_goes_on_without_a_network(
    hub: Any, tagpr: Any, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    hub.add("curator/colours", corpus)
    settings = config(tmp_path / "sft.toml", corpus="curator/colours@v1", output=str(tmp_path / "run"), threads=1)
    steps = ("--set", f"model={tiny_model}", "--set", "trainer.max_steps=2")
    done = tagpr("sft", settings, *steps)
    assert done.returncode == 0, done.stderr
    manifest = read_json(tmp_path / "run/run.json", RunManifest)
    assert manifest.config["corpus"] == "curator/colours@v1"
    assert manifest.data == {"colours": dataset.read_manifest(corpus).content_hash}
    assert manifest.results["licence"] == "ours"
    again = tagpr("sft", settings, *steps, "--resume", HF_ENDPOINT="http://127.0.0.1:9")
    assert again.returncode == 0, again.stderr
    missing = tagpr("sft", settings, *steps, "--set", "corpus=curator/other", HF_HUB_OFFLINE="1")
    assert missing.returncode == 2 and "Traceback" not in missing.stderr
    assert "corpus 'curator/other' is neither a folder here nor a data set repository" in missing.stderr
    assert "was not fetched before" in missing.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_sft_and_rl_start_from_an_adapter_on_the_hub_and_note_which(
    hub: Any, tagpr: Any, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    first = Sft(
        corpus=corpus, output=tmp_path / "first", model=str(tiny_model), threads=1, dtype="float32",
        trainer={"max_steps": 1},
    )  # fmt: skip
    sft.train(first)
    adapter = first.output / "model"
    described = json.loads((adapter / "adapter_config.json").read_text())
    described["base_model_name_or_path"] = "someone/base"
    (adapter / "adapter_config.json").write_text(json.dumps(described))
    hub.add("someone/adapter", adapter, "models")
    settings = config(tmp_path / "sft.toml", corpus=str(corpus), output=str(tmp_path / "run"), threads=1)
    options = ["model=someone/adapter", "dtype=float32", "trainer.max_steps=1", "trainer.learning_rate=0"]
    words = [word for option in options for word in ("--set", option)]
    refused = tagpr("sft", settings, *words)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    for said in ("the base model of the adapter 'someone/adapter' is missing", "someone/base", "bring it back, or"):
        assert said in refused.stderr, refused.stderr
    hub.add("someone/base", tiny_model, "models")
    done = tagpr("sft", settings, *words)
    assert done.returncode == 0, done.stderr
    noted = {
        "model": pretrained.content_hash(adapter),
        "base_model": pretrained.content_hash(tiny_model, weights_only=True),
    }
    assert read_json(tmp_path / "run/run.json", RunManifest).models == noted
    start, kept = (load_file(place / "adapter_model.safetensors") for place in (adapter, tmp_path / "run/model"))
    assert all(torch.equal(kept[name], start[name]) for name in start)
    personas.construct(tmp_path / "people", users=40, events=8)
    rl = config(tmp_path / "rl.toml", dataset=str(tmp_path / "people"), output=str(tmp_path / "rl"), steps=1, k=1)
    small = {"num_generations": 2, "per_device_train_batch_size": 2, "max_completion_length": 8}
    options = [
        "model=someone/adapter",
        "revision=v1",
        "adapter=none",
        "eval_examples=2",
        "redraws=0",
        "rewards.personal=0",
    ]
    options += [
        "dtype=float32",
        'tasks=["personas-choice"]',
        *(f"trainer.{name}={value}" for name, value in small.items()),
    ]
    done = tagpr("rl", rl, *(word for option in options for word in ("--set", option)))
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "rl/run.json", RunManifest).models == noted
    assert (tmp_path / "rl/model/model.safetensors").is_file()


@pytest.mark.slow
def test_prmu_and_rl_take_pairs_and_data_sets_from_the_hub(
    hub: Any, tagpr: Any, tiny_model: Path, tmp_path: Path
) -> None:
    personas.construct(tmp_path / "people", users=40, events=8)
    write_pairs(tmp_path / "pairs", Dataset.load(tmp_path / "people"), PairOptions())
    hub.add("curator/people", tmp_path / "people")
    hub.add("curator/pairs", tmp_path / "pairs")
    prmu = config(tmp_path / "prmu.toml", pairs="curator/pairs", output=str(tmp_path / "prmu"), threads=1)
    done = tagpr("prmu", prmu, "--set", f"model={tiny_model}", "--set", "trainer.max_steps=1")
    assert done.returncode == 0, done.stderr
    manifest = read_json(tmp_path / "prmu/run.json", RunManifest)
    folder = PairFolder(tmp_path / "pairs").manifest
    assert manifest.data == {folder.name: folder.content_hash}
    rl = config(tmp_path / "rl.toml", dataset="curator/people", output=str(tmp_path / "rl"), steps=1, k=1, threads=1)
    small = {"num_generations": 2, "per_device_train_batch_size": 2, "max_completion_length": 8}
    options = [f"model={tiny_model}", "eval_examples=2", "redraws=0", "rewards.personal=0", 'tasks=["personas-choice"]']
    options += [f"trainer.{name}={value}" for name, value in small.items()]
    done = tagpr("rl", rl, *(word for option in options for word in ("--set", option)))
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "rl/run.json", RunManifest).config["dataset"] == "curator/people"
