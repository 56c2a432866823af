"""Training in another tag set than the shipped one: a relabelled corpus through SFT, the reward of tags, the grid."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tagpr_data.build import CorpusConfig, build
from tagpr_data.corpus import open_corpus
from tagpr_data.errors import InputError
from tagpr_data.records import Step, Task, Trace
from tagpr_data.relabel import relabel
from tagpr_data.sources import personas
from tagpr_data.tables import read_records
from tagpr_data.tags import TagSet, load_tagset, render
from tagpr_train import recipe, rewards, sft, tag_tokens
from tagpr_train.config import Sft

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
NINE, RANDOM = load_tagset(), load_tagset(Path("tagpr-9-random"))
NAMES = dict(zip(NINE.names, RANDOM.names, strict=True))


@pytest.fixture(scope="module")
def random_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of a few synthetic people under names that mean nothing."""
    folder = tmp_path_factory.mktemp("relabelled")
    personas.construct(folder / "people", users=40, events=8)
    teacher: dict[str, Any] = {"type": "scripted", "hindsight": True}
    build(
        CorpusConfig.model_validate(
            {"name": "p", "dataset": folder / "people", "output": folder / "nine", "teacher": teacher}
        )
    )
    relabel(open_corpus(folder / "nine"), NINE, RANDOM, NAMES, folder / "random")
    return folder / "random"


def test_sft_learns_the_marks_of_another_tag_set_as_single_tokens(
    tiny_model: Path, random_corpus: Path, tmp_path: Path
) -> None:
    values: dict[str, Any] = {"model": str(tiny_model), "corpus": random_corpus, "warmup_steps": 1, "adapter": "none"}
    options = {"per_device_train_batch_size": 3, "max_steps": 3, "learning_rate": 5e-3}
    config = Sft(output=tmp_path / "run", tagset=Path("tagpr-9-random"), trainer=options, **values)
    manifest = sft.train(config)
    assert manifest.results["steps"] == 3 and manifest.config["tagset"] == "tagpr-9-random"
    tokenizer = AutoTokenizer.from_pretrained(config.output / "model")
    for mark in tag_tokens.marks(RANDOM):
        assert len(tokenizer(mark, add_special_tokens=False)["input_ids"]) == 1, mark
    row = read_records(random_corpus / "traces/train.parquet", Trace)[0]
    ids = tokenizer(row.text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == row.text
    with pytest.raises(InputError, match="written in tag set 'tagpr-9-random'"):
        sft.train(config.model_copy(update={"output": tmp_path / "other", "tagset": None}))


@pytest.mark.parametrize(("tags", "own", "other"), [(NINE, NINE, RANDOM), (RANDOM, RANDOM, NINE)])
def test_the_reward_of_tags_goes_by_the_tag_set_that_is_taught(tags: TagSet, own: TagSet, other: TagSet) -> None:
    steps = [
        Step(tag=tags.names[NINE.names.index("analyze_query")], text="The input asks for the colour of a new coat."),
        Step(tag=tags.names[NINE.names.index("resolve_conflict")], text="Nothing is known, so red is as good as any."),
    ]
    task = Task(name="t", kind="classification", labels=("red", "blue"), answer_form="a colour", item_template="")
    rewarded = [
        rewards.composite(task, render(steps, "red"), "red", (), "Which colour?", tagset, rewards.RewardWeights())
        for tagset in (own, other)
    ]
    assert [reward.tags for reward in rewarded] == [1.0, 0.0]


def test_a_model_taught_another_tag_set_is_judged_by_it(tmp_path: Path) -> None:
    shipped = Path(recipe.__file__).parents[2] / "configs" / "personas-recipe.toml"
    loaded, for_stages = recipe.load_recipe(shipped, [f'output="{tmp_path}"'])
    names = ["whole", "five-tags", "one-tag", "random-names", "answer-only"]
    made = recipe.chains(loaded, shipped.parent, for_stages, names)
    grid = tomllib.loads(recipe.write_grid(loaded, made).read_text())
    assert grid["per_model"] == {
        "five-tags-seed0": {"tagset": "tagpr-5"},
        "one-tag-seed0": {"tagset": "tagpr-1"},
        "random-names-seed0": {"tagset": "tagpr-9-random"},
        "answer-only-seed0": {"styles": ["direct"]},
    }
    whole, five = made[0], next(one for one in made if one.variant == "five-tags")
    shared = {stage.name for stage in five.stages} & {stage.name for stage in five.stages if stage in whole.stages}
    assert shared == {"prmu"}, "the reward model reads no tags and is trained once"
