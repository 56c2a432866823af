"""RL end to end on a tiny random model: what it writes, that it resumes bit for bit, redraws, stages, refusals."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tagpr_data.answers import parsed
from tagpr_data.dataset import Dataset
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.records import Rollout, Split
from tagpr_data.sources import personas
from tagpr_data.tables import read_records
from tagpr_train import rl, rl_generate, rl_judge
from tagpr_train.config import Rl
from tagpr_train.rl_watch import Measurement

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

RIGHT = (
    "<think>\n<examine_examples>[P1] and [P2] were seen.</examine_examples>\n"
    "<infer_preference>This user puts it there.</infer_preference>\n</think>\n{}"
)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small personas data set."""
    folder = tmp_path_factory.mktemp("people") / "dataset"
    personas.construct(folder, users=60, events=8)
    return folder


@pytest.fixture
def settings(tiny_model: Path, people: Path, tmp_path: Path) -> Callable[..., Rl]:
    """A function that gives settings for 4 quick steps of 2 groups of 3; completions are used for 2 steps."""

    def make(output: str = "run", trainer: dict[str, Any] | None = None, **changes: Any) -> Rl:
        options = {
            "num_generations": 3,
            "per_device_train_batch_size": 3,
            "steps_per_generation": 2,
            "max_completion_length": 8,
            "learning_rate": 1e-3,
            "mask_truncated_completions": False,
        } | (trainer or {})
        values: dict[str, Any] = {
            "model": str(tiny_model), "dataset": people, "tasks": ("personas-choice",), "k": 1, "steps": 4,
            "adapter": "none", "dtype": "float32", "rewards": {"personal": 0.0}, "redraws": 1, "eval_examples": 3,
            "eval_every_steps": 2,
        } | changes  # fmt: skip
        return Rl(output=tmp_path / output, trainer=options, **values)

    return make


def _reward_by_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model never closes a think block; give it a reward that varies: the share of even tokens in the text."""
    total = rl_judge.Judge.total

    def varied(self: rl_judge.Judge, judged: rl_judge.Judged) -> float:
        return total(self, judged) + len(judged.text) % 7

    monkeypatch.setattr(rl_judge.Judge, "total", varied)

    def gated(self: rl_judge.Judged, name: str) -> float:
        return float(len(self.text) % 7 if name == "answer" else 0)

    monkeypatch.setattr(rl_judge.Judged, "gated", gated)


def _lines(config: Rl, key: str = "loss") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if key in line]


def _stop_at(step: int) -> Callable[[dict[str, Any]], None]:
    def report(line: dict[str, Any]) -> None:
        if line["step"] == step and "loss" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    return report


def test_run_writes_every_component_and_every_completion(settings: Callable[..., Rl]) -> None:
    config = settings(steps=2)
    manifest = rl.train(config)
    assert manifest.status == "complete" and manifest.kind == "rl"
    line = _lines(config)[0]
    for component in ("answer", "tags"):
        for form in ("raw", "weighted", "normalised", "zero_variance"):
            assert f"{component}_{form}" in line
    assert {"reward", "zero_variance", "gate_open", "redrawn", "entropy", "answer_raw/personas-choice"} <= line.keys()
    assert not any(name.startswith("personal") for name in line)  # its weight is 0
    rows = list(read_records(config.output / "completions/step-00000.parquet", Rollout))
    assert [row.row for row in rows] == list(range(6))
    assert [row.example_id for row in rows[:3]] == [rows[0].example_id] * 3
    assert all(row.gold in personas.SHELVES and row.violations and row.reward == 0 for row in rows)
    held_out = _lines(config, "held_out_answer")
    assert [line["step"] for line in held_out] == [0, 2]
    assert held_out[0]["held_out_change"] == held_out[0]["held_out_change_high"] == 0
    last = held_out[-1]
    assert last["held_out_change"] == pytest.approx(last["held_out_answer"] - held_out[0]["held_out_answer"])
    assert last["held_out_change_low"] <= last["held_out_change"] <= last["held_out_change_high"]
    assert (config.output / "model/model.safetensors").is_file() and not (config.output / "best").exists()


def test_stopped_and_resumed_run_equals_an_uninterrupted_one(
    settings: Callable[..., Rl], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at step 1, in the middle of a generation batch, and at step 2, at its end."""
    _reward_by_tokens(monkeypatch)
    whole, parted = settings("whole"), settings("parted")
    rl.train(whole)
    for step in (1, 2):
        assert rl.train(parted, resume=step > 1, report=_stop_at(step)).status == "running"
        assert (parted.output / f"checkpoints/step-{step}").is_dir()
    assert rl.train(parted, resume=True).status == "complete"
    for key in ("loss", "held_out_answer"):
        expected, found = _lines(whole, key), _lines(parted, key)
        assert [line["step"] for line in found] == [line["step"] for line in expected]
    assert [line["loss"] for line in _lines(parted)] == [line["loss"] for line in _lines(whole)]
    assert any(line["grad_norm"] > 0 for line in _lines(whole)), "the test must train something"
    for name in ("step-00000.parquet", "step-00002.parquet"):
        assert (parted.output / "completions" / name).read_bytes() == (whole.output / "completions" / name).read_bytes()
    ours, theirs = (load_file(config.output / "model/model.safetensors") for config in (parted, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_groups_without_variance_are_drawn_again_so_many_times_and_counted(
    settings: Callable[..., Rl], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random model's rewards are all 0: every group is dead, every try is used up, and nothing loops on."""
    asked: list[int] = []
    complete = rl_generate.complete

    def counted(model: Any, prompts: Any, copies: int, *rest: Any) -> Any:
        asked.append(len(prompts))
        return complete(model, prompts, copies, *rest)

    monkeypatch.setattr(rl_generate, "complete", counted)
    config = settings(redraws=3, steps=2)
    rl.train(config)
    assert asked == [3, 2, 2, 2, 2, 3]  # held out, the draw, three redraws of both groups, held out
    line = _lines(config)[0]
    assert line["redrawn"] == 6 and line["zero_variance"] == 1.0 and line["grad_norm"] == 0.0
    rows = list(read_records(config.output / "completions/step-00000.parquet", Rollout))
    assert [row.redrawn for row in rows] == [3] * 6


def test_prompts_and_golds_are_those_of_an_evaluation(settings: Callable[..., Rl], people: Path) -> None:
    from tagpr_data.tags import load_tagset
    from tagpr_eval.config import EvaluationConfig
    from tagpr_eval.grid import Prompter, cells
    from tagpr_train import rl_prompts

    config = settings(k=3, eval_examples=5)
    data, tagset = Dataset.load(people), load_tagset()
    rows, _ = rl_prompts.questions(data, "validation", 5, config, tagset, lambda messages: True)
    grid = EvaluationConfig(dataset=str(people), models=("hf:x",), k=(3,), styles=("trace",), split="validation")
    examples = data.examples("validation")
    (cell,) = cells(grid, ["personas-choice"])
    theirs = {q.example.id: q for q in Prompter(data, examples, examples, tagset).questions(cell, config.prompt)}
    assert len(rows) == 5
    for row in rows:
        assert row.messages == theirs[row.example.id].messages
        assert [item.item_id for item in row.items] == list(theirs[row.example.id].item_ids)


def test_retriever_and_k_vary_while_learning_and_stay_on_held_out_questions(
    settings: Callable[..., Rl], people: Path
) -> None:
    from tagpr_data.tags import load_tagset
    from tagpr_train import rl_prompts

    def asked(split: Split, **changes: Any) -> list[tuple[str, list[str]]]:
        rows, _ = rl_prompts.questions(
            Dataset.load(people), split, 40, settings(**changes), load_tagset(), lambda _: True
        )
        return [(row.example.id, [item.item_id for item in row.items]) for row in rows]

    varied = {"k": 3, "vary_k": [0, 1, 2], "vary_retrievers": ["bm25", "recency"]}
    drawn = asked("train", **varied)
    assert drawn == asked("train", **varied)
    assert {len(items) for _, items in drawn} == {0, 1, 2}
    first = {name: {i: items[:1] for i, items in asked("train", k=3, retriever=name)} for name in ("bm25", "recency")}
    from_either = [name for name in first for i, items in drawn if items and items[:1] == first[name][i]]
    assert set(from_either) == {"bm25", "recency"}
    assert all(not items or items[:1] in (first["bm25"][i], first["recency"][i]) for i, items in drawn)
    assert asked("validation", **varied) == asked("validation", k=3)


def test_items_stand_in_a_drawn_order_while_learning_only(settings: Callable[..., Rl], people: Path) -> None:
    from tagpr_data.tags import load_tagset
    from tagpr_train import rl_prompts

    def asked(split: Split, **changes: Any) -> list[rl_prompts.Question]:
        config = settings(k=3, **changes)
        return rl_prompts.questions(Dataset.load(people), split, 40, config, load_tagset(), lambda _: True)[0]

    def ids(rows: list[rl_prompts.Question]) -> list[list[str]]:
        return [[item.item_id for item in row.items] for row in rows]

    ranked, drawn = asked("train"), asked("train", shuffle_items=True)
    assert [sorted(items) for items in ids(drawn)] == [sorted(items) for items in ids(ranked)]
    full = [(ours, theirs) for ours, theirs in zip(ids(drawn), ids(ranked), strict=True) if len(theirs) == 3]
    kept = sum(ours[0] == theirs[0] for ours, theirs in full) / len(full)
    assert 0.1 < kept < 0.6  # a third of them by chance
    text = drawn[0].messages[-1].content
    places = [text.index(item.text) for item in drawn[0].items]
    assert places == sorted(places)  # the prompt shows that order, and [P1] is its first
    assert ids(drawn) == ids(asked("train", shuffle_items=True))
    assert asked("validation", shuffle_items=True) == asked("validation")


def test_a_shut_gate_earns_nothing_and_stages_differ(settings: Callable[..., Rl], people: Path) -> None:
    from tagpr_data.tags import load_tagset
    from tagpr_train import rl_prompts

    for stage, expected in (("guided", 1.0 + 0.3 * 0.5), ("exploratory", 1.0)):
        config = settings(stage=stage, k=2)
        rows, _ = rl_prompts.questions(Dataset.load(people), "train", 1, config, load_tagset(), lambda _: True)
        judge = rl_judge.Judge(config, load_tagset(), 100)
        right = RIGHT.format(rows[0].gold)
        texts = [right, right.replace("</think>", ""), RIGHT.format("nowhere")]
        judged = judge([rows[0]] * 3, texts, [10, 10, 10])
        totals = judge.totals(judged)
        tags = judged[0].reward.tags
        assert totals[0] == pytest.approx(1.0 + (0.3 * tags if stage == "guided" else 0.0))
        assert tags > 0.5 and expected
        assert totals[1] == 0.0 and not judged[1].reward.gate_open
        assert totals[2] == pytest.approx(totals[0] - 1.0)
        figures = judge.figures(judged, 3)
        assert figures["answer_raw"] == pytest.approx(1 / 3) and figures["gate_open"] == pytest.approx(2 / 3)
        assert figures["answer_normalised"] == pytest.approx((2**0.5 + 2 * 0.5**0.5) / 3)
        assert figures["tags_weighted"] == pytest.approx(judge.weights["tags"] * 2 * tags / 3)


def test_length_is_punished_softly(settings: Callable[..., Rl], people: Path) -> None:
    from tagpr_data.tags import load_tagset
    from tagpr_train import rl_prompts

    config = settings(overlong_tokens=4, overlong_weight=0.5)
    rows, _ = rl_prompts.questions(Dataset.load(people), "train", 1, config, load_tagset(), lambda _: True)
    judge = rl_judge.Judge(config, load_tagset(), 8)
    totals = judge.totals(judge([rows[0]] * 4, ["x"] * 4, [4, 5, 6, 8]))
    assert totals == pytest.approx([0.0, -0.125, -0.25, -0.5])


def test_hacking_stops_the_run_and_keeps_the_best_weights(
    settings: Callable[..., Rl], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The held-out answers are made to fall while tags rise from the second measurement on."""
    _reward_by_tokens(monkeypatch)
    measure = rl.RlTrainer.measure

    def falling(self: rl.RlTrainer) -> None:
        if not self.measurements:
            torch.save(self.network.state_dict(), self.config.output / "first.pt")
        trainer: Any = self
        original, trainer.judge = self.judge, _Gamed(self.judge, self.state.global_step)
        try:
            measure(self)
        finally:
            trainer.judge = original

    monkeypatch.setattr(rl.RlTrainer, "measure", falling)
    config = settings(eval_examples=12, eval_every_steps=1, k=2)
    manifest = rl.train(config)
    assert manifest.status == "partial" and "reward hacking: from step 0 to step 1" in manifest.results["stopped"]
    assert manifest.results["steps"] == 1
    first = torch.load(config.output / "first.pt", weights_only=True)
    kept = load_file(config.output / "model/model.safetensors")
    assert all(torch.equal(kept[name], first[name]) for name in kept)
    assert rl.train(config, resume=True) == manifest


class _Gamed:
    """A judge whose held-out completions are right without tags at step 0, and tagged but wrong afterwards."""

    def __init__(self, judge: rl_judge.Judge, step: int) -> None:
        self._judge, self._step, self.weights = judge, step, judge.weights

    def __call__(self, questions: Any, texts: Any, lengths: Any) -> Any:
        texts = [q.gold if self._step == 0 else RIGHT.format("nowhere") for q in questions]
        return self._judge(questions, texts, lengths)


def test_the_second_stage_starts_from_the_first_with_an_adapter(settings: Callable[..., Rl]) -> None:
    first = settings("first", adapter="lora", steps=2, dtype="bfloat16")
    rl.train(first)
    assert (first.output / "model/adapter_model.safetensors").is_file()
    second = settings("second", stage="exploratory", adapter="lora", steps=2, model=str(first.output / "model"))
    assert rl.train(second).status == "complete"
    whole = settings("whole", stage="exploratory", steps=2, model=str(first.output / "model"))
    rl.train(whole)
    assert (whole.output / "model/model.safetensors").is_file()


def test_a_loss_that_is_not_finite_stops_with_the_batch_saved(
    settings: Callable[..., Rl], monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_finite(self: rl.RlTrainer, model: Any, inputs: Any) -> Any:
        return sum(weight.sum() for weight in model.parameters()) * torch.nan

    monkeypatch.setattr(rl.RlTrainer, "_compute_loss", not_finite)
    config = settings(steps=1)
    with pytest.raises(CheckFailed, match="the loss is nan in step 1"):
        rl.train(config)
    assert "completion_ids" in json.loads((config.output / "bad_batch.json").read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": {"num_generations": 4}}, "divisible by num_generations"),
        ({"trainer": {"learning_rat": 1}}, "did you mean 'learning_rate'"),
        ({"tasks": ("shoes",)}, "'shoes'.* are not in"),
        ({"overlong_tokens": 9}, "overlong_tokens = 9 is more than"),
        (
            {"split": "test", "eval_split": "validation", "k": 1, "trainer": {"max_completion_length": 1000}},
            "can be asked",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: Callable[..., Rl], changes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rl.train(settings(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": {"personal": 0.3}}, "needs `prmu`"),
        ({"rewards": {"answer": 0.0, "tags": 0.0, "personal": 0.0}}, "nothing to learn"),
        ({"trainer": {"max_steps": 3}}, "trainer.max_steps is not set here: `steps`"),
        ({"trainer": {"temperature": 0.0}}, r"trainer.temperature = 0.0: .* greater than 0"),
        ({"trainer": {"top_p": 2.0}}, r"trainer.top_p = 2.0: .* less than or equal to 1"),
        ({"eval_split": "train"}, "not held out"),
    ],
)
def test_settings_that_contradict_are_refused(settings: Callable[..., Rl], changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_a_prmu_that_was_not_evaluated_or_failed_its_gate_is_refused(
    settings: Callable[..., Rl], tmp_path: Path
) -> None:
    folder = tmp_path / "prmu-run" / "prmu"
    folder.mkdir(parents=True)
    config = settings(rewards={"personal": 0.3}, prmu=folder)
    with pytest.raises(InputError, match=r"no prmu_eval\.json"):
        rl_judge.load_prmu(config)
    (folder.parent / "prmu_eval.json").write_text("[]")
    with pytest.raises(InputError, match="not the evaluation of a PRMU"):
        rl_judge.load_prmu(config)
    (folder.parent / "prmu_eval.json").write_text('{"splits": {}}')
    with pytest.raises(CheckFailed, match=r"did not pass its gate.*NOT MET"):
        rl_judge.load_prmu(config)
    assert rl_judge.load_prmu(settings(stage="exploratory", rewards={"personal": 0.3}, prmu=folder)) is None


def test_held_out_answers_are_read_as_evaluation_reads_them() -> None:
    assert parsed(RIGHT.format("amber"), personas.CHOICE_TASK).answer == "amber"
    row = Measurement(0, {"a": 1.0, "b": 0.0}, {"a": "u", "b": "v"}, 0.5, None)
    assert row.answer == 0.5
