"""Grids from a file: shards and their merge, limits, exports. lighteval is left out (`only_ask`)."""

import json
import zipfile

import pytest

from tagpr_data.budget import read_prices
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.lamp.files import read_outputs
from tagpr_data.records import Prediction
from tagpr_data.tables import read_records, sha256_text
from tagpr_eval.config import EvaluationConfig, read_shard
from tagpr_eval.export import export_eval_results, export_lamp
from tagpr_eval.run import Limits, evaluate, merge, summary


def only_ask(prompts, name, answer, output):
    import polars as pl

    for file in sorted(prompts.glob("*.parquet")):
        answer(pl.read_parquet(file)["cell", "example_id"].rows())


def config(data, server=None, **settings):
    base = {"base_url": server.url, "concurrency": 1} if server else {}
    return EvaluationConfig(
        dataset=str(data), **{"models": ("t=openai:tiny", "knn"), "k": (0, 2), "server": base, **settings}
    )


def run(config, output, **more):
    return evaluate(config, output, score=only_ask, **more)


def content(folder):
    manifest = json.loads((folder / "run.json").read_text())
    manifest.pop("git_revision")  # somebody may commit between two runs
    return manifest, (folder / "predictions.parquet").read_bytes(), (folder / "samples.jsonl").read_bytes()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_shards_share_the_work_and_merge_into_the_same_bytes(toy_data, tiny_model, tmp_path, count):
    grid = config(
        toy_data, models=(f"m=hf:{tiny_model}", "knn"), sampling={"max_new_tokens": 4}, local={"batch_size": 5}
    )
    run(grid, tmp_path / "whole")
    folders = [tmp_path / f"shard{number}" for number in range(1, count + 1)]
    for number, folder in enumerate(folders, start=1):
        run(grid, folder, limits=Limits(shard=(number, count)))
    lines = [set((folder / "samples.jsonl").read_text().splitlines()) for folder in folders]
    assert sum(map(len, lines)) == len(set().union(*lines))
    merge(folders, tmp_path / "merged", only_ask)
    assert content(tmp_path / "merged") == content(tmp_path / "whole")
    if count == 2:
        with pytest.raises(CheckFailed, match="samples of model m are missing; give the folders of all shards"):
            merge(folders[:1], tmp_path / "half", only_ask)


def test_shards_of_different_grids_do_not_merge(toy_data, server, tmp_path):
    for number, ks in ((1, (0, 2)), (2, (0, 3))):
        run(config(toy_data, server, k=ks), tmp_path / f"{number}", limits=Limits(shard=(number, 2)))
    with pytest.raises(InputError, match=r"other settings than the first shard: k is \[0, 3\] there and \[0, 2\] here"):
        merge([tmp_path / "1", tmp_path / "2"], tmp_path / "merged", only_ask)


def test_a_limit_stops_with_a_marked_part_and_a_higher_one_goes_on_to_the_same_end(toy_data, server, tmp_path):
    manifest = run(config(toy_data, server), tmp_path / "run", limits=Limits(max_samples=7))
    assert manifest.status == "partial"
    assert len(server.answered) == 7  # of users without items, an example has the same prompt in both cells
    rows = [row for row in read_records(tmp_path / "run" / "predictions.parquet", Prediction) if row.model == "t"]
    assert len({row.prompt_hash for row in rows}) == 7
    cells = [cell for cell in manifest.results["cells"] if cell["model"] == "t"]
    assert all(cell["n"] + cell["missing"] == 15 for cell in cells)
    assert run(config(toy_data, server), tmp_path / "run", limits=Limits(max_samples=7)).status == "partial"
    assert len(server.requests) == 7
    assert run(config(toy_data, server), tmp_path / "run").status == "complete"
    assert set(server.answered.values()) == {1}
    run(config(toy_data, server), tmp_path / "whole")
    assert content(tmp_path / "run") == content(tmp_path / "whole")


@pytest.mark.parametrize("limit", [Limits(max_samples=25), Limits(max_tokens=30 * 500)])
def test_a_part_is_the_same_examples_in_every_cell_in_the_order_of_the_draw(toy_data, tiny_model, tmp_path, limit):
    """The model plans its batches longest first; a part must not be the long prompts."""
    grid = config(
        toy_data, models=(f"m=hf:{tiny_model}", f"n=hf:{tiny_model}"), k=(0, 1, 2), local={"batch_size": 2},
        sampling={"max_new_tokens": 4}, per_model={"n": {"max_new_tokens": 3}},
    )  # fmt: skip
    manifest = run(grid, tmp_path / "run", limits=limit)
    rows = read_records(tmp_path / "run" / "predictions.parquet", Prediction)
    everything = sorted(
        (f"{t}-{u}-{n}" for t in ("colour", "note") for u in range(5) for n in range(3)), key=sha256_text
    )
    for model in ("m", "n"):
        cells = {}
        for row in rows:
            if row.model == model:
                cells.setdefault(row.k, set()).add(row.example_id)
        kept = cells[0]
        assert 2 <= len(kept) < 30
        assert kept == set(everything[: len(kept)])
        assert set(map(frozenset, cells.values())) == {frozenset(kept)}
    assert manifest.status == "partial"
    assert {cell["n"] for cell in manifest.results["cells"]} != {0}


def test_a_limit_of_the_cost_without_the_price_of_any_model_is_refused(toy_data, server, tmp_path):
    with pytest.raises(InputError, match=r"none of the models t has a price.*prices for T"):
        run(config(toy_data, server), tmp_path / "run", limits=Limits(max_cost=1.0, prices={"T": (1.0, 1.0)}))
    assert not server.requests


def test_a_limit_that_no_example_fits_leaves_an_empty_part_that_says_so(toy_data, server, tmp_path):
    manifest = run(
        config(toy_data, server, models=("t=openai:tiny",), k=(1, 2, 3, 4), seeds=(0, 1), retrievers=("random",)),
        tmp_path / "run", limits=Limits(max_samples=1),
    )  # fmt: skip
    assert manifest.status == "partial"
    assert all(cell["n"] + cell["missing"] == 15 for cell in manifest.results["cells"])
    assert "n=0" in summary(manifest)
    assert "(15 missing)" in summary(manifest)


def test_models_are_asked_in_their_own_style_and_length(toy_data, server, tmp_path):
    grid = config(
        toy_data, server, models=("base=openai:tiny", "tuned=openai:tiny", "knn"), styles=("trace",), tasks=("colour",),
        per_model={"base": {"styles": ["direct"], "max_new_tokens": 7}}, sampling={"max_new_tokens": 99},
    )  # fmt: skip
    manifest = run(grid, tmp_path / "run")
    rows = read_records(tmp_path / "run" / "predictions.parquet", Prediction)
    assert {(row.model, row.style) for row in rows} == {("base", "direct"), ("tuned", "trace"), ("knn", "direct")}
    lengths = {body["max_tokens"] for _, _, body in server.requests}
    assert lengths == {7, 99}
    assert len({cell["cell"] for cell in manifest.results["cells"]}) == 5
    described = json.loads((tmp_path / "run" / "prompts" / "base" / "cells.json").read_text())
    assert {(cell["name"].split(".")[3], cell["max_new_tokens"]) for cell in described} == {("direct", 7)}
    with pytest.raises(ValueError, match="per_model names 'other', which is none of the models: base, tuned"):
        config(toy_data, models=("base=openai:a", "tuned=openai:b"), per_model={"other": {}})


def test_tokens_and_cost_are_limited_by_what_the_server_says(toy_data, server, tmp_path):
    server.always = {
        "choices": [{"message": {"content": "red"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 50},
    }
    run(config(toy_data, server), tmp_path / "tokens", limits=Limits(max_tokens=450))
    assert len(server.requests) == 3
    # 100 tokens at 10 a million and 50 at 20 a million: 0.002 a sample.
    run(config(toy_data, server), tmp_path / "cost", limits=Limits(max_cost=0.0079, prices={"t": (10.0, 20.0)}))
    assert len(server.requests) == 3 + 4
    del server.always["usage"]
    with pytest.raises(CheckFailed, match="model t does not say how many tokens"):
        run(config(toy_data, server), tmp_path / "blind", limits=Limits(max_tokens=450))


def test_shards_and_prices_are_read_or_refused(tmp_path):
    assert read_shard("2/4") == (2, 4)
    for wrong in ("0/4", "5/4", "1", "a/b", "1/0"):
        with pytest.raises(InputError, match="is not I/N"):
            read_shard(wrong)
    path = tmp_path / "prices.toml"
    path.write_text('["gpt-x"]\ninput = 1.5\noutput = 6\n')
    assert read_prices(path, 1.0) == {"gpt-x": (1.5, 6.0)}
    path.write_text("[m]\ninput = 1\n")
    with pytest.raises(InputError, match="each \\[MODEL\\] has the numbers input and output"):
        read_prices(path, 1.0)
    with pytest.raises(InputError, match="needs --prices"):
        read_prices(None, 1.0)


def test_predictions_leave_in_lamps_own_form(toy_data, server, tmp_path):
    server.always = {"choices": [{"message": {"content": "It is red."}, "finish_reason": "stop"}]}
    run(config(toy_data, server), tmp_path / "run")
    written = export_lamp(tmp_path / "run", tmp_path / "out", "parsed")
    assert len(written) == 6  # two tasks in the cells none, bm25 and the baseline's
    name, outputs = read_outputs(tmp_path / "out" / "t.bm25.k2.direct.seed0" / "colour.json")
    assert (name, len(outputs), set(outputs.values())) == ("colour", 15, {"red"})
    export_lamp(tmp_path / "run", tmp_path / "out", "strict")
    _, outputs = read_outputs(tmp_path / "out" / "t.bm25.k2.direct.seed0" / "colour.json")
    assert set(outputs.values()) == {"It is red."}


def test_the_seven_tasks_leave_as_one_archive_too(make_data, tmp_path):
    from tagpr_data.dataset import write_dataset
    from tagpr_data.records import Example
    from tagpr_data.tasks import LAMP_TASKS

    tasks = [task for task in LAMP_TASKS if task.name != "LaMP-2-old"]
    examples = [
        Example(id=f"{task.name}1", task=task.name, user_id="u", profile_id="p", profile_size=0, input="?")
        for task in tasks
    ]
    write_dataset(
        tmp_path / "lamp", name="lamp", source="made up", licence="CC0-1.0", tasks=tasks, items=[], parameters={},
        examples={"test": examples}, skipped={},
    )  # fmt: skip
    run(config(tmp_path / "lamp", models=("copy-last",)), tmp_path / "run")
    *_, archive = export_lamp(tmp_path / "run", tmp_path / "out", "parsed")
    with zipfile.ZipFile(archive) as opened:
        assert sorted(opened.namelist()) == [f"LaMP_{number}.json" for number in range(1, 8)]
        assert json.loads(opened.read("LaMP_3.json")) == {"task": "LaMP_3", "golds": [{"id": "LaMP-31", "output": "1"}]}


def test_scores_leave_as_the_hub_reads_them(toy_data, server, tmp_path):
    import yaml
    from huggingface_hub import parse_eval_result_entries

    server.always = {"choices": [{"message": {"content": "It is red."}, "finish_reason": "stop"}]}
    manifest = run(config(toy_data, server, retrievers=("bm25", "wrong-user")), tmp_path / "run")
    with pytest.raises(InputError, match="is no OWNER/NAME of the Hub"):
        export_eval_results(tmp_path / "run", tmp_path / "out")
    written = export_eval_results(tmp_path / "run", tmp_path / "out", "someone/toy")
    assert written == [tmp_path / "out" / "t" / ".eval_results" / f"{task}.yaml" for task in ("colour", "note")]
    entries = parse_eval_result_entries(yaml.safe_load(written[0].read_text()))
    assert [entry.notes.split(", ")[1] for entry in entries] == ["none.k0.direct.seed0", "bm25.k2.direct.seed0"]
    for entry in entries:
        assert (entry.dataset_id, entry.task_id, entry.value) == ("someone/toy", "colour", 6 / 15)
        assert entry.notes.startswith("accuracy, ")
        for fact in ("split test", "n = 15", "f1 0.", manifest.data["toy"][:12], manifest.results["models"]["t"][:12]):
            assert fact in entry.notes
    run(config(toy_data, models=("knn",)), tmp_path / "rules")
    with pytest.raises(CheckFailed, match="rules and controls only"):
        export_eval_results(tmp_path / "rules", tmp_path / "out", "someone/toy")


def test_a_part_of_a_run_is_not_exported(toy_data, server, tmp_path):
    run(config(toy_data, server), tmp_path / "run", limits=Limits(max_samples=1))
    with pytest.raises(CheckFailed, match="is partial"):
        export_lamp(tmp_path / "run", tmp_path / "out", "parsed")


def test_shipped_grids_are_valid(root):
    from tagpr_data.config import load

    paths = sorted((root / "tagpr_eval" / "configs").glob("*.toml"))
    assert paths
    for path in paths:
        assert load(EvaluationConfig, path).models
