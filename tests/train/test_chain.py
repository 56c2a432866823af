"""The whole chain from one recipe on a tiny random model: data, SFT, PRMU, RL guided by that PRMU, RL exploratory."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tagpr_data.dataset import Dataset
from tagpr_data.errors import CheckFailed
from tagpr_data.records import Rollout, RunManifest
from tagpr_data.tables import read_json, read_records
from tagpr_data.tags import load_tagset
from tagpr_train import rl_prompts
from tagpr_train.config import Rl
from tagpr_train.prmu import PRMU
from tagpr_train.rl_judge import Judge

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]
TRACE = (
    "<think>\n<examine_examples>[P1] was seen.</examine_examples>\n<infer_preference>It goes there.</infer_preference>"
)


def call(app: object, *arguments: str) -> None:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)  # pyright: ignore[reportArgumentType]
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 synthetic people, their corpus and pairs, a model from scratch, and a recipe of four short stages."""
    from tagpr_data.cli import app as data
    from tagpr_train.cli import app as train

    home = tmp_path_factory.mktemp("chain")
    dataset, corpus = str(home / "dataset"), str(home / "corpus")
    call(data, "construct", "personas", "--output", dataset, "--users", "60", "--events", "9")
    settings = {"dataset": dataset, "output": corpus, "k": "2"}
    config = str(Path(__file__).parents[2] / "tagpr_data/configs/personas.toml")
    call(data, "build", config, *(part for name, value in settings.items() for part in ("--set", f"{name}={value}")))
    call(data, "pairs", "--dataset", dataset, "--output", str(home / "pairs"))
    call(train, "tiny-model", "--corpus", corpus, "--output", str(home / "tiny"), "--layers", "2", "--width", "32")
    whole = 'adapter = "none"\ndtype = "float32"\n'
    (home / "sft.toml").write_text(
        f'corpus = "{corpus}"\noutput = "x"\n{whole}eval_examples = 4\n[trainer]\nmax_steps = 4\n'
        "per_device_train_batch_size = 4\nlearning_rate = 1e-3\n"
    )
    (home / "prmu.toml").write_text(
        f'pairs = "{home}/pairs"\noutput = "x"\nadapter = "none"\nreads = "answer"\neval_pairs = 20\n'
        "[trainer]\nmax_steps = 4\nper_device_train_batch_size = 16\nlearning_rate = 1e-3\n"
    )
    (home / "rl.toml").write_text(
        f'dataset = "{dataset}"\noutput = "x"\nmodel = "x"\n{whole}tasks = ["personas-choice"]\nk = 2\nsteps = 2\n'
        "eval_examples = 4\nredraws = 1\n[rewards]\npersonal = 0.3\n[trainer]\nnum_generations = 2\n"
        "per_device_train_batch_size = 4\nmax_completion_length = 24\nmask_truncated_completions = false\n"
    )
    stages = {
        "sft": ("sft", {"model": f"{home}/tiny"}),
        "prmu": ("prmu", {"model": f"{home}/tiny"}),
        "guided": ("rl", {"model": "{sft}", "prmu": "{prmu}"}),
        "exploratory": ("rl", {"model": "{guided}", "prmu": "{prmu}", "stage": "exploratory"}),
    }
    lines = [f'output = "{home}/runs"']
    for name, (kind, values) in stages.items():
        filled = ", ".join(f'{key} = "{value}"' for key, value in values.items())
        lines += [
            "[[stages]]",
            f'name = "{name}"',
            f'kind = "{kind}"',
            f'config = "{kind}.toml"',
            f"set = {{ {filled} }}",
        ]
    (home / "recipe.toml").write_text("\n".join(lines))
    return home


def test_the_chain_refuses_a_prmu_that_fails_its_gate_and_runs_through_when_told_to(home: Path) -> None:
    from tagpr_train.cli import app

    refused = CliRunner().invoke(app, ["run", str(home / "recipe.toml")])
    assert isinstance(refused.exception, CheckFailed), refused.output
    assert "did not pass its gate" in str(refused.exception) and "NOT MET" in str(refused.exception)
    assert not (home / "runs/guided/model").exists()

    done = CliRunner().invoke(app, ["run", str(home / "recipe.toml"), "--set", "guided.ignore_gate=true"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert done.output.count("was finished") == 2, "SFT and PRMU are taken as they are"
    for stage in ("sft", "prmu", "guided", "exploratory"):
        assert read_json(home / "runs" / stage / "run.json", RunManifest).status == "complete"

    guided, exploratory = (
        [json.loads(line) for line in (home / "runs" / stage / "metrics.jsonl").read_text().splitlines()]
        for stage in ("guided", "exploratory")
    )
    steps = [line for line in guided if "loss" in line]
    assert len(steps) == 2
    for number, line in enumerate(steps):
        rows = list(read_records(home / f"runs/guided/completions/step-{number:05}.parquet", Rollout))
        assert all(row.personal_reward is not None and 0 < row.personal_reward < 1 for row in rows)
        assert line["personal_raw"] == pytest.approx(sum(row.personal_reward or 0 for row in rows) / len(rows))
        gated = sum((row.personal_reward or 0) * row.gate_open for row in rows) / len(rows)
        assert line["personal_weighted"] == pytest.approx(0.3 * gated)
        assert len({row.personal_reward for row in rows}) > 1
    assert all("held_out_personal" in line for line in guided if "held_out_answer" in line)
    assert not any(name.startswith(("personal", "held_out_personal")) for line in exploratory for name in line)


def test_rl_gets_from_a_served_prmu_what_it_gets_from_a_loaded_one(home: Path) -> None:
    """The guided stage again, its PRMU in a process of its own: the same completions, rewards, losses and hash."""
    from tagpr_train.cli import app

    with served(home / "runs/prmu/prmu") as url:
        changes = [f"model={home}/runs/sft/model", f"prmu={url}", f"output={home}/served"]
        words = [word for change in changes for word in ("--set", change)]
        refused = CliRunner().invoke(app, ["rl", str(home / "rl.toml"), *words])
        assert isinstance(refused.exception, CheckFailed) and f"{url} did not pass its gate" in str(refused.exception)
        call(app, "rl", str(home / "rl.toml"), *words, "--set", "ignore_gate=true")
    here, there = home / "runs/guided", home / "served"
    for name in ("step-00000.parquet", "step-00001.parquet"):
        ours, theirs = (list(read_records(run / "completions" / name, Rollout)) for run in (there, here))
        assert [row.text for row in ours] == [row.text for row in theirs]
        for part in ("personal_reward", "reward", "normalised"):
            assert [getattr(row, part) for row in ours] == pytest.approx(
                [getattr(row, part) for row in theirs], abs=1e-5
            )
    losses = [
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
        for run in (there, here)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    ours, theirs = (read_json(run / "run.json", RunManifest) for run in (there, here))
    assert ours.models == theirs.models and set(ours.models) == {"model", "prmu"}
    card = (there / "model/README.md").read_text()
    assert ours.models["prmu"] in card and "127.0.0.1" not in card


@contextmanager
def served(folder: Path) -> Generator[str, None, None]:
    """Serve a PRMU in a process of its own; give its address."""
    code = "from tagpr_train.cli import main; main()"
    command = [sys.executable, "-c", code, "serve-prmu", str(folder), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            heard: list[str] = []
            for line in process.stderr:
                heard.append(line)
                if found := re.search(r"on (http://127\.0\.0\.1:\d+)", line):
                    yield found[1]
                    break
            else:
                raise AssertionError("".join(heard))
        finally:
            process.terminate()
            process.communicate(timeout=120)
    assert process.returncode == 0, "it ends well when told to"


def test_the_personal_reward_depends_on_who_asks_and_on_what_the_prmu_reads(home: Path) -> None:
    """Another user in the same question, with the same answer: another reward. Another think block: the same one."""
    folder = home / "runs/prmu/prmu"
    config = Rl(
        dataset=home / "dataset", output=home / "x", model="x", steps=1, prmu=folder, ignore_gate=True, k=2,
        tasks=("personas-choice",), rewards={"personal": 0.3},
    )  # fmt: skip
    rows, _ = rl_prompts.questions(Dataset.load(home / "dataset"), "train", 12, config, load_tagset(), lambda _: True)
    prmu = PRMU.from_pretrained(folder)
    first, others = rows[0], [row for row in rows if row.example.user_id != rows[0].example.user_id]

    def rewards(questions: Sequence[rl_prompts.Question], text: str) -> list[float]:
        judge = Judge(config, load_tagset(), 100, prmu)
        judged = judge(questions, [text] * len(questions), [10] * len(questions))
        assert all(row.reward.gate_open for row in judged)
        parts = [(judge.total(row), row.reward) for row in judged]
        for total, reward in parts:
            personal = reward.personal or 0.0
            assert total == pytest.approx(reward.answer + 0.3 * reward.tags + 0.3 * personal)
        return [reward.personal or 0.0 for _, reward in parts]

    text = f"{TRACE}\n</think>\n{first.gold}"
    swapped = [
        dataclasses.replace(
            first,
            profile=other.profile,
            example=first.example.model_copy(
                update={"id": f"swapped-{other.example.id}", "user_id": other.example.user_id}
            ),
        )
        for other in others
    ]
    own, *as_others = rewards([first, *swapped], text)
    assert len(as_others) >= 3
    assert all(abs(reward - own) > 1e-6 for reward in as_others), "each other user changes the reward"
    assert rewards([first], text) == pytest.approx([own]), "and it is the user's, not the batch's"
    thought = text.replace("It goes there", "It would surely go somewhere else")
    assert rewards([first], thought) == pytest.approx([own], abs=1e-6), "reads = answer"
    assert abs(rewards([first], text.replace(first.gold, "elsewhere"))[0] - own) > 1e-6
