"""Open labels come together in the groups they were made from; the proposal is a tag set that loads."""

import json
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score
from typer.testing import CliRunner

from tagpr_data.chains import Fault
from tagpr_data.cli import app
from tagpr_data.discover import Labelled, group, read_open_labels, tagset_file
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.tags import load_tagset

_spec = spec_from_file_location("labelling_stub", Path(__file__).with_name("labelling_stub.py"))
assert _spec is not None
assert _spec.loader is not None
labelling_stub = module_from_spec(_spec)
sys.modules["labelling_stub"] = labelling_stub
_spec.loader.exec_module(labelling_stub)

KNOWN = {
    "cites past items": ["cites past items", "citing past items", "cites a past item"],
    "states preference": ["states preference", "states a preference", "states user preference"],
    "prüft Größe": ["prüft größe", "prüft die größe"],
    "drafts answer": ["drafts answer", "drafts the answer", "drafts an answer"],
}
"""Groups of words for one thing, as a teacher varies them."""


def known_chains(count: int) -> list[Labelled]:
    """Chains of four sentences, one of each group in order, in the words of each in turn."""
    return [
        Labelled(str(number), tuple(words[(number + place) % len(words)] for place, words in enumerate(KNOWN.values())))
        for number in range(count)
    ]


def test_known_groups_are_recovered() -> None:
    found = group(known_chains(30), seed=1)
    assert {frozenset(entry.labels) for entry in found.groups} == {frozenset(words) for words in KNOWN.values()}
    assert found.coverage == 1.0
    assert found.stability == pytest.approx(1.0)
    assert found.sentences == 120
    for entry in found.groups:
        assert (entry.sentences, entry.chains) == (30, 30)
    assert sorted(entry.place for entry in found.groups) == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])


def test_labels_without_structure_are_not_called_stable() -> None:
    """Every sentence has a label of its own: what falls together does so by chance."""
    letters = "bcdfghjklmnpqrst"
    noise = [
        Labelled(
            str(n),
            tuple(f"{letters[n % 16]}{letters[(n * 7 + s) % 16]}{letters[(n * 3 + 5 * s) % 16]}" for s in range(4)),
        )
        for n in range(30)
    ]
    assert group(noise).silhouette < group(known_chains(30)).silhouette - 0.3


def test_rare_groups_are_shown_but_not_proposed(tmp_path: Path) -> None:
    chains = [*known_chains(50), Labelled("odd", ("quotes xylophones", "quotes xylophones"))]
    found = group(chains, min_share=0.02)
    assert [entry.name for entry in found.groups if not entry.is_kept] == ["quotes_xylophones"]
    assert found.coverage == pytest.approx(200 / 202)
    path = tmp_path / "tagset.toml"
    path.write_text(tagset_file(found, "my tags", "a test"), encoding="utf-8")
    tagset = load_tagset(path)
    assert set(tagset.names) == {entry.name for entry in found.groups if entry.is_kept}
    assert tagset.name == "my-tags"


def test_too_few_labels_are_refused() -> None:
    with pytest.raises(InputError, match="2 distinct labels, at least 3 are needed"):
        group([Labelled("a", ("one thing", "other thing"))])


_LABEL = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1, max_size=20)


@settings(max_examples=8, deadline=None)
@given(st.lists(_LABEL, min_size=3, max_size=12, unique=True))
def test_any_labels_make_a_tag_set_that_loads(tmp_path_factory: pytest.TempPathFactory, labels: list[str]) -> None:
    found = group([Labelled(str(n), (label,)) for n, label in enumerate(labels)])
    assert sum(entry.sentences for entry in found.groups) == len(labels)
    path = tmp_path_factory.mktemp("t") / "tagset.toml"
    path.write_text(tagset_file(found, "…", "labels\nof all kinds"), encoding="utf-8")
    assert set(load_tagset(path).names) == {entry.name for entry in found.groups if entry.is_kept}


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("1: Cites Items.\n2) `states  a preference`", ["cites items", "states a preference"]),
        ("1: a b c d e f g h i\n2: x", "unreadable-reply"),
        ("Labels:\n1: a\n2: b", "unreadable-reply"),
        ("1: a", "missing-sentence"),
        ("1: a\n2: b\n3: c", "unknown-sentence"),
        ("1: a\n1: b", "repeated-sentence"),
    ],
)
def test_open_labels_are_read_strictly(reply: str, found: Any) -> None:
    read = read_open_labels(reply, 2)
    assert (read.reason if isinstance(read, Fault) else read) == found


@pytest.fixture
def server() -> Iterator[Any]:
    """Labels in turn by place in the chain and words of the chain's number."""

    def labels(pieces: list[str]) -> list[str]:
        number = int(pieces[0].split()[1].rstrip("."))
        return [words[(number + place) % len(words)] for place, words in enumerate(KNOWN.values())]

    stub = labelling_stub.LabellingStub(names=labels)
    yield stub
    stub.close()


def test_the_command_recovers_the_groups_of_a_served_teacher(tmp_path: Path, server: Any) -> None:
    rows = [{"id": f"c{n}", "text": f"Chain {n}. It says more.\nAnd more! So be it."} for n in range(24)]
    rows += [{"id": "blank", "text": " "}, {"id": "twin", "text": rows[0]["text"]}]
    path = tmp_path / "sample.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = ["discover-tags", str(path), "--output", str(tmp_path / "out"), "--base-url", server.url, "--model", "m"]
    part = CliRunner().invoke(app, [*command, "--max-samples", "20"])
    assert isinstance(part.exception, CheckFailed) and "is of a part of the sample" in str(part.exception)
    found = json.loads((tmp_path / "out/discovery.json").read_text(encoding="utf-8"))
    assert found["unlabelled"] == {"duplicate": 1, "empty": 1, "not-asked": 4}
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    found = json.loads((tmp_path / "out/discovery.json").read_text(encoding="utf-8"))
    given = {label: name for name, words in KNOWN.items() for label in words}
    pairs = [(given[label], entry["name"]) for entry in found["groups"] for label in entry["labels"]]
    assert adjusted_rand_score(*zip(*pairs, strict=True)) == 1.0
    assert found["unlabelled"] == {"duplicate": 1, "empty": 1}
    assert found["coverage"] == 1.0
    proposal = (tmp_path / "out/tagset.toml").read_bytes()
    assert set(load_tagset(tmp_path / "out/tagset.toml").names) == {entry["name"] for entry in found["groups"]}
    assert any("größe" in name for name in load_tagset(tmp_path / "out/tagset.toml").names)
    asked = len(server.requests)
    assert asked == 24
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0
    assert (len(server.requests), (tmp_path / "out/tagset.toml").read_bytes()) == (asked, proposal)
