import asyncio
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tagpr_data.errors import InputError
from tagpr_data.generate import Prompt, Retrieval, generate, make_prompts
from tagpr_data.journal import folder_lock
from tagpr_data.prompts import PromptOptions
from tagpr_data.records import Example, Sampling
from tagpr_data.tags import load_tagset
from tagpr_data.teachers import Assignment, Reply, ScriptedTeacher

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

    async def write(self, assignment: Assignment) -> Reply:
        if len(self.asked) >= self.patience:
            raise KeyboardInterrupt
        self.asked.append(assignment)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        return Reply(text=f"{assignment.input} {assignment.seed}", finish_reason="stop")

    async def close(self) -> None:
        pass


def prompts_of(songs, empty_share=0.0, k=3, retriever="bm25") -> list[Prompt]:
    examples = {split: songs.examples(split) for split in songs.splits}
    return make_prompts(songs, examples, Retrieval(retriever, k, empty_share, 0), OPTIONS, load_tagset())[0]


def run(folder: Path, songs, teacher, prompts, attempts=2, concurrency=1):
    return generate(folder, prompts, teacher, songs, OPTIONS, Sampling(), 0, attempts, concurrency)


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
    prompts, skipped = make_prompts(songs, {"train": rows}, retrieval, OPTIONS, load_tagset())
    assert [prompt.example_id for prompt in prompts] == [example.id]
    assert skipped == {"no-gold": 1, "gold-in-prompt": 1, "duplicate-prompt": 1}


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


KILLED = """
import os, signal, sys
from pathlib import Path
from tagpr_data.dataset import Dataset
from tagpr_data.generate import Prompt, generate
from tagpr_data.prompts import PromptOptions
from tagpr_data.records import Sampling
from tagpr_data.tables import read_records
from tagpr_data.teachers import ScriptedTeacher

left = int(sys.argv[4])

def count():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

prompts = read_records(Path(sys.argv[2]), Prompt)
generate(Path(sys.argv[3]), prompts, ScriptedTeacher(), Dataset.load(Path(sys.argv[1])), PromptOptions(), Sampling(),
         0, 2, on_candidate=count)
"""


@pytest.mark.slow
def test_kill_9_loses_nothing_that_arrived(songs, song_folder, tmp_path):
    from tagpr_data.tables import frame_from_records, write_table

    prompts = prompts_of(songs)
    write_table(tmp_path / "prompts.parquet", frame_from_records(prompts, Prompt), Prompt, ["prompt_hash"])
    places = [str(song_folder), str(tmp_path / "prompts.parquet"), str(tmp_path / "killed")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for point, expected_rows in ((1, 1), (5, 5), (11, 11)):
        killed = subprocess.run([sys.executable, "-c", KILLED, *places, str(point)], env=environment, check=False)
        assert killed.returncode == -9
        lines = (tmp_path / "killed" / "candidates.jsonl").read_text().splitlines()
        assert len({json.loads(line)["id"] for line in lines}) == len(lines) == expected_rows
    resumed = run(tmp_path / "killed", songs, ScriptedTeacher(), prompts)
    assert resumed == run(tmp_path / "whole", songs, ScriptedTeacher(), prompts)


def test_another_seed_of_the_teacher_is_another_attempt_and_old_answers_stay(songs, tmp_path):
    prompts = prompts_of(songs)
    first = generate(tmp_path, prompts, CountingTeacher(), songs, OPTIONS, Sampling(), 0, 1)
    other = generate(tmp_path, prompts, CountingTeacher(), songs, OPTIONS, Sampling(), 1, 1)
    assert not {row.id for row in first} & {row.id for row in other}
    again = CountingTeacher()
    assert generate(tmp_path, prompts, again, songs, OPTIONS, Sampling(), 0, 1) == first
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
    examples = {"train": [row for row in songs.examples("train") if row.task == "title"][:1]}
    prompts = make_prompts(songs, examples, Retrieval("bm25", 1, 0.0, 0), options, load_tagset())[0]
    teacher = CountingTeacher()
    generate(tmp_path, prompts, teacher, songs, options, Sampling(), 0, 1)
    (assignment,) = teacher.asked
    shown = prompts[0].messages[1].content
    assert assignment.input in shown and assignment.input.endswith("…")
    assert assignment.items[0].text in shown and assignment.items[0].label is None


def test_a_second_process_is_refused(songs, tmp_path):
    with folder_lock(tmp_path), pytest.raises(InputError, match="in use by process"):
        run(tmp_path, songs, CountingTeacher(), prompts_of(songs))
