"""own_texts.py: what a user wrote is found in the rows of others, unless they wrote it too."""

import json

import pytest
from typer.testing import CliRunner

from tagpr_data import forget, own_texts
from tagpr_data.cli import app
from tagpr_data.corpus import open_corpus
from tagpr_data.dataset import Dataset
from tagpr_data.errors import CheckFailed
from tagpr_data.pairs import PairOptions, write_pairs
from tagpr_data.records import Message, PreferencePair, Trace
from tagpr_data.tables import read_records

HERS = "Loud midnight guitars over the town"


@pytest.fixture
def traces(corpus_with_pairs):
    return {
        split: read_records(corpus_with_pairs / f"traces/{split}.parquet", Trace) for split in ("train", "validation")
    }


def asked(trace, one, two, gold):
    """The same trace for a question which of two texts is whose."""
    *before, last = trace.messages
    question = Message(role="user", content=f'{last.content}\nWhich is theirs? [1]: "{one}" [2]: "{two}"\nAnswer.')
    return trace.model_copy(update={"messages": (*before, question), "gold": gold})


def place_of(traces, user, task="genre"):
    return next(place for place, row in enumerate(traces["train"]) if (row.user_id, row.task) == (user, task))


def set_row(traces, user, *question):
    place = place_of(traces, user)
    traces["train"][place] = asked(traces["train"][place], *question)
    return traces["train"][place]


def test_the_text_of_a_forgotten_user_in_a_question_to_another_stops_it_or_goes_with_the_row(
    traces, make_corpus, tmp_path
):
    set_row(traces, "ann", HERS, "A song by nobody in particular", "[1]")
    asked_bob = set_row(traces, "bob", HERS, "What bob would sing about", "[2]")
    make_corpus(tmp_path / "a", traces, {}, min_score={})
    with pytest.raises(CheckFailed, match=f"hold what only they wrote(.|\\n)*{asked_bob.id}"):
        forget.forget(open_corpus(tmp_path / "a"), "ann", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    _, certificate = forget.forget(open_corpus(tmp_path / "a"), "ann", tmp_path / "b", drop_mentions=True)
    left = read_records(tmp_path / "b/traces/train.parquet", Trace)
    others = [row for row in traces["train"] if row.user_id != "ann"]
    assert [row.id for row in left] == sorted(row.id for row in others if row.id != asked_bob.id)
    assert all(HERS not in row.model_dump_json() for row in left)
    proof = json.loads(certificate)
    assert proof["texts_found_there_that_only_they_wrote"] == 1 < proof["texts_searched_in_other_rows"]
    assert HERS not in certificate


def test_a_text_that_others_wrote_too_stays(traces, make_corpus, tmp_path):
    set_row(traces, "ann", HERS, "A song by nobody in particular", "[1]")
    set_row(traces, "bob", HERS, "What bob would sing about", "[2]")
    kept = set_row(traces, "cyd", "Something else altogether", HERS, "[2]")  # cyd wrote the same
    make_corpus(tmp_path / "a", traces, {}, min_score={})
    forget.forget(open_corpus(tmp_path / "a"), "ann", tmp_path / "b")
    assert kept.id in {row.id for row in read_records(tmp_path / "b/traces/train.parquet", Trace)}


@pytest.mark.parametrize(
    ("gold", "quoted", "found"), [("[1]", "Yes", True), ("[1]", "Yes indeed", False), ("[2]", "Yes", False)]
)
def test_a_short_text_is_looked_for_in_quotes_only(traces, make_corpus, tmp_path, gold, quoted, found):
    set_row(traces, "ann", "Yes", "No", gold)
    set_row(traces, "bob", "Well", quoted, "[1]")
    make_corpus(tmp_path / "a", traces, {}, min_score={})
    corpus = open_corpus(tmp_path / "a")
    gone = {kind: set[str]() for kind in ("rejected", "pairs", "profiles")}
    gone["traces"] = {row.id for rows in traces.values() for row in rows if row.user_id == "ann"}
    texts = own_texts.written(corpus, gone, 5)  # pyright: ignore[reportArgumentType]
    assert ('"Yes"' in texts, '"No"' in texts) == (gold == "[1]", gold == "[2]")
    assert own_texts.only_theirs(corpus, gone, texts, 5) == ({'"Yes"'} if found else set())  # pyright: ignore[reportArgumentType]


def test_items_golds_and_profiles_are_read_as_their_texts(corpus_with_pairs):
    corpus = open_corpus(corpus_with_pairs)
    with corpus.connect() as rows:
        _, gone = forget._gone(rows, "ann")  # pyright: ignore[reportPrivateUsage]
    texts = own_texts.written(corpus, gone, 5)
    assert {"loud: northern guitar riff", "a guitar riff about the northern road and a drum"} <= texts  # an item
    assert "loud: midnight guitar riff" in texts  # the gold of the last song
    assert not [text for text in texts if "saxophone" in text]
    assert not own_texts.only_theirs(corpus, gone, texts, 5)


def test_a_corpus_of_choices_made_from_a_table_forgets_what_was_shown_to_others(tmp_path):
    lines = ["who,when,what"]
    lines += [
        f"{user},2020-01-{day:02},the day {day} as {user} told of it"
        for user in ("ann", "bob", "cyd")
        for day in range(1, 15)
    ]
    (tmp_path / "days.csv").write_text("\n".join(lines))

    def call(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    command = ["--user", "who", "--time", "when", "--text", "what", "--task", "choice", "--output", tmp_path / "data"]
    assert call("construct", "events", tmp_path / "days.csv", *command).exit_code == 0
    (tmp_path / "days.toml").write_text(
        f'name = "days"\ndataset = "{tmp_path / "data"}"\noutput = "{tmp_path / "corpus"}"\nsplits = ["train"]\n'
    )
    assert call("build", tmp_path / "days.toml").exit_code == 0
    result = call("forget", tmp_path / "corpus", "--user", "u0001", "--output", tmp_path / "new", "--drop-mentions")
    assert result.exit_code == 0, result.exception
    left = read_records(tmp_path / "new/traces/train.parquet", Trace)
    assert left and {row.gold for row in left} <= {"[1]", "[2]"}
    shown = "\n".join(row.model_dump_json() for row in left)
    assert "as bob told of it" in shown
    # the first five are profile alone, the last four the questions of other splits
    assert not [day for day in range(6, 11) if f"the day {day} as ann told of it" in shown]


def test_a_pair_names_whose_text_its_worse_answer_is(song_folder, tmp_path):
    """Else the text would outlive its author: `forget` removes the pairs that name them."""
    songs = Dataset.load(song_folder)
    authors = {
        example.output: example.user_id
        for split in songs.splits for example in songs.examples(split) if example.task == "title"
    }  # fmt: skip
    write_pairs(tmp_path / "pairs", songs, PairOptions(kinds=("gold",), unseen_users=0.34, per_kind=3), None)
    found = [
        (row.user_id, row.other_user_id, row.rejected)
        for path in (tmp_path / "pairs/pairs").glob("*.parquet")
        for row in read_records(path, PreferencePair) if row.task == "title"
    ]  # fmt: skip
    strangers = [(other, text) for user, other, text in found if authors[text] != user]
    assert len(strangers) > 3
    assert [other for other, _ in strangers] == [authors[text] for _, text in strangers]
