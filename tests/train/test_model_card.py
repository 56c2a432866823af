"""The card of a trained model: what it says, when it is stale, and that nothing of this machine is published.

Run folders here are written by hand around a tiny random model; `test_train_publish.py` publishes trained ones.
"""

import json
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tagpr_data.config import load
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.records import RunManifest
from tagpr_data.tables import write_json
from tagpr_train import model_card, publish
from tagpr_train.config import Rl, Sft

SFT_RESULTS = {
    "steps": 8, "train_loss_last_10": 1.25, "validation_loss": 1.5, "validation_examples": 4, "examples": 20,
    "tokens": 12345, "seconds": 6.5, "tokens_per_second": 1899.2, "peak_memory_gib": 0.5, "licence": "CC-BY-4.0",
}  # fmt: skip
RL_RESULTS = SFT_RESULTS | {
    "held_out_examples": 32, "held_out_answer_first": 0.25, "held_out_answer": 0.5, "stopped": None,
    "held_out_change": {"mean": 0.25, "low": 0.1, "high": 0.4},
    "curve": [{"step": 0, "answer": 0.25, "tags": 0.9}, {"step": 2, "answer": 0.5, "tags": 0.8}],
}  # fmt: skip
BASE = "/home/someone/.cache/tagpr/models/smollm2-135m-instruct-0.1.2-1"


@pytest.fixture
def make_run(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that writes the folder of a finished run."""

    def make(name: str = "run", kind: str = "sft", adapter: str | None = None, **config: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(tiny_model, folder / "model")
        if adapter is not None:
            (folder / "model/config.json").unlink()
            (folder / "model/model.safetensors").rename(folder / "model/adapter_model.safetensors")
            (folder / "model/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": adapter, "r": 4}))
        settings: Any = (
            Sft(corpus=Path("/data/corpora/colours"), output=folder, **config)
            if kind == "sft"
            else Rl(dataset=Path("/data/people"), output=folder, steps=2, **{"rewards": {"personal": 0.0}} | config)
        )
        manifest = RunManifest(
            kind=kind, status="complete", config=settings.model_dump(mode="json"), data={"colours": "c" * 64}, seed=3,
            versions={"torch": "2.9"}, git_revision="a" * 40, results=SFT_RESULTS if kind == "sft" else RL_RESULTS,
        )  # fmt: skip
        write_json(folder / "run.json", manifest)
        (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.25}\n')
        model_card.write(folder)
        return folder

    return make


def published(run: Path, repo_id: str = "someone/it") -> dict[str, bytes]:
    files = publish.collect(run, repo_id).uploads
    return {file.path: file.content.read_bytes() if isinstance(file.content, Path) else file.content for file in files}


def test_the_card_says_what_trained_on_which_data_and_what_was_measured(make_run: Callable[..., Path]) -> None:
    text = (make_run(max_minutes=5.0) / "model/README.md").read_text()
    for said in (
        "fine-tuned on tagged reasoning and answers of the corpus `colours`", f"content `{'c' * 64}`",
        "licence: CC-BY-4.0", "`smollm2-135m-instruct`; SmolLM2-135M-Instruct as the package", "| 1.25 |", "| 1.5 |",
        "n = 4", "12,345 tokens", f"commit `{'a' * 40}`", "time budget", 'AutoModelForCausalLM.from_pretrained("OWNER',
    ):  # fmt: skip
        assert said in text, said
    assert not re.search(r"/data|/home|/tmp", text)


def test_the_card_of_rl_shows_the_curve_and_the_interval(make_run: Callable[..., Path]) -> None:
    text = (make_run(kind="rl", model="HuggingFaceTB/SmolLM2-135M-Instruct") / "model/README.md").read_text()
    assert "0.250 before, 0.500 after; paired difference +0.250 [+0.100, +0.400]" in text
    assert "| 2 | 0.5 | 0.8 |" in text and "stage *guided*" in text
    assert 'base_model: "HuggingFaceTB/SmolLM2-135M-Instruct"' in text


def test_a_card_is_stale_once_facts_results_or_weights_change(make_run: Callable[..., Path]) -> None:
    run = make_run()
    assert model_card.stale(model_card.open_run(run)) == []
    (run / "card.toml").write_text('licence = "apache-2.0"\nnotes = "Mind the gap."\ncreators = ["Ann"]\n')
    assert model_card.stale(model_card.open_run(run))
    with pytest.raises(CheckFailed, match=r"card that does not fit the run.*tagpr-train card"):
        publish.collect(run, "someone/it")
    model_card.write(run)
    text = (run / "model/README.md").read_text()
    assert 'license: "apache-2.0"' in text and "Mind the gap." in text and "By Ann." in text
    with (run / "model/model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert "stale" in model_card.stale(model_card.open_run(run))[0]
    (run / "model/README.md").unlink()
    assert model_card.stale(model_card.open_run(run)) == ["README.md: is missing"]


@pytest.mark.parametrize(("name", "is_told"), [("someone/colours@v1", True), ("demo/corpus", False)])
def test_only_data_with_a_revision_is_told_as_the_hubs(make_run: Callable[..., Path], name: str, is_told: bool) -> None:
    run = make_run()
    manifest = json.loads((run / "run.json").read_text())
    manifest["config"]["corpus"] = name  # a folder of that name may be where the run was, and not where we are
    (run / "run.json").write_text(json.dumps(manifest))
    text = model_card.write(run).read_text()
    assert (f'datasets: ["{name.partition("@")[0]}"]' in text) == is_told
    assert (f'corpus = "{name}"' in text) == is_told


def test_a_title_cannot_break_out_of_the_card(make_run: Callable[..., Path]) -> None:
    run = make_run()
    (run / "card.toml").write_text('title = "a\\n---\\n<script>alert(1)</script>"\ncitation = "```\\nend"\n')
    model_card.write(run)
    text = (run / "model/README.md").read_text()
    assert "<script" not in text and text.count("\n---\n") == 1 and "````text\n```\nend\n````" in text


def test_an_adapter_is_published_with_a_base_that_others_can_load(make_run: Callable[..., Path]) -> None:
    run = make_run(adapter=BASE)
    files = published(run)
    assert json.loads(files["adapter_config.json"]) == {
        "base_model_name_or_path": "smollm2-135m-instruct", "r": 4,
    }  # fmt: skip
    assert b'load("someone/it")' in files["README.md"]
    assert json.loads((run / "model/adapter_config.json").read_text())["base_model_name_or_path"] == BASE
    assert not any(b"/home" in content for path, content in files.items() if not path.endswith("tokenizer.json"))


def test_an_adapter_on_a_folder_needs_the_name_of_its_base(make_run: Callable[..., Path]) -> None:
    run = make_run(adapter="/data/models/mine")
    with pytest.raises(InputError, match=r'base_model = "OWNER/NAME" in .*card\.toml'):
        publish.collect(run, "someone/it")
    (run / "card.toml").write_text('base_model = "someone/mine"\n')
    model_card.write(run)
    files = published(run)
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "someone/mine"
    assert b"AutoPeftModelForCausalLM" in files["README.md"] and b'base_model: "someone/mine"' in files["README.md"]


def test_published_settings_train_again_and_name_no_folder(make_run: Callable[..., Path], tmp_path: Path) -> None:
    tagset = tmp_path / "tags" / "mine.toml"
    run = make_run(model="/data/runs/first/model", tagset=tagset, trainer={"deepspeed": "/etc/deepspeed/zero3.json"})
    files = published(run)
    config = tomllib.loads(files["training/config.toml"].decode())
    assert config["corpus"] == "colours" and config["model"] == "first/model" and config["output"] == "run"
    assert config["tagset"] == "mine.toml" and config["trainer"] == {"deepspeed": "zero3.json"}
    (tmp_path / "again.toml").write_bytes(files["training/config.toml"])
    assert load(Sft, tmp_path / "again.toml").warmup_steps == 8
    manifest = json.loads(files["training/run.json"])
    assert manifest["config"]["corpus"] == "colours" and manifest["data"] == {"colours": "c" * 64}
    assert "base model | `first/model`" in files["README.md"].decode()


@pytest.mark.parametrize(
    ("path", "text", "leak"),
    [
        ("training/run.json", '{"x": "/home/ann/data"}', "/home/ann/data"),
        ("README.md", "see ~/data/corpus for it", "~/data/corpus"),
        ("config.json", '{"x": "C:\\\\Users\\\\ann"}', "C:"),
        ("metrics.jsonl", '{"host": "gpu-node-17"}', "gpu-node-17"),
        ("tokenizer.json", '{"/usr/include": 7, "CWD/data": 8}', "CWD"),
    ],
)
def test_places_of_a_machine_are_found(
    path: str, text: str, leak: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "gpu-node-17.example")
    monkeypatch.chdir(tmp_path)
    text, leak = (value.replace("CWD", str(tmp_path)) for value in (text, leak))
    found = publish.places(path, text.encode())
    assert len(found) == 1 and found[0].startswith(leak)


@pytest.mark.parametrize(
    "text",
    ["https://host.example/a/b", "1,899 tokens/s and/or a/b/c", "</svg></a/b>", "## One / two", "0.5 [0.1, 0.9]"],
)
def test_what_is_no_place_is_let_through(text: str) -> None:
    assert publish.places("README.md", text.encode()) == []


def test_a_place_in_a_header_of_weights_or_in_results_stops_the_push(make_run: Callable[..., Path]) -> None:
    from safetensors.torch import load_file, save_file

    run = make_run()
    weights = run / "model/model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt", "from": str(Path.cwd() / "x")})
    model_card.write(run)
    with pytest.raises(CheckFailed, match=r"model\.safetensors: " + re.escape(str(Path.cwd()))):
        publish.collect(run, "someone/it")


def test_pickles_and_runs_that_are_not_finished_are_refused(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run()
    (run / "model/training_args.bin").write_bytes(b"x")
    with pytest.raises(CheckFailed, match=r"training_args\.bin is not a file of a model"):
        publish.collect(run, "someone/it")
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(manifest | {"status": "running"}))
    with pytest.raises(InputError, match=r"not finished.*--resume"):
        publish.collect(run, "someone/it")
    with pytest.raises(InputError, match=r"no run folder: it has no run\.json"):
        publish.collect(tmp_path, "someone/it")
    (run / "run.json").write_text(json.dumps(manifest | {"kind": "evaluation"}))
    with pytest.raises(InputError, match="holds an evaluation"):
        publish.collect(run, "someone/it")


def test_results_of_an_evaluation_come_into_the_card_and_along(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run, exported = make_run(), tmp_path / "exported"
    (exported / ".eval_results").mkdir(parents=True)
    (exported / ".eval_results/colour.yaml").write_text(
        "- dataset:\n    id: someone/colours\n    task_id: colour\n    revision: 0123456789abcdef\n"
        "  value: 0.875\n  notes: accuracy, bm25.k4.trace, n = 32\n"
    )
    assert model_card.take_results(run, exported) == [run / ".eval_results/colour.yaml"]
    model_card.write(run)
    files = published(run)
    assert "| someone/colours@0123456789ab | colour | accuracy, bm25.k4.trace, n = 32 | 0.875 |" in (
        files["README.md"].decode()
    )
    assert files[".eval_results/colour.yaml"] == (exported / ".eval_results/colour.yaml").read_bytes()
    (exported / ".eval_results/colour.yaml").write_text("- value: high\n")
    with pytest.raises(InputError, match=r"colour\.yaml does not hold evaluation results"):
        model_card.take_results(run, exported)
    with pytest.raises(InputError, match=r"holds no \.eval_results"):
        model_card.take_results(run, tmp_path)
