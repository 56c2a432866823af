"""Shared fixtures. Tests of a package that is not installed are not collected."""

from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _installed(package: str) -> bool:
    """A folder of the same name at the repository root is found as an empty namespace package: not installed."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


collect_ignore = [
    folder
    for folder, package in (("data", "tagpr_data"), ("train", "tagpr_train"), ("eval", "tagpr_eval"))
    if not _installed(package)
]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_lamp() -> Path:
    """Real LaMP-3 users and the official code's outputs; not part of the repository."""
    folder = ROOT.parent / "shared" / "lamp"
    if not folder.is_dir():
        pytest.skip("the reference data (shared/lamp beside the checkout) is not here")
    return folder
