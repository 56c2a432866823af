"""Spread over profile lengths and retrievers, by hand; the chapter that shows it is tested in test_tables.py."""

import pytest

from tagpr_eval import cells, tables_robustness

from .test_tables import RIGHT, dataset, make_grid

__all__ = ["dataset"]  # the fixture


def spread_of(folder, reference):
    (group,) = cells.make_groups(cells.load_runs([folder]))
    table = tables_robustness.robustness_table(group, reference)
    if table is None:
        return None
    names = [column.name for column in table.columns]
    return [dict(zip(names, row.values, strict=True)) for row in table.rows]


def test_models_are_compared_in_the_settings_that_all_of_them_ran(dataset, tmp_path):
    """Without random at k = 1 base has 6, 12 and 6 right users of 12, sft 9, 9 and 6: one mean, half the spread."""
    base = {one: users for one, users in RIGHT["base"].items() if one != ("random", 1)}
    rows = spread_of(make_grid(tmp_path / "run", dataset, {"base": base, "sft": RIGHT["sft"]}, rules=()), "base")
    assert rows is not None
    of_base, of_sft = rows
    assert [of_base["mean"].value, of_sft["mean"].value] == pytest.approx([24 / 36, 24 / 36])
    assert [of_base["over_retrievers"].value, of_sft["over_retrievers"].value] == pytest.approx([6 / 12, 3 / 12])
    assert [of_base["over_k"].value, of_sft["over_k"].value] == pytest.approx([6 / 12, 0])
    assert (of_base["less_over_k"], of_sft["less_over_k"].value) == (None, pytest.approx(6 / 12))


def test_one_setting_has_no_spread_and_a_control_is_no_setting(dataset, tmp_path):
    one = {"sft": {("bm25", 4): 9}}  # and a wrong user's items at k = 4
    folder = make_grid(tmp_path / "run", dataset, one, rules=())
    (group,) = cells.make_groups(cells.load_runs([folder]))
    assert not tables_robustness.has_curves(group)
    assert spread_of(folder, "sft") is None
