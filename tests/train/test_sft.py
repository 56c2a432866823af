"""SFT end to end on a tiny random model: what it writes, that it resumes, and how it refuses."""

import errno
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
from transformers import AutoModelForCausalLM, AutoTokenizer

from tagpr_data.config import load
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.records import RunManifest
from tagpr_data.tables import read_json, write_json
from tagpr_data.tags import load_tagset
from tagpr_train import dataset, loop, runs, sft, tag_tokens
from tagpr_train.config import Sft

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture
def settings(tiny_model: Path, corpus: Path, tmp_path: Path) -> Callable[..., Sft]:
    """A function that gives settings for a few quick steps: 2 epochs of 4 steps (3 + 3 + 3 + 1 examples)."""

    def make(output: str = "run", trainer: dict[str, Any] | None = None, **changes: Any) -> Sft:
        options = {"per_device_train_batch_size": 3, "num_train_epochs": 2, "learning_rate": 5e-3} | (trainer or {})
        values = {"model": str(tiny_model), "corpus": corpus, "warmup_steps": 2} | changes
        return Sft(output=tmp_path / output, trainer=options, **values)

    return make


def _lines(config: Sft) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]


def _weights(config: Sft) -> dict[str, torch.Tensor]:
    return load_file(next((config.output / "model").glob("*model.safetensors")))


def _stop_at(step: int) -> Callable[[dict[str, Any]], None]:
    def report(line: dict[str, Any]) -> None:
        if line["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return report


def test_run_folder_says_what_ran_and_what_came_out(settings: Callable[..., Sft]) -> None:
    config = settings(eval_every_steps=4)
    manifest = sft.train(config)
    assert read_json(config.output / "run.json", RunManifest) == manifest
    assert manifest.status == "complete"
    assert manifest.data == {"colours": dataset.read_manifest(config.corpus).content_hash}
    assert manifest.config["trainer"]["learning_rate"] == 5e-3
    assert {"torch", "trl", "transformers", "tagpr-train", "python"} <= manifest.versions.keys()
    results = manifest.results
    assert results["steps"] == 8 and results["examples"] == 20 and results["trainable_rows"] == 20
    lines = [line for line in _lines(config) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[0]["learning_rate"] == pytest.approx(5e-3 / 3)  # step 0 of 2 warm-up steps
    assert lines[-1]["learning_rate"] == pytest.approx(5e-3 * (1 / 8) / 0.7)
    assert results["train_loss_last_10"] == pytest.approx(sum(line["loss"] for line in lines) / 8)
    assert {"tokens_per_second", "seconds", "seconds_left", "memory_gib"} <= lines[0].keys()
    measured = [line["validation_loss"] for line in _lines(config) if "validation_loss" in line]
    assert len(measured) == 2 and measured[-1] == results["validation_loss"] < measured[0]


@pytest.mark.parametrize("adapter", ["lora", "none"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_stopped_and_resumed_run_equals_an_uninterrupted_one(
    settings: Callable[..., Sft], adapter: str, dtype: str
) -> None:
    shared = {"adapter": adapter, "dtype": dtype, "prompt_gradient": False, "lora": {"dropout": 0.1}}
    whole, parted = settings("whole", **shared), settings("parted", **shared)
    sft.train(whole)
    for step in (2, 5):  # in the first and in the second epoch
        stopped = sft.train(parted, resume=step > 2, report=_stop_at(step))
        assert stopped.status == "running" and not (parted.output / "model").exists()
        assert [path.name for path in sorted((parted.output / "checkpoints").iterdir())][-1] == f"step-{step}"
        (parted.output / "checkpoints" / f".step-{step + 1}.1.tmp").mkdir()  # as `kill -9` leaves it
    assert sft.train(parted, resume=True).status == "complete"
    expected, found = ([line["loss"] for line in _lines(config)] for config in (whole, parted))
    assert found == pytest.approx(expected, abs=1e-6)
    for name, weight in _weights(whole).items():
        torch.testing.assert_close(_weights(parted)[name], weight, rtol=0, atol=1e-6, msg=name)


def test_lines_of_steps_taken_again_are_not_doubled(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    metrics = runs.Metrics(path, after_step=2)
    metrics.append({"step": 3, "loss": 1.0})
    metrics.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 1.0}\n'


def test_seed_fixes_every_bit(settings: Callable[..., Sft]) -> None:
    configs = [settings("a"), settings("b"), settings("c", seed=1)]
    for config in configs:
        sft.train(config)
    first, second, other = (next((c.output / "model").glob("*.safetensors")).read_bytes() for c in configs)
    assert first == second != other


def test_adapter_and_merged_weights_load_without_us_and_agree(settings: Callable[..., Sft], tiny_model: Path) -> None:
    from peft import PeftModel

    apart, merged = settings("apart", dtype="float32"), settings("merged", dtype="float32", merge=True)
    sft.train(apart)
    sft.train(merged)
    tokenizer = AutoTokenizer.from_pretrained(apart.output / "model")
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    untouched = AutoModelForCausalLM.from_pretrained(tiny_model)
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    adapted = PeftModel.from_pretrained(base, apart.output / "model").eval()
    whole = AutoModelForCausalLM.from_pretrained(merged.output / "model").eval()
    ids = tokenizer("<think>\n<examine_examples>[P1]</examine_examples>", return_tensors="pt")["input_ids"]
    assert ids.max() >= untouched.config.vocab_size  # the marks are tokens of their own
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, whole(ids).logits, rtol=1e-4, atol=1e-4)
        plain = tokenizer("red", return_tensors="pt")["input_ids"]
        size = untouched.config.vocab_size
        assert (whole(plain).logits[..., :size] - untouched(plain).logits).abs().max() > 0.01
    assert sum(file.stat().st_size for file in (apart.output / "model").glob("*.safetensors")) < 200_000
    assert tokenizer.eos_token == "<|im_end|>"  # where the trained turn ends; the base model's was another


def test_trained_model_writes_the_trace_and_stops(settings: Callable[..., Sft], make_corpus: Callable) -> None:
    from tagpr_data.records import Trace
    from tagpr_data.tables import read_records

    corpus = make_corpus(train=1, validation=0)
    config = settings(
        corpus=corpus, adapter="none", dtype="float32", trainer={"num_train_epochs": 60, "learning_rate": 1e-2}
    )
    results = sft.train(config).results
    assert results["validation_loss"] is None
    tokenizer = AutoTokenizer.from_pretrained(config.output / "model")
    model = AutoModelForCausalLM.from_pretrained(config.output / "model").eval()
    (trace,) = read_records(corpus / "traces/train.parquet", Trace)
    prompt = torch.tensor([dataset.prompt_tokens(tokenizer, trace.messages)])
    written = model.generate(prompt, max_new_tokens=300, do_sample=False, eos_token_id=tokenizer.eos_token_id)
    text = tokenizer.decode(written[0, prompt.shape[1] :], skip_special_tokens=True)
    assert text == trace.text
    assert written[0, -1] == tokenizer.eos_token_id


def test_added_marks_start_at_the_mean_of_their_pieces(untied_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(untied_model)
    model = AutoModelForCausalLM.from_pretrained(untied_model)
    text = "<think>\n<draft_answer>a < b, <drafts>\n</draft_answer>\n</think>\nred"
    pieces = tokenizer("<think>", add_special_tokens=False)["input_ids"]
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    expected = embedding[pieces].mean(dim=0), head[pieces].mean(dim=0)
    ids = tag_tokens.add_marks(model, tokenizer, load_tagset())
    assert tag_tokens.marks(load_tagset())[:2] == ["<think>", "</think>"] and len(ids) == 20
    torch.testing.assert_close(model.get_input_embeddings().weight[ids[0]], expected[0])
    torch.testing.assert_close(model.get_output_embeddings().weight[ids[0]], expected[1])
    encoded = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert encoded[0] == ids[0] and sum(index in ids for index in encoded) == 4
    assert tokenizer.decode(encoded) == text
    assert tag_tokens.add_marks(model, tokenizer, load_tagset()) == []


def test_learning_rate_warms_up_holds_and_decays() -> None:
    def factor(step: int, progress: float) -> float:
        return loop.learning_rate_factor(step, progress, warmup_steps=3, hold=0.5)

    assert [factor(step, step / 10) for step in range(11)] == pytest.approx(
        [0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0]
    )
    assert factor(5, 0.75) == 0.5  # the clock may be ahead of the steps
    assert factor(5, 1.2) == 0
    assert loop.learning_rate_factor(9, 1.0, warmup_steps=0, hold=1.0) == 1.0


def test_time_budget_ends_the_run_with_the_rate_near_zero(settings: Callable[..., Sft]) -> None:
    config = settings(max_minutes=0.05, trainer={"num_train_epochs": 10_000})
    results = sft.train(config).results
    assert 8 < results["steps"] < 40_000 and 1.5 < results["seconds"] <= 3.5
    rates = [line["learning_rate"] for line in _lines(config)]
    assert max(rates) == pytest.approx(5e-3) and rates[-1] < 1e-3


def test_loss_that_is_not_finite_stops_before_the_weights_and_saves_the_batch(
    settings: Callable[..., Sft], tiny_model: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    model.save_pretrained(broken)
    config = settings(model=str(broken))
    with pytest.raises(CheckFailed, match=r"the loss is nan in step 1; the batch is in .*bad_batch.json"):
        sft.train(config)
    batch = json.loads((config.output / "bad_batch.json").read_text())
    assert len(batch["ids"]) == 3 and len(batch["labels"]) == 3
    assert not (config.output / "model").exists()
    assert read_json(config.output / "run.json", RunManifest).status == "running"


def test_folder_of_another_run_is_refused(settings: Callable[..., Sft]) -> None:
    config = settings()
    done = sft.train(config)
    with pytest.raises(InputError, match="holds a finished run"):
        sft.train(config)
    assert sft.train(config, resume=True) == done
    with pytest.raises(InputError, match=r"other settings: seed is 0 there and 3 now"):
        sft.train(settings(seed=3), resume=True)


def test_a_folder_of_another_stage_and_damaged_weights_are_told(
    settings: Callable[..., Sft], tiny_model: Path, tmp_path: Path
) -> None:
    config = settings()
    done = sft.train(config)
    write_json(config.output / "run.json", done.model_copy(update={"kind": "rl"}))
    with pytest.raises(InputError, match="holds a run of other stage: kind is 'rl' there and 'sft' now"):
        sft.train(config, resume=True)
    shutil.copytree(tiny_model, tmp_path / "half")
    weights = tmp_path / "half" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"weights that this run reads are damaged|cannot be loaded"):
        sft.train(settings("other", model=str(tmp_path / "half")))


def test_weights_that_lack_a_tensor_are_refused_instead_of_made_up(
    settings: Callable[..., Sft], tiny_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_model, tmp_path / "short")
    path = tmp_path / "short" / "model.safetensors"
    weights = load_file(path)
    name = next(key for key in sorted(weights) if "mlp" in key)
    save_file({key: value for key, value in weights.items() if key != name}, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"lacks 1 of its weights, the first '{name}'"):
        sft.train(settings("other", model=str(tmp_path / "short")))


def test_unfinished_run_is_continued_only_when_asked(settings: Callable[..., Sft]) -> None:
    config = settings()
    sft.train(config, report=_stop_at(1))
    with pytest.raises(InputError, match="unfinished run; --resume continues it"):
        sft.train(config)


def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(settings: Callable[..., Sft]) -> None:
    """Without its scheduler transformers would go on with a fresh optimiser and not say so."""
    config = settings(trainer={"save_steps": 1})
    sft.train(config, report=_stop_at(3))
    older, newest = sorted((config.output / "checkpoints").iterdir())
    whole = {path.name: path.read_bytes() for path in newest.iterdir()}
    for name, content, message in (
        ("scheduler.pt", None, "scheduler.pt is missing"),
        ("optimizer.pt", whole["optimizer.pt"][:-9], r"optimizer.pt has \d+ of \d+ bytes"),
        ("clock.json", b"x" * len(whole["clock.json"]), "clock.json is not what was written"),
        (runs.CONTENTS, b"{", r"contents.json is missing or cannot be read"),
    ):
        (newest / name).unlink() if content is None else (newest / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{newest.name} is damaged: .*{message}.* from the checkpoint before it"):
            sft.train(config, resume=True)
        (newest / name).write_bytes(whole[name])
    shutil.rmtree(newest)
    assert older.is_dir() and sft.train(config, resume=True).status == "complete"
    assert [line["step"] for line in _lines(config) if "loss" in line] == list(range(1, 9))


def test_second_process_on_the_folder_is_refused(settings: Callable[..., Sft]) -> None:
    from tagpr_data.journal import folder_lock

    config = settings()
    with folder_lock(config.output), pytest.raises(InputError, match="is in use by process"):
        sft.train(config)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"learning_rat": 1.0}, "trainer.learning_rat is not an option of trl.SFTConfig; did you mean 'learning_rate'"),
        ({"lr_scheduler_type": "no-such"}, "trl refuses the options under"),
        ({"optim": "sgd"}, r"trainer\.optim = 'sgd' needs dtype"),
    ],
)
def test_option_trl_does_not_know_is_refused(settings: Callable[..., Sft], trainer: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sft.train(settings(trainer=trainer))


def test_trls_own_schedule_is_used_where_it_is_named(settings: Callable[..., Sft]) -> None:
    config = settings(trainer={"lr_scheduler_type": "constant"})
    sft.train(config)
    assert {line["learning_rate"] for line in _lines(config)} == {5e-3}


def test_model_that_is_none_is_refused(settings: Callable[..., Sft], corpus: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json"):
        sft.train(settings(model=str(corpus)))
    with pytest.raises(InputError, match="does not exist; give a folder"):
        sft.train(settings(model="./nowhere"))


def test_corpus_without_a_usable_trace_is_refused(settings: Callable[..., Sft]) -> None:
    with pytest.raises(InputError, match=r"holds no trace to train on .*'completions_too_long': 10"):
        sft.train(settings(max_tokens=64, single_token_tags=False))


def test_layers_lora_cannot_find_are_refused(settings: Callable[..., Sft]) -> None:
    with pytest.raises(InputError, match=r"lora.target_modules = \('q_prj',\) does not fit the model"):
        sft.train(settings(lora={"target_modules": ("q_prj",)}))


def test_full_disk_leaves_nothing_under_a_final_name(
    settings: Callable[..., Sft], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_disk(model: Any, folder: Path, weights: Any = None) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_text("half")
        raise RuntimeError("PytorchStreamWriter failed: No space left on device")  # as torch says it

    config = settings()
    monkeypatch.setattr(sft, "write_weights", fill_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        sft.train(config)
    assert caught.value.errno == errno.ENOSPC
    assert not list(config.output.rglob("*.safetensors")) and not (config.output / "model").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('corpus = "c"\n', "output: Field required"),
        ('corpus = "c"\noutput = "o"\nlr = 1\n', "lr: Extra inputs are not permitted"),
        ('corpus = "c"\noutput = "o"\n[lora]\nrank = 8\n', "lora.rank: Extra inputs are not permitted"),
        ('corpus = "c"\noutput = "o"\ntarget = "both"\n', "target: Input should be 'trace', 'chain' or 'answer'"),
        ('corpus = "c"\noutput = "o"\nmax_minutes = 0\n', "max_minutes: Input should be greater than 0"),
        ('corpus = "c"\noutput = "o"\n[trainer]\nbf16 = true\n', "trainer.bf16 is not set here: `dtype`"),
        ('corpus = "c"\noutput = "o"\nseed = -1\n', "seed: Input should be greater than or equal to 0"),
        ('corpus = "c"\noutput = "o"\nseed = 4294967296\n', "seed: Input should be less than 4294967296"),
        ('corpus = "c"\noutput = "o"\n[trainer]\nlearning_rate = "high"\n', "learning_rate = 'high': .* valid number"),
        ('corpus = "c"\noutput = "o"\n[trainer]\nlearning_rate = -1\n', "learning_rate = -1: .* or equal to 0"),
        ('corpus = "c"\noutput = "o"\n[trainer]\nmax_steps = 0\n', "max_steps = 0: .* or equal to 1"),
        ('corpus = "c"\noutput = "o"\n[trainer]\nnum_train_epochs = 0\n', "num_train_epochs = 0: .* than 0"),
        (
            'corpus = "c"\noutput = "o"\n[trainer]\nper_device_train_batch_size = 0\n',
            "per_device_train_batch_size = 0: .* or equal to 1",
        ),
        (
            'corpus = "c"\noutput = "o"\nmax_minutes = 1\n[trainer]\nlr_scheduler_type = "cosine"\n',
            "does not know of max_minutes",
        ),
        (
            'corpus = "c"\noutput = "o"\nprompt_gradient = false\n[trainer]\ngradient_checkpointing = true\n',
            "gradient_checkpointing needs prompt_gradient",
        ),
    ],
)
def test_wrong_settings_are_named_with_their_dotted_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sft.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load(Sft, path)


@pytest.mark.parametrize("name", ["xorg-sft-cpu.toml", "xorg-sft-gpu.toml"])
def test_shipped_configs_are_valid_and_open_with_what_they_are(root: Path, name: str) -> None:
    path = root / "tagpr_train" / "configs" / name
    sft.trainer_arguments(load(Sft, path))
    text = path.read_text()
    assert text.startswith("# ") and "# Hardware:" in text and f"tagpr-train sft tagpr_train/configs/{name}" in text
