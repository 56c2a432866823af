"""Label scores against one full forward per label in float32, the plain way; and a whole run of both protocols."""

import json
import math

import pytest
import torch

from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.records import Message, Prediction
from tagpr_data.tables import read_records
from tagpr_eval import report_tables
from tagpr_eval.cells import load_runs, make_groups
from tagpr_eval.config import ChatOptions, Decoding, EvaluationConfig, LocalOptions
from tagpr_eval.hf import HfModel
from tagpr_eval.log_likelihood import label_tree
from tagpr_eval.models import Prompt
from tagpr_eval.run import evaluate

LABELS = {
    "one token each": ("1", "2", "3", "4", "5"),
    "like beginnings": ("[1]", "[2]", "[12]x"),
    "many tokens": ("hw/xwin", "xkb", "hw/xfree86 and more", "dix"),
    "one within another": ("fix", "fixup", "up"),
}


def prompts(labels, count=7, tail=""):
    return [
        Prompt((Message(role="user", content=f"{'word ' * (n * n % 23)}{n}?"), *tail_of(tail)), 0, labels)
        for n in range(count)
    ]


def tail_of(text):
    return (Message(role="assistant", content=text),) if text else ()


def scored(folder, asked, batch_size=3, dtype="float32", chat=None):
    model = HfModel(str(folder), Decoding(), LocalOptions(dtype=dtype, batch_size=batch_size), chat or ChatOptions())
    found = {}
    model.generate(asked, model.batches(asked), lambda index, completion: found.update({index: completion}))
    return [found[index] for index in range(len(asked))]


def plainly(folder, prompt, end=""):
    """Sum of log-probabilities of each label, by one forward over prompt and label with all logits."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    turns = [message.model_dump() for message in prompt.messages if message.role != "assistant"]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    text += "".join(message.content for message in prompt.messages if message.role == "assistant")
    read = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    sums = []
    for label in prompt.labels:
        ids = torch.tensor([tokenizer(text + label + end, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits[0].log_softmax(dim=-1)
        sums.append(sum(logprobs[place - 1, ids[0, place]].item() for place in range(read, ids.shape[1])))
    return sums


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("kind", LABELS)
def test_scores_are_those_of_a_full_forward_and_the_answer_is_the_largest(tiny_model, make_model, kind, window):
    folder = make_model(window=window) if window else tiny_model
    asked = prompts(LABELS[kind])
    end = "<|im_end|>" if kind == "one within another" else ""  # else "fixup" could never win against "fix"
    for prompt, found in zip(asked, scored(folder, asked), strict=True):
        expected = plainly(folder, prompt, end)
        assert found.label_logprobs == pytest.approx(expected, abs=1e-4)
        assert found.text == prompt.labels[expected.index(max(expected))]
        assert found.finish_reason == "stop"


def test_scores_do_not_depend_on_the_batch(tiny_model):
    asked = prompts(LABELS["many tokens"])
    alone = scored(tiny_model, asked, batch_size=1)
    together = scored(tiny_model, asked, batch_size=7)
    assert [one.text for one in together] == [one.text for one in alone]
    for one, other in zip(alone, together, strict=True):
        assert one.label_logprobs == pytest.approx(other.label_logprobs, abs=1e-4)


def test_prompts_with_other_labels_or_none_go_through_in_one_call(tiny_model):
    mixed = [*prompts(LABELS["many tokens"], 3), *prompts(LABELS["one token each"], 3), *prompts((), 2)]
    model = HfModel(str(tiny_model), Decoding(max_new_tokens=4), LocalOptions(dtype="float32"))
    for batch in model.batches(mixed):
        assert len({mixed[index].labels for index in batch}) == 1
    found = {}
    model.generate(mixed, model.batches(mixed), lambda index, completion: found.update({index: completion}))
    assert [len(found[n].label_logprobs or ()) for n in range(8)] == [4] * 3 + [5] * 3 + [0] * 2
    assert found[7].output_tokens == 4
    assert found[0].label_logprobs == pytest.approx(plainly(tiny_model, mixed[0]), abs=1e-4)


def test_a_begun_answer_comes_before_the_label(tiny_model):
    asked = prompts(LABELS["many tokens"], 2, "<think>\nhm</think>\n")
    for prompt, found in zip(asked, scored(tiny_model, asked), strict=True):
        assert found.label_logprobs == pytest.approx(plainly(tiny_model, prompt), abs=1e-4)


def test_two_labels_by_hand(tiny_model, tmp_path):
    """A model whose head is zero but for the tokens `a` (+1) and `b` (+1 too, or less) at every place."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    folder = tmp_path / "hand"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    a, b = tokenizer("ab", add_special_tokens=False)["input_ids"]
    tensors = load_file(folder / "model.safetensors")

    def with_logits(of_a, of_b):
        """Zero width states: the final norm gives no state at all, so let the head have one constant feature."""
        tensors["model.norm.weight"] = torch.zeros_like(tensors["model.norm.weight"])
        tensors["lm_head.weight"] = torch.zeros_like(tensors["lm_head.weight"])
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        model = HfModel(str(folder), Decoding(), LocalOptions(dtype="float32"))
        head = model._model.get_output_embeddings()
        head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]), requires_grad=False)
        head.bias[a], head.bias[b] = of_a, of_b
        found = []
        asked = prompts(("b", "a", "ab"), 1) if of_a == of_b else prompts(("b", "a"), 1)
        model.generate(asked, model.batches(asked), lambda _, completion: found.append(completion))
        return found[0], head.weight.shape[0]

    one, size = with_logits(1.0, 0.0)
    total = math.e + size - 1  # of exp(logit) over the vocabulary
    assert one.label_logprobs == pytest.approx([-math.log(total), 1 - math.log(total)], abs=1e-6)
    assert one.text == "a"
    one, _ = with_logits(1.0, 1.0)  # equal: the first label; and "a" begins "ab", so all end in the end of the turn
    total = 2 * math.e + size - 2
    b_or_a = 1 - 2 * math.log(total)
    assert one.label_logprobs == pytest.approx([b_or_a, b_or_a, 2 - 3 * math.log(total)], abs=1e-6)
    assert one.text == "b"


def test_a_tree_shares_beginnings_and_sees_its_own_only():
    tree = label_tree(((1, 2, 3), (1, 2, 4), (1, 5), (6,)))
    assert tree.tokens == (1, 2)
    assert tree.parents == (-1, 0)
    assert tree.paths == (((-1, 1), (0, 2), (1, 3)), ((-1, 1), (0, 2), (1, 4)), ((-1, 1), (0, 5)), ((-1, 6),))
    assert tree.depths == [0, 1]
    assert tree.sees == [[True, False], [True, True]]


def test_bf16_weights_do_not_make_labels_tie(tiny_model):
    found = scored(tiny_model, prompts(("1", "2", "3", "4", "5"), 7), dtype="bfloat16")
    scores = [score for one in found for score in one.label_logprobs]
    assert len(set(scores)) == len(scores)  # logits in bf16 repeat themselves


def test_a_template_that_opens_a_think_block_is_refused(tiny_model):
    chat = ChatOptions(template="{{ messages[0]['content'] }}<think>\n")
    with pytest.raises(InputError, match=r"opens a think block.*--thinking off"):
        scored(tiny_model, prompts(("a", "b"), 1), chat=chat)


def test_broken_weights_are_an_error_not_an_answer(tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckFailed, match="log-probability"):
        scored(tmp_path, prompts(("a", "b"), 1))


def only_ask(prompts, name, answer, output):
    """Stands in for lighteval: asks for every answer and scores none."""
    import polars as pl

    for file in sorted(prompts.glob("*.parquet")):
        answer(pl.read_parquet(file)["cell", "example_id"].rows())


def config(data, **settings):
    return EvaluationConfig(dataset=str(data), **settings)


def run(config, output):
    return evaluate(config, output, score=only_ask)


def both(data, model, **settings):
    settings = {"sampling": {"max_new_tokens": 4}, "k": (0, 2), "retrievers": ("bm25",), **settings}
    return config(data, models=(f"m=hf:{model}", "knn"), protocols=("generation", "log-likelihood"), **settings)


def test_a_run_of_both_protocols_keeps_them_apart(toy_data, tiny_model, tmp_path, caplog):
    manifest = run(both(toy_data, tiny_model), tmp_path / "run")
    assert "no log-likelihood for note" in caplog.text
    rows = [row for row in read_records(tmp_path / "run" / "predictions.parquet", Prediction) if row.model == "m"]
    scored_rows = [row for row in rows if row.protocol == "log-likelihood"]
    assert {row.task for row in scored_rows} == {"colour"}
    assert len(scored_rows) == len([row for row in rows if row.task == "colour"]) / 2 == 30
    for row in scored_rows:
        assert row.text == ("red", "blue", "green")[row.label_logprobs.index(max(row.label_logprobs))]
    assert all(row.label_logprobs is None for row in rows if row.protocol == "generation")
    names = [row["cell"] for row in manifest.results["cells"] if row["model"] == "m" and row["cell"].startswith("col")]
    assert names == [
        f"colour.{cell}.direct.seed0{end}" for cell in ("none.k0", "bm25.k2") for end in ("", ".log-likelihood")
    ]
    cells = json.loads(next((tmp_path / "run" / "prompts").rglob("cells.json")).read_text())
    assert {cell["protocol"] for cell in cells if cell["task"]["name"] == "colour"} == {"generation", "log-likelihood"}


def test_reports_name_the_protocol_and_never_set_one_against_the_other(toy_data, tiny_model, tmp_path):
    from tagpr_eval import report

    run(both(toy_data, tiny_model), tmp_path / "mixed")
    (mixed,) = load_runs([tmp_path / "mixed"])
    group = next(group for group in make_groups([mixed]) if group.task.name == "colour")
    settings = [(cell.protocol, cell.setting) for cell in group.cells if not cell.is_baseline]
    assert len(settings) == len(set(settings)) == 4
    for first, second in report_tables.lift_pairs(group):
        assert group.cells[first].protocol == group.cells[second].protocol
    table = report_tables.headline_table(group)
    place = [column.name for column in table.columns].index("protocol")
    assert sorted(row.values[place] for row in table.rows) == ["generation"] * 2 + ["log-likelihood"] * 2 + ["rule"]
    assert "log-likelihood" in report.markdown_text(report.build([mixed]), "files")
    only = {
        name: config(toy_data, models=(f"m=hf:{tiny_model}",), k=(2,), tasks=("colour",), protocols=(name,),
                     sampling={"max_new_tokens": 4})
        for name in ("generation", "log-likelihood")
    }  # fmt: skip
    for name, settings in only.items():
        run(settings, tmp_path / name)
    runs = load_runs([tmp_path / "generation", tmp_path / "log-likelihood"])
    with pytest.raises(InputError, match=r"by generation, the other by log-likelihood: numbers of different protocols"):
        report_tables.compare_runs(*runs)
    (row,) = report_tables.compare_runs(*load_runs([tmp_path / "mixed", tmp_path / "log-likelihood"])).rows
    assert row.values[place + 1] == "log-likelihood"


def test_a_run_of_scores_that_was_cut_off_ends_the_same(toy_data, tiny_model, tmp_path):
    settings = both(toy_data, tiny_model)
    run(settings, tmp_path / "whole")
    lines = (tmp_path / "whole" / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    manifest = json.loads((tmp_path / "whole" / "run.json").read_text())
    (tmp_path / "cut" / "run.json").write_text(json.dumps({**manifest, "status": "running", "results": {}}))
    (tmp_path / "cut" / "samples.jsonl").write_bytes(b"".join(lines[::2]))
    run(settings, tmp_path / "cut")
    for file in ("predictions.parquet", "samples.jsonl"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_what_cannot_be_scored_is_refused_by_name(toy_data, tiny_model, tmp_path):
    for settings, message in (
        ({"tasks": ("colour", "note")}, "needs a task with labels; note has none"),
        ({"styles": ("trace",)}, "needs style direct; the styles are trace"),
    ):
        with pytest.raises(InputError, match=message):
            run(both(toy_data, tiny_model, **settings), tmp_path / "run")


@pytest.mark.parametrize(
    "changed",
    [
        {"chat": {"system_prompt": "Be kind."}}, {"chat": {"thinking": "off"}}, {"chat": {"template": "{{messages}}"}},
        {"sampling": {"max_new_tokens": 4, "temperature": 0.5}}, {"sampling": {"max_new_tokens": 4, "top_k": 3}},
        {"sampling": {"max_new_tokens": 4, "stop": ("\n",)}}, {"sampling": {"max_new_tokens": 5}},
        {"protocols": ("log-likelihood",)},
    ],
)  # fmt: skip
def test_answers_of_other_options_are_not_taken_for_ones_own(toy_data, tiny_model, tmp_path, changed):
    """The samples of a run are laid into the folder of another: none of them may be used."""
    first = {"k": (2,), "retrievers": ("bm25",), "tasks": ("colour",), "examples": 3, "sampling": {"max_new_tokens": 4}}
    models = (f"m=hf:{tiny_model}",)
    run(config(toy_data, models=models, **first), tmp_path / "first")
    run(config(toy_data, models=models, **{**first, **changed}), tmp_path / "other")

    def keys(name):
        return {json.loads(line)["key"] for line in (tmp_path / name / "samples.jsonl").read_text().splitlines()}

    assert keys("first")
    assert not keys("first") & keys("other")
    with pytest.raises(InputError, match="run of other settings"):
        run(config(toy_data, models=models, **{**first, **changed}), tmp_path / "first")
