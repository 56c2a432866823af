"""The report's part on training: made-up runs whose figures a reader can compute, damaged ones, and real ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tagpr_data.dataset import Dataset
from tagpr_data.errors import InputError
from tagpr_data.pairs import PairOptions, write_pairs
from tagpr_data.sources import personas
from tagpr_eval import cells, cli, plots, report, report_training, stats
from tagpr_eval.training import load_training, rl_chains

from . import report_fixture, training_runs
from .conftest import write_model


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    return training_runs.make_chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def runs(chain):
    return load_training(chain)


def table(runs, name):
    (found,) = [one for one in report_training.training_tables(runs) if one.name == name]
    return found


def lines(runs, name):
    found = table(runs, name)
    return [dict(zip([c.name for c in found.columns], row.values, strict=True)) for row in found.rows]


def plot(runs, name):
    (found,) = [one for one in report_training.training_plots(runs) if one.name == name]
    return found


def panel(figure, title):
    (axes,) = [one for one in figure.axes if one.get_title() == title]
    return axes


def test_every_run_is_listed_with_what_it_took(runs):
    rows = lines(runs, "training")
    assert [row["training"] for row in rows] == ["sft", "prmu", "guided", "exploratory"]
    assert [row["stage"] for row in rows] == ["sft", "prmu", "rl, guided", "rl, exploratory"]
    assert [(row["steps"], row["examples"], row["minutes"]) for row in rows] == [
        (4, 24, 1.5), (2, 32, 1.5), (40, 640, 1.5), (3, 48, 1.5),
    ]  # fmt: skip
    assert [(row["loss"], row["held_out_loss"]) for row in rows] == [(2.5, 1.5), (0.7, 0.6), (None, None), (None, None)]
    assert table(runs, "training").note == (
        "sft, prmu, exploratory: data toy dddddddddddd, commit 0123abc, seed 7; "
        "guided: data toy dddddddddddd, commit 0123abc, seed 7, PRMU eeeeeeeeeeee."
    )


def test_held_out_answers_stand_with_their_paired_change_and_the_sampled_ones(runs):
    guided, exploratory = lines(runs, "training-rl")
    assert (guided["first"], guided["last"], guided["n"]) == (0.5, pytest.approx(0.9), 64)
    change = guided["change"]
    assert (change.value, change.low, change.high) == pytest.approx((0.4, 0.35, 0.45))
    # 40 steps: the first four mean (1 + 2 + 3 + 4) / 400, the last four (37 + 38 + 39 + 40) / 400
    assert (guided["sampled_first"], guided["sampled_last"]) == pytest.approx((0.025, 0.385))
    assert guided["kl"] == pytest.approx(0.0385)
    assert (guided["zero_variance"], guided["redrawn"], guided["gate"]) == (0.5, 80, 1.0)
    assert exploratory["zero_variance"] == pytest.approx(1 / 3)  # of steps 1, 2, 3 the second
    assert (exploratory["sampled_first"], exploratory["sampled_last"]) == (0.01, 0.03)


def test_reward_components_are_told_raw_weighted_and_by_variance(runs):
    rows = {(row["training"], row["component"]): row for row in lines(runs, "training-rewards")}
    assert set(rows) == {(run, name) for run in ("guided", "exploratory") for name in ("answer", "tags")}
    tags = rows["guided", "tags"]
    assert (tags["weight"], tags["raw_first"], tags["raw_last"]) == pytest.approx((0.3, 0.05, 0.77))
    assert (tags["weighted_first"], tags["weighted_last"]) == pytest.approx((0.015, 0.231))
    assert rows["guided", "answer"]["zero_variance_last"] == 0.25
    later = rows["exploratory", "tags"]
    assert (later["weight"], later["raw_last"], later["weighted_last"]) == (0.0, pytest.approx(0.06), 0.0)


def test_pair_accuracies_of_the_reward_model_stand_by_kind_with_swap_baselines_and_gate(runs):
    rows = lines(runs, "training-pairs")
    assert [(row["users"], row["group"]) for row in rows] == [
        ("unseen", "all pairs"), ("unseen", "kind user"), ("unseen", "task colour"),
    ]  # fmt: skip
    values = [rows[0][name].value for name in ("right", "swapped", "user_off", "length", "text")]
    assert values == [0.9, 0.2, 0.5, 0.55, 0.6]
    assert rows[0]["right_minus_swapped"].low == pytest.approx(0.65)
    assert (rows[0]["n"], rows[0]["people"]) == (50, 10)
    note = table(runs, "training-pairs").note
    assert "calibration error 0.040 (unseen). Gate for RL passed. ok: pair accuracy 0.900" in note
    figure = plot(runs, "training-pairs").draw()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "unseen users, all pairs", "unseen users, kind user",
    ]  # fmt: skip


def test_completions_shown_are_the_lowest_the_middle_and_the_highest_of_first_and_last_step(runs):
    rows = [row for row in lines(runs, "training-completions") if row["training"] == "guided"]
    assert [(row["step"], row["reward"]) for row in rows] == [
        (0, 0.0), (0, 0.4), (0, 1.3), (39, 0.0), (39, 0.4), (39, 1.3),
    ]  # fmt: skip
    assert rows[2]["reasoning"] == "‹infer_preference› earns 1.3"
    assert (rows[0]["answer"], rows[0]["violations"], rows[2]["violations"]) == (None, "unclosed-think", None)


def test_few_steps_are_said_to_show_mechanics_and_many_are_not(runs, tmp_path):
    words = "3 steps: shows the mechanics, not learning"
    guided, exploratory = lines(runs, "training-rl")
    assert (guided["remarks"], exploratory["remarks"]) == (None, words)
    assert f"exploratory: {words}." in plot(runs, "training-held-out-1").caption
    ((heading, score, facts),) = report_training.verdicts(runs)
    assert (heading, score) == ("RL: guided → exploratory", "0.500 → 0.530 held out")
    assert facts[0].startswith("guided: 40 steps, 640 completions, 1.5 minutes; change +0.400 [+0.350, +0.450] on 64")
    assert facts[-1] == f"exploratory: {words}."
    ends = {19: [words.replace("3", "19", 1)], 20: [], 1: [words.replace("3 steps", "1 step")]}
    for steps, remarks in ends.items():
        (run,) = load_training([training_runs.make_rl(tmp_path / str(steps), steps=steps)])
        assert [row["remarks"] for row in lines([run], "training-rl")] == (remarks or [None])


def test_the_hacking_stop_says_why(tmp_path):
    folder = training_runs.make_rl(tmp_path / "run", stopped="reward hacking: from step 10 to step 20 tags rose")
    (row,) = lines(load_training([folder]), "training-rl")
    assert row["remarks"] == "STOPPED, reward hacking: from step 10 to step 20 tags rose"


def test_stages_are_joined_on_one_axis_in_the_order_they_were_trained(runs):
    assert [[run.name for run in chain] for chain in rl_chains(runs[::-1])] == [["guided", "exploratory"]]
    figure = plot(runs[::-1], "training-held-out-1").draw()
    answers = panel(figure, "answers")
    greedy = [list(line.get_xdata()) for line in answers.lines if line.get_color() == plots.PALETTE[0]]
    assert greedy == [[0, 40], [40, 43]]
    assert [text.get_text() for text in answers.texts] == ["guided", "exploratory"]
    (bars, _) = answers.collections  # bars of the first stage: start + interval of the change
    assert [segment.tolist() for segment in bars.get_segments()][1] == [
        [40, pytest.approx(0.85)],
        [40, pytest.approx(0.95)],
    ]
    rewards = plot(runs, "training-rewards-1").draw()
    assert {axes.get_xlim()[1] for axes in rewards.axes if axes.get_visible()} == {43 * 1.03}
    strong = [line for line in panel(rewards, "tags").lines if line.get_alpha() is None and line.get_linestyle() == "-"]
    assert [list(line.get_xdata())[-1] for line in strong[:2]] == [40, 43]


def test_a_stage_that_two_others_started_from_stands_before_each_and_unrelated_ones_alone(tmp_path):
    make = training_runs.make_rl
    folders = [
        make(tmp_path / "a"),
        make(tmp_path / "b", "exploratory", 3, model="runs/guided/model"),
        make(tmp_path / "c", "exploratory", 3, model=str(tmp_path / "a" / "model")),  # where it lies now
        make(tmp_path / "d", "exploratory", 3, model="elsewhere/model"),
    ]
    found = [[run.name for run in chain] for chain in rl_chains(load_training(folders))]
    assert found == [["a", "b"], ["a", "c"], ["d"]]


def test_loss_curves_end_with_what_the_manifest_tells(runs):
    figure = plot(runs, "training-loss").draw()
    training, held_out = panel(figure, "sft").lines
    assert (list(training.get_ydata()), list(held_out.get_xdata())) == ([4, 3, 2, 1], [2, 4])
    assert list(held_out.get_ydata()) == [2.5, 1.5]


def test_a_moving_mean_takes_neighbours_and_leaves_out_what_is_not_known():
    assert plots.moving_mean([1.0, 2.0, 6.0, float("nan"), 4.0], 3) == [1.5, 3.0, 4.0, 5.0, 4.0]


def test_runs_of_one_folder_name_are_told_apart_by_what_stands_before(tmp_path):
    folders = [training_runs.make_rl(tmp_path / seed / "guided") for seed in ("seed0", "seed1")]
    assert [run.name for run in load_training(folders)] == ["seed0/guided", "seed1/guided"]
    with pytest.raises(InputError, match="is given twice"):
        load_training([folders[0], folders[0]])


def _spoil(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def _set(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(found):
        for key in keys:
            found = found[key]
        found[last] = value

    return change


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("guided/run.json", _set("status", "running"), r"guided is an unfinished run; tagpr-train rl … --resume"),
        ("guided/run.json", _set("kind", "evaluation"), r"kind 'evaluation'; --training takes kinds sft, prmu, rl"),
        ("guided/run.json", _set("format_version", 9), r"run.json is not a valid RunManifest: format_version"),
        ("guided/run.json", _set("results", {}), r"RlResults cannot be read, as of another version: steps: Field req"),
        ("prmu/prmu_eval.json", _set("format_version", 2), r"PrmuEvaluation .* format_version: .*\(got 2\)"),
        ("prmu/prmu_eval.json", _set("splits", "unseen", "groups", "all", "right", "low", "x"), r"all.right.low"),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_shown_are_refused_with_file_and_field(tmp_path, file, change, message):
    folders = training_runs.make_chain(tmp_path)
    _spoil(tmp_path / file, change)
    with pytest.raises(InputError, match=message):
        load_training(folders)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"step": 1, "loss": 2.0}\n{"step": 2, "lo', r"metrics.jsonl, line 2: .* is not JSON; the line is damaged"),
        ('{"loss": 2.0}\n', r"metrics.jsonl, line 1: .* is no object with a whole number `step`"),
        ('{"step": 1, "loss": "low"}\n', r"metrics.jsonl, line 1, field 'loss': 'low' is no number"),
        ("[]\n", r"line 1: '\[\]' is no object"),
        ("", r"metrics.jsonl holds no line"),
        (b"\xff\xfe", r"metrics.jsonl is not UTF-8 text"),
        (None, r"metrics.jsonl does not exist; it belongs to a finished training run"),
    ],
)
def test_damaged_metrics_are_refused_with_their_line(tmp_path, text, message):
    path = training_runs.make_sft(tmp_path / "sft") / "metrics.jsonl"
    path.unlink()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        load_training([tmp_path / "sft"])


def test_a_loss_that_was_not_a_number_leaves_a_gap(tmp_path):
    folder = training_runs.make_sft(tmp_path / "sft")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": NaN}\n')
    (loss,) = report_training.training_plots(load_training([folder]))
    start = plots.svg_file(loss).partition(b"<svg")[2].partition(b">")[2]
    assert start.lstrip().startswith(b'<rect width="100%" height="100%" fill="#ffffff"/>')  # readable on a dark page
    assert b'fill="#ffffff"' not in plots.svg(loss).encode()  # on the report's own page it is the page's ground


def test_completions_that_were_removed_are_left_out_and_damaged_ones_refused(tmp_path):
    folder = training_runs.make_rl(tmp_path / "run")
    path = folder / "completions" / "step-00039.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"step-00039.parquet is not a whole Parquet file"):
        report_training.training_tables(load_training([folder]))
    for file in (folder / "completions").iterdir():
        file.unlink()
    assert "training-completions" not in {one.name for one in report_training.training_tables(load_training([folder]))}


@pytest.mark.slow
def test_page_markdown_and_files_show_training(chain, tmp_path):
    dataset = report_fixture.make_dataset(tmp_path / "toy")
    run = report_fixture.make_run(tmp_path / "eval", dataset, ks=(1,), retrievers=("bm25",), tasks=("component",))
    options = [part for folder in chain for part in ("--training", str(folder))]
    output = tmp_path / "report.html"
    done = CliRunner().invoke(cli.app, ["report", str(run), "--output", str(output), *options])
    assert done.exit_code == 0, done.output
    assert "RL: guided → exploratory: 0.500 → 0.530 held out" in done.output
    page, text = output.read_text(), output.with_suffix(".md").read_text()
    for written in (page, text):
        assert "3 steps: shows the mechanics, not learning" in written
    assert 'id="training"' in page and "## Training" in text
    assert {"training-rl.csv", "training-held-out-1.png", "training-pairs.svg"} <= {
        path.name for path in (tmp_path / "report-files").iterdir()
    }
    plain = report.build(cells.load_runs([run]))
    assert "training" not in {section.name for section in plain.sections}


_CONFIGS = {
    "prmu.toml": """
        pairs = "pairs"
        output = "-"
        model = "tiny"
        adapter = "none"
        eval_every_steps = 1
        [trainer]
        max_steps = 2
    """,
    "rl.toml": """
        dataset = "dataset"
        output = "-"
        model = "-"
        prmu = "runs/prmu/prmu"
        ignore_gate = true
        adapter = "none"
        dtype = "float32"
        tasks = ["personas-choice"]
        k = 1
        steps = 2
        eval_examples = 3
        eval_every_steps = 1
        [trainer]
        num_generations = 3
        per_device_train_batch_size = 6
        max_completion_length = 8
        beta = 0.1
    """,
    "recipe.toml": """
        output = "runs"
        [[stages]]
        name = "prmu"
        kind = "prmu"
        config = "prmu.toml"
        [[stages]]
        name = "guided"
        kind = "rl"
        config = "rl.toml"
        set = { model = "tiny" }
        [[stages]]
        name = "exploratory"
        kind = "rl"
        config = "rl.toml"
        set = { model = "{guided}", stage = "exploratory" }
    """,
}  # fmt: skip


@pytest.mark.slow
def test_runs_of_the_real_program_are_read_and_hold_what_the_report_shows(tmp_path):
    program = Path(sys.executable).with_name("tagpr-train")
    if not program.exists():
        pytest.skip("tagpr-train is not installed")
    personas.construct(tmp_path / "dataset", users=30, events=8)
    write_pairs(tmp_path / "pairs", Dataset.load(tmp_path / "dataset"), PairOptions())
    write_model(tmp_path / "tiny")
    for name, text in _CONFIGS.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run([program, "run", "recipe.toml"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    runs = load_training([tmp_path / "runs" / name for name in ("prmu", "guided", "exploratory")])
    assert [[run.name for run in chain] for chain in rl_chains(runs)] == [["guided", "exploratory"]]
    rows = lines(runs, "training-rl")
    assert all(isinstance(row["change"], stats.Estimate) for row in rows)
    assert all(row[name] is not None for row in rows for name in ("sampled_last", "zero_variance", "gate", "kl"))
    components = [row["component"] for row in lines(runs, "training-rewards") if row["training"] == "guided"]
    assert components == ["answer", "tags", "personal (PRMU)"]
    assert len(lines(runs, "training-completions")) == 12
    assert {row["users"] for row in lines(runs, "training-pairs")} == {"seen", "unseen"}
    held_out = plot(runs, "training-held-out-1").draw()
    assert len(panel(held_out, "answers").collections) == 2  # intervals in both stages
