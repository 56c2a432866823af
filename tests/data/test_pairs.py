"""Preference pairs: who is in which split, what is right for whom, lengths, bytes."""

from collections import Counter
from pathlib import Path

import pytest

from tagpr_data.build import CorpusConfig, build
from tagpr_data.dataset import Dataset
from tagpr_data.errors import InputError
from tagpr_data.pairs import PairFolder, PairOptions, make_pairs, question, split_of, write_pairs
from tagpr_data.prompts import PromptOptions
from tagpr_data.records import PreferencePair
from tagpr_data.sources import personas


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("people") / "dataset"
    personas.construct(folder, users=40, events=10)
    return Dataset.load(folder)


@pytest.fixture(scope="module")
def pairs(people: Dataset) -> list[PreferencePair]:
    return make_pairs(people, PairOptions(kinds=("user", "gold"), per_kind=2)).rows


def test_no_user_stands_in_train_and_unseen_and_no_example_in_two_splits(
    people: Dataset, pairs: list[PreferencePair]
) -> None:
    users = {split: {p.user_id for p in pairs if p.split == split} for split in ("train", "seen", "unseen")}
    others = {split: {p.other_user_id for p in pairs if p.split == split} for split in users}
    examples = {split: {p.example_id for p in pairs if p.split == split} for split in users}
    assert all(users.values())
    assert users["unseen"] == {example.user_id for example in people.examples("validation")}
    assert not (users["train"] | others["train"]) & (users["unseen"] | others["unseen"])
    assert users["seen"] <= {example.user_id for example in people.examples("train")}
    assert not examples["train"] & examples["seen"]
    test = {example.id for example in people.examples("test")}
    assert not test & set.union(*examples.values())


def test_the_rejected_answer_is_exactly_what_the_other_user_would_say(
    people: Dataset, pairs: list[PreferencePair]
) -> None:
    rules = people.manifest.parameters["preferences"]
    inputs = {e.id: (e.input, e.output) for split in ("train", "validation") for e in people.examples(split)}
    told = [pair for pair in pairs if pair.kind == "user"]
    assert told and all(pair.rejected_from == "rule" and pair.user_id != pair.other_user_id for pair in told)
    for pair in told:
        asked, gold = inputs[pair.example_id]
        assert pair.chosen == gold == personas.answer(rules[pair.user_id], pair.task, asked)
        assert pair.rejected == personas.answer(rules[pair.other_user_id], pair.task, asked) != pair.chosen


def test_chosen_is_longer_as_often_as_shorter(pairs: list[PreferencePair]) -> None:
    balance: Counter[tuple[str, str, str]] = Counter()
    for pair in pairs:
        longer, shorter = len(pair.chosen) > len(pair.rejected), len(pair.chosen) < len(pair.rejected)
        balance[pair.split, pair.task, pair.kind] += longer - shorter
    assert len(balance) == 12 and not any(balance.values())


def test_pairs_of_one_task_and_no_other(people: Dataset) -> None:
    made = make_pairs(people, PairOptions(tasks=("personas-choice",), kinds=("user",))).rows
    assert {pair.task for pair in made} == {"personas-choice"}
    with pytest.raises(InputError, match=r"tasks \['choice'\] are not in .*; its tasks: personas-choice"):
        make_pairs(people, PairOptions(tasks=("choice",)))


def test_margin_is_the_difference_of_the_task_metric(pairs: list[PreferencePair]) -> None:
    assert all(pair.margin == pair.chosen_score - pair.rejected_score > 0 for pair in pairs)
    assert {pair.chosen_score for pair in pairs} == {1.0}
    assert {pair.rejected_score for pair in pairs if pair.task == "personas-choice"} == {0.0}


def test_the_prompt_shows_no_past_item(people: Dataset, pairs: list[PreferencePair]) -> None:
    for pair in pairs[:50]:
        (message,) = pair.prompt
        assert "[P1]" not in message.content and message.content.startswith(people.task(pair.task).question)
    task = people.task("personas-choice")
    assert question(task, "a <|im_end|> b", PromptOptions())[0].content.endswith("a < |im_end|> b")


def test_users_are_drawn_where_the_data_set_holds_none_out(songs: Dataset) -> None:
    """Songs are split by time: its validation examples are later songs of the same users."""
    splits = split_of(songs, PairOptions())
    users = {split: {e.user_id for s in songs.splits for e in songs.examples(s) if splits[e.id] == split}
             for split in set(splits.values())}  # fmt: skip
    assert len(users["unseen"]) == 1 and not users["unseen"] & users["train"]
    assert {splits[e.id] for e in songs.examples("validation") if e.user_id in users["train"]} == {"seen"}


def test_users_are_drawn_where_the_data_set_holds_too_few_out(people: Dataset) -> None:
    """A few users without a training example, as a split by time leaves by chance, are no set of unseen users."""
    known = {e.user_id for split in ("train", "validation") for e in people.examples(split)}
    splits = split_of(people, PairOptions(unseen_users=0.5))  # validation holds a ninth of the users
    unseen = {e.user_id for s in ("train", "validation") for e in people.examples(s) if splits[e.id] == "unseen"}
    assert len(unseen) == round(len(known) / 2) and unseen & {e.user_id for e in people.examples("train")}


def test_a_real_corpus_gives_pairs_by_metric_and_by_profile(songs: Dataset, song_config: CorpusConfig) -> None:
    build(song_config.model_copy(update={"attempts": 2, "teacher": (song_config.teacher[0].model_copy(
        update={"hindsight": False}),)}))  # fmt: skip
    from tagpr_data.pairs import _read_corpus

    manifest, attempts = _read_corpus(song_config.output, songs)
    made = make_pairs(songs, PairOptions(), attempts, manifest)
    kinds = {(pair.kind, pair.rejected_from) for pair in made.rows}
    assert ("user", "profile") in kinds
    assert sum(made.skipped.values()) > 0


def test_traces_of_the_scripted_teacher_are_paired_with_equally_honest_ones(tmp_path: Path, people: Dataset) -> None:
    from tagpr_data.pairs import _read_corpus
    from tagpr_data.tags import load_tagset, parse

    corpus = CorpusConfig(
        name="people", dataset=people.folder, output=tmp_path / "corpus", limits={"train": 30, "validation": 10},
    )  # fmt: skip
    build(corpus)
    manifest, attempts = _read_corpus(corpus.output, people)
    rows = make_pairs(people, PairOptions(form="trace"), attempts, manifest).rows
    assert {pair.kind for pair in rows} == {"user", "gold"}
    for pair in rows:
        texts = [parse(text, load_tagset()) for text in (pair.chosen, pair.rejected)]
        assert all(text.is_valid for text in texts)
        assert texts[0].answer != texts[1].answer


def test_same_input_gives_same_bytes_and_a_changed_file_is_refused(tmp_path: Path, people: Dataset) -> None:
    first = write_pairs(tmp_path / "a", people, PairOptions())
    assert write_pairs(tmp_path / "b", people, PairOptions()) == first
    assert write_pairs(tmp_path / "a", people, PairOptions()) == first  # an earlier version is replaced
    assert write_pairs(tmp_path / "c", people, PairOptions(seed=1)).content_hash != first.content_hash
    names = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    folder = PairFolder(tmp_path / "a")
    for pair in folder.pairs("unseen"):
        assert len(folder.profile(pair.profile_id, pair.profile_size)) == pair.profile_size
        assert len(folder.profile(pair.other_profile_id, pair.other_profile_size)) == pair.other_profile_size
    (tmp_path / "a" / "profiles.parquet").write_bytes(b"other")
    with pytest.raises(InputError, match=r"profiles\.parquet is missing or not the file manifest\.json describes"):
        PairFolder(tmp_path / "a")


def test_foreign_folders_and_foreign_corpora_are_refused(
    tmp_path: Path, people: Dataset, song_config: CorpusConfig
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="is not empty and holds no pairs"):
        write_pairs(tmp_path / "full", people, PairOptions())
    build(song_config)
    with pytest.raises(InputError, match="was built from data set 'songs'"):
        write_pairs(tmp_path / "pairs", people, PairOptions(), song_config.output)
    with pytest.raises(InputError, match="no pair to train on came out of"):
        write_pairs(tmp_path / "pairs", people, PairOptions(kinds=("metric",)))
    assert not (tmp_path / "pairs").exists()
