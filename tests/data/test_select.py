import random
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tagpr_data.dataset import Dataset, write_dataset
from tagpr_data.errors import InputError
from tagpr_data.journal import Journal
from tagpr_data.judge import REASONS, Selection, files_of, judge
from tagpr_data.prompts import prompt_hash
from tagpr_data.records import Candidate, Example, Message, ProfileItem, Rejected, Sampling, Task, Trace
from tagpr_data.select import Counts, candidate_batches, count, journal_batches, select
from tagpr_data.tables import read_records, sha256_file, sha256_text
from tagpr_data.tags import load_tagset, parse

TAGSET = load_tagset()
GENRE = Task(
    name="genre", kind="classification", labels=("rock", "jazz", "folk"), answer_form="a genre", item_template=""
)
TITLE = Task(name="title", kind="generation", answer_form="a title", item_template="")
ITEMS = (
    ProfileItem(profile_id="u", position=0, item_id="a", date="2020", title="Loud road", text="", label="rock"),
    ProfileItem(profile_id="u", position=1, item_id="b", date="2021", title="Slow river", text="", label="jazz"),
)
GOOD = (
    "<think>\n"
    '<examine_examples>[P1] is "rock", [P2] is "jazz".</examine_examples>\n'
    "<infer_preference>This user likes rock.</infer_preference>\n"
    "</think>\n"
    "rock"
)


def candidate(text=GOOD, attempt=0, prompt="q", task="genre", gold: str | None = "rock", finish="stop", user="u"):
    messages = (Message(role="user", content=prompt),)
    return Candidate(
        id=sha256_text(f"{prompt} {attempt} {user} {task}"),
        example_id=f"{prompt}/{user}/{task}",
        task=task,
        user_id=user,
        retriever="bm25",
        k=2,
        item_ids=("a", "b"),
        messages=messages,
        prompt_hash=prompt_hash((*messages, Message(role="user", content=f"{user} {task}"))),
        teacher="t",
        teacher_revision="1",
        sampling=Sampling(),
        seed=attempt,
        attempt=attempt,
        text=text,
        finish_reason=finish,
        gold=gold,
    )


def dataset_for(folder: Path, rows, date="2022", items=ITEMS) -> Dataset:
    """A data set that has an example for every candidate; the question is what the prompt says."""
    examples = {
        row.example_id: Example(
            id=row.example_id, task=row.task, user_id=row.user_id, profile_id="u", profile_size=len(items),
            input=row.messages[0].content, output=None, date=date,
        )
        for row in rows
    }  # fmt: skip
    if not folder.exists():
        write_dataset(
            folder, name="songs", source="made up", licence="CC0-1.0", tasks=[GENRE, TITLE],
            examples={"train": list(examples.values())}, items=items, parameters={}, skipped={},
        )  # fmt: skip
    return Dataset.load(folder)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[list[Trace], list[Rejected]]]:
    """Select among some candidates as a corpus is built, over the disk."""
    calls = iter(range(1000))

    def selected(*rows, rules=None, date="2022", items=ITEMS, rows_per_batch=2000, workers=1):
        folder = tmp_path / str(next(calls))
        dataset = dataset_for(folder / "dataset", rows, date, items)
        output = folder / "corpus"
        _, counts = select(
            candidate_batches(rows, rows_per_batch), dataset, rules or Selection(), TAGSET, output, ["train"],
            work=folder / "work", expected=len(rows), workers=workers,
        )  # fmt: skip
        assert not (folder / "work").exists()
        kept = read_records(output / "traces/train.parquet", Trace)
        rejected = read_records(output / "rejected/train.parquet", Rejected)
        assert counts == count(kept, rejected)
        return kept, rejected

    return selected


@pytest.fixture
def reason_of(run) -> Callable[..., str | None]:
    def reason(row, **options):
        kept, rejected = run(row, **options)
        assert len(kept) + len(rejected) == 1
        return rejected[0].reason if rejected else None

    return reason


def test_a_good_candidate_is_kept_with_what_was_measured(run):
    (trace,), rejected = run(candidate())
    assert rejected == []
    assert (trace.answer, trace.score, len(trace.steps)) == ("rock", 1.0, 2)
    assert trace.steps == parse(GOOD, TAGSET, 2).steps
    # [P1] and [P2]: exists, lies before the query, label: 3 claims each
    assert (trace.claims, trace.grounded_claims) == (6, 6)


DROP = Selection(personal_data="drop")
SPANISH = (
    "<think>\n<examine_examples>[P1] y [P2] son canciones que este usuario escuchó muchas veces durante el verano "
    "pasado con sus amigos.</examine_examples>\n<infer_preference>Por eso creemos que a este usuario le gusta mucho la "
    "música rock de los años setenta.</infer_preference>\n</think>\nrock"
)


@pytest.mark.parametrize(
    ("reason", "changes", "options"),
    [
        ("refused-by-server", {"finish": "refused", "text": ""}, {}),
        ("cut-off", {"finish": "length"}, {}),
        ("grammar", {"text": "rock"}, {}),
        ("grammar", {"text": GOOD.replace("[P2]", "[P3]")}, {}),
        ("no-gold", {"gold": None}, {}),
        ("leaks-gold", {"text": GOOD.replace("This user", "As the gold says this user")}, {}),
        ("leaks-gold", {"text": GOOD.replace("This user likes", "Die\n Musterlösung ist")}, {}),
        ("leaks-gold", {"text": GOOD.replace('[P1] is "rock"', 'Under "folk". [P1] is "rock"'), "gold": "folk"}, {}),
        ("too-long", {}, {"rules": Selection(max_characters=50)}),
        ("too-long", {}, {"rules": Selection(max_words=9)}),
        ("too-long", {}, {"rules": Selection(max_steps=1)}),
        ("too-short", {}, {"rules": Selection(min_words=11)}),
        ("too-short", {}, {"rules": Selection(min_steps=3)}),
        ("foreign-language", {"text": SPANISH}, {"rules": Selection(language="en")}),
        ("foreign-language", {"text": SPANISH}, {"rules": Selection(language="es", task_language={"genre": "en"})}),
        ("low-score", {"gold": "jazz"}, {}),
        ("ungrounded", {"text": GOOD.replace('[P1] is "rock"', '[P1] is "jazz"')}, {}),
        ("unsupported", {"text": GOOD[:-4] + "folk", "gold": "folk"}, {"rules": Selection(require_support=True)}),
        ("personal-data", {"text": GOOD.replace("rock.<", "rock, says ann@site.org.<")}, {"rules": DROP}),
        ("personal-data", {"prompt": "Call +49 30 1234567"}, {"rules": DROP}),
    ],
)  # fmt: skip
def test_a_bad_candidate_is_rejected_for_its_reason(reason, changes, options, reason_of):
    assert reason_of(candidate(**changes), **options) == reason


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ({"text": GOOD.replace("This user", "As the gold says this user")}, Selection(refuse_leaks=False)),
        ({"text": SPANISH}, Selection()),
        ({"text": SPANISH}, Selection(language="es")),
        ({"text": GOOD}, Selection(language="es")),  # too few letters for a verdict
        ({}, Selection(max_words=10, min_words=10, max_steps=2, min_steps=2)),
        ({"text": GOOD.replace("rock.<", "rock, says ann@site.org.<")}, Selection()),
    ],
)
def test_a_rule_that_is_off_or_holds_rejects_nothing(changes, rules, reason_of):
    assert reason_of(candidate(**changes), rules=rules) is None


def test_a_gold_that_an_item_or_the_question_holds_may_be_quoted_early(reason_of):
    early = GOOD.replace('[P2] is "jazz".', "[P2] too. Perhaps Loud river song.").replace("\nrock", "\nLoud river song")
    row = candidate(text=early, task="title", gold="Loud river song")
    assert reason_of(row) == "leaks-gold"
    assert reason_of(candidate(text=early, task="title", gold="Loud river song", prompt="A loud river song?")) is None
    items = (ITEMS[0].model_copy(update={"text": "loud  river\nsong"}), ITEMS[1])
    assert reason_of(row, items=items) is None


def test_phrases_that_leak_are_data(reason_of, tmp_path):
    path = tmp_path / "leaks.toml"
    path.write_text('en = ["user likes"]\n')
    assert reason_of(candidate(), rules=Selection(leak_phrases=path)) == "leaks-gold"
    path.write_text("en = 3\n")
    with pytest.raises(InputError, match="en must be a list of texts"):
        reason_of(candidate(), rules=Selection(leak_phrases=path))


def test_groundedness_may_be_recorded_instead_of_demanded(run):
    row = candidate(text=GOOD.replace('[P1] is "rock"', '[P1] is "jazz"'))
    (trace,), _ = run(row, rules=Selection(require_grounded=False))
    assert (trace.claims, trace.grounded_claims) == (6, 5)


def test_a_generated_answer_needs_the_threshold_in_rouge(reason_of):
    row = candidate(text=GOOD.replace("\nrock", "\nloud road song"), task="title", gold="loud river song")
    # ROUGE-1 = ROUGE-L = 2·2/(3+3) = 0.667
    assert reason_of(row) is None
    assert reason_of(row, rules=Selection(min_score={"generation": 0.7})) == "low-score"
    assert reason_of(row, rules=Selection(task_min_score={"title": 0.7})) == "low-score"
    assert reason_of(row, rules=Selection(min_score={"generation": 0.7}, task_min_score={"title": 0.6})) is None


def test_the_best_attempt_of_a_prompt_is_kept_and_the_others_say_so(run):
    partly = candidate(text=GOOD.replace("\nrock", "\nloud road"), attempt=0, task="title", gold="loud road song")
    best = candidate(text=GOOD.replace("\nrock", "\nloud road song"), attempt=1, task="title", gold="loud road song")
    kept, rejected = run(partly, best)
    assert [row.id for row in kept] == [best.id]
    assert [row.reason for row in rejected] == ["not-best"]
    assert len(run(partly, best, rules=Selection(best_of=2))[0]) == 2


def test_the_same_text_of_one_user_is_kept_once(run):
    rows = (candidate(prompt="q1"), candidate(prompt="q2"), candidate(prompt="q3", user="v"))
    kept, (rejected,) = run(*rows)
    assert len(kept) == 2 and rejected.reason == "duplicate"
    winner = next(row for row in kept if row.user_id == "u")
    assert rejected.detail == f"{winner.id} was kept with the same text"
    assert len(run(*rows, rules=Selection(duplicates=False))[0]) == 3


def long_text(changed: int = 0) -> str:
    """A trace of 60 different words, of which the last so many are others."""
    words = [f"word{n}" if n < 60 - changed else f"other{n}" for n in range(60)]
    return GOOD.replace("This user likes rock.", " ".join(words))


def test_near_duplicates_are_kept_once_within_a_user_or_across(run):
    # 3-word runs: 71 in all; two changed words at the end touch 4 of them: (71 - 4) / (71 + 4) = 0.89
    one, alike, other = (candidate(long_text(n), prompt=f"q{n}") for n in (0, 2, 30))
    elsewhere = candidate(long_text(2), prompt="q9", user="v")
    within = Selection(near_duplicates_within=0.8)
    kept, (lost,) = run(one, alike, other, rules=within)
    assert len(kept) == 2 and lost.reason == "near-duplicate"
    assert lost.detail.endswith("was kept with nearly the same words")
    assert {row.id for row in run(one, alike, other, rules=Selection(near_duplicates_within=0.98))[1]} == set()
    assert run(one, elsewhere, rules=within)[1] == []
    assert [row.reason for row in run(one, elsewhere, rules=Selection(near_duplicates_across=0.8))[1]] == [
        "near-duplicate"
    ]


def test_a_prompt_whose_best_attempt_is_a_near_duplicate_gives_its_next_best(run):
    first = candidate(long_text(0), prompt="q1")
    copy = candidate(long_text(1), prompt="q2", attempt=0)
    own = candidate(long_text(40) + " ", prompt="q2", attempt=1)
    kept, rejected = run(first, copy, own, rules=Selection(near_duplicates_within=0.8))
    assert len(kept) == 2 and {row.reason for row in rejected} <= {"near-duplicate", "not-best"}
    assert {row.prompt_hash for row in kept} == {first.prompt_hash, copy.prompt_hash}


def test_an_answer_no_item_carries_is_guesswork_when_support_is_required(reason_of):
    rules = Selection(require_support=True)
    assert reason_of(candidate(GOOD[:-4] + "folk", gold="folk")) is None
    assert reason_of(candidate(), rules=rules) is None
    title = candidate(GOOD[:-4] + "Open sky", task="title", gold="Open sky")
    assert reason_of(title, rules=rules) is None  # a title need not be one of the labels


def test_an_answer_of_words_that_no_step_quotes_is_made_up_when_a_share_is_asked(reason_of):
    quoting = GOOD.replace("</think>", '<analyze_query>It says "open the sky".</analyze_query>\n</think>')
    title = candidate(quoting[:-4] + "Opened wide sky", task="title", gold="Opened wide sky")
    assert reason_of(title) is None
    assert reason_of(title, rules=Selection(least_quoted=0.66)) is None  # open and sky of three
    assert reason_of(title, rules=Selection(least_quoted=0.67)) == "unsupported"
    label = candidate(GOOD[:-4] + "folk", gold="folk")
    assert reason_of(label, rules=Selection(least_quoted=1)) is None  # a label is no text made of words


def evaluation(folder: Path, input_text="Which genre?", output="rock", user="x", item="") -> Path:
    items = [ProfileItem(profile_id="p", position=0, item_id="i", title=None, text=item)]
    example = Example(
        id="e", task="title", user_id=user, profile_id="p", profile_size=1, input=input_text, output=output
    )
    train = example.model_copy(update={"id": "t", "user_id": "u"})  # its train split is no evaluation
    write_dataset(
        folder, name="lamp", source="made up", licence="CC0-1.0", tasks=[TITLE],
        examples={"train": [train], "test": [example]}, items=items, parameters={}, skipped={},
    )  # fmt: skip
    return folder


NINE = "one two three four five six seven eight nine"


@pytest.mark.parametrize(
    ("of_evaluation", "of_candidate", "found"),
    [
        ({"user": "u"}, {}, "user 'u'"),
        ({"input_text": f"Well, {NINE}!"}, {"prompt": f"So {NINE.upper()} it is"}, "the question shares"),
        ({"output": NINE}, {"text": long_text().replace("word7", NINE)}, "the trace shares"),
        ({"item": f"x {NINE} y"}, {"task": "title", "gold": NINE, "text": GOOD[:-4] + NINE}, "the gold shares"),
        ({"output": "a song of five words"}, {"prompt": "A song of five words."}, "the question shares"),
        ({"input_text": "slow river"}, {"prompt": "slow river"}, None),  # two words are no evidence
        ({"input_text": f"Well, {NINE}!"}, {"prompt": "one two three four five six seven 8 nine"}, None),
    ],
)
def test_what_an_evaluation_holds_is_contaminated(of_evaluation, of_candidate, found, run, tmp_path):
    rules = Selection(contamination=(evaluation(tmp_path / "evaluation", **of_evaluation),))
    _, rejected = run(candidate(**of_candidate), rules=rules)
    assert [row.reason for row in rejected] == (["contaminated"] if found else [])
    assert not found or rejected[0].detail.startswith(found)


def test_an_item_of_the_prompt_that_holds_an_evaluation_contaminates_it(run, tmp_path):
    rules = Selection(contamination=(evaluation(tmp_path / "evaluation", output=NINE),))
    items = (ITEMS[0], ITEMS[1].model_copy(update={"text": NINE}))
    _, (lost,) = run(candidate(), rules=rules, items=items)
    assert lost.reason == "contaminated" and lost.detail.startswith("the item [P2] shares 8 words")


def test_users_may_be_shared_where_a_split_by_time_does_so(run, tmp_path):
    folder = evaluation(tmp_path / "evaluation", user="u")
    rules = Selection(contamination=(folder,), contamination_users=False)
    assert run(candidate(), rules=rules)[1] == []


def test_lamp_files_are_evaluations_and_their_frame_is_no_content(run, shared_lamp):
    from tagpr_data.lamp.files import read_questions

    question = next(read_questions(shared_lamp / "LaMP_3_time_derived/dev_questions.json", "LaMP-3"))
    rules = Selection(contamination=(shared_lamp / "LaMP_3_time_derived",))
    review = question.input.partition("review: ")[2]
    assert len(review.split()) > 8
    kept, (lost,) = run(candidate(prompt=review), candidate(prompt=question.input[:60], user="v"), rules=rules)
    assert lost.reason == "contaminated" and len(kept) == 1


@pytest.mark.parametrize(
    ("split", "asked", "found"),
    [
        ("train", {"prompt": "Slow, RIVER"}, True),  # the same user asks it again in validation
        ("train", {"prompt": "slow river", "user": "v"}, False),  # two words may recur among people
        ("train", {"prompt": "slow river", "task": "title"}, False),  # another task asks another thing
        ("train", {"prompt": NINE, "user": "v"}, True),  # a long text and its answer: posted twice
        ("train", {"prompt": NINE, "user": "v", "gold": "jazz", "text": GOOD[:-4] + "jazz"}, False),
        ("train", {"prompt": "once more"}, True),  # in test
        ("validation", {"prompt": "once more"}, True),
        ("validation", {"prompt": "slow river"}, False),  # what is asked there itself
        ("test", {"prompt": "once more"}, False),
    ],
)
def test_a_question_that_a_later_split_asks_again_is_contaminated(split, asked, found, tmp_path):
    row = candidate(**asked)
    gold = str(row.gold)

    def example(key, text, output="rock", user="u", task="genre"):
        return Example(
            id=key, task=task, user_id=user, profile_id="u", profile_size=2, input=text, output=output, date="2022"
        )

    own = example(row.example_id, asked["prompt"], gold, row.user_id, row.task)
    examples = {
        "train": [], "validation": [example("e1", "slow river"), example("e2", NINE)],
        "test": [example("e3", "Once more")],
    }  # fmt: skip
    examples[split].append(own)
    write_dataset(
        tmp_path / "dataset", name="songs", source="made up", licence="CC0-1.0", tasks=[GENRE, TITLE],
        examples=examples, items=ITEMS, parameters={}, skipped={},
    )  # fmt: skip
    dataset, splits = Dataset.load(tmp_path / "dataset"), ["train", "validation", "test"]
    easy = {"title": 0.0}
    for rules, expected in (
        (Selection(task_min_score=easy), found),
        (Selection(task_min_score=easy, contamination_own=False), False),
    ):
        output = tmp_path / f"out {rules.contamination_own}"
        select(candidate_batches([row]), dataset, rules, TAGSET, output, splits, work=tmp_path / "work")
        lost = read_records(output / f"rejected/{split}.parquet", Rejected)
        assert ([one.reason for one in lost] == ["contaminated"]) == expected
        if expected:
            assert lost[0].detail == f"the question of this {split} row is asked again later"


def test_a_folder_that_is_no_evaluation_is_an_input_error(run, tmp_path):
    with pytest.raises(InputError, match="neither a data set folder nor one with LaMP's"):
        run(candidate(), rules=Selection(contamination=(tmp_path,)))
    with pytest.raises(InputError, match="does not exist"):
        files_of(Selection(contamination=(tmp_path / "nowhere",)))


def test_masking_changes_prompt_gold_and_trace_and_leaves_grammar_and_citations(run, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("# people\nAnn Lee\n")
    text = GOOD.replace(
        "likes rock", "likes rock, as Ann  Lee <ann.lee@site.org> wrote at [P1] on https://x.com/annlee"
    )
    row = candidate(text=text, prompt="Reviewed-by: Bob Roe <bob@site.org> at +1 (555) 123-4567")
    rules = Selection(personal_data="mask", names=names)
    (trace,), _ = run(row, rules=rules)
    assert trace.steps[1].text == "This user likes rock, as (name) <(mail)> wrote at [P1] on (link)."
    assert trace.steps[1].cites == (1,)
    assert trace.messages[0].content == "Reviewed-by: (name) <(mail)> at (phone)"
    assert trace.prompt_hash == prompt_hash(trace.messages) != row.prompt_hash
    assert trace.personal_data == ("mail", "phone", "link", "name")
    (same,), _ = run(row, rules=Selection(personal_data="report", names=names))
    assert same.text == text and same.personal_data == trace.personal_data
    (blind,), _ = run(row, rules=Selection(personal_data="off"))
    assert blind.text == text and blind.personal_data == ()


def test_masked_rows_are_masked_in_the_ledger_too(run):
    row = candidate(text=GOOD[:-4] + "jazz", prompt="Mail ann@site.org")
    _, (lost,) = run(row, rules=Selection(personal_data="mask"))
    assert lost.reason == "low-score" and lost.messages[0].content == "Mail (mail)"


TEXTS = [
    GOOD, GOOD + " ", GOOD[:-4] + "jazz", "rock", "", SPANISH, long_text(0), long_text(1), long_text(3), long_text(40),
    GOOD.replace("This user", "The gold user"), GOOD.replace('[P1] is "rock"', '[P1] is "jazz"'),
    GOOD.replace("rock.<", "rock: ann@site.org.<"),
]  # fmt: skip
RANDOM = st.builds(
    candidate,
    text=st.sampled_from(TEXTS),
    attempt=st.integers(0, 3),
    prompt=st.sampled_from(["q1", "q2", "q3", "a@b.org"]),
    gold=st.sampled_from(["rock", "jazz", None]),
    finish=st.sampled_from(["stop", "stop", "length"]),
    user=st.sampled_from(["u", "v"]),
)
STRICT = Selection(
    near_duplicates_within=0.85, near_duplicates_across=0.9, language="en", personal_data="mask", best_of=1
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(RANDOM, min_size=1, max_size=25, unique_by=lambda row: row.id), seed=st.integers(0, 99))
def test_every_candidate_comes_out_once_with_one_reason_whatever_the_order_and_the_batches(rows, seed, run):
    kept, rejected = run(*rows, rules=STRICT)
    assert sorted(row.id for row in (*kept, *rejected)) == sorted(row.id for row in rows)
    assert all(row.reason in REASONS and row.detail for row in rejected)
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert run(*shuffled, rules=STRICT, rows_per_batch=1 + seed % 7) == (kept, rejected)


def test_the_same_bytes_come_out_for_any_number_of_workers_batches_and_buckets(tmp_path, monkeypatch):
    rows = [
        candidate(TEXTS[(7 * n + attempt) % len(TEXTS)], prompt=f"q{n}", attempt=attempt, gold="rock")
        for n in range(60)
        for attempt in range(3)
    ]
    dataset = dataset_for(tmp_path / "dataset", rows)

    def hashes(order, rows_per_batch, workers, expected):
        output = tmp_path / "out"
        files, _ = select(
            candidate_batches(order, rows_per_batch), dataset, STRICT, TAGSET, output, ["train"],
            work=tmp_path / "work", expected=expected, workers=workers,
        )  # fmt: skip
        assert all(entry.sha256 == sha256_file(output / name) for name, entry in files.items())
        return files

    first = hashes(rows, 2000, 1, 0)
    assert sum(entry.rows for entry in first.values()) == len(rows)
    assert hashes(rows[::-1], 17, 2, 10**6) == first


def test_row_groups_are_of_one_size_however_the_rows_come(run, monkeypatch, tmp_path):
    from tagpr_data import select as module

    monkeypatch.setattr(module, "_ROW_GROUP", 4)
    rows = [candidate("", prompt=f"q{n}") for n in range(10)]
    dataset = dataset_for(tmp_path / "dataset", rows)
    for expected in (0, 10**6):
        select(
            candidate_batches(rows, 3), dataset, Selection(), TAGSET, tmp_path / "out", ["train"],
            work=tmp_path / "work", expected=expected, workers=1,
        )  # fmt: skip
        import pyarrow.parquet as pq

        groups = pq.ParquetFile(tmp_path / "out/rejected/train.parquet").metadata
        assert [groups.row_group(n).num_rows for n in range(groups.num_row_groups)] == [4, 4, 2]


def test_a_journal_is_read_as_the_same_candidates(tmp_path):
    rows = [candidate(prompt=f"q{n}\n\x07“ü😀", attempt=n) for n in range(5)]
    with Journal(tmp_path / "candidates.jsonl", Candidate) as journal:
        for row in rows:
            journal.append(row)
    read = pl.concat(pl.from_arrow(batch) for batch in journal_batches(tmp_path / "candidates.jsonl", 2))
    assert [Candidate.model_validate(row) for row in read.iter_rows(named=True)] == rows
    (tmp_path / "candidates.jsonl").write_text('{"id": 3}\n')
    with pytest.raises(InputError, match=r"cannot be read as candidates: line 1: .*`tagpr-data annotate`"):
        list(journal_batches(tmp_path / "candidates.jsonl"))


def test_what_the_data_set_lacks_and_a_second_row_of_one_id_are_input_errors(run, tmp_path):
    row = candidate()
    dataset = dataset_for(tmp_path / "dataset", [row])

    def selected(*rows):
        select(
            candidate_batches(rows), dataset, Selection(), TAGSET, tmp_path / "out", ["train"], work=tmp_path / "work",
            workers=1,
        )  # fmt: skip

    with pytest.raises(InputError, match=r"example 'other/u/genre' of a candidate is not in the data set"):
        selected(candidate(prompt="other"))
    with pytest.raises(InputError, match=r"item 'z' in the prompt of 'q/u/genre' is not in its profile"):
        selected(row.model_copy(update={"item_ids": ("a", "z")}))
    with pytest.raises(InputError, match=f"candidate {row.id} occurs twice"):
        selected(row, row)
    for name, value, message in (
        ("id", "x", "has the id 'x'; right would be a SHA-256"),
        ("prompt_hash", "F" * 64, "has the prompt_hash 'FF"),
        ("user_id", "v", "of example 'q/u/genre' says user_id 'v'; in the data set .* it is 'u'"),
        ("task", "title", "of example 'q/u/genre' says task 'title'; in the data set .* it is 'genre'"),
    ):
        with pytest.raises(InputError, match=message):
            selected(type(row).model_construct(**{**dict(row), name: value}))
    assert not (tmp_path / "out/traces/train.parquet").exists() and not (tmp_path / "work").exists()


def test_settings_that_fit_no_task_or_language_are_input_errors(run):
    with pytest.raises(InputError, match="selection names the task 'verse'"):
        run(candidate(), rules=Selection(task_min_score={"verse": 1}))
    with pytest.raises(InputError, match="language 'klingon' is not known"):
        run(candidate(), rules=Selection(language="klingon"))


def test_one_candidate_is_judged_as_in_a_batch(reason_of):
    for text in TEXTS:
        row = candidate(text)
        alone = judge(row, GENRE, ITEMS, "2022", Selection(), TAGSET, "q")
        assert alone.reason == reason_of(row)


def test_counts_list_reasons_in_the_order_they_are_tried():
    row = candidate()
    rejected = [Rejected(**dict(row), reason=reason, detail="") for reason in reversed(REASONS)]
    assert list(count([], rejected).rejected.items()) == [(reason, 1) for reason in REASONS]
    assert all(REASONS.values())


def test_acceptance_is_the_share_kept_by_task(run):
    kept, rejected = run(candidate(prompt="q1"), candidate("", prompt="q2"), candidate("", prompt="q3", task="title"))
    assert count(kept, rejected).acceptance == {"genre": 0.5, "title": 0.0}
    assert Counts().acceptance == {}


def test_keeping_no_trace_of_a_prompt_is_no_rule():
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Selection(best_of=0)
