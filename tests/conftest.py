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


SLOW_MODULES = {
    "test_ablate", "test_build", "test_chat_server", "test_encoders", "test_events",
    "test_generate_cli", "test_lighteval", "test_life",
    "test_models", "test_prmu_eval", "test_prmu_fit", "test_publish", "test_report", "test_report_page", "test_rl",
    "test_rl_scores", "test_run", "test_sft", "test_validate",
}  # fmt: skip
"""Whole stages on small data: `make test` runs them, `make check` leaves them out."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let tests that fetch data be asked for by hand."""
    parser.addoption("--network", action="store_true", help="run tests that need more than package installation")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark whole stages as slow; leave out what needs the network unless it was asked for."""
    unasked = pytest.mark.skip(reason="needs more than package installation; ask for it with --network")
    for item in items:
        if item.path.stem in SLOW_MODULES:
            item.add_marker(pytest.mark.slow)
        if "network" in item.keywords and not config.getoption("--network"):
            item.add_marker(unasked)


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
