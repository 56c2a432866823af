import asyncio
import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tagpr_data.budget import Forecast, Limits
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.generate import (
    Generation,
    Profiles,
    Prompt,
    Retrieval,
    TeacherPlan,
    attempt_id,
    generate,
    make_prompts,
)
from tagpr_data.journal import folder_lock
from tagpr_data.prompts import PromptOptions
from tagpr_data.records import Candidate, Example, Sampling
from tagpr_data.tables import read_records, table_writer
from tagpr_data.tags import load_tagset
from tagpr_data.teachers import Assignment, Reply

OPTIONS = PromptOptions()


@dataclass
class CountingTeacher:
    """Answers with its input; counts what it is asked, and stops the process of thought after `patience` answers."""

    patience: int = 1000
    asked: list[Assignment] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    name: str = "counting"
    revision: str = "1"
    tokens: int | None = None

    async def write(self, assignment: Assignment) -> Reply:
        if len(self.asked) >= self.patience:
            raise KeyboardInterrupt
        self.asked.append(assignment)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        text = f"{assignment.input} {assignment.seed}"
        return Reply(text, "stop", self.tokens, self.tokens if self.tokens is None else 2 * self.tokens)

    def stop(self) -> None:
        pass

    async def close(self) -> None:
        pass


def made(songs, examples, retrieval, options=OPTIONS) -> tuple[list[Prompt], Counter[str]]:
    skipped = Counter[str]()
    return list(make_prompts(songs, examples, retrieval, options, load_tagset(), skipped)), skipped


def prompts_of(songs, empty_share=0.0, k=3, retriever="bm25") -> list[Prompt]:
    examples = [(split, example) for split in songs.splits for example in songs.examples(split)]
    return made(songs, examples, Retrieval(retriever, k, empty_share, 0))[0]


def accept_all(candidate, prompt, items) -> None:
    return None


def accept_none(candidate, prompt, items) -> str:
    return "low-score"


def ask(folder: Path, songs, prompts, plans, judge=accept_all, options=OPTIONS, seed=0, **settings) -> Generation:
    folder.mkdir(parents=True, exist_ok=True)
    with table_writer(folder / "prompts.parquet", Prompt) as write:
        for prompt in prompts:
            write(prompt)
    return generate(folder, folder / "prompts.parquet", plans, songs, options, seed, judge, **settings)


def rows_in(folder: Path) -> list[Candidate]:
    return read_records(folder / "candidates.parquet", Candidate)


def run(folder: Path, songs, teacher, prompts, attempts=2, concurrency=1, seed=0, options=OPTIONS) -> list[Candidate]:
    plan = TeacherPlan(teacher, (Sampling(),) * attempts, concurrency)
    assert ask(folder, songs, prompts, [plan], options=options, seed=seed).status == "complete"
    return rows_in(folder)


def test_prompts_show_only_items_from_before_the_query(songs):
    dates = dict(songs.profiles.select("item_id", "date").iter_rows())
    examples = {example.id: example for split in songs.splits for example in songs.examples(split)}
    rows = prompts_of(songs, k=10)
    assert rows
    for row in rows:
        assert len(row.item_ids) == examples[row.example_id].profile_size
        assert all(dates[item_id] < examples[row.example_id].date for item_id in row.item_ids)


def test_the_retriever_decides_which_items_are_shown_and_in_which_order(songs):
    recent = prompts_of(songs, retriever="recency")
    row = next(row for row in recent if row.example_id == "genre-ann-8")
    assert row.item_ids == ("ann-7", "ann-6", "ann-5")


def test_the_share_without_profile_is_drawn_by_example_and_shows_nothing(songs):
    rows = prompts_of(songs, empty_share=0.5)
    empty = {row.example_id for row in rows if row.k == 0}
    assert 0 < len(empty) < len(rows)
    assert all(row.item_ids == () for row in rows if row.k == 0)
    assert empty == {row.example_id for row in prompts_of(songs, empty_share=0.5) if row.k == 0}
    assert {row.k for row in prompts_of(songs, empty_share=1.0)} == {0}


def test_examples_are_left_out_with_a_reason_when_the_prompt_repeats_holds_the_gold_or_has_none(songs):
    example = songs.examples("train")[0]
    twin = example.model_copy(update={"id": "twin"})
    unanswered = example.model_copy(update={"id": "unanswered", "output": None})
    title = next(row for row in songs.examples("train") if row.task == "title")
    gold = "a guitar riff about"
    given_away = title.model_copy(update={"id": "given-away", "input": f"{gold} the road", "output": gold})
    retrieval = Retrieval("bm25", 3, 0.0, 0)
    rows: list[Example] = [example, twin, unanswered, given_away]
    prompts, skipped = made(songs, [("train", row) for row in rows], retrieval)
    assert [prompt.example_id for prompt in prompts] == [example.id]
    assert skipped == {"no-gold": 1, "gold-in-prompt": 1, "duplicate-prompt": 1}


def test_an_attempts_id_is_the_hash_of_prompt_teacher_sampling_seed_and_attempt_in_canonical_json(songs, tmp_path):
    teacher = CountingTeacher(name='mod\u00e8le "1"', revision="r\n2")
    plan = TeacherPlan(teacher, (Sampling(), Sampling(temperature=0.7, stop=("</think>", '"'))))
    ask(tmp_path, songs, prompts_of(songs)[:3], [plan], seed=5)
    for row in rows_in(tmp_path):
        made_of = [row.prompt_hash, teacher.name, teacher.revision, row.sampling.model_dump(mode="json")]
        text = json.dumps(
            [*made_of, row.seed, row.attempt], sort_keys=True, ensure_ascii=False, separators=(",", ":")
        )  # fmt: skip
        assert row.id == hashlib.sha256(text.encode()).hexdigest()
        assert row.id == attempt_id(*made_of[:3], row.sampling, row.seed, row.attempt)


def test_an_interrupted_run_goes_on_and_asks_for_nothing_twice(songs, tmp_path):
    prompts = prompts_of(songs)
    whole = CountingTeacher()
    expected = run(tmp_path / "whole", songs, whole, prompts)
    assert len(expected) == len(whole.asked) == 2 * len(prompts)

    asked = 0
    for patience in (1, 7, 1000):
        teacher = CountingTeacher(patience=patience)
        try:
            result = run(tmp_path / "torn", songs, teacher, prompts)
        except KeyboardInterrupt:
            with (tmp_path / "torn" / "candidates.jsonl").open("ab") as file:
                file.write(b'{"id": "torn line')
        asked += len(teacher.asked)
    assert result == expected
    assert asked == 2 * len(prompts)


def test_another_seed_of_the_teacher_is_another_attempt_and_old_answers_stay(songs, tmp_path):
    prompts = prompts_of(songs)
    first = run(tmp_path, songs, CountingTeacher(), prompts, 1)
    other = run(tmp_path, songs, CountingTeacher(), prompts, 1, seed=1)
    assert not {row.id for row in first} & {row.id for row in other}
    again = CountingTeacher()
    assert run(tmp_path, songs, again, prompts, 1) == first
    assert again.asked == []


def test_concurrency_is_bounded_and_does_not_change_the_result(songs, tmp_path):
    prompts = prompts_of(songs)
    teacher = CountingTeacher()
    assert run(tmp_path / "many", songs, teacher, prompts, concurrency=4) == run(
        tmp_path / "one", songs, CountingTeacher(), prompts
    )
    assert teacher.most_at_once == 4


def test_a_teacher_sees_what_the_prompt_shows_and_no_more(songs, tmp_path):
    options = PromptOptions(item_words=2, input_words=3)
    examples = [("train", row) for row in songs.examples("train") if row.task == "title"][:1]
    prompts = made(songs, examples, Retrieval("bm25", 1, 0.0, 0), options)[0]
    teacher = CountingTeacher()
    run(tmp_path, songs, teacher, prompts, 1, options=options)
    (assignment,) = teacher.asked
    shown = prompts[0].messages[1].content
    assert assignment.input in shown and assignment.input.endswith("…")
    assert assignment.items[0].text in shown and assignment.items[0].label is None


def test_a_second_process_is_refused(songs, tmp_path):
    with folder_lock(tmp_path), pytest.raises(InputError, match="in use by process"):
        run(tmp_path, songs, CountingTeacher(), prompts_of(songs))


def test_attempts_climb_the_temperature_ladder_and_teachers_stand_in_their_order(songs, tmp_path):
    prompts = prompts_of(songs)[:3]
    ladder = (Sampling(), Sampling(temperature=0.7))
    plans = [TeacherPlan(CountingTeacher(name="b"), ladder), TeacherPlan(CountingTeacher(name="a"), (Sampling(),), 4)]
    outcome = ask(tmp_path, songs, prompts, plans)
    assert outcome.tally.planned == outcome.tally.answers == 9
    assert [(row.prompt_hash, row.teacher, row.attempt, row.sampling.temperature) for row in rows_in(tmp_path)] == [
        (prompt.prompt_hash, *rest) for prompt in prompts for rest in (("b", 0, 0.0), ("b", 1, 0.7), ("a", 0, 0.0))
    ]
    assert sum(usage.answers for (teacher, _), usage in outcome.tally.used.items() if teacher == "b") == 6


def test_one_teacher_given_twice_is_refused(songs, tmp_path):
    plans = [TeacherPlan(CountingTeacher(), (Sampling(),))] * 2
    with pytest.raises(InputError, match="two teachers are the same: counting, counting"):
        ask(tmp_path, songs, prompts_of(songs), plans)


def accept_warm(candidate, prompt, items) -> str | None:
    """Accepts the second attempt of the first teacher for titles, nothing but the second teacher for genres."""
    good = candidate.attempt == 1 if candidate.task == "title" else candidate.teacher == "second"
    return None if good else "low-score"


@pytest.mark.parametrize("concurrency", [1, 5])
def test_until_accepted_asks_no_more_than_it_needs_and_says_the_same_whatever_the_order(songs, tmp_path, concurrency):
    prompts = prompts_of(songs)
    first, second = CountingTeacher(name="first"), CountingTeacher(name="second")
    plans = [TeacherPlan(first, (Sampling(),) * 3, concurrency), TeacherPlan(second, (Sampling(),) * 2, concurrency)]
    outcome = ask(tmp_path, songs, prompts, plans, accept_warm, until_accepted=1)
    # 12 titles: 2 asked of the first; 12 genres: 3 of the first, 1 of the second
    assert (len(first.asked), len(second.asked)) == (60, 12)
    assert (outcome.tally.planned, outcome.tally.spared, outcome.tally.answers) == (120, 48, 72)
    assert outcome.status == "complete" and outcome.tally.accepted == 24
    rows = rows_in(tmp_path)
    assert [row.task for row in rows].count("title") == 24
    again = CountingTeacher(name="first")
    plans = [TeacherPlan(again, (Sampling(),) * 3), plans[1]]
    assert ask(tmp_path, songs, prompts, plans, accept_warm, until_accepted=1).tally.found == 72
    assert rows_in(tmp_path) == rows and again.asked == []


def test_rules_that_became_looser_drop_what_would_not_have_been_asked(songs, tmp_path):
    prompts = prompts_of(songs)
    plans = [TeacherPlan(CountingTeacher(), (Sampling(),) * 3)]
    ask(tmp_path, songs, prompts, plans, accept_none, until_accepted=1)
    assert len(rows_in(tmp_path)) == 72
    ask(tmp_path, songs, prompts, plans, accept_all, until_accepted=1)
    assert [row.attempt for row in rows_in(tmp_path)] == [0] * 24


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(max_samples=10), 10),
        (Limits(max_tokens=300), 10),  # 10 read and 20 written each
        (Limits(max_cost=0.000_5), 10),  # 1 a million read, 2 a million written: 50 millionths each
        (Limits(max_samples=0), 0),
    ],
)
@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_limit_stops_in_good_order_and_a_higher_one_goes_on_to_the_same_rows(
    songs, tmp_path, limits, expected, concurrency
):
    prompts = prompts_of(songs)
    teacher = CountingTeacher(tokens=10)
    plans = [TeacherPlan(teacher, (Sampling(max_new_tokens=20),), concurrency, (1.0, 2.0))]
    outcome = ask(tmp_path / "short", songs, prompts, plans, limits=limits)
    # before there is a mean, what an answer may use at most is set aside for each question
    assert outcome.status == "partial"
    assert outcome.tally.answers == len(rows_in(tmp_path / "short")) == outcome.spent.answers <= expected
    assert outcome.tally.answers == expected or limits.max_samples is None
    again = ask(tmp_path / "short", songs, prompts, plans, limits=limits)
    assert again.tally.answers <= expected and again.spent.tokens <= 300
    assert again.tally.answers == expected
    assert ask(tmp_path / "short", songs, prompts, plans).status == "complete"
    assert len(teacher.asked) == 24
    run(tmp_path / "whole", songs, CountingTeacher(tokens=10), prompts, 1)
    whole = [row.model_copy(update={"sampling": Sampling(max_new_tokens=20)}) for row in rows_in(tmp_path / "whole")]
    assert [row.text for row in rows_in(tmp_path / "short")] == [row.text for row in whole]


def test_limits_count_answers_of_earlier_settings_too(songs, tmp_path):
    prompts = prompts_of(songs)
    ask(tmp_path, songs, prompts, [TeacherPlan(CountingTeacher(name="old"), (Sampling(),))])
    new = CountingTeacher(name="new")
    outcome = ask(tmp_path, songs, prompts, [TeacherPlan(new, (Sampling(),))], limits=Limits(max_samples=30))
    assert len(new.asked) == outcome.tally.answers == 6
    assert outcome.spent.answers == 30


def test_the_pilot_forecasts_the_whole_and_is_part_of_it(songs, tmp_path):
    prompts = prompts_of(songs)
    teacher = CountingTeacher(tokens=10)
    plans = [TeacherPlan(teacher, (Sampling(),) * 2, 2, (1.0, 2.0))]
    forecasts: list[Forecast] = []
    settings = {"pilot_share": 0.01, "on_forecast": forecasts.append}
    outcome = ask(tmp_path, songs, prompts, plans, is_pilot_only=True, **settings)
    asked = len(teacher.asked)
    assert outcome.status == "pilot" and 0 < asked < 48 and asked == 2 * forecasts[0].prompts
    assert outcome.tally.answers == asked == len(rows_in(tmp_path))
    # every prompt uses as much, so the interval is a point
    for interval, total in ((forecasts[0].answers, 48), (forecasts[0].tokens, 1440), (forecasts[0].cost, 0.0024)):
        assert [interval.low, interval.expected, interval.high] == pytest.approx([total] * 3)
    assert forecasts[0].hours is not None and forecasts[0].acceptance == 1.0
    assert ask(tmp_path, songs, prompts, plans, **settings).status == "complete"
    assert len(teacher.asked) == 48
    assert forecasts[1].hours is None and forecasts[1].tokens == forecasts[0].tokens


@dataclass
class FailingTeacher(CountingTeacher):
    """Fails at its fourth question."""

    async def write(self, assignment: Assignment) -> Reply:
        if len(self.asked) == 3:
            self.asked.append(assignment)
            raise CheckFailed("the server is gone")
        return await super().write(assignment)


def test_an_error_of_one_teacher_stops_all_and_keeps_what_was_answered(songs, tmp_path):
    prompts = prompts_of(songs)
    other = CountingTeacher(name="other")
    plans = [TeacherPlan(FailingTeacher(name="failing"), (Sampling(),)), TeacherPlan(other, (Sampling(),), 2)]
    with pytest.raises(CheckFailed, match="the server is gone"):
        ask(tmp_path, songs, prompts, plans)
    kept = (tmp_path / "candidates.jsonl").read_bytes().count(b"\n")
    assert kept == 3 + len(other.asked) < 48
    assert not (tmp_path / "candidates.parquet").exists()


def test_only_so_many_profiles_are_held_and_each_is_whole_again_when_needed(songs):
    examples = [example for example in songs.examples("train") if example.task == "genre"]
    bounded, free = Profiles(songs, most=1), Profiles(songs, examples)
    for example in (*examples, *reversed(examples)):
        assert bounded.items(example) == free.items(example) == songs.profile(example)
