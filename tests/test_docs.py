"""Every command in the READMEs exists with the options it is shown with, and every file they name is there."""

import importlib
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
import typer

DOCUMENTS = ("README.md", "tagpr_data/README.md", "tagpr_train/README.md", "tagpr_eval/README.md")


def _commands(text: str) -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("tagpr-")]


def _check(words: list[str]) -> None:
    app = importlib.import_module(words[0].replace("-", "_") + ".cli").app
    command: click.Command = typer.main.get_command(app)
    rest = words[1:]
    while hasattr(command, "commands"):
        assert rest and rest[0] in command.commands, f"{' '.join(words)}: {rest[:1]} is no command"
        command = command.commands[rest.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    used = {word.split("=")[0] for word in rest if word.startswith("--")}
    assert used <= known, f"{' '.join(words)}: unknown options {sorted(used - known)}"
    required = {p.opts[-1] for p in command.params if p.required and p.param_type_name == "option"}
    assert required <= used, f"{' '.join(words)}: lacks {sorted(required - used)}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_shown_exists_with_its_options(root: Path, document: str) -> None:
    commands = _commands((root / document).read_text(encoding="utf-8"))
    assert len(commands) >= 3
    for words in commands:
        _check(words)


def test_a_wrong_option_would_be_found() -> None:
    with pytest.raises(AssertionError, match="--gold"):
        _check(["tagpr-eval", "score", "--gold", "x", "--preds", "y"])
    with pytest.raises(AssertionError, match="is no command"):
        _check(["tagpr-data", "destroy"])


def test_make_targets_and_configs_named_in_the_readmes_exist(root: Path) -> None:
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    for document in DOCUMENTS:
        text = (root / document).read_text(encoding="utf-8")
        for target in re.findall(r"\bmake ([a-z-]+)", text):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{document}: make {target}"
        for path in re.findall(r"(tagpr_\w+/configs/[\w.-]+\.toml|tests/[\w/]+\.py)", text):
            assert (root / path).is_file(), f"{document}: {path}"


def test_every_shipped_config_says_what_it_is_and_how_to_run_it(root: Path) -> None:
    configs = sorted(root.glob("tagpr_*/configs/*.toml"))
    assert configs
    for path in configs:
        text = path.read_text(encoding="utf-8")
        tomllib.loads(text)
        assert text.startswith("# "), path.name
        assert path.name in text.split("\n\n")[0], f"{path.name}: the comment at its head lacks the command"


def test_the_results_of_the_readme_name_command_and_commit(root: Path) -> None:
    results = (root / "README.md").read_text(encoding="utf-8").split("## Results")[1].split("\n## ")[0]
    assert re.search(r"`make demo` at commit [0-9a-f]{7}", results)
    assert "n = " in results
    assert "95 % intervals" in results
