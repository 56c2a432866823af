"""Faults that a running stage meets, made for real where they can be: a full disk, SIGTERM, what does not fit."""

import errno
import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tagpr_data.dataset import Dataset
from tagpr_data.errors import InputError, run_cli
from tagpr_data.pairs import PairFolder, PairOptions, write_pairs
from tagpr_data.sources import personas
from tagpr_train import prmu_fit, rl, runs, sft
from tagpr_train.cli import app
from tagpr_train.config import Prmu, Rl, Sft

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture
def settings(tiny_model: Path, corpus: Path, tmp_path: Path) -> Callable[..., Sft]:
    """A function that gives settings for 5 quick steps of 2 examples."""

    def make(trainer: dict[str, Any] | None = None, **changes: Any) -> Sft:
        options = {"per_device_train_batch_size": 2} | (trainer or {})
        return Sft(
            **{"corpus": corpus, "output": tmp_path / "run", "model": str(tiny_model), "trainer": options} | changes
        )

    return make


@contextmanager
def _largest_file(size: int) -> Generator[None, None, None]:
    """Let the system refuse to write more than `size` bytes into a file, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("size", "words"), [(40_000, "File too large"), (60_000, "a file could not be written whole")])
def test_a_disk_that_takes_no_more_ends_the_run_with_one_message_and_nothing_half_written(
    settings: Callable[..., Sft], capsys: pytest.CaptureFixture[str], size: int, words: str
) -> None:
    """The smaller limit stops the weights (safetensors), the larger one the optimiser's state (torch.save)."""
    config = settings(adapter="none")
    with _largest_file(size), pytest.raises(SystemExit) as stop:
        run_cli(lambda: sft.train(config))
    assert stop.value.code == 1
    assert f"error: {words}" in capsys.readouterr().err
    assert not list(config.output.rglob("*.safetensors")) and not list(config.output.rglob(".*.tmp"))
    assert not (config.output / "model").exists() and not list((config.output / "checkpoints").glob("step-*"))
    assert sft.train(config, resume=True).status == "complete", "the same command goes on when there is room again"


def test_errors_of_a_full_disk_are_known_whatever_library_words_them(tmp_path: Path) -> None:
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with pytest.raises(OSError) as caught, runs.atomic_folder(tmp_path / "model"):
            raise RuntimeError(f"I/O error: {os.strerror(number)} (os error {number})")  # as safetensors words it
        assert caught.value.errno == number


def test_sigterm_ends_the_command_with_a_checkpoint_and_exit_code_143(
    settings: Callable[..., Sft], tmp_path: Path
) -> None:
    config = settings(trainer={"num_train_epochs": 200})
    values = {"corpus": str(config.corpus), "output": str(config.output), "model": config.model}
    path = tmp_path / "sft.toml"
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    options = [f"{name} = {json.dumps(value)}" for name, value in config.trainer.items()]
    path.write_text("\n".join([*lines, "[trainer]", *options]))

    def terminate() -> None:
        metrics = config.output / "metrics.jsonl"
        while not metrics.exists() or not metrics.read_text():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    done = CliRunner().invoke(app, ["sft", str(path)])
    thread.join()
    assert done.exit_code == 143 and "`--resume` continues the run in" in done.output
    (checkpoint,) = (config.output / "checkpoints").iterdir()
    last = json.loads((config.output / "metrics.jsonl").read_text().splitlines()[-1])
    assert checkpoint.name == f"step-{last['step']}" and last["step"] < last["steps"]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small personas data set, and its pairs in `pairs`."""
    folder = tmp_path_factory.mktemp("people")
    personas.construct(folder / "dataset", users=20, events=8)
    write_pairs(folder / "pairs", Dataset.load(folder / "dataset"), PairOptions())
    return folder


def test_pairs_longer_than_the_context_lose_the_front_of_their_prompt_and_are_counted(
    people: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """By hand: the tokenizer has one token a byte, so a pair's length is that of its text and the end token."""
    folder = PairFolder(people / "pairs")
    train = folder.pairs("train")
    config = Prmu(pairs=people / "pairs", output=tmp_path / "run", model=str(tiny_model), adapter="none")
    whole = prmu_fit.make_model(config.model, config, folder, train)
    lengths = [max(len(whole.encode(pair.prompt, text)) for text in (pair.chosen, pair.rejected)) for pair in train]
    limit = sorted(lengths)[len(lengths) // 2]
    assert not any(prmu_fit.encode(whole, folder, train).cut)
    short = config.model_copy(update={"max_tokens": limit})
    model = prmu_fit.make_model(short.model, short, folder, train)
    batches = prmu_fit.encode(model, folder, train)
    assert batches.cut == [length > limit for length in lengths] and 0 < sum(batches.cut) < len(train)
    for row, pair in zip(batches.rows, train, strict=True):
        assert row["chosen_ids"] == whole.encode(pair.prompt, pair.chosen)[-limit:], "the completion is what is judged"


def test_vllm_where_there_is_none_is_refused_before_anything_is_loaded(people: Path, tmp_path: Path) -> None:
    config = Rl(
        dataset=people / "dataset", output=tmp_path / "run", model="./nowhere", steps=1, trainer={"use_vllm": True},
        rewards={"personal": 0.0},  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    with pytest.raises(InputError, match=r"trainer\.use_vllm needs vLLM.*pip install 'tagpr-train\[vllm\]'"):
        rl.train(config)
    assert not config.output.exists()
