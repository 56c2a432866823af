"""Predictions against the real things: models' weights, autograd's memory, runs; and what happens without memory."""

import json
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tagpr_data.dataset import Dataset
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.pairs import PairOptions, write_pairs
from tagpr_data.sources import personas
from tagpr_train import footprint, label_loss, plan, prmu_fit, rl, sft, workload
from tagpr_train.cli import app
from tagpr_train.config import Lora, Prmu, Rl, Sft
from tagpr_train.footprint import Machine

from .conftest import write_model

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small personas data set, and pairs of it in `pairs`."""
    folder = tmp_path_factory.mktemp("people")
    personas.construct(folder / "dataset", users=30, events=8)
    write_pairs(folder / "pairs", Dataset.load(folder / "dataset"), PairOptions())
    return folder


@pytest.fixture
def settings(tiny_model: Path, corpus: Path, people: Path, tmp_path: Path) -> Callable[..., Any]:
    """A function that gives settings of a kind of stage on the tiny model."""
    inputs: dict[str, tuple[Any, dict[str, Any]]] = {
        "sft": (Sft, {"corpus": corpus}),
        "prmu": (Prmu, {"pairs": people / "pairs", "adapter": "none"}),
        "rl": (Rl, {
            "dataset": people / "dataset", "tasks": ("personas-choice",), "k": 1, "steps": 3, "adapter": "none",
            "dtype": "float32", "rewards": {"personal": 0.0}, "redraws": 0, "eval_examples": 2,
        }),
    }  # fmt: skip

    def make(kind: str, trainer: dict[str, Any] | None = None, **changes: Any) -> Any:
        model, values = inputs[kind]
        return model(output=tmp_path / kind, trainer=trainer or {}, **{"model": str(tiny_model)} | values | changes)

    return make


def _small(kind: str) -> Any:
    """Give the config of a small model of each family."""
    from transformers import BertConfig, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

    shape = {
        "vocab_size": 320, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 128,
    }  # fmt: skip
    groups = {"num_key_value_heads": 2}
    return {
        "llama": lambda: LlamaConfig(**shape, **groups, tie_word_embeddings=True),
        "llama-untied": lambda: LlamaConfig(**shape, tie_word_embeddings=False),
        "mistral": lambda: MistralConfig(**shape, **groups, head_dim=32),
        "qwen2": lambda: Qwen2Config(**shape, **groups),
        "qwen3": lambda: Qwen3Config(**shape, **groups, head_dim=16),
        "bert": lambda: BertConfig(**shape),
        "gpt2": lambda: GPT2Config(vocab_size=320, n_embd=64, n_layer=3, n_head=4, n_positions=128),
    }[kind]()


@pytest.mark.parametrize("kind", ["llama", "llama-untied", "mistral", "qwen2", "qwen3", "bert", "gpt2"])
def test_weights_are_those_of_the_model_transformers_makes_of_the_config(kind: str) -> None:
    from transformers import AutoModel, AutoModelForCausalLM

    config = _small(kind)
    shape = footprint.shape_of(config.to_dict())
    with torch.device("meta"):
        backbone = AutoModel.from_config(config, **({"add_pooling_layer": False} if kind == "bert" else {}))
        own = sum(weight.numel() for weight in backbone.parameters())
        assert shape.weights(head=False) == pytest.approx(own, rel=0.002)
        if kind.startswith("llama"):
            assert shape.weights(head=False) == own
            whole = AutoModelForCausalLM.from_config(config)
            assert shape.weights() == sum(weight.numel() for weight in whole.parameters())


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")])
def test_an_adapter_has_the_weights_that_peft_gives_it(targets: Any) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    config = _small("llama")
    names = targets if isinstance(targets, str) else list(targets)
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(task_type="CAUSAL_LM", r=6, target_modules=names))
    shape = footprint.shape_of(config.to_dict())
    assert shape.lora_weights(Lora(r=6, target_modules=targets)) == model.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("adapter", ["none", "lora"])
@pytest.mark.parametrize("prompt_gradient", [True, False])
def test_activations_are_the_bytes_that_autograd_keeps(dtype: str, adapter: str, prompt_gradient: bool) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    rows, prompt, completion = 3, 70, 40
    config = _small("llama")
    model: Any = LlamaForCausalLM(config).to(getattr(torch, dtype))
    label_loss.install(model, prompt_gradient=prompt_gradient)
    if adapter == "lora":
        lora = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear")
        model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        if value.untyped_storage().data_ptr() not in own:
            kept.setdefault(value.untyped_storage().data_ptr(), value)
        return value

    first_padded = torch.ones(rows, prompt, dtype=torch.long)
    first_padded[0, :9] = 0
    shape = {"prefix_ids": (rows, prompt), "input_ids": (rows, completion), "labels": (rows, completion)}
    batch: dict[str, Any] = {name: torch.randint(0, 300, size) for name, size in shape.items()}
    batch |= {"prefix_mask": first_padded, "attention_mask": torch.ones(rows, completion, dtype=torch.long)}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        model(**batch, weights=torch.ones(rows, completion))
    measured = sum(value.untyped_storage().nbytes() for value in kept.values())
    facts = footprint.shape_of(config.to_dict())
    size = 4 if dtype == "float32" else 2
    lora_shape = Lora(r=8) if adapter == "lora" else None
    token = footprint.kept_bytes(facts, size, every_weight=adapter == "none", lora=lora_shape)
    whole = prompt + completion
    asking = whole if prompt_gradient else completion
    queries = facts.heads * facts.head * size
    predicted = facts.layers * rows * (asking * token + 2 * whole * queries + asking * whole * size)
    assert predicted == pytest.approx(measured, rel=0.06)


def test_an_sft_run_takes_the_steps_examples_and_tokens_that_were_predicted(settings: Callable[..., Any]) -> None:
    options = {"per_device_train_batch_size": 3, "num_train_epochs": 2, "gradient_accumulation_steps": 2}
    for changes in ({}, {"target": "chain"}, {"target": "answer", "single_token_tags": False}, {"max_tokens": 200}):
        config = settings("sft", trainer=options, length_group_batches=1, **changes)
        config = config.model_copy(update={"output": config.output / str(len(changes) + hash(str(changes)) % 1000)})
        work, results = plan.predict(config).work, sft.train(config).results
        assert (work.steps, work.examples, work.tokens) == (results["steps"], results["examples"], results["tokens"])


def test_a_prmu_and_an_rl_run_take_the_steps_and_examples_that_were_predicted(settings: Callable[..., Any]) -> None:
    options = {"per_device_train_batch_size": 16, "num_train_epochs": 2}
    config = settings("prmu", trainer=options)
    prediction, results = plan.predict(config), prmu_fit.train(config).results
    assert (prediction.work.steps, prediction.work.examples) == (results["steps"], results["examples"])
    assert prediction.work.tokens == pytest.approx(results["tokens"], rel=0.02)
    options = {
        "num_generations": 2, "per_device_train_batch_size": 4, "max_completion_length": 6,
        "mask_truncated_completions": False,
    }  # fmt: skip
    config = settings("rl", trainer=options)
    prediction, results = plan.predict(config), rl.train(config).results
    assert (prediction.work.steps, prediction.work.examples) == (results["steps"], results["examples"])
    assert prediction.work.tokens == pytest.approx(results["tokens"], rel=0.05)


def test_hours_and_price_follow_from_a_speed(settings: Callable[..., Any]) -> None:
    config = settings("sft", trainer={"per_device_train_batch_size": 5, "max_steps": 4})
    stage = plan.Stage("sft", "sft", config)
    (row,) = plan.plan([stage], Machine(), tokens_per_second=100.0)
    assert row.hours == pytest.approx(row.prediction.work.tokens / 100 / 3600)
    (row,) = plan.plan([stage], Machine(), flop_per_second=1e6)
    assert row.hours == pytest.approx(row.prediction.flop / 1e6 / 3600)
    cells = plan.table([row], price_per_hour=3600.0).splitlines()[1].split()
    assert float(cells[-1]) == pytest.approx(row.prediction.flop / 1e6, rel=0.01)
    limited = plan.Stage("sft", "sft", config.model_copy(update={"max_minutes": 0.001}))
    assert plan.plan([limited], Machine(), flop_per_second=1.0)[0].hours == pytest.approx(0.001 / 60)
    assert plan.plan([stage], Machine())[0].hours is None


def test_compute_of_a_step_by_hand() -> None:
    """Two layers of one head: every matrix counted by hand for one row of 1 prompt and 1 completion position."""
    shape = footprint.Shape(2, 8, 1, 1, 8, 16, 10, 32, tied=True, gated=True)
    matrices = 2 * (4 * 8 * 8 + 3 * 8 * 16)
    assert shape.layer_weights == matrices
    config = Sft(corpus=Path("c"), output=Path("o"), adapter="none", prompt_gradient=False)
    batch = workload.Batch(1, 1, 1, 1, 1, 2)
    attention = 2 * 4 * 8  # layers · 4 · width, for one query and one key
    forward_prompt, forward = 2 * matrices + attention, 2 * matrices + 2 * attention
    assert footprint._pass_flop(config, shape, batch) == forward_prompt + 3 * forward + 3 * 2 * 10 * 8
    lora = config.model_copy(update={"adapter": "lora", "prompt_gradient": True})
    assert footprint._pass_flop(lora, shape, batch) == 2 * forward_prompt + 2 * forward + 2 * 2 * 10 * 8


def test_more_processes_take_fewer_steps_and_sharding_less_memory(settings: Callable[..., Any]) -> None:
    config = settings("sft", trainer={"per_device_train_batch_size": 1}, adapter="none")
    one, two = plan.predict(config), plan.predict(config, Machine(processes=2))
    sharded = plan.predict(config, Machine(processes=2, sharded=True))
    assert (one.work.steps, two.work.steps) == (10, 5) and two.work.examples == one.work.examples
    assert sharded.memory["optimiser"] * 2 == two.memory["optimiser"]


def test_what_is_suggested_has_the_peak_it_is_said_to_have(settings: Callable[..., Any]) -> None:
    config = settings("sft", trainer={"per_device_train_batch_size": 8}, adapter="none", dtype="float32")
    found = dict(plan.suggestions(config))
    assert list(found.values()) == sorted(found.values())
    halved = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    words = "trainer.per_device_train_batch_size = 4 and trainer.gradient_accumulation_steps = 2"
    changed = plan.predict(config.model_copy(update={"trainer": halved}))
    assert found[words] == changed.peak < plan.predict(config).peak
    assert changed.work.steps == plan.predict(config).work.steps


def test_without_the_data_the_settings_alone_are_planned(settings: Callable[..., Any], tmp_path: Path) -> None:
    config = settings("sft", corpus=tmp_path / "none", trainer={"max_steps": 7}, max_tokens=400)
    work = plan.predict(config).work
    assert work.steps == 7 and work.largest.prompt + work.largest.completion == 399
    assert any("data not at hand" in note for note in work.notes)
    unknown = plan.predict(settings("sft", corpus=tmp_path / "none")).work
    assert unknown.steps is None and "steps need the data, or trainer.max_steps" in unknown.notes


def test_a_recipe_is_planned_before_any_of_its_models_is_there(
    tiny_model: Path, corpus: Path, people: Path, tmp_path: Path
) -> None:
    (tmp_path / "sft.toml").write_text(f'corpus = "{corpus}"\noutput = "x"\nmodel = "{tiny_model}"\n')
    (tmp_path / "prmu.toml").write_text(f'pairs = "{people}/pairs"\noutput = "x"\nmodel = "{tiny_model}"\n')
    (tmp_path / "rl.toml").write_text(
        f'dataset = "{people}/dataset"\noutput = "x"\nmodel = "x"\nsteps = 2\nprmu = "x"\nk = 1\n'
        'tasks = ["personas-choice"]\n[trainer]\nmax_completion_length = 500\n'
    )
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'output = "{tmp_path}/runs"\n'
        '[[stages]]\nname = "sft"\nkind = "sft"\nconfig = "sft.toml"\n'
        '[[stages]]\nname = "prmu"\nkind = "prmu"\nconfig = "prmu.toml"\n'
        '[[stages]]\nname = "guided"\nkind = "rl"\nconfig = "rl.toml"\nset = { model = "{sft}", prmu = "{prmu}" }\n'
    )
    done = CliRunner().invoke(app, ["plan", str(path), "--flops", "1e9", "--price-per-hour", "2"])
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.output.splitlines()[:5]]
    assert [row[0] for row in rows] == ["stage", "sft", "prmu", "guided", "all"]
    assert float(rows[-1][1]) == pytest.approx(sum(float(row[-2]) for row in rows[1:4]), rel=0.02)
    assert not (tmp_path / "runs").exists()
    sft_row, _, guided = plan.plan(plan.stages(path), Machine())
    assert guided.prediction.memory["reward model"] > 0 and guided.prediction.work.drawing is not None
    per_example = sum(one.labels for one in sft_row.prediction.work.batches) / sft_row.prediction.work.examples
    assert guided.prediction.work.drawing.completion == pytest.approx(per_example), "as long as SFT teaches them"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.toml"], "none.toml does not exist"),
        (["sft.toml", "--flops", "1", "--probe"], "are two speeds; give one"),
        (["sft.toml", "--device", "tpu"], "--device tpu: known are cpu and cuda"),
        (["sft.toml", "--set", "model=./nowhere"], "model folder ./nowhere does not exist"),
        (["sft.toml", "--set", "lr=1"], "lr: Extra inputs are not permitted"),
    ],
)
def test_wrong_use_of_plan_is_refused(
    settings: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    _write(settings("sft"), tmp_path / "sft.toml")
    done = CliRunner().invoke(app, ["plan", *arguments])
    assert isinstance(done.exception, InputError) and message in str(done.exception)


def test_a_config_json_that_is_no_transformers_is_refused() -> None:
    with pytest.raises(InputError, match="has no num_attention_heads or n_head or n_heads; plan knows transformers"):
        footprint.shape_of({"hidden_size": 8})


def test_too_little_memory_is_exit_code_1_with_what_would_need_less(
    settings: Callable[..., Any], tmp_path: Path
) -> None:
    _write(settings("sft", trainer={"per_device_train_batch_size": 8}), tmp_path / "sft.toml")
    done = CliRunner().invoke(app, ["plan", str(tmp_path / "sft.toml"), "--memory", "0.1"])
    assert isinstance(done.exception, CheckFailed)
    assert "there are 0.1; less would need: " in str(done.exception)


def test_planning_loads_no_model_library_and_takes_under_two_seconds(
    settings: Callable[..., Any], tmp_path: Path
) -> None:
    """Processor time, best of three: what a quiet machine would show on the clock."""
    _write(settings("sft"), tmp_path / "sft.toml")
    code = (
        "import sys; from typer.testing import CliRunner; from tagpr_train.cli import app; "
        f"print(CliRunner().invoke(app, ['plan', {str(tmp_path / 'sft.toml')!r}]).exit_code, "
        "[name for name in ('torch', 'transformers', 'trl') if name in sys.modules])"
    )
    seconds: list[float] = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.stdout.strip() == "0 []"
    assert min(seconds) < 2


def test_a_probe_takes_real_steps_and_leaves_nothing(settings: Callable[..., Any], tmp_path: Path) -> None:
    config = settings("sft", trainer={"per_device_train_batch_size": 2})
    speed, memory = plan.probe(config)
    assert 1e5 < speed < 1e14 and 0.1 < memory < 20
    assert not config.output.exists()
    with pytest.raises(InputError, match="too short for a probe"):
        plan.probe(settings("sft", trainer={"max_steps": 1}))


def test_a_run_without_memory_says_what_would_need_less(settings: Callable[..., Any], tmp_path: Path) -> None:
    """A real allocation fails: after a small run, when all libraries and threads are there, the process may take 300 MB
    more, and its next run needs half as much again."""
    model = write_model(tmp_path / "wide", width=1024)
    config = settings(
        "sft", model=str(model), adapter="none", dtype="float32", eval_examples=0,
        trainer={"per_device_train_batch_size": 10},
    )  # fmt: skip
    assert plan.predict(config).peak - plan.predict(settings("sft")).peak > 450_000_000
    _write(config, tmp_path / "sft.toml")
    code = f"""
        import resource, sys
        from pathlib import Path
        from tagpr_train import cli, plan, sft

        (stage,) = plan.stages(Path({str(tmp_path / "sft.toml")!r}))
        small = {{"model": {settings("sft").model!r}, "output": Path({str(tmp_path / "small")!r})}}
        first = stage.settings.model_copy(update=small)
        with plan.within_memory(first):
            sft.train(first)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 300_000_000, resource.RLIM_INFINITY))
        sys.argv = ["tagpr-train", "sft", {str(tmp_path / "sft.toml")!r}]
        cli.main()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, done.stderr
    assert "error: out of memory (" in errors[0] and "less would need: " in errors[0]
    assert 'adapter = "lora" (' in errors[0]
    assert not (config.output / "model").exists()


def test_errors_that_are_not_about_memory_pass_through(settings: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match="shapes"), plan.within_memory(settings("sft")):
        raise RuntimeError("shapes do not match")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_every_way_to_run_out_of_memory_is_known(settings: Callable[..., Any], error: Exception) -> None:
    words = r"out of memory \(.*predicted are .* GiB"
    with pytest.raises(CheckFailed, match=words), plan.within_memory(settings("sft")):
        raise error


def test_a_stage_larger_than_the_machine_is_warned_of_before_it_starts(
    settings: Callable[..., Any], tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    facts = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "huge").mkdir()
    huge = facts | {"hidden_size": 65536, "intermediate_size": 262144, "num_hidden_layers": 400, "head_dim": 4096}
    (tmp_path / "huge/config.json").write_text(json.dumps(huge))
    with plan.within_memory(settings("sft", model=str(tmp_path / "huge"))):
        pass
    assert "this may not fit into memory: predicted are" in caplog.text
    caplog.clear()
    with plan.within_memory(settings("sft")):
        pass
    assert not caplog.text


def _write(config: Any, path: Path) -> None:
    """Write settings as TOML: JSON's texts, numbers and lists are TOML's too."""
    values = json.loads(config.model_dump_json(exclude_none=True, exclude_defaults=True))
    tables = {name: values.pop(name) for name in ("trainer", "lora", "rewards") if name in values}
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    path.write_text("\n".join(lines) + "\n")
