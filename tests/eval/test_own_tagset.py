"""Models that were taught another tag set are judged and kept to theirs, beside models of the run's."""

from pathlib import Path

import pytest

from tagpr_data.tags import load_tagset
from tagpr_eval.cells import load_runs, make_groups
from tagpr_eval.config import EvaluationConfig
from tagpr_eval.models import Completion
from tagpr_eval.run import evaluate

ONE = load_tagset(Path("tagpr-1"))
TRACES = {
    "nine": "<think>\n<analyze_query>It asks.</analyze_query>\n<infer_preference>It</infer_preference>\n</think>\nred",
    "one": "<think>\n<step>It asks.</step>\n<step>Red.</step>\n</think>\nred",
}


class Writer:
    """Writes one trace to everything and keeps what it was asked."""

    def __init__(self, text):
        self.text, self.identity, self.constraints = text, text, []

    def batches(self, prompts):
        return [[place] for place in range(len(prompts))]

    def generate(self, prompts, batches, finished):
        for (place,) in batches:
            self.constraints.append(prompts[place].constraint)
            finished(place, Completion(self.text, "stop"))


def only_ask(prompts, name, answer, output):
    """Stands in for lighteval: asks for every answer and scores none."""
    import polars as pl

    for file in sorted(prompts.glob("**/*.parquet")):
        answer(pl.read_parquet(file)["cell", "example_id"].rows())


def test_each_model_is_judged_and_kept_to_its_own_tag_set(toy_data, tmp_path):
    settings = EvaluationConfig(
        dataset=str(toy_data), models=("nine=openai:a", "one=openai:b", "untold=openai:c"), tasks=("colour",), k=(0,),
        styles=("trace",), sampling={"constrain": "tags"}, per_model={"one": {"tagset": "tagpr-1"}},
    )  # fmt: skip
    writers = {"nine": Writer(TRACES["nine"]), "one": Writer(TRACES["one"]), "untold": Writer(TRACES["one"])}
    evaluate(settings, tmp_path / "run", make_model=lambda spec, _: writers[spec.name], score=only_ask)
    (group,) = make_groups(load_runs([tmp_path / "run"]))
    valid = {cell.model: set(cell.frame["is_valid_trace"]) for cell in group.cells}
    assert valid == {"nine": {True}, "one": {True}, "untold": {False}}
    tagsets = {name: {kept.tagset for kept in writer.constraints} for name, writer in writers.items()}
    assert tagsets == {"nine": {load_tagset()}, "one": {ONE}, "untold": {load_tagset()}}


def test_a_list_of_tags_in_the_prompt_is_one_for_all_models():
    with pytest.raises(ValueError, match=r"per_model\.m\.tagset: prompts of style trace-explained list one tag set"):
        EvaluationConfig(dataset="d", models=("m=hf:a",), styles=("trace-explained",), per_model={"m": {"tagset": "x"}})


def test_a_run_begun_before_there_were_samples_and_tag_sets_of_models_goes_on(toy_data, tmp_path):
    settings = EvaluationConfig(
        dataset=str(toy_data), models=("nine=openai:a",), tasks=("colour",), k=(0,), styles=("trace",),
        per_model={"nine": {"max_new_tokens": 9}},
    )  # fmt: skip
    made = lambda spec, _: Writer(TRACES["nine"])  # noqa: E731
    first = evaluate(settings, tmp_path / "run", make_model=made, score=only_ask)
    path = tmp_path / "run" / "run.json"
    text = path.read_text()
    assert '"samples": 1,' in text and '"tagset": null' in text
    config = first.config | {"per_model": {"nine": {"styles": None, "max_new_tokens": 9}}}
    del config["samples"]
    path.write_text(first.model_copy(update={"config": config}).model_dump_json())
    assert evaluate(settings, tmp_path / "run", make_model=made, score=only_ask).results == first.results
