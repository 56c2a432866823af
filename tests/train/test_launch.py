"""What only GPUs can run is held to the signatures of the libraries that would run it."""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from trl.generation.vllm_client import VLLMClient
from trl.scripts.vllm_serve import ScriptArguments
from trl.trainer.grpo_config import GRPOConfig

from tagpr_data.config import load
from tagpr_train import rl, sft
from tagpr_train.config import RL_DEFAULTS, Rl, Sft

CONFIGS = Path(__file__).parents[2] / "tagpr_train" / "configs"
LAUNCHES = sorted((CONFIGS / "accelerate").glob("*.yaml"))
EXPECTED = {
    "one-gpu": (DistributedType.NO, 1, 1),
    "fsdp2": (DistributedType.FSDP, 8, 1),
    "multi-node-fsdp2": (DistributedType.FSDP, 16, 2),
    "multi-node-deepspeed": (DistributedType.DEEPSPEED, 16, 2),
}


def _launched(path: Path) -> Any:
    """What `accelerate launch --config_file PATH` would start."""
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    return _validate_launch_command(arguments)[0]


def test_there_is_a_config_for_every_scale_that_is_promised() -> None:
    assert {path.stem for path in LAUNCHES} == set(EXPECTED)


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_accelerate_reads_the_config_as_it_is_meant(path: Path) -> None:
    found = load_config_from_file(str(path))
    assert isinstance(found, ClusterConfig)
    assert (found.distributed_type, found.num_processes, found.num_machines) == EXPECTED[path.stem]
    assert found.mixed_precision == "no", "the weights themselves are bfloat16"
    launched = _launched(path)
    known = set(vars(launched))
    for section in (found.fsdp_config, found.deepspeed_config):
        assert set(section or {}) <= known, "accelerate drops what it does not know in silence"


@pytest.mark.parametrize("path", [path for path in LAUNCHES if "fsdp2" in path.stem], ids=lambda path: path.stem)
def test_what_accelerate_would_start_is_fsdp_version_2(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = _launched(path)
    launched.training_script_args = []
    for name, value in prepare_multi_gpu_env(launched).items():
        if name.startswith(("FSDP", "ACCELERATE")):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert not plugin.cpu_ram_efficient_loading and not plugin.activation_checkpointing
    assert str(plugin.state_dict_type).endswith("FULL_STATE_DICT")


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_every_launch_file_says_what_it_is_for_and_that_it_was_not_tried(path: Path) -> None:
    head = path.read_text(encoding="utf-8").split("compute_environment")[0]
    assert "NOT VERIFIED" in head
    assert f"accelerate launch --config_file tagpr_train/configs/accelerate/{path.name}" in head
    for name in re.findall(r"tagpr_train/configs/[\w.-]+\.toml", head):
        assert (CONFIGS.parents[1] / name).is_file()
    yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_vllm_server_takes_the_options_that_the_launch_files_give_it() -> None:
    known = {field.name for field in dataclasses.fields(ScriptArguments)}
    for path in LAUNCHES:
        for line in re.findall(r"trl vllm-serve (.*)", path.read_text(encoding="utf-8")):
            used = {name.replace("-", "_") for name in re.findall(r"--([a-z-]+)", line)}
            assert used and used <= known


def _rl(**trainer: Any) -> Any:
    config = Rl(
        dataset=Path("d"), output=Path("o"), model="m", steps=2, rewards={"personal": 0.0}, redraws=0, trainer=trainer
    )  # pyright: ignore[reportArgumentType]
    return rl.trainer_arguments(config)


@pytest.mark.parametrize(
    "trainer",
    [
        {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.4, "vllm_enable_sleep_mode": True,
         "vllm_tensor_parallel_size": 1, "vllm_max_model_length": 4096},
        {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": "http://127.0.0.1:8000",
         "vllm_server_timeout": 60.0},
        {"use_vllm": True, "vllm_mode": "server", "vllm_server_host": "host", "vllm_server_port": 8000,
         "vllm_importance_sampling_correction": True},
    ],
)  # fmt: skip
def test_vllm_beside_the_training_and_on_a_server_are_options_of_trl(
    trainer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where vLLM is installed; without it the stage refuses."""
    monkeypatch.setattr(rl, "is_vllm_available", lambda: True)
    arguments = _rl(**trainer)
    assert {name: getattr(arguments, name) for name in trainer} == trainer


def test_the_addresses_of_the_server_are_what_trls_client_asks_for() -> None:
    parameters = inspect.signature(VLLMClient.__init__).parameters
    assert {"base_url", "host", "server_port"} <= parameters.keys()


def test_gspo_and_clip_higher_are_what_trl_is_told() -> None:
    """GSPO: sequence-level importance weights with loss_type grpo and epsilons of the order 1e-4, the upper larger."""
    arguments = _rl()
    assert arguments.importance_sampling_level == "sequence" and arguments.loss_type == "grpo"
    assert 0 < arguments.epsilon < arguments.epsilon_high < 1e-3
    assert arguments.mask_truncated_completions and arguments.beta == 0.0
    assert {name: getattr(arguments, name) for name in RL_DEFAULTS} == RL_DEFAULTS
    known = {field.name for field in dataclasses.fields(GRPOConfig)}
    assert {"epsilon_high", "importance_sampling_level", "mask_truncated_completions", "num_iterations"} <= known


def test_the_gpu_recipe_is_taken_by_trl() -> None:
    config = load(Sft, CONFIGS / "xorg-sft-gpu.toml")
    assert sft.trainer_arguments(config).per_device_train_batch_size == 16


def test_vllm_itself_takes_what_trl_hands_it() -> None:
    """Runs where vLLM is installed: names that trl 1.16 passes to `vllm.LLM` and `SamplingParams`."""
    vllm = pytest.importorskip("vllm")
    engine = inspect.signature(vllm.EngineArgs).parameters
    assert {"gpu_memory_utilization", "max_model_len", "tensor_parallel_size", "enable_sleep_mode", "seed"} <= set(
        engine
    )
    sampling = inspect.signature(vllm.SamplingParams).parameters
    assert {"n", "temperature", "top_p", "top_k", "min_p", "max_tokens", "logprobs"} <= set(sampling)
