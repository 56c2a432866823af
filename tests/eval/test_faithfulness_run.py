"""Faithfulness of made-up reasoners, whose answers are known to come from trace, question or items."""

import json

import pytest
from typer.testing import CliRunner

from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.records import Faithfulness, Intervention, Message
from tagpr_data.tables import read_json, read_records
from tagpr_eval.cli import app
from tagpr_eval.config import EvaluationConfig
from tagpr_eval.faithfulness_run import Choice, examine, other_models
from tagpr_eval.run import Limits, evaluate

from .conftest import Server
from .made_up_reasoners import REASONERS, STEPS, Reasoner, write_data
from .test_run import only_ask

CELL = "shade.bm25.k4.trace.seed0"


def make_reasoner(spec, config):
    return REASONERS[spec.name]()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("shades") / "data")


def make_run(data, folder, styles=("trace",), models=tuple(REASONERS), k=(4,), baselines=()):
    config = EvaluationConfig(
        dataset=str(data),
        models=(*(f"{name}=openai:made-up" for name in models), *baselines),
        styles=styles,
        k=k,
        server={"base_url": "http://127.0.0.1:9/v1"},
    )
    evaluate(config, folder, make_model=make_reasoner, score=only_ask)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return make_run(data, tmp_path_factory.mktemp("runs") / "run", k=(0, 4))


@pytest.fixture(scope="module")
def found(run, tmp_path_factory):
    return examine(run, Choice(cells=(CELL,)), tmp_path_factory.mktemp("found") / "out", make_model=make_reasoner)


def one(found, model, action, measure, target=None, tag=None, step=None):
    (row,) = [
        row
        for row in found.measures
        if (row.model, row.action, row.measure, row.target, row.tag, row.step)
        == (model, action, measure, target, tag, step)
    ]
    return row


def test_a_model_that_answers_from_its_trace_is_told_from_one_that_ignores_it(found):
    for action, measure in (("transplant", "follows"), ("transplant", "changed"), ("replace", "follows")):
        tag = "infer_preference" if action == "replace" else None
        told = one(found, "trace", action, measure, tag=tag)
        for other in ("question", "items"):
            ignored = one(found, other, action, measure, tag=tag)
            assert told.low > ignored.high, (action, measure, other)
            assert (ignored.value, ignored.high) == (0, 0)
        assert told.value == 1


def test_a_model_that_ignores_its_trace_has_its_answer_before_the_first_step(found):
    for name in ("question", "items"):
        assert one(found, name, "cut", "early").value == 1
        assert all(one(found, name, "cut", "equal", step=step).value == 1 for step in range(STEPS + 1))
    told = one(found, "trace", "cut", "early")
    assert told.high < one(found, "question", "cut", "early").low
    assert one(found, "trace", "cut", "gain", tag="examine_examples").low > 0
    assert one(found, "trace", "cut", "gain", tag="analyze_query").value == 0


def test_a_model_that_answers_from_the_items_follows_their_labels_but_not_its_trace(found):
    for name in ("items", "trace"):
        assert one(found, name, "relabel", "follows", "difference").low > 0.5
    ignored = one(found, "question", "relabel", "follows", "difference")
    assert (ignored.low, ignored.high) == (0, 0)
    assert one(found, "question", "remove", "changed", "cited").value == 0


def test_unchanged_prompts_and_traces_bring_the_recorded_answer_back(found):
    for name in REASONERS:
        for action in ("regenerate", "repeat"):
            assert one(found, name, action, "reproduced").value == 1


def test_accuracy_after_all_steps_is_that_of_the_run_and_all_claims_of_the_made_up_traces_hold(run, found):
    recorded = json.loads((run / "run.json").read_text())["results"]["cells"]
    for name in REASONERS:
        (accuracy,) = [row["metrics"]["accuracy"] for row in recorded if (row["model"], row["cell"]) == (name, CELL)]
        assert one(found, name, "cut", "score", step=STEPS).value == pytest.approx(accuracy)
        assert one(found, name, "ground", "holds").value == 1


def test_every_drawn_answer_is_examined_or_skipped_with_a_reason(run, tmp_path):
    found = examine(run, Choice(examples=5), tmp_path / "out", make_model=make_reasoner)
    assert len(found.cells) == 2 * len(REASONERS)  # with and without items
    assert all(cell.drawn == 5 == cell.examined + sum(cell.skipped.values()) for cell in found.cells)
    assert all(cell.not_made["no-citation"] == 5 for cell in found.cells if cell.k == 0)
    rows = read_records(tmp_path / "out" / "interventions.parquet", Intervention)
    assert {row.k for row in rows if row.target} == {4}


def test_an_answer_that_is_no_trace_is_skipped_and_counted(data, tmp_path):
    class Untidy(REASONERS["trace"]):
        def write(self, messages):
            whole = super().write(messages)
            if messages[-1].role != "assistant" and "for 3" in messages[1].content:
                return whole.replace("<think>", "")
            return whole.replace("keeps to", "likes") if "for 4" in messages[1].content else whole

    def untidy(spec, config):
        return Untidy()

    config = EvaluationConfig(dataset=str(data), models=("trace=openai:x",), styles=("trace",))
    evaluate(config, tmp_path / "run", make_model=untidy, score=only_ask)
    found = examine(tmp_path / "run", make_model=untidy)
    (cell,) = found.cells
    assert (cell.drawn, cell.examined, cell.skipped) == (48, 46, {"invalid-trace": 2})


def files(folder):
    manifest = json.loads((folder / "faithfulness.json").read_text())
    manifest.pop("git_revision")  # somebody may commit between two runs
    return manifest, (folder / "interventions.parquet").read_bytes(), (folder / "samples.jsonl").read_bytes()


def test_a_broken_off_run_goes_on_asks_nothing_twice_and_ends_in_the_same_files(run, tmp_path):
    choice = Choice(models=("trace",), cells=(CELL,), examples=6)
    whole = REASONERS["trace"]()
    examine(run, choice, tmp_path / "whole", make_model=lambda *_: whole)

    class Dying(REASONERS["trace"]):
        def write(self, messages):
            if self.calls > 40:
                raise CheckFailed("the server has gone")
            return super().write(messages)

    with pytest.raises(CheckFailed, match="gone"):
        examine(run, choice, tmp_path / "broken", make_model=lambda *_: Dying())
    assert read_json(tmp_path / "broken" / "faithfulness.json", Faithfulness).status == "running"

    class Same(REASONERS["trace"]):
        identity = Dying().identity

    again = Same()
    with pytest.raises(InputError, match="other models"):  # Same is another class: another identity than Dying
        examine(run, choice, tmp_path / "whole", make_model=lambda *_: again)
    done = examine(run, choice, tmp_path / "broken", make_model=lambda *_: again)
    assert done.status == "complete"
    assert again.calls == whole.calls - 40
    assert done.measures == read_json(tmp_path / "whole" / "faithfulness.json", Faithfulness).measures
    repeated = Same()
    assert examine(run, choice, tmp_path / "broken", make_model=lambda *_: repeated) == done
    assert repeated.calls == 0


def test_a_limit_stops_with_a_marked_result_and_higher_limits_go_on(run, tmp_path):
    choice = Choice(models=("trace",), cells=(CELL,), examples=12)
    partial = examine(run, choice, tmp_path / "out", make_model=make_reasoner, limits=Limits(max_samples=130))
    assert partial.status == "partial"
    assert partial.measures
    assert partial.cells[0].not_made["not-answered"] > 0
    assert len((tmp_path / "out" / "samples.jsonl").read_text().splitlines()) == 130
    done = examine(run, choice, tmp_path / "out", make_model=make_reasoner)
    examine(run, choice, tmp_path / "whole", make_model=make_reasoner)
    assert done.status == "complete"
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_equal_prompts_are_asked_once(run, tmp_path):
    model = REASONERS["items"]()
    examine(run, Choice(models=("items",), cells=(CELL,), examples=8), tmp_path / "out", make_model=lambda *_: model)
    rows = read_records(tmp_path / "out" / "interventions.parquet", Intervention)
    assert model.calls == len({row.prompt_hash for row in rows}) < len(rows)


def test_more_examples_go_on_with_what_is_there_and_other_settings_are_refused(run, tmp_path):
    few, more = (Choice(models=("trace",), cells=(CELL,), examples=number) for number in (4, 9))
    first, then, whole = (REASONERS["trace"]() for _ in range(3))
    examine(run, few, tmp_path / "out", make_model=lambda *_: first)
    done = examine(run, more, tmp_path / "out", make_model=lambda *_: then)
    assert done == examine(run, more, tmp_path / "whole", make_model=lambda *_: whole)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert first.calls + then.calls == whole.calls
    for other in (few, Choice(models=("trace",), cells=(CELL,), examples=9, seed=1), Choice(cells=(CELL,), examples=9)):
        with pytest.raises(InputError, match=r"holds interventions of other (settings|models)"):
            examine(run, other, tmp_path / "out", make_model=make_reasoner)
    assert read_json(tmp_path / "out" / "faithfulness.json", Faithfulness) == done


def test_the_same_seed_gives_the_same_interventions_and_another_one_others(run, tmp_path):
    choice = {"models": ("trace",), "cells": (CELL,), "examples": 6}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        examine(run, Choice(**choice, seed=seed), tmp_path / name, make_model=make_reasoner)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a")[1] != files(tmp_path / "c")[1]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(cells=("shade.bm25.k9.trace.seed0",)), "k9.*is not in the run; cells with traces: .*k4"),
        (Choice(models=("nobody=openai:x",)), "did not run; models of the run: trace, question, items"),
        (Choice(models=("knn",)), "a baseline writes no trace"),
        (Choice(models=("openai:x",)), "did not run.*NAME=hf:DIR"),
        (Choice(models=("trace", "trace=openai:y")), "twice"),
        (Choice(server={"base_url": 3}), "cannot be used again"),
    ],
)
def test_a_choice_the_run_does_not_have_is_refused_with_what_there_is(run, tmp_path, choice, message):
    with pytest.raises(InputError, match=message):
        examine(run, choice, tmp_path / "out", make_model=make_reasoner)
    assert not (tmp_path / "out").exists()


def test_a_run_in_direct_style_or_of_baselines_alone_is_refused(data, tmp_path):
    direct = make_run(data, tmp_path / "direct", styles=("direct", "trace"), models=("question",))
    with pytest.raises(InputError, match=r"asks for no trace; cells with traces: shade.bm25.k4.trace.seed0"):
        examine(direct, Choice(cells=("shade.bm25.k4.direct.seed0",)), make_model=make_reasoner)
    plain = make_run(data, tmp_path / "plain", styles=("direct",), models=("question",), baselines=("knn",))
    with pytest.raises(
        InputError, match=r"holds no trace of question .prompt styles: direct.; answer with --style trace"
    ):
        examine(plain, make_model=make_reasoner)
    rules = make_run(data, tmp_path / "rules", models=(), baselines=("knn", "copy-last"))
    with pytest.raises(InputError, match=r"holds baselines only .knn, copy-last."):
        examine(rules, make_model=make_reasoner)


def test_no_readable_trace_at_all_is_a_failed_check_that_names_the_reasons(data, tmp_path):
    class Mute(Reasoner):
        def write(self, messages):
            return "amber"

    config = EvaluationConfig(dataset=str(data), models=("mute=openai:x",), styles=("trace",))
    evaluate(config, tmp_path / "run", make_model=lambda *_: Mute(), score=only_ask)
    with pytest.raises(CheckFailed, match=r"none of the 48 recorded answers can be looked into .invalid-trace 48"):
        examine(tmp_path / "run", make_model=lambda *_: Mute())


def test_a_data_set_that_has_gone_can_be_named_anew_but_not_replaced(data, tmp_path, make_data):
    moved = write_data(tmp_path / "here")
    run = make_run(moved, tmp_path / "run", models=("trace",))
    moved.rename(tmp_path / "there")
    with pytest.raises(InputError, match="say with --dataset where it is"):
        examine(run, make_model=make_reasoner)
    with pytest.raises(InputError, match="give the one it was made on"):
        examine(run, dataset=make_data("other"), make_model=make_reasoner)
    found = examine(run, Choice(examples=2), dataset=tmp_path / "there", make_model=make_reasoner)
    assert found.status == "complete"


class ReasonerServer(Server):
    """A served made-up model: continues a last assistant turn."""

    def __init__(self, reasoner):
        self.reasoner = reasoner
        super().__init__()

    def answer(self, request, body, treatment):
        messages = tuple(Message.model_validate(message) for message in body["messages"])
        answer = {
            "choices": [{"message": {"content": self.reasoner.write(messages)}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 4},
        }
        content = json.dumps(answer).encode()
        request.send_response(200)
        request.send_header("content-length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)


@pytest.fixture
def served():
    running = ReasonerServer(REASONERS["trace"]())
    yield running
    running.stop()


def test_the_command_looks_into_a_served_model_that_has_moved(run, served, tmp_path):
    command = [
        "faithfulness", str(run), "--model", "trace=openai:made-up", "--base-url", served.url, "--cell", CELL,
        "--examples", "6", "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "trace shade bm25 k=4 trace: 6 of 6 answers looked into" in result.output
    assert "transplant follows              1.000 [1.000, 1.000]" in result.output
    assert "warning: model trace is not the one the run recorded" in result.stderr
    found = read_json(tmp_path / "out" / "faithfulness.json", Faithfulness)
    assert other_models(found) == ["trace"]
    bodies = [body for _, _, body in served.requests]
    forced = [body["messages"][-1]["role"] == "assistant" for body in bodies]
    assert 0 < sum(forced) < len(forced)
    assert [body.get("continue_final_message", False) for body in bodies] == forced
    asked = len(served.requests)
    assert CliRunner().invoke(app, command).exit_code == 0
    assert len(served.requests) == asked
