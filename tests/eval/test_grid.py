import pytest

from tagpr_data.errors import InputError
from tagpr_data.prompts import PromptOptions
from tagpr_data.tags import load_tagset
from tagpr_eval.config import EvaluationConfig
from tagpr_eval.grid import Cell, Prompter, baseline_cells, cells, draw

DIRECT = PromptOptions(style="direct")


def config(**settings):
    return EvaluationConfig(dataset="unused", models=("oracle",), **settings)


def prompter(dataset, pool=None):
    examples = dataset.examples("test")
    return Prompter(dataset, examples, pool or examples, load_tagset())


def test_no_profile_is_one_cell_however_it_is_asked_for():
    grid = cells(config(retrievers=("bm25", "none", "wrong-user", "full"), k=(0, 4, 8)), ["colour"])
    shown = [(cell.retriever, cell.k) for cell in grid]
    assert shown == [("none", 0), ("bm25", 4), ("bm25", 8), ("wrong-user", 4), ("wrong-user", 8), ("full", 0)]


def test_an_unknown_retriever_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"'bm52' is unknown; known: .*bm25.*recency.*wrong-user"):
        cells(config(retrievers=("bm52",)), ["colour"])


def test_a_baseline_has_one_cell_a_task_and_a_stranger_only_if_it_reads_profiles():
    grid = cells(config(retrievers=("bm25", "wrong-user"), k=(1, 4), seeds=(3, 4)), ["colour", "note"])
    assert [(c.task, c.retriever, c.k, c.seed) for c in baseline_cells(grid, False)] == [
        ("colour", "full", 0, 3),
        ("note", "full", 0, 3),
    ]
    assert [c.retriever for c in baseline_cells(grid, True)] == ["full", "wrong-user"] * 2


def test_a_larger_draw_holds_the_smaller_one_in_the_given_order(toy):
    rows = toy.examples("test")
    small, large = draw(rows, 5), draw(rows, 11)
    assert (len(small), len(large)) == (5, 11)
    assert set(small) < set(large)
    assert [row for row in rows if row in large] == large
    assert draw(rows, 1000) == rows


def test_k_beyond_the_profile_shows_all_of_it_and_its_prompt_is_the_same(toy):
    make = prompter(toy)
    few = make.questions(Cell("colour", "bm25", 4, "direct", 0), DIRECT)
    many = make.questions(Cell("colour", "bm25", 99, "direct", 0), DIRECT)
    for short, long in zip(few, many, strict=True):
        size = short.example.profile_size
        assert len(short.item_ids) == min(4, size)
        assert len(long.item_ids) == size
        assert (short.prompt_hash == long.prompt_hash) == (size <= 4)


def test_the_prompt_shows_the_items_in_ranked_order(toy):
    for question in prompter(toy).questions(Cell("colour", "recency", 3, "direct", 0), DIRECT):
        user = question.example.user_id
        newest_first = [f"{user}i{n}" for n in reversed(range(question.example.profile_size))][:3]
        assert list(question.item_ids) == newest_first
        assert question.profile_id == question.example.profile_id
        places = [question.messages[1].content.index(f"thing {name.split('i')[1]} of") for name in question.item_ids]
        assert places == sorted(places)


def test_a_wrong_user_is_a_stranger_and_stays_the_same_when_fewer_examples_are_asked(toy):
    cell = Cell("colour", "wrong-user", 4, "direct", 0)
    pool = toy.examples("test")
    everything = {row.example.id: row for row in prompter(toy).questions(cell, DIRECT)}
    some = Prompter(toy, draw(pool, 7), pool, load_tagset()).questions(cell, DIRECT)
    assert some
    for question in some:
        assert question == everything[question.example.id]
    for question in everything.values():
        assert all(item.startswith(f"u{question.profile_id[1:]}i") for item in question.item_ids)
        assert question.profile_id != question.example.profile_id
        assert len(question.item_ids) == min(
            4, question.example.profile_size, 6 if question.example.user_id == "u4" else 9
        )


def test_recency_without_dates_names_the_example(make_data):
    from tagpr_data.dataset import Dataset

    with pytest.raises(InputError, match="example colour-1-0, profile p1: recency needs a date"):
        prompter(Dataset.load(make_data(dated=False))).questions(Cell("colour", "recency", 1, "direct", 0), DIRECT)
