"""Tags are put around sentences: never a word changed, and each chain annotated or in the ledger."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tagpr_data import chains
from tagpr_data.annotate import (
    AnnotatingTeacher,
    annotate_with_classifier,
    annotate_with_teacher,
    label_prompt,
    read_labels,
)
from tagpr_data.budget import Limits
from tagpr_data.chain_attempts import ChainAttempts
from tagpr_data.chains import Fault, sentences, tagged, take_apart, untagged
from tagpr_data.chat_server import ChatServer, ServerOptions
from tagpr_data.dataset import Dataset, write_dataset
from tagpr_data.engine import Engine
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.records import (
    AnnotatedChain,
    Candidate,
    ChainRow,
    CorpusManifest,
    Example,
    ProfileItem,
    RejectedChain,
    Sampling,
    Task,
    Trace,
)
from tagpr_data.step_classifier import StepClassifier, best_labels, load, train
from tagpr_data.tables import read_json, read_records
from tagpr_data.tags import TagSet, load_tagset, parse

_spec = spec_from_file_location("labelling_stub", Path(__file__).with_name("labelling_stub.py"))
assert _spec is not None
assert _spec.loader is not None
labelling_stub = module_from_spec(_spec)
sys.modules["labelling_stub"] = labelling_stub
_spec.loader.exec_module(labelling_stub)

TAGSET = load_tagset()
CHAIN = "[P1] and [P2] are jazz. The song has a saxophone.\n\nSo this user files it under jazz."
LABELS = ["examine_examples", "analyze_query", "infer_preference"]

GERMAN = """
name = "deutsch-4"
required_any = ["schlussfolgerung"]
min_steps = 2
max_steps = 12
[[tags]]
name = "beispiele_prüfen"
meaning = "einzelne frühere Einträge ansehen"
cites = "required"
[[tags]]
name = "größe_abwägen"
meaning = "Möglichkeiten gegeneinander abwägen"
cites = "optional"
[[tags]]
name = "überblick"
meaning = "sagen, was gefragt ist"
cites = "no"
[[tags]]
name = "schlussfolgerung"
meaning = "etwas über diese Person schließen"
cites = "optional"
"""


@pytest.fixture
def german(tmp_path: Path) -> Path:
    path = tmp_path / "deutsch.toml"
    path.write_text(GERMAN, encoding="utf-8")
    return path


# Sentences


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("One. Two! Three? Four…", ["One. ", "Two! ", "Three? ", "Four…"]),
        ("He said “No.” Then he left.", ["He said “No.” ", "Then he left."]),
        ("It is approx. five.  Fine.", ["It is approx. five.  ", "Fine."]),
        ("1. First item\n2. Second", ["1. First item\n", "2. Second"]),
        ("It scores 4.\nnext line", ["It scores 4.\n", "next line"]),
        ("J. Smith wrote [P3]. Good.", ["J. Smith wrote [P3]. ", "Good."]),
        ("a\n\n  b\r\nc", ["a\n\n  ", "b\r\n", "c"]),
        ("他喜欢爵士。很明显！对", ["他喜欢爵士。", "很明显！", "对"]),
        ("\n\n Lead. End \n", ["\n\n Lead. ", "End \n"]),
        ("v1.2.3 is out", ["v1.2.3 is out"]),
        ("", []),
        (" \n ", [" \n "]),
    ],
)
def test_sentences_end_where_the_rule_says(text: str, pieces: list[str]) -> None:
    assert sentences(text) == pieces


_TEXT = st.text(st.one_of(st.sampled_from(" \n\t.!?。\"')]a1P[Ä"), st.characters(codec="utf-8")), max_size=60)


@settings(max_examples=300, deadline=None)
@given(_TEXT)
def test_sentences_joined_are_the_text_and_each_shows_something(text: str) -> None:
    pieces = sentences(text)
    assert "".join(pieces) == text
    assert len(pieces) <= 1 or all(chains.tags.shows(piece) for piece in pieces)


def test_hostile_text_is_cut_in_linear_time() -> None:
    for hostile in ("." * 200_000, "." + ")" * 200_000, "\n" * 200_000, ". " * 100_000, "。" * 200_000):
        started = time.process_time()
        assert "".join(sentences(hostile)) == hostile
        assert time.process_time() - started < 10


# Tags around them


@settings(max_examples=300, deadline=None)
@given(_TEXT, st.sampled_from(["bare", "answered", "block"]), st.integers(0, 2**32))
def test_without_its_tags_an_annotated_chain_is_the_chain(text: str, form: str, seed: int) -> None:
    row = ChainRow(id="c", text=text, answer="rock" if form == "answered" else None)
    if form == "block":
        row = ChainRow(id="c", text=f" <think>{text}</think>\nrock")
    chain = take_apart(row, TAGSET)
    if isinstance(chain, Fault):
        assert chain.reason in ("empty", "has-markup")
        return
    labels = [str(tag) for tag in np.random.default_rng(seed).choice(TAGSET.names, len(sentences(chain.body)))]
    found = tagged(chain, labels, TAGSET, None)
    if isinstance(found, Fault):
        assert found.reason == "grammar"
        return
    bare = untagged(found.text, TAGSET)
    assert bare == (row.text if form == "block" else f"<think>{text}</think>" + ("\nrock" if row.answer else ""))
    assert [step.text for step in parse(found.text, TAGSET).steps] == [step.text for step in found.steps]


def test_neighbours_with_one_tag_are_one_step_and_white_space_stays_outside() -> None:
    chain = take_apart(ChainRow(id="c", text=CHAIN, answer="jazz"), TAGSET)
    assert not isinstance(chain, Fault)
    found = tagged(chain, ["infer_preference", "infer_preference", "verify_answer"], TAGSET, 2)
    assert not isinstance(found, Fault)
    assert found.text == (
        "<think><infer_preference>[P1] and [P2] are jazz. The song has a saxophone.</infer_preference>\n\n"
        "<verify_answer>So this user files it under jazz.</verify_answer></think>\njazz"
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": " \u200b"}, "empty"),
        ({"text": "a <verify_answer> b"}, "has-markup"),
        ({"text": "a </think> b"}, "has-markup"),
        ({"text": "<think>a</think>b <think>"}, "has-markup"),
        ({"text": "a. B.", "answer": "<think>"}, "has-markup"),
        ({"text": "a" * 20_001}, "too-long"),
    ],
)
def test_chains_that_cannot_be_annotated_say_why(row: dict[str, str], reason: str) -> None:
    found = take_apart(ChainRow(id="c", **row), TAGSET)
    assert isinstance(found, Fault)
    assert found.reason == reason
    assert reason in chains.REASONS


# The teacher's reply


@pytest.mark.parametrize(
    "reply",
    [
        "1: examine_examples\n2: analyze_query\n3: infer_preference",
        "```\n1. examine_examples\n\n2) analyze_query \n 3 | <infer_preference>\n```",
        "<think>Hm, 1: verify_answer?</think>\n- 2: **analyze_query**\n- 1: `examine_examples`\n- 3: infer_preference",
    ],
)
def test_replies_are_read_in_the_forms_models_use(reply: str) -> None:
    assert read_labels(reply, 3, TAGSET) == LABELS


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("Sure! Here you go:\n1: verify_answer\n2: analyze_query\n3: infer_preference", "unreadable-reply"),
        ("1: verify_answer [P1] and [P2] are rock.\n2: analyze_query\n3: infer_preference", "unreadable-reply"),
        ("1: verify_answer\n2: guess\n3: infer_preference", "unknown-tag"),
        ("1: verify_answer\n3: infer_preference", "missing-sentence"),
        ("", "missing-sentence"),
        ("1: verify_answer\n1: analyze_query\n2: analyze_query\n3: analyze_query", "repeated-sentence"),
        ("1: verify_answer\n2: analyze_query\n3: infer_preference\n4: verify_answer", "unknown-sentence"),
        ("<think>1: verify_answer", "unreadable-reply"),
    ],
)
def test_a_reply_that_is_not_a_tag_per_sentence_is_refused(reply: str, reason: str) -> None:
    found = read_labels(reply, 3, TAGSET)
    assert isinstance(found, Fault)
    assert found.reason == reason


def test_the_question_numbers_the_sentences_and_explains_the_tags() -> None:
    row = ChainRow(id="c", question="Which genre?", text=CHAIN)
    system, user = label_prompt(row, sentences(CHAIN), TAGSET)
    assert user.content == (
        'The question was:\nWhich genre?\n\nThe sentences:\n1: "[P1] and [P2] are jazz. "\n'
        '2: "The song has a saxophone.\\n\\n"\n3: "So this user files it under jazz."'
    )
    assert all(f"{tag.name}: {tag.meaning}" in system.content for tag in TAGSET.tags)


# A whole run with a teacher: a stub on this machine that labels by rule, and misbehaves when told to


@pytest.fixture
def stub() -> Iterator[Callable[..., Any]]:
    servers: list[Any] = []

    def start(**options: Any) -> Any:
        servers.append(labelling_stub.LabellingStub(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def teacher(url: str, **options: Any) -> AnnotatingTeacher:
    return AnnotatingTeacher(ChatServer(ServerOptions(base_url=url, model="m", backoff_seconds=0.01, **options)))


HERE = Engine(workers=1)


def write_chains(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(path: Path, model: Any) -> list[Any]:
    return [model.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_chain_is_annotated_or_in_the_ledger(tmp_path: Path, stub: Callable[..., Any]) -> None:
    faults = labelling_stub.FAULTS  # what the teacher does with a chain that names the fault
    given_rows = [{"id": f"good-{n}", "text": f"Song {n}. {CHAIN}", "answer": "jazz", "k": 2} for n in range(5)]
    given_rows += [{"id": name, "text": f"{CHAIN} {name}.", "answer": "jazz", "k": 2} for name in faults]
    given_rows += [
        {"id": "blank", "text": " ", "answer": "jazz"},
        {"id": "no-answer", "text": CHAIN},
        {"id": "twin", "text": given_rows[0]["text"], "answer": "jazz", "k": 2},
        {"id": "bad-citation", "text": "[P9] is jazz. So is this.", "answer": "jazz", "k": 2},
    ]
    server = stub()
    manifest = annotate_with_teacher(
        write_chains(tmp_path / "chains.jsonl", given_rows), tmp_path / "out", teacher(server.url), TAGSET, HERE,
        samplings=(Sampling(), Sampling(temperature=0.7)),
    )  # fmt: skip
    done = rows_of(tmp_path / "out/annotated.jsonl", AnnotatedChain)
    ledger = {row.id: row for row in rows_of(tmp_path / "out/rejected.jsonl", RejectedChain)}
    assert [row.id for row in done] == [*(f"good-{n}" for n in range(5)), "no-answer", "twin"]
    by_id = {row["id"]: row for row in given_rows}
    for row in done:
        text = by_id[row.id]["text"]
        assert untagged(row.text, TAGSET) == f"<think>{text}</think>" + ("\njazz" if row.id != "no-answer" else "")
    assert {name: ledger[name].reason for name in faults} == faults
    assert ledger["blank"].reason == "empty"
    assert ledger["bad-citation"].reason == "grammar"
    assert all(row.text == by_id[row.id]["text"] for row in ledger.values())
    assert manifest.annotated + sum(manifest.rejected.values()) == len(given_rows)
    assert set(manifest.rejected) <= set(chains.REASONS)
    # a twin is asked about once, a refused reply once more with another seed
    assert len(server.requests) == 5 + 1 + 2 * (len(faults) + 1)


def test_a_reply_that_cannot_be_used_is_asked_for_anew(tmp_path: Path, stub: Callable[..., Any]) -> None:
    server = stub(bad_first=True)
    manifest = annotate_with_teacher(
        write_chains(tmp_path / "c.jsonl", [{"id": "a", "text": f"{CHAIN} prose.", "answer": "x"}]), tmp_path / "out",
        teacher(server.url), TAGSET, HERE, samplings=(Sampling(), Sampling(temperature=0.7)),
    )  # fmt: skip
    assert (manifest.annotated, manifest.rejected) == (1, {})
    assert len({request["seed"] for request in server.requests}) == 2


def test_a_limit_ends_early_and_the_next_call_asks_only_for_the_rest(tmp_path: Path, stub: Callable[..., Any]) -> None:
    server = stub()
    path = write_chains(tmp_path / "c.jsonl", [{"id": str(n), "text": f"Song {n}. {CHAIN}"} for n in range(6)])
    first = annotate_with_teacher(
        path, tmp_path / "out", teacher(server.url), TAGSET, HERE, limits=Limits(max_samples=4), concurrency=1
    )
    assert (first.annotated, first.rejected, first.parameters["partial"]) == (4, {}, True)
    whole = annotate_with_teacher(path, tmp_path / "out", teacher(server.url), TAGSET, HERE)
    assert (whole.annotated, whole.parameters["partial"], len(server.requests)) == (6, False, 6)
    from tagpr_data.cli import app

    command = ["annotate", str(path), "--output", str(tmp_path / "other"), "--base-url", server.url, "--model", "m"]
    part = CliRunner().invoke(app, [*command, "--max-samples", "5"])
    assert isinstance(part.exception, CheckFailed) and "is partial: a limit was reached" in str(part.exception)


@pytest.mark.slow
def test_killed_and_restarted_gives_the_same_bytes_and_asks_nothing_twice(
    tmp_path: Path, stub: Callable[..., Any]
) -> None:
    server = stub(seconds=0.05)
    path = write_chains(tmp_path / "c.jsonl", [{"id": str(n), "text": f"Song {n}. {CHAIN}"} for n in range(30)])
    command = [Path(sys.executable).with_name("tagpr-data"), "annotate", path, "--output", tmp_path / "out"]
    command += ["--base-url", server.url, "--model", "m", "--concurrency", "2", "--workers", "1"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 60
        while len(server.requests) < 10:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(running.pid, signal.SIGKILL)
    subprocess.run(command, check=True, capture_output=True)
    asked = [request["messages"][-1]["content"] for request in server.requests]
    assert len(set(asked)) == 30
    assert len(asked) <= 32  # two were on their way
    annotate_with_teacher(
        path, tmp_path / "again", teacher(stub().url), TAGSET, samplings=(Sampling(), Sampling(temperature=0.7))
    )
    for name in ("annotated.jsonl", "rejected.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


# The classifier


@pytest.fixture(scope="module")
def model(corpus_with_pairs: Path) -> StepClassifier:
    return train(corpus_with_pairs, TAGSET)


@pytest.mark.slow
def test_the_classifier_learns_the_corpus_and_is_a_file_of_numbers(
    corpus_with_pairs: Path, model: StepClassifier, tmp_path: Path
) -> None:
    assert model.quality.accuracy > 0.8 > model.quality.majority  # scripted phrases tell their tag
    assert sum(n for row in model.quality.confusion.values() for n in row.values()) == model.quality.sentences
    model.save(tmp_path / "a.json")
    train(corpus_with_pairs, TAGSET).save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    pieces = sentences(CHAIN)
    np.testing.assert_array_equal(load(tmp_path / "a.json", TAGSET).log_shares(pieces), model.log_shares(pieces))


def _brute_force(shares: np.ndarray, pieces: list[str], tagset: TagSet, k: int | None) -> float | None:
    from itertools import product

    best = None
    chain = take_apart(ChainRow(id="c", text="".join(pieces), answer="a"), tagset)
    assert not isinstance(chain, Fault)
    for labels in product(range(len(tagset.tags)), repeat=len(pieces)):
        if not isinstance(tagged(chain, [tagset.names[i] for i in labels], tagset, k), Fault):
            total = float(sum(shares[row, label] for row, label in enumerate(labels)))
            best = total if best is None else max(best, total)
    return best


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["One. ", "See [P1]. ", "And [P2]. ", "[P1] and [P2]. "]), min_size=1, max_size=4),
    st.integers(0, 2**32), st.integers(1, 2), st.integers(2, 4), st.sampled_from([None, 2]),
)  # fmt: skip
def test_the_likeliest_valid_tags_are_those_of_trying_all(
    pieces: list[str], seed: int, least: int, most: int, k: int | None
) -> None:
    names = ("examine_examples", "identify_patterns", "infer_preference", "analyze_query")
    tagset = TagSet(
        name="four", tags=tuple(TAGSET.by_name[name] for name in names), required_any=("infer_preference",),
        min_steps=least, max_steps=most,
    )  # fmt: skip
    shares = np.log(np.random.default_rng(seed).dirichlet(np.ones(4), len(pieces))).astype(np.float32)
    found = best_labels(shares, pieces, tagset, k)
    wanted = _brute_force(shares, pieces, tagset, k)
    if wanted is None:
        assert found is None
    else:
        assert found is not None
        total = sum(shares[row, names.index(label)] for row, label in enumerate(found))
        assert total == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
def test_a_classifier_gives_its_corpus_back(corpus_with_pairs: Path, model: StepClassifier, tmp_path: Path) -> None:
    """Traces without their tags, tagged anew: valid, the words unchanged, most tags as they were."""
    import polars as pl

    traces = pl.read_parquet(corpus_with_pairs / "traces/*.parquet")
    bare = [
        {"id": row["id"], "text": untagged(row["text"], TAGSET), "k": len(row["item_ids"])}
        for row in traces.iter_rows(named=True)
    ]
    path = write_chains(tmp_path / "c.jsonl", bare)
    manifest = annotate_with_classifier(path, tmp_path / "out", model, TAGSET, HERE)
    again = {row.id: row for row in rows_of(tmp_path / "out/annotated.jsonl", AnnotatedChain)}
    assert manifest.annotated == traces.height
    same = total = 0
    for row in traces.iter_rows(named=True):
        was = [step["tag"] for step in row["steps"] for _ in sentences(step["text"])]
        given = [step.tag for step in again[row["id"]].steps for _ in sentences(step.text)]
        same += sum(a == b for a, b in zip(was, given, strict=True))
        total += len(was)
    assert same > 0.9 * total
    assert all(untagged(again[row["id"]].text, TAGSET) == row["text"] for row in bare)


@pytest.mark.slow
def test_attempts_come_back_as_candidates_and_make_a_corpus(
    song_folder: Path, corpus_with_pairs: Path, model: StepClassifier, tmp_path: Path
) -> None:
    path = corpus_with_pairs / "rejected/train.parquet"
    annotate_with_classifier(path, tmp_path / "out", model, TAGSET, HERE)
    ledger = rows_of(tmp_path / "out/rejected.jsonl", RejectedChain)
    assert {row.reason for row in ledger} == {"has-markup"}  # they are tagged already
    import polars as pl

    bare = pl.read_parquet(path).with_columns(
        pl.col("text").map_elements(lambda text: untagged(text, TAGSET), return_dtype=pl.String)
    )
    bare.write_parquet(tmp_path / "bare.parquet")
    annotate_with_classifier(tmp_path / "bare.parquet", tmp_path / "out2", model, TAGSET, HERE)
    made = rows_of(tmp_path / "out2/candidates.jsonl", Candidate)
    assert [row.parents for row in made] == [(key,) for key in bare["id"]]
    assert all(row.teacher.endswith("+classifier") and parse(row.text, TAGSET).is_valid for row in made)

    from tagpr_data.cli import app

    command = [
        "select",
        str(tmp_path / "out2/candidates.jsonl"),
        "--output",
        str(tmp_path / "corpus"),
        "--workers",
        "1",
    ]
    command += ["--dataset", str(song_folder)]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    validated = CliRunner().invoke(
        app, ["validate", str(tmp_path / "corpus"), "--dataset", str(song_folder), "--workers", "1"]
    )
    assert validated.exit_code == 0, validated.output
    manifest = read_json(tmp_path / "corpus/manifest.json", CorpusManifest)
    assert manifest.candidates == len(made)


# A curator's own chains


def own_chains(dataset: Dataset, count: int = 8) -> list[dict[str, Any]]:
    """Chains without a tag that look at the two items before the query, as somebody's own file has them."""
    examples = sorted(
        (example for split in dataset.splits for example in dataset.examples(split) if example.task == "genre"),
        key=lambda example: example.id,
    )
    rows: list[dict[str, Any]] = []
    for number, example in enumerate(examples[:count]):
        one, two = dataset.profile(example)[-2:]
        rows.append(
            {
                "id": f"chain {number}",
                "example_id": example.id,
                "item_ids": [one.item_id, two.item_id],
                "text": f'[P1] was filed under "{one.label}". So was or was not [P2]. That decides on {example.input}.',
                "answer": example.output,
                "teacher": "a person",
            }
        )
    return rows


def own_command(path: Path, output: Path, server: Any, *tail: str) -> list[str]:
    return ["annotate", str(path), "--output", str(output), "--base-url", server.url, "--model", "m", *tail]


def test_own_chains_become_a_validated_corpus(song_folder: Path, tmp_path: Path, stub: Callable[..., Any]) -> None:
    from tagpr_data.cli import app

    dataset = Dataset.load(song_folder)
    bare = own_chains(dataset)
    bare[0]["answer"] = "polka"  # not what the user chose
    path, corpus = write_chains(tmp_path / "chains.jsonl", bare), tmp_path / "corpus"
    server = stub(names=["examine_examples", "compare_options", "infer_preference"])
    for command in (
        own_command(path, tmp_path / "out", server, "--dataset", str(song_folder), "--workers", "1"),
        ["select", str(tmp_path / "out/candidates.jsonl"), "--dataset", str(song_folder), "--output", str(corpus)],
        ["card", str(corpus)],
        ["validate", str(corpus), "--dataset", str(song_folder)],
    ):
        run = CliRunner().invoke(app, command)
        assert run.exit_code == 0, run.output
    assert "Past items of this user:" in server.requests[0]["messages"][1]["content"]
    manifest = read_json(corpus / "manifest.json", CorpusManifest)
    assert (manifest.candidates, manifest.kept, manifest.rejected) == (8, 7, {"low-score": 1})
    assert manifest.teachers == {"a person+m": "unstated+unstated"}
    assert manifest.claims == manifest.grounded_claims > 0
    traces = {row.parents[0]: row for split in ("train", "validation")
              for row in read_records(corpus / f"traces/{split}.parquet", Trace)}  # fmt: skip
    for chain in bare[1:]:
        row = traces[chain["id"]]
        assert (row.example_id, list(row.item_ids), row.answer) == (
            chain["example_id"], chain["item_ids"], chain["answer"],
        )  # fmt: skip
        assert untagged(row.text, TAGSET) == f"<think>{chain['text']}</think>\n{chain['answer']}"
        assert [len(step.cites) for step in row.steps] == [1, 1, 0]


@pytest.fixture
def unfit_folder(tmp_path: Path) -> Path:
    """A data set with a gold title in the profile and one question asked twice."""
    labels = ("rock", "jazz")
    genre = Task(name="genre", kind="classification", labels=labels, answer_form="a genre", item_template="{title}")
    title = Task(name="title", kind="generation", answer_form="a title", item_template='"{title}": {text}')
    common: dict[str, Any] = {"user_id": "u", "profile_id": "u", "profile_size": 2}
    items = [
        ProfileItem(profile_id="u", position=0, item_id="i0", title="one two three four", text="a", label="rock"),
        ProfileItem(profile_id="u", position=1, item_id="i1", title="five", text="b", label="rock"),
    ]
    first = Example(id="e0", task="title", input="c", output="one two three four", **common)
    second, third = (Example(id=key, task="genre", input="same", output="rock", **common) for key in ("e1", "e2"))
    write_dataset(
        tmp_path / "unfit", name="unfit", source="made up", licence="CC0-1.0", tasks=[genre, title],
        examples={"train": [first, second], "validation": [third]}, items=items, parameters={}, skipped={},
    )  # fmt: skip
    return tmp_path / "unfit"


def test_own_chains_whose_prompt_no_corpus_may_have_are_in_the_ledger_and_nobody_is_asked_about_them(
    unfit_folder: Path, tmp_path: Path, stub: Callable[..., Any]
) -> None:
    from tagpr_data.cli import app

    common = {"text": "[P1] is loud. So it is loud. This user likes it loud.", "answer": "rock", "item_ids": ["i0"]}
    bare = [{"id": str(number), "example_id": key} | common for number, key in enumerate(["e0", "e1", "e2", "e1"])]
    bare[0] |= {"item_ids": ["i1", "i0"]}
    server = stub(names=["examine_examples", "compare_options", "infer_preference"])
    path = write_chains(tmp_path / "chains.jsonl", bare)
    run = CliRunner().invoke(app, own_command(path, tmp_path / "out", server, "--dataset", str(unfit_folder)))
    assert run.exit_code == 0, run.output
    reasons = {row.id: row.reason for row in rows_of(tmp_path / "out/rejected.jsonl", RejectedChain)}
    assert reasons == {"0": "gold-in-prompt", "2": "duplicate-prompt"}
    made = rows_of(tmp_path / "out/candidates.jsonl", Candidate)
    assert [(row.parents, row.attempt) for row in made] == [(("1",), 0), (("3",), 1)]  # two attempts on one prompt
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"example_id": "nobody"}, r"c\.jsonl, line 2: example_id 'nobody' is not in the data set"),
        ({"item_ids": ["ann-9"]}, r"line 2: item_ids has 'ann-9', .* none of the 6 items before example 'genre-ann-6'"),
        ({"item_ids": ["ann-1", "ann-1"]}, r"line 2: item_ids has 'ann-1' twice"),
        ({"example_id": None}, r"line 2: example_id: .*; with --dataset a chain has id, text, example_id"),
        ({"item_ids": "ann-1"}, r"line 2: item_ids: "),
    ],
)
def test_own_chains_that_do_not_fit_the_data_set_are_refused_with_their_line(
    change: dict[str, Any], message: str, song_folder: Path, tmp_path: Path
) -> None:
    dataset = Dataset.load(song_folder)
    row = own_chains(dataset, 1)[0]
    path = write_chains(tmp_path / "c.jsonl", [row, row | {"id": "two"} | change])
    with pytest.raises(InputError, match=message):
        list(chains.read_chains(path, answering=ChainAttempts(dataset, TAGSET)))


# Another language, all the way


def test_a_german_tag_set_goes_all_the_way(german: Path, tmp_path: Path, stub: Callable[..., Any]) -> None:
    from tagpr_data.cli import app

    server = stub(names=["beispiele_prüfen", "überblick", "schlussfolgerung"])
    text = "In [P1] geht es um Größe. Gefragt ist ein Titel! Also mag er’s förmlich."
    path = write_chains(tmp_path / "ketten.jsonl", [{"id": "ä", "text": text, "answer": "Über Größe"}])
    run = CliRunner().invoke(
        app,
        ["annotate", str(path), "--output", str(tmp_path / "out"), "--tagset", str(german), "--base-url", server.url,
         "--model", "m", "--workers", "1"],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    (row,) = rows_of(tmp_path / "out/annotated.jsonl", AnnotatedChain)
    assert row.text == (
        "<think><beispiele_prüfen>In [P1] geht es um Größe.</beispiele_prüfen> <überblick>Gefragt ist ein "
        "Titel!</überblick> <schlussfolgerung>Also mag er’s förmlich.</schlussfolgerung></think>\nÜber Größe"
    )
    checked = CliRunner().invoke(app, ["tags", "check", str(tmp_path / "out/annotated.jsonl"), "--tagset", str(german)])
    assert checked.exit_code == 0, checked.output
    grammar = CliRunner().invoke(app, ["tags", "grammar", "--format", "lark", "--tagset", str(german)])
    assert "größe_abwägen" in grammar.output


@pytest.mark.slow
def test_a_corpus_in_german_tags_validates(
    german: Path, song_folder: Path, corpus_with_pairs: Path, tmp_path: Path, stub: Callable[..., Any]
) -> None:
    import polars as pl

    from tagpr_data.cli import app

    def labels(pieces: list[str]) -> list[str]:
        return [*("beispiele_prüfen" if "[P" in piece else "überblick" for piece in pieces[:-1]), "schlussfolgerung"]

    rows = pl.read_parquet(corpus_with_pairs / "traces/train.parquet")
    bare = rows.select([name for name in rows.columns if name in Candidate.model_fields]).with_columns(
        pl.Series("text", [untagged(text, TAGSET) for text in rows["text"]])
    )
    bare.write_parquet(tmp_path / "bare.parquet")
    tail = ["--tagset", str(german), "--workers", "1"]
    for command in (
        ["annotate", str(tmp_path / "bare.parquet"), "--output", str(tmp_path / "out"), "--base-url",
         stub(names=labels).url, "--model", "m", *tail],
        ["select", str(tmp_path / "out/candidates.jsonl"), "--dataset", str(song_folder), "--output",
         str(tmp_path / "korpus"), *tail],
        ["validate", str(tmp_path / "korpus"), "--dataset", str(song_folder), *tail],
    ):  # fmt: skip
        run = CliRunner().invoke(app, command)
        assert run.exit_code == 0, run.output
    manifest = read_json(tmp_path / "korpus/manifest.json", CorpusManifest)
    assert manifest.tagset == "deutsch-4"
    assert manifest.candidates == rows.height
    assert manifest.kept > rows.height / 2  # the default rules ask for a better score than the corpus' own


# Wrong use


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"id": "a"}', r"line 1: text: Field required"),
        ('{"id": "a", "text": 3}', r"line 1: text: .*got 3"),
        ('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}', r"line 2: the id 'a' occurs twice"),
        ('{"id": "a", "text": "\\ud800"}', r"line 1"),
        ("[1]", r"line 1: \[1\] is no object"),
        ("no", r"line 1: not JSON"),
        ("", r"holds no chain"),
    ],
)
def test_a_file_of_something_else_is_refused_with_its_line(lines: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(lines, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        list(chains.read_chains(path))
