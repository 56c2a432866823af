"""Models of random weights that are kept to the tag grammar or to labels while they write."""

import pytest
from typer.testing import CliRunner

from tagpr_data.constrain import Constraint
from tagpr_data.errors import InputError
from tagpr_data.records import Message, Prediction
from tagpr_data.tables import read_records
from tagpr_data.tags import load_tagset, parse
from tagpr_eval.cli import app
from tagpr_eval.config import Decoding, EvaluationConfig, LocalOptions, ServerOptions, from_options
from tagpr_eval.hf import HfModel
from tagpr_eval.models import Prompt
from tagpr_eval.openai_chat import OpenAIModel
from tagpr_eval.run import evaluate

TAGSET = load_tagset()
LABELS = Constraint(None, None, ("red", "blue", "green and red"))


def ask(folder, constraints, begun="", **sampling):
    decoding = Decoding(**{"max_new_tokens": 60, "temperature": 1.0, **sampling})
    model = HfModel(str(folder), decoding, LocalOptions(dtype="float32", batch_size=8))
    start = (Message(role="assistant", content=begun),) if begun else ()
    prompts = [
        Prompt((Message(role="user", content=f"question {n}"), *start), n, constraint=constraint)
        for n, constraint in enumerate(constraints)
    ]
    found = {}
    model.generate(prompts, model.batches(prompts), lambda index, completion: found.update({index: completion}))
    return [found[index] for index in range(len(prompts))]


@pytest.fixture(scope="module")
def marked_model(tiny_model, tmp_path_factory):
    """The random model with every mark of the tag set as a token of its own, so that it stumbles to the end."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    names = [name for name in TAGSET.names if TAGSET.by_name[name].cites == "no"]
    names.append("infer_preference")
    tokenizer.add_tokens(["<think>", "</think>", *[f"<{slash}{name}>" for name in names for slash in ("", "/")]])
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.resize_token_embeddings(len(tokenizer) + 6, mean_resizing=False)
    folder = tmp_path_factory.mktemp("marked")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_labels_and_free_rows_beside_them_stay_as_they_were(tiny_model, temperature):
    constraints = [LABELS if n % 2 else None for n in range(10)]
    kept = ask(tiny_model, constraints, temperature=temperature)
    free = ask(tiny_model, [None] * 10, temperature=temperature)
    assert all(one.text in LABELS.answers and one.finish_reason == "stop" for one in kept[1::2])
    assert [one.text for one in kept[::2]] == [one.text for one in free[::2]]
    assert not any(one.text in LABELS.answers for one in free)


def test_traces_that_end_are_valid_and_cite_only_items_of_the_prompt(marked_model):
    constraints = [Constraint(TAGSET, n % 3, ("red", "blue")) for n in range(24)]
    written = ask(marked_model, constraints, max_new_tokens=500, temperature=2.0)
    ended = [(one, each) for one, each in zip(written, constraints, strict=True) if one.finish_reason == "stop"]
    assert len(ended) >= 4
    for completion, constraint in ended:
        parsed = parse(completion.text, TAGSET, constraint.k)
        assert parsed.violations == () and parsed.answer in ("red", "blue"), completion.text
    assert all(completion.text.startswith("<think>\n<") for completion in written)


def test_a_begun_trace_goes_on_within_the_grammar(marked_model):
    begun = "<think>\n<infer_preference>Red"
    for completion in ask(marked_model, [Constraint(TAGSET, 0, ("red",))] * 3, begun, temperature=2.0):
        assert parse(begun + completion.text, TAGSET, 0).steps[0].tag == "infer_preference"
        assert "[P1]" not in completion.text
    with pytest.raises(InputError, match="begins with 'Well'"):
        ask(marked_model, [Constraint(TAGSET, 0)], "Well")


def test_a_server_gets_the_grammar_of_each_prompt(server):
    model = OpenAIModel("m", Decoding(constrain="tags"), ServerOptions(base_url=server.url, constrain="vllm"))
    question = (Message(role="user", content="q"),)
    prompts = [Prompt(question, 0), Prompt(question, 0, constraint=LABELS)]
    model.generate(prompts, model.batches(prompts), lambda index, completion: None)
    sent = [body.get("structured_outputs") for _, _, body in server.requests]
    assert len(sent) == 2 and None in sent and {"grammar": LABELS.grammar("gbnf")} in sent
    with pytest.raises(InputError, match="--server-grammar vllm or llama-cpp"):
        OpenAIModel("m", Decoding(constrain="tags"), ServerOptions(base_url=server.url))


def settings(toy_data, model, **options):
    return EvaluationConfig.model_validate(
        {
            "dataset": str(toy_data),
            "models": [f"m=hf:{model}"],
            "retrievers": ["recency"],
            "k": [0, 2],
            "local": {"dtype": "float32"},
            **options,
        }
    )


@pytest.mark.slow
def test_a_run_keeps_answers_to_the_labels_of_their_task(toy_data, tiny_model, tmp_path):
    sampling = {"max_new_tokens": 12, "constrain": "labels"}
    evaluate(settings(toy_data, tiny_model, sampling=sampling), tmp_path / "kept")
    rows = read_records(tmp_path / "kept/predictions.parquet", Prediction)
    assert {row.text for row in rows if row.task == "colour"} <= {"red", "blue", "green"}
    assert not {row.text for row in rows if row.task == "note"} & {"red", "blue", "green"}


@pytest.mark.slow
def test_constrained_samples_are_other_samples(toy_data, tiny_model, tmp_path):
    options = {"tasks": ["colour"], "examples": 2, "styles": ["trace"]}
    for mode in ("no", "tags"):
        sampling = {"max_new_tokens": 40, "constrain": mode}
        evaluate(settings(toy_data, tiny_model, sampling=sampling, **options), tmp_path / mode)
    keys = [set((tmp_path / mode / "samples.jsonl").read_text().splitlines()) for mode in ("no", "tags")]
    assert not keys[0] & keys[1]
    rows = read_records(tmp_path / "tags/predictions.parquet", Prediction)
    assert all(row.text.startswith("<think>\n<") for row in rows)


def test_a_grammar_of_traces_without_traces_is_a_mistake(toy_data, tmp_path):
    with pytest.raises(InputError, match="constrain tags is for traces"):
        from_options({"models": ["oracle"], "dataset": str(toy_data), "sampling": {"constrain": "tags"}})
    result = CliRunner().invoke(
        app, ["run", "--model", "oracle", "--dataset", str(toy_data), "--output", str(tmp_path), "--constrain", "yes"]
    )
    assert isinstance(result.exception, InputError) and "constrain" in str(result.exception)
