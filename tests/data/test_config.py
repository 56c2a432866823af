"""Settings: file, overrides, and messages with the dotted key."""

from pathlib import Path

import pytest

from tagpr_data.config import Config, load
from tagpr_data.errors import InputError


class Optim(Config):
    lr: float = 1e-4


class Run(Config):
    name: str
    optim: Optim = Optim()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "run.toml"
    file.write_text('name = "a"\n[optim]\nlr = 0.5\n')
    return file


def test_an_override_wins_over_the_file(path: Path) -> None:
    assert load(Run, path, ["optim.lr=2e-3", "name=plain words"]) == Run(name="plain words", optim=Optim(lr=2e-3))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.rl=1", r"optim\.rl: Extra inputs are not permitted \(got 1\)"),
        ("optim.lr=fast", r"optim\.lr: Input should be a valid number.*'fast'"),
        ("optim.lr.x=1", "'lr' is a value, not a section"),
        ("lr", "not of the form a.b=value"),
    ],
)
def test_a_wrong_override_is_named(path: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(Run, path, [override])


def test_a_file_that_is_not_toml_or_not_there_is_named(path: Path) -> None:
    path.write_text("name = ")
    with pytest.raises(InputError, match=r"run\.toml is not TOML"):
        load(Run, path)
    with pytest.raises(InputError, match="does not exist"):
        load(Run, path.with_name("other.toml"))
