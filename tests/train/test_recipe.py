"""Recipes: what is planned, what is shared, and real stages run from one file."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tagpr_data.errors import InputError
from tagpr_train import recipe
from tagpr_train.config import Rl, Sft

SHIPPED = Path(__file__).parents[2] / "tagpr_train" / "configs"


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a recipe of four stages, changed as asked, and gives its path."""
    (tmp_path / "sft.toml").write_text('corpus = "x"\noutput = "x"\nmodel = "base"\n')
    (tmp_path / "prmu.toml").write_text('pairs = "x"\noutput = "x"\nmodel = "base"\n')
    rl = 'dataset = "d"\noutput = "x"\nmodel = "x"\nsteps = 3\nprmu = "none"\n[rewards]\npersonal = 0.3\n'
    (tmp_path / "rl.toml").write_text(rl)

    def write(text: str = "", head: str = "") -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(
            f'output = "{tmp_path}/runs"\n{head}\n[inputs]\ncorpus = "{tmp_path}/corpus"\n'
            '[[stages]]\nname = "sft"\nkind = "sft"\nconfig = "sft.toml"\nset = { corpus = "{corpus}" }\n'
            '[[stages]]\nname = "prmu"\nkind = "prmu"\nconfig = "prmu.toml"\n'
            '[[stages]]\nname = "guided"\nkind = "rl"\nconfig = "rl.toml"\n'
            'set = { model = "{sft}", prmu = "{prmu}" }\n'
            '[[stages]]\nname = "exploratory"\nkind = "rl"\nconfig = "rl.toml"\n'
            'set = { model = "{guided}", stage = "exploratory" }\n' + text
        )
        return path

    return write


def planned(path: Path, *overrides: str, **options: Any) -> dict[str, list[recipe.Stage]]:
    """Variant and seed → its runs."""
    loaded, for_stages = recipe.load_recipe(path, overrides)
    return {one.name: list(one.stages) for one in recipe.chains(loaded, path.parent, for_stages, **options)}


def test_each_stage_starts_from_what_the_one_before_left(written: Callable[..., Path], tmp_path: Path) -> None:
    sft, prmu, guided, exploratory = planned(written())["whole-seed0"]
    assert isinstance(sft.settings, Sft) and sft.settings.corpus == tmp_path / "corpus"
    assert isinstance(guided.settings, Rl) and isinstance(exploratory.settings, Rl)
    assert guided.settings.model == str(tmp_path / "runs/sft/model") == str(sft.product)
    assert guided.settings.prmu == str(tmp_path / "runs/prmu/prmu") == str(prmu.product)
    assert exploratory.settings.model == str(tmp_path / "runs/guided/model")
    assert exploratory.settings.stage == "exploratory"


def test_a_variant_shares_what_it_leaves_as_it_is_and_runs_the_rest_apart(
    written: Callable[..., Path], tmp_path: Path
) -> None:
    path = written('[[variants]]\nname = "no-tags"\nset = { "guided.rewards.tags" = 0.0 }\n')
    whole, changed = planned(path).values()
    places = [str(stage.settings.output.relative_to(tmp_path / "runs")) for stage in changed]
    assert places == ["sft", "prmu", "no-tags/seed0/guided", "no-tags/seed0/exploratory"]
    assert [stage.settings.output for stage in changed[:2]] == [stage.settings.output for stage in whole[:2]]
    assert changed[3].settings.model == str(changed[2].product), "it goes on from its own guided stage"


def test_another_seed_shares_nothing(written: Callable[..., Path]) -> None:
    first, second = planned(written(head="seeds = [0, 7]")).values()
    assert {stage.settings.seed for stage in first} == {0} and {stage.settings.seed for stage in second} == {7}
    assert not {stage.settings.output for stage in first} & {stage.settings.output for stage in second}


def test_a_variant_shares_with_the_whole_recipe_of_its_own_seed(written: Callable[..., Path]) -> None:
    text = '[[variants]]\nname = "no-tags"\nset = { "guided.rewards.tags" = 0.0 }\n'
    made = planned(written(text, head="seeds = [0, 7]"))
    for seed in (0, 7):
        whole, changed = (
            [stage.settings.output for stage in made[f"{name}-seed{seed}"]] for name in ("whole", "no-tags")
        )
        assert [one == other for one, other in zip(whole, changed, strict=True)] == [True, True, False, False]


def test_a_dropped_stage_hands_on_what_it_would_have_started_from(written: Callable[..., Path]) -> None:
    text = '[[variants]]\nname = "no-sft"\ndrop = ["sft"]\n[[variants]]\nname = "one-stage"\ndrop = ["guided"]\n'
    no_sft, one_stage = (planned(written(text))[f"{name}-seed0"] for name in ("no-sft", "one-stage"))
    assert [stage.name for stage in no_sft] == ["prmu", "guided", "exploratory"]
    assert no_sft[1].settings.model == "base", "of sft.toml"
    assert [stage.name for stage in one_stage] == ["sft", "prmu", "exploratory"]
    assert one_stage[2].settings.model == str(one_stage[0].product)


def test_overrides_reach_their_stage_and_the_recipe(written: Callable[..., Path], tmp_path: Path) -> None:
    one = planned(written(), "guided.steps=9", f"output={tmp_path}/other", "inputs.corpus=elsewhere")["whole-seed0"]
    assert isinstance(one[0].settings, Sft) and isinstance(one[2].settings, Rl) and isinstance(one[3].settings, Rl)
    assert (one[2].settings.steps, one[3].settings.steps) == (9, 3)
    assert one[0].settings.output == tmp_path / "other/sft" and one[0].settings.corpus == Path("elsewhere")


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ('[[variants]]\nname = "x"\ndrop = ["rm"]\n', (), "names stage 'rm'; there are sft, prmu, guided"),
        ('[[variants]]\nname = "sft"\n', (), "has the name of a stage"),
        ('[[variants]]\nname = "x"\nset = { "guided.stepz" = 1 }\n', (), "stage 'guided'.*stepz"),
        ("", ("gided.steps=1",), "'gided.steps' is not a setting of this recipe; known: output, seeds"),
        ("", ("guided.model={sfd}",), None),  # an override is taken as it stands
        ('[[stages]]\nname = "sft"\nkind = "sft"\nconfig = "sft.toml"\n', (), "sft is named twice"),
        ('[[stages]]\nname = "x"\nkind = "sft"\nconfig = "no.toml"\n', (), r"stage 'x': config .*no\.toml does not"),
        ('[[stages]]\nname = "x"\nkind = "sft"\nconfig = "sft.toml"\nset = { model = "{y}" }\n', (), "'{y}' names no"),
        ("", ("guided.output=elsewhere",), "guided.output is not set here: the recipe's `output`"),
        ("", ("guided.seed=4",), "guided.seed is not set here: the recipe's `seeds`"),
        ('[[variants]]\nname = "x"\nset = { "guided.seed" = 1 }\n', (), "guided.seed is not set here"),
        ("", ("seeds=[1, 1]",), r"seeds = \[1, 1\] names one twice"),
        ('[[stages]]\nname = "x"\nkind = "dpo"\nconfig = "sft.toml"\n', (), "kind"),
    ],
)
def test_a_wrong_recipe_is_refused_with_the_place(
    written: Callable[..., Path], text: str, overrides: tuple[str, ...], message: str | None
) -> None:
    path = written(text)
    if message is None:
        assert planned(path, *overrides)
        return
    with pytest.raises(InputError, match=message):
        planned(path, *overrides)


def test_an_unknown_variant_and_a_missing_recipe_are_refused(written: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such variant; there are whole"):
        planned(written(), only=["nothing"])
    with pytest.raises(InputError, match=r"none\.toml does not exist"):
        recipe.load_recipe(tmp_path / "none.toml")


def test_the_grid_holds_every_last_model(written: Callable[..., Path], tmp_path: Path) -> None:
    text = (
        '[[variants]]\nname = "sft-only"\ndrop = ["prmu", "guided", "exploratory"]\n'
        '[evaluation]\ndataset = "{corpus}"\nmodels = ["knn"]\nk = [0, 4]\n'
        "[evaluation.sampling]\nmax_new_tokens = 9\n[evaluation.per_model.base]\nmax_new_tokens = 3\n"
    )
    path = written(text)
    loaded, for_stages = recipe.load_recipe(path)
    grid = tomllib.loads(recipe.write_grid(loaded, recipe.chains(loaded, path.parent, for_stages)).read_text())
    runs = tmp_path / "runs"
    assert grid == {
        "dataset": f"{tmp_path}/corpus",
        "k": [0, 4],
        "models": ["knn", f"sft-only-seed0=hf:{runs}/sft/model", f"whole-seed0=hf:{runs}/exploratory/model"],
        "sampling": {"max_new_tokens": 9},
        "per_model": {"base": {"max_new_tokens": 3}},
    }


def test_a_model_taught_another_style_is_evaluated_in_its_own(written: Callable[..., Path]) -> None:
    path = written(
        '[[variants]]\nname = "no-tags"\n[variants.set]\n"sft.target" = "chain"\n"guided.prompt.style" = "chain"\n'
        '"guided.rewards.tags" = 0.0\n"exploratory.prompt.style" = "chain"\n'
        '[[variants]]\nname = "answer-only"\ndrop = ["prmu", "guided", "exploratory"]\n'
        'set = { "sft.target" = "answer" }\n'
        '[[variants]]\nname = "sft-only"\ndrop = ["prmu", "guided", "exploratory"]\n'
        '[evaluation]\ndataset = "{corpus}"\nstyles = ["trace"]\n'
    )
    loaded, for_stages = recipe.load_recipe(path)
    grid = tomllib.loads(recipe.write_grid(loaded, recipe.chains(loaded, path.parent, for_stages)).read_text())
    assert grid["per_model"] == {"no-tags-seed0": {"styles": ["chain"]}, "answer-only-seed0": {"styles": ["direct"]}}
    from tagpr_eval.config import EvaluationConfig

    read = EvaluationConfig(**grid)
    assert [read.for_model(f"{name}-seed0").styles for name in ("whole", "no-tags", "answer-only", "sft-only")] == [
        ("trace",), ("chain",), ("direct",), ("trace",)
    ]  # fmt: skip


def test_missing_data_is_told_before_anything_is_trained(written: Callable[..., Path], tmp_path: Path) -> None:
    text = '[[variants]]\nname = "five-tags"\nset = { "sft.corpus" = "runs/no/corpus-5" }\n'
    path = written(text)
    made = planned(path, f"inputs.corpus={tmp_path}", f'prmu.pairs="{tmp_path}"', f'guided.dataset="{tmp_path}"',
                   f'exploratory.dataset="{tmp_path}"')  # fmt: skip
    recipe.check_data(made["whole-seed0"])
    with pytest.raises(InputError, match=r"runs/no/corpus-5 \(for .*five-tags/seed0/sft\)"):
        recipe.check_data([stage for stages in made.values() for stage in stages])


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*-recipe.toml")), ids=lambda path: path.stem)
def test_shipped_recipes_can_be_planned(path: Path) -> None:
    made = planned(path)
    assert all(stages for stages in made.values())


@pytest.mark.slow
def test_run_trains_all_stages_goes_on_and_ablate_shares_them(
    tiny_model: Path, corpus: Path, tmp_path: Path, written: Callable[..., Path]
) -> None:
    from tagpr_data.sources import personas
    from tagpr_train.cli import app

    personas.construct(tmp_path / "people", users=40, events=8)
    small = f'model = "{tiny_model}"\nadapter = "none"\ndtype = "float32"\n'
    (tmp_path / "sft.toml").write_text(
        f'corpus = "{corpus}"\noutput = "x"\n{small}[trainer]\nmax_steps = 2\nper_device_train_batch_size = 2\n'
    )
    (tmp_path / "rl.toml").write_text(
        f'dataset = "{tmp_path}/people"\noutput = "x"\n{small}tasks = ["personas-choice"]\nsteps = 1\nk = 1\n'
        "eval_examples = 2\nredraws = 0\n[rewards]\npersonal = 0.0\n[trainer]\nnum_generations = 2\n"
        "per_device_train_batch_size = 2\nmax_completion_length = 6\nmask_truncated_completions = false\n"
    )
    path = tmp_path / "short.toml"
    path.write_text(
        f'output = "{tmp_path}/runs"\n'
        '[[stages]]\nname = "sft"\nkind = "sft"\nconfig = "sft.toml"\n'
        '[[stages]]\nname = "guided"\nkind = "rl"\nconfig = "rl.toml"\nset = { model = "{sft}" }\n'
        '[[stages]]\nname = "exploratory"\nkind = "rl"\nconfig = "rl.toml"\n'
        'set = { model = "{guided}", stage = "exploratory" }\n'
        '[[variants]]\nname = "one-stage"\ndrop = ["guided"]\n'
        '[[variants]]\nname = "answer-only"\ndrop = ["guided", "exploratory"]\nset = { "sft.target" = "answer" }\n'
        '[[variants]]\nname = "no-tags"\nset = { "sft.target" = "chain", "guided.prompt.style" = "chain", '
        '"guided.rewards.tags" = 0.0, "exploratory.prompt.style" = "chain" }\n[evaluation]\ndataset = "people"\n'
    )
    runner = CliRunner()
    done = runner.invoke(app, ["run", str(path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "runs/exploratory/model").is_dir()
    manifest = json.loads((tmp_path / "runs/guided/run.json").read_text())
    assert manifest["config"]["model"] == str(tmp_path / "runs/sft/model")

    before = (tmp_path / "runs/exploratory/run.json").read_bytes()
    again = runner.invoke(app, ["run", str(path)], catch_exceptions=False)
    assert again.exit_code == 0 and again.output.count("was finished") == 3
    assert (tmp_path / "runs/exploratory/run.json").read_bytes() == before

    listed = runner.invoke(app, ["ablate", str(path), "--dry-run"], catch_exceptions=False)
    assert "one-stage/seed0/exploratory: rl, to run; one-stage-seed0" in listed.output
    ablated = runner.invoke(app, ["ablate", str(path), "--no-evaluate", "--jobs", "2"], catch_exceptions=False)
    assert ablated.exit_code == 0, ablated.output
    assert (tmp_path / "runs/exploratory/run.json").read_bytes() == before
    for product in ("one-stage/seed0/exploratory", "answer-only/seed0/sft", "no-tags/seed0/exploratory"):
        assert (tmp_path / "runs" / product / "model").is_dir()
    models = tomllib.loads((tmp_path / "runs/evaluation.toml").read_text())["models"]
    names = [model.partition("=")[0] for model in models]
    assert names == ["one-stage-seed0", "answer-only-seed0", "no-tags-seed0", "whole-seed0"]
    changed = ["ablate", str(path), "--no-evaluate", "--jobs", "2", "--set", "sft.trainer.max_steps=3"]
    refused = runner.invoke(app, changed)
    assert isinstance(refused.exception, InputError) and "holds a run of other settings" in str(refused.exception)

    listed = runner.invoke(app, ["ablate", str(path), "--dry-run", "--set", "sft.trainer.max_steps=3"])
    assert "sft: sft, holds a run of other settings, which will be refused; whole" in listed.output
    assert "guided: rl, finished; whole" in listed.output
    other = runner.invoke(app, ["run", str(path), "--set", "sft.trainer.max_steps=3"])
    assert isinstance(other.exception, InputError) and "holds a run of other settings" in str(other.exception)
