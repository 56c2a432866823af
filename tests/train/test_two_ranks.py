"""Two processes (gloo, 127.0.0.1) and one: the same losses, the same prompts, one writer, an end when one dies."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from tagpr_data.dataset import Dataset
from tagpr_data.errors import InputError
from tagpr_data.pairs import PairOptions, write_pairs
from tagpr_data.records import Rollout, RunManifest
from tagpr_data.sources import personas
from tagpr_data.tables import read_json, read_records
from tagpr_train import pretrained, rl_judge, rl_prompts
from tagpr_train.prmu import PRMU


def beside(name: str) -> Any:
    """Give a module of this folder, which is no package."""
    spec = spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stage_runs = beside("stage_runs")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]
KINDS = ("sft", "prmu", "rl")
PERSONAL = "rl-personal"


SHARDED = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}  # fmt: skip
"""What `accelerate launch` sets for configs/accelerate/fsdp2.yaml."""


def launch(jobs: list[dict[str, Any]], folder: Path, **changes: str) -> subprocess.Popen[str]:
    """Start two ranks of `stage_runs`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
        f"--master-port={port}", stage_runs.__file__, str(folder / "jobs.json"),
    ]  # fmt: skip
    environment = (
        os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"} | changes
    )
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def settings(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """A function that gives the settings of a stage for one process or two, the same batches put together.

    SFT reads 4 + 4 and then 1 example, PRMU ends with a batch of one pair, so one rank has none. RL draws 4 groups of
    2, each rank's half in two parts, and some of them are dead; `PERSONAL` is the same with a PRMU loaded in each
    rank, on a bfloat16 model with an adapter.
    """
    home = tmp_path_factory.mktemp("ranks")
    beside("conftest").write_corpus(home / "corpus", train=9, validation=3)
    personas.construct(home / "dataset", users=40, events=8)
    write_pairs(home / "pairs", Dataset.load(home / "dataset"), PairOptions())
    torch.manual_seed(0)
    backbone, tokenizer = AutoModel.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    PRMU.from_backbone(backbone, tokenizer, {"nobody": []}, max_tokens=400).save_pretrained(home / "prmu")
    common = {"model": str(tiny_model), "adapter": "none", "dtype": "float32"}

    def make(kind: str, output: Path, ranks: int) -> dict[str, Any]:
        if kind == "sft":
            sizes = {"per_device_train_batch_size": 4 // ranks, "gradient_accumulation_steps": 2}
            trainer = sizes | {"num_train_epochs": 2, "learning_rate": 1e-3}
            values: dict[str, Any] = {"corpus": str(home / "corpus"), "eval_every_steps": 2}
        elif kind == "prmu":
            trainer = {"per_device_train_batch_size": 22 // ranks, "learning_rate": 1e-3}
            values = {"pairs": str(home / "pairs"), "kinds": ["user"], "max_tokens": 200}
            values |= {"eval_pairs": 31, "eval_every_steps": 4}
        else:
            sizes = {"per_device_train_batch_size": 4 // ranks, "steps_per_generation": 2, "num_generations": 2}
            trainer = sizes | {"max_completion_length": 6, "learning_rate": 1e-3, "mask_truncated_completions": False}
            values = {
                "dataset": str(home / "dataset"), "tasks": ["personas-choice"], "k": 1, "steps": 4, "redraws": 2,
                "rewards": {"personal": 0.0}, "eval_examples": 5, "eval_every_steps": 2,
            }  # fmt: skip
            if kind == PERSONAL:
                values |= {"rewards": {"personal": 1.0}, "prmu": str(home / "prmu"), "ignore_gate": True}
                values |= {"adapter": "lora", "dtype": "bfloat16", "steps": 2}
        return common | values | {"output": str(output), "trainer": trainer}

    return make


@pytest.fixture(scope="module")
def runs(settings: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Every stage by one process and by two, and what the two printed."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    pair = launch([{"kind": kind, "settings": settings(kind, two / kind, 2)} for kind in (*KINDS, PERSONAL)], two)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((rl_judge.Judged, "gated"), (rl_judge.Judge, "total")):
            patch.setattr(owner, name, getattr(owner, name))  # so that it is put back
        stage_runs.vary_rewards()
        for kind in (*KINDS, PERSONAL):
            assert stage_runs.run(kind, settings(kind, one / kind, 1)).status == "complete"
    output, _ = pair.communicate(timeout=400)
    assert pair.returncode == 0, output
    return one, two, output


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_and_one_give_the_same_losses_and_weights(kind: str, runs: tuple[Path, Path, str]) -> None:
    one, two, _ = runs
    keys = ("loss", "grad_norm", "learning_rate", "validation_loss", "accuracy", "margin", "reward", "answer_weighted")
    compared = 0
    for key in (*keys, "redrawn", "held_out_answer"):
        ours, theirs = ({row["step"]: row[key] for row in lines(side / kind) if key in row} for side in (two, one))
        assert ours == pytest.approx(theirs, rel=3e-6, abs=1e-6), key
        compared += len(ours)
    assert compared >= 10
    (ours, theirs) = (load_file(next((side / kind).glob("*/model.safetensors"))) for side in (two, one))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)
    manifests = [read_json(side / kind / "run.json", RunManifest).results for side in (two, one)]
    for key in ("steps", "examples", "tokens", "validation_loss"):
        if key in manifests[1]:
            assert manifests[0][key] == pytest.approx(manifests[1][key], rel=1e-6), key
    if kind == "prmu":
        assert manifests[0]["examples"] % 22 == 1, "one rank must have had no pair once"


def test_rl_asks_the_same_prompts_without_duplicates_and_redraws_alike(runs: tuple[Path, Path, str]) -> None:
    one, two, _ = runs
    files = sorted(path.name for path in (one / "rl/completions").iterdir())
    assert files == sorted(path.name for path in (two / "rl/completions").iterdir()) and len(files) == 2
    redrawn = 0
    for name in files:
        ours, theirs = (list(read_records(side / "rl/completions" / name, Rollout)) for side in (two, one))
        assert ours == theirs
        assert len({row.example_id for row in ours}) == 4, "4 groups of 4 different prompts"
        redrawn += sum(row.redrawn for row in ours)
    assert redrawn > 0, "the test must redraw something"


def test_rl_with_a_prmu_an_adapter_and_bfloat16_asks_the_same_and_loses_the_same(runs: tuple[Path, Path, str]) -> None:
    """bfloat16 rounds a batch of another size otherwise, so figures agree to its precision only."""
    ours, theirs = (
        list(read_records(side / PERSONAL / "completions/step-00000.parquet", Rollout)) for side in reversed(runs[:2])
    )
    assert [row.example_id for row in ours] == [row.example_id for row in theirs]
    assert len({row.example_id for row in ours}) == 4, "4 groups of 4 different prompts"
    assert [row.text for row in ours] == [row.text for row in theirs]
    scores = [row.personal_reward or 0.0 for row in ours]
    assert scores == pytest.approx([row.personal_reward or 0.0 for row in theirs], abs=1e-5)
    assert len(set(scores)) > 4 and all(0 < score < 1 for score in scores)
    for key, tolerance in (("loss", 5e-3), ("reward", 1e-5), ("grad_norm", 0.1), ("held_out_personal", 1e-5)):
        ours, theirs = ({row["step"]: row[key] for row in lines(side / PERSONAL) if key in row} for side in runs[:2])
        assert ours == pytest.approx(theirs, rel=tolerance, abs=tolerance), key
        assert any(ours.values()), key
    adapters = [load_file(side / PERSONAL / "model/adapter_model.safetensors") for side in runs[:2]]
    assert all(weight.dtype == torch.bfloat16 for weight in adapters[0].values())
    assert all(torch.allclose(adapters[0][name], adapters[1][name], atol=5e-3) for name in adapters[1])
    models = [read_json(side / PERSONAL / "run.json", RunManifest).models for side in runs[:2]]
    assert models[0] == models[1] and "prmu" in models[0]


def test_one_rank_writes_and_nothing_is_left_over(runs: tuple[Path, Path, str]) -> None:
    one, two, _ = runs
    for kind in KINDS:
        steps = [(row["step"], "loss" in row) for row in lines(two / kind)]
        assert len(steps) == len(set(steps)), "each line once"
        ours, theirs = (sorted(path.name for path in (side / kind).iterdir()) for side in (two, one))
        assert ours == theirs
        assert not [name for name in ours if name.endswith(".tmp") or name == "checkpoints"]


def test_a_signal_to_one_rank_stops_both_and_a_killed_rank_ends_the_other_with_a_message(
    settings: Callable[..., dict[str, Any]], runs: tuple[Path, Path, str], tmp_path: Path
) -> None:
    """SIGTERM to rank 1 before the second step; gone on with, then rank 1 is killed before the third; gone on with."""
    jobs = {kind: {"kind": kind, "settings": settings(kind, tmp_path / kind, 2)} for kind in ("sft", "rl")}
    stopped = [job | {"send": (signal.SIGTERM, 1, 1)} for job in jobs.values()]
    killed = jobs["sft"] | {"resume": True, "send": (signal.SIGKILL, 1, 2)}
    pair = launch([*stopped, killed], tmp_path / "first")
    output, _ = pair.communicate(timeout=400)
    assert pair.returncode != 0
    assert "another process of this run is gone, so rank 0 stops too" in output
    assert "--resume goes on from the last checkpoint" in output
    for kind in jobs:
        assert read_json(tmp_path / kind / "run.json", RunManifest).status == "running"
        assert [path.name for path in (tmp_path / kind / "checkpoints").iterdir()] == ["step-2"]
    with pytest.raises(InputError, match=r"step-2 was written by 2 processes and now there are 1; go on with 2"):
        stage_runs.run("sft", jobs["sft"]["settings"], resume=True)

    again = [job | {"resume": True} for job in jobs.values()]
    pair = launch([*again, jobs["sft"]], tmp_path / "second")
    output, _ = pair.communicate(timeout=400)
    assert output.count("holds a finished run") == 1, "the last job is refused, and told once"
    _, two, _ = runs
    for kind in jobs:
        ours, theirs = ([row["loss"] for row in lines(side / kind) if "loss" in row] for side in (tmp_path, two))
        assert ours == theirs
        assert read_json(tmp_path / kind / "run.json", RunManifest).status == "complete"


def test_weights_split_by_fsdp2_train_stop_go_on_and_are_saved_whole(
    settings: Callable[..., dict[str, Any]], runs: tuple[Path, Path, str], tmp_path: Path
) -> None:
    """On a CPU, where accelerate has to be told (`stage_runs.shard_on_cpu`): each rank holds half of every weight."""
    job = {"kind": "sft", "settings": settings("sft", tmp_path / "sft", 2)}
    adapter = {"adapter": "lora", "single_token_tags": False}
    lora = {"kind": "sft", "settings": settings("sft", tmp_path / "lora", 2) | adapter}
    refused = {"kind": "sft", "settings": settings("sft", tmp_path / "merged", 2) | adapter | {"merge": True}}
    jobs = [job | {"send": (signal.SIGTERM, 1, 1)}, job | {"resume": True}, lora, refused]
    pair = launch(jobs, tmp_path / "jobs", **SHARDED)
    output, _ = pair.communicate(timeout=400)
    assert "merge = true needs a whole model in every process, and FSDP or DeepSpeed splits it here" in output, output
    one, two, _ = runs
    ours, theirs = ([row["loss"] for row in lines(side / "sft") if "loss" in row] for side in (tmp_path, one))
    assert ours == pytest.approx(theirs, rel=3e-6)
    ours, theirs = (load_file(side / "sft/model/model.safetensors") for side in (tmp_path, one))
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)
    config = json.loads((tmp_path / "sft/model/config.json").read_text())
    assert config == json.loads((two / "sft/model/config.json").read_text())
    model, _ = pretrained.load(str(tmp_path / "lora/model"))
    trained = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    assert len(trained) == 14 and all(weight.any() for weight in trained)


def test_groups_are_dealt_so_that_every_pass_holds_what_one_process_would_read() -> None:
    assert [rl_prompts.places(4, 2, rank, 2) for rank in (0, 1)] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert [rl_prompts.places(3, 1, rank, 2) for rank in (0, 1)] == [[0, 2, 4], [1, 3, 5]]
    assert [rl_prompts.places(2, 0, rank, 2) for rank in (0, 1)] == [[0, 1], [2, 3]]
    assert rl_prompts.places(4, 2, 0, 1) == [0, 1, 2, 3]
