"""What stands below a table: commands that repeat the runs, and what differs between runs."""

import shlex
import tomllib
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from tagpr_data.records import RunManifest
from tagpr_eval import cli, config, origins, run
from tagpr_eval.cells import Run

PLAIN = {"dataset": "runs/x y", "models": ["base=hf:m", "knn"]}
OPTIONS = {
    "tasks": ["colour"], "split": "validation", "retrievers": ["dense", "wrong-user"],
    "encoder": "contriever", "k": [0, 4],
    "styles": ["trace"], "seeds": [0, 1], "examples": 5, "item_words": 22, "input_words": 50,
    "protocols": ["generation", "log-likelihood"],
    "sampling": {"max_new_tokens": 24, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "stop": ["\n\n", "End"],
                 "constrain": "labels"},
    "chat": {"system_prompt": "Be $HOME's \"best\".", "thinking": "off"},
    "local": {"batch_size": 8, "dtype": "float32"},
    "server": {"base_url": ["http://a/v1", "http://b/v1"], "api_key_env": "KEY", "concurrency": 2,
               "timeout_seconds": 3.5, "retries": 1, "constrain": "vllm"},
}  # fmt: skip


def evaluation(name="first", revision="0123abcdef", settings=None, prompts="a", **changed):
    manifest = RunManifest(
        kind="evaluation", status="complete", config=PLAIN | (settings or {}), data={"toy": "d" * 64}, seed=0,
        versions={"python": "3.11", "platform": "Linux-x86_64", "hardware": "2 CPU cores (Some Chip), 24 GiB"},
        git_revision=revision, results={"models": {"base": "i" * 64}},
    ).model_copy(update=changed)  # fmt: skip
    rows = [
        {"model": model, "task": "colour", "retriever": "bm25", "k": 4, "style": "direct", "seed": 0,
         "example_id": f"e{number}", "prompt_hash": f"{prompts if number else 'same'}-{number}"}
        for model in ("base", "knn") for number in range(3)
    ]  # fmt: skip
    return Run(name, manifest, pl.DataFrame(rows), None)


def settings_of(command, monkeypatch):
    """What `tagpr-eval run` makes of a command line."""
    taken = []

    def evaluate(settings, output, meter):
        taken.append((settings, str(output)))
        return SimpleNamespace()

    monkeypatch.setattr(run, "evaluate", evaluate)
    monkeypatch.setattr(run, "summary", lambda manifest: "")
    assert shlex.split(command)[0] == "tagpr-eval"
    cli.app(shlex.split(command)[1:], standalone_mode=False)
    return taken[0]


@pytest.mark.parametrize("settings", [{}, OPTIONS])
def test_the_command_has_the_settings_of_the_run(settings, monkeypatch):
    wanted = config.EvaluationConfig.model_validate(PLAIN | settings)
    command = origins.run_command("eval-a", wanted)
    assert command is not None
    assert settings_of(command, monkeypatch) == (wanted, "eval-a")


def test_what_is_left_at_its_default_is_not_in_the_command():
    command = origins.run_command("eval-a", config.EvaluationConfig.model_validate(PLAIN))
    assert command == "tagpr-eval run --model base=hf:m --model knn --dataset 'runs/x y' --output eval-a"


@pytest.mark.parametrize(
    "settings",
    [
        {"per_model": {"base": {"styles": ["direct"], "max_new_tokens": 9}}, "styles": ["trace"]},
        {"chat": {"template": "{{ messages }}\n"}},
        {"server": {"extra_body": {"top_k": 3, "chat_template_kwargs": {"a b": True}}}},
        {"local": {"device": "cuda:1"}},
    ],
)
def test_settings_that_no_option_says_become_a_grid_of_the_same_settings(settings):
    wanted = config.EvaluationConfig.model_validate(PLAIN | settings)
    assert origins.run_command("eval-a", wanted) is None
    found = origins.origin([evaluation(settings=wanted.model_dump(mode="json"))])
    assert found.commands == ("tagpr-eval ablate first.toml --output first",)
    ((name, text),) = found.files
    assert name == "first.toml"
    assert config.EvaluationConfig.model_validate(tomllib.loads(text)) == wanted


def test_facts_are_those_of_the_manifests_and_alike_ones_stand_once():
    found = origins.origin([evaluation("a"), evaluation("b", settings={"seeds": [1], "examples": 9})])
    assert found.facts.startswith("Runs: a, b. Commit 0123abc. Hardware: 2 CPU cores (Some Chip), 24 GiB. ")
    assert "Seeds of retrieval and sampling: 0 (a), 1 (b). Examples a task: all (a), 9 (b)." in found.facts
    assert "Data: toy dddddddddddd, split –." in found.facts
    assert found.warnings == ()


def test_versions_are_told_once_for_each_library_and_apart_where_they_differ():
    first = evaluation("a", versions={"python": "3.11", "torch": "2.1", "lighteval": "0.13"})
    second = evaluation("b", versions={"python": "3.11", "torch": "2.2", "trl": "1.0"})
    found = origins.origin([first, second])
    assert "Versions: python 3.11, torch 2.1 (a), 2.2 (b), lighteval 0.13, trl 1.0." in found.facts
    assert any("different versions of libraries" in warning for warning in found.warnings)


def test_hardware_that_was_not_recorded_is_not_made_up():
    old = evaluation("old", versions={"python": "3.11", "platform": "Linux-x86_64"})
    assert "Hardware: not recorded (Linux-x86_64)." in origins.origin([old]).facts


def test_runs_of_other_code_other_prompts_or_a_part_are_named():
    first = evaluation("a", settings={"item_words": 22})
    second = evaluation("b", revision="fedcba9876+dirty", prompts="b", status="partial")
    found = origins.origin([first, second]).warnings
    assert "The answers are of different versions of the code: 0123abc (a), fedcba9 (dirty) (b)." in found
    assert "The code had changes beside its commit: b." in found
    assert "Stopped before the end: b." in found
    assert "The runs differ in words kept of an item's field: 22 (a), none (b)." in found
    assert "2 of 3 prompts that a and b share by setting differ." in found
    assert len(found) == 5


def test_runs_that_answered_different_questions_are_named():
    """Other examples, other seeds; another task is no difference."""
    first, second = evaluation("a"), evaluation("b")
    fewer = second.predictions.filter(pl.col("example_id") != "e2")
    less = Run("b", second.manifest, pl.concat([fewer, fewer.with_columns(example_id=pl.lit("e7"))]).unique(), None)
    (warning,) = origins.origin([first, less]).warnings
    assert warning == (
        "The runs answered different questions (example and seed) of colour: 3 (a), 3 (b), 2 of them common to all. "
        "Differences are on the common ones of two models, scores on all of each."
    )
    late = Run("b", second.manifest, second.predictions.with_columns(seed=pl.lit(1)), None)
    assert "3 (a), 3 (b), 0 of them common" in origins.origin([first, late]).warnings[0]
    other = Run("b", second.manifest, second.predictions.with_columns(task=pl.lit("note")), None)
    assert origins.origin([first, other]).warnings == ()


def test_rules_read_no_prompt_so_their_settings_do_not_matter():
    rules = evaluation("rules", settings={"models": ["knn"], "item_words": 5}, prompts="b", results={"models": {}})
    rules = Run(rules.name, rules.manifest, rules.predictions.filter(pl.col("model") == "knn"), None)
    assert origins.origin([evaluation("a"), rules]).warnings == ()


def test_the_command_writes_where_the_run_lies_if_that_is_told_relatively():
    for folder, output in (("runs/eval-a", "runs/eval-a"), ("/somewhere/eval-a", "first")):
        found = evaluation()
        found = Run(found.name, found.manifest, found.predictions, None, Path(folder))
        assert origins.origin([found]).commands[0].endswith(f" --output {output}")


def test_settings_of_another_version_give_no_command():
    found = origins.origin([evaluation("old", settings={"retired": 1})])
    assert found.commands[0].startswith("# old: its settings are of another version")
