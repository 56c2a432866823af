"""Metrics of a run: JSON lines, TensorBoard event files with the same numbers, and trackers on request."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from tagpr_data.errors import InputError
from tagpr_train import runs, sft
from tagpr_train.config import Sft

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture(autouse=True)
def first_writers_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Event files of one second are read by the number of their writer, as text: the tenth of a process, which a run
    never has, before the ninth."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


@pytest.fixture
def settings(tiny_model: Path, corpus: Path, tmp_path: Path) -> Callable[..., Sft]:
    """A function that gives settings for 4 quick steps of 3 examples."""

    def make(output: str = "run", trainer: dict[str, Any] | None = None, **changes: Any) -> Sft:
        options = {"per_device_train_batch_size": 3, "learning_rate": 5e-3} | (trainer or {})
        values = {"model": str(tiny_model), "corpus": corpus, "warmup_steps": 2, "eval_every_steps": 2} | changes
        return Sft(output=tmp_path / output, trainer=options, **values)

    return make


def _scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Read every scalar of event files as TensorBoard does: name → step → value."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {name: {one.step: one.value for one in events.Scalars(name)} for name in events.Tags()["scalars"]}


def _written(folder: Path) -> dict[str, dict[int, float]]:
    """The same of metrics.jsonl."""
    found: dict[str, dict[int, float]] = {}
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        for name, value in line.items():
            if name not in ("step", "steps"):
                found.setdefault(name, {})[line["step"]] = value
    return found


def _agree(folder: Path) -> bool:
    lines, events = _written(folder), _scalars(folder)
    return lines.keys() == events.keys() and all(events[name] == pytest.approx(lines[name]) for name in lines)


def test_event_files_hold_the_numbers_of_the_json_lines(settings: Callable[..., Sft]) -> None:
    config = settings()
    sft.train(config)
    assert _written(config.output).keys() >= {"loss", "learning_rate", "tokens_per_second", "validation_loss"}
    assert _agree(config.output)


def test_a_resumed_run_has_one_curve_without_the_steps_that_were_taken_twice(settings: Callable[..., Sft]) -> None:
    """A checkpoint after step 2, a `kill -9` after step 3 (its line and event are there), and the run goes on."""
    config = settings(trainer={"save_steps": 2})
    seen: list[int] = []

    def die(line: dict[str, Any]) -> None:
        seen.append(line["step"])
        if line["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sft.train(config, report=die)
    assert set(_scalars(config.output)["loss"]) == {1, 2, 3}
    (first,) = (config.output / "tensorboard").iterdir()
    first.write_bytes(first.read_bytes()[:-5])  # torn, as a `kill -9` may leave it
    whole = settings("whole")
    assert sft.train(config, resume=True).results["steps"] == sft.train(whole).results["steps"] == 4
    assert len(list((config.output / "tensorboard").iterdir())) == 2
    assert _agree(config.output)
    assert _scalars(config.output)["loss"] == _scalars(whole.output)["loss"], "bit for bit"


def test_lines_of_steps_taken_again_leave_the_curve(tmp_path: Path) -> None:
    for after, value in ((0, 1.0), (1, 2.0)):
        metrics = runs.Metrics(tmp_path / "metrics.jsonl", after_step=after)
        for step in range(after + 1, 4):
            metrics.append({"step": step, "loss": value, "note": "no number"})
        metrics.close()
    assert _scalars(tmp_path) == {"loss": {1: 1.0, 2: 2.0, 3: 2.0}}


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_refused_with_how_to_get_it(
    settings: Callable[..., Sft], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda one, *rest: None if one == name else find(one, *rest))
    with pytest.raises(InputError, match=rf"trainer\.report_to = '{name}'.* requires {name} .*pip install {name}"):
        sft.train(settings(trainer={"report_to": name}))


def test_a_tracker_nobody_knows_is_refused_with_those_there_are(settings: Callable[..., Sft]) -> None:
    with pytest.raises(InputError, match=r"report_to = 'wandbb': wandbb is not supported, only .*wandb"):
        sft.train(settings(trainer={"report_to": "wandbb"}))


def test_tensorboard_is_written_once_also_when_asked_for(settings: Callable[..., Sft]) -> None:
    config = settings(trainer={"report_to": "tensorboard"})
    sft.train(config)
    assert [path.parent.name for path in config.output.rglob("events.out.*")] == ["tensorboard"]


def test_steps_and_held_out_figures_reach_a_tracker_made_for_this_test(
    settings: Callable[..., Sft], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for W&B with the calls that transformers makes of it; it writes down what it is told."""
    package = tmp_path / "wandb"
    (package / "sdk/lib").mkdir(parents=True)
    for inner in ("sdk", "sdk/lib"):
        (package / inner / "__init__.py").write_text("")
    (package / "sdk/lib/config_util.py").write_text("class ConfigError(Exception): pass\n")
    (package / "__init__.py").write_text(_STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: True)
    config = settings(trainer={"report_to": "wandb"})
    sft.train(config)
    import wandb  # pyright: ignore[reportMissingImports]

    losses = [line["train/loss"] for line in wandb.told if "train/loss" in line]
    expected = _written(config.output)
    assert losses == list(expected["loss"].values())
    held_out = [line["train/validation_loss"] for line in wandb.told if "train/validation_loss" in line]
    assert held_out == list(expected["validation_loss"].values())
    assert wandb.config["learning_rate"] == 5e-3


_STAND_IN = """
told, run, __version__ = [], None, "0.20.0"
class Config(dict):
    def update(self, values, **rest):
        super().update(values)
class Run:
    summary = {}
    def _label(self, **rest): pass
config = Config()
def init(**options):
    global run
    run = Run()
def log(values, **rest): told.append(values)
def define_metric(*names, **rest): pass
def watch(*models, **rest): pass
"""
