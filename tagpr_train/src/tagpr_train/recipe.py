"""Recipes: several stages in one file, and the ablations of it, each stage trained once however many variants share it.

    output = "runs/personas"
    [inputs]                              # any names, for `{name}` below; --set inputs.dataset=… overrides
    dataset = "runs/personas/dataset"
    [[stages]]
    name = "sft"                          # `{sft}` is what it produced, for later stages
    kind = "sft"                          # sft, prmu or rl
    config = "personas-sft-cpu.toml"      # beside the recipe
    set = { model = "{tiny}" }
    [[variants]]
    name = "no-prmu"
    drop = ["prmu"]
    set = { "guided.rewards.personal" = 0.0 }
    [evaluation]                          # a grid of tagpr-eval; `models` are filled in

Guarantee: planning is pure. A stage whose settings, with all it starts from, equal those of the whole recipe with the
same seed is the same run and lies in the same folder; every other one lies in OUTPUT/VARIANT/SEED. Finished stages are
taken as they are, interrupted ones go on, a folder of other settings is refused. Price: stages run one after the other;
`side_by_side.py` runs several at once.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from tagpr_data.config import Config, load
from tagpr_data.data_source import may_exist
from tagpr_data.errors import InputError
from tagpr_data.prompts import Style
from tagpr_data.records import RunManifest
from tagpr_data.tables import read_json, write_text
from tagpr_train.config import TARGET_STYLES, Prmu, Rl, Sft

if TYPE_CHECKING:
    from tagpr_train.loop import Report

Kind = Literal["sft", "prmu", "rl"]
Settings = Sft | Prmu | Rl
KINDS: dict[Kind, tuple[type[Sft] | type[Prmu] | type[Rl], str]] = {
    "sft": (Sft, "model"),
    "prmu": (Prmu, "prmu"),
    "rl": (Rl, "model"),
}
"""Kind of a stage → its settings, and the folder in the run that holds what it produced."""

_NAME = r"^[a-z0-9][a-z0-9-]*$"


class StageEntry(Config):
    """One stage as a recipe names it."""

    name: str = Field(pattern=_NAME)
    """Its name: folder under `output`, prefix of overrides, and `{name}` for what it produced."""
    kind: Kind
    """Which command it is."""
    config: str
    """TOML file of that command, relative to the recipe."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings that override the file; `{input}` and `{stage}` are replaced in texts."""


class Variant(Config):
    """An ablation: the recipe with something taken away."""

    name: str = Field(pattern=_NAME)
    """Name in folders and tables."""
    drop: tuple[str, ...] = ()
    """Stages left out. What started from a dropped stage starts from what that one started from."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings by `stage.setting`."""


class Recipe(Config):
    """Stages, and variants of them."""

    output: Path
    """Folder of all runs."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Names for places, used as `{name}`."""
    stages: tuple[StageEntry, ...] = Field(min_length=1)
    """In the order they run."""
    variants: tuple[Variant, ...] = ()
    """Ablations; the whole recipe is always among them, as `whole`."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Seeds of all stages in `ablate`; `run` takes the first."""
    evaluation: dict[str, Any] = Field(default_factory=dict)
    """Grid of tagpr-eval for the products of `ablate`."""

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        names = [stage.name for stage in self.stages]
        for group in (names, [variant.name for variant in self.variants]):
            if twice := {name for name in group if group.count(name) > 1}:
                raise ValueError(f"{', '.join(sorted(twice))} is named twice")
        if clash := set(names) & self.inputs.keys():
            raise ValueError(f"{', '.join(sorted(clash))} names both an input and a stage")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)} names one twice")
        for entry in self.stages:
            _refuse_overruled(f"{entry.name}.{key}" for key in entry.set)
        for variant in self.variants:
            _refuse_overruled(variant.set)
            if variant.name in {"whole", *names}:
                raise ValueError(f"variant {variant.name!r} has the name of a stage, or of the whole recipe")
            for stage in (*variant.drop, *(key.partition(".")[0] for key in variant.set)):
                if stage not in names:
                    raise ValueError(f"variant {variant.name!r} names stage {stage!r}; there are {', '.join(names)}")
            if set(variant.drop) == set(names):
                raise ValueError(f"variant {variant.name!r} drops every stage")
        return self


@dataclass(frozen=True, slots=True)
class Stage:
    """One run to be made."""

    name: str
    kind: Kind
    settings: Settings

    @property
    def product(self) -> Path:
        """Folder of the model or PRMU it leaves."""
        return self.settings.output / KINDS[self.kind][1]


@dataclass(frozen=True, slots=True)
class Chain:
    """One variant with one seed: its runs in order."""

    variant: str
    seed: int
    stages: tuple[Stage, ...]

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"{self.variant}-seed{self.seed}"

    @property
    def model(self) -> Path:
        """The last model it leaves."""
        return [stage for stage in self.stages if stage.kind != "prmu"][-1].product

    @property
    def style(self) -> Style:
        """Prompt style that this model was taught."""
        settings = [stage.settings for stage in self.stages if not isinstance(stage.settings, Prmu)][-1]
        return TARGET_STYLES[settings.target] if isinstance(settings, Sft) else settings.prompt.style

    @property
    def tagset(self) -> str | None:
        """Tag set that this model was taught; None is tagpr-9."""
        named = [stage.settings.tagset for stage in self.stages if not isinstance(stage.settings, Prmu)][-1]
        return None if named is None else str(named)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """Read a recipe. Overrides `inputs.x=…`, `output=…` and `seeds=[…]` change the recipe; those that begin with the
    name of a stage are given back, for `chain`. InputError on anything else."""
    if not path.is_file():
        raise InputError(f"recipe {path} does not exist; shipped ones: tagpr_train/configs/*-recipe.toml")
    try:
        stages = {stage["name"] for stage in tomllib.loads(path.read_text(encoding="utf-8")).get("stages", [])}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError, KeyError, AttributeError):
        stages = set[str]()  # `load` says what is wrong
    for_stages = [one for one in overrides if one.partition("=")[0].partition(".")[0].strip() in stages]
    try:
        _refuse_overruled(one.partition("=")[0].strip() for one in for_stages)
    except ValueError as error:
        raise InputError(f"--set {error}") from None
    own = [one for one in overrides if one not in for_stages]
    for one in own:
        key = one.partition("=")[0].strip()
        if key not in ("output", "seeds") and not key.startswith(("inputs.", "evaluation.")):
            known = ", ".join(("output", "seeds", "inputs.NAME", "evaluation.NAME", *(f"{s}.SETTING" for s in stages)))
            raise InputError(f"--set {one}: {key!r} is not a setting of this recipe; known: {known}")
    return load(Recipe, path, own), for_stages


def chain(
    recipe: Recipe, folder: Path, overrides: Sequence[str] = (), variant: Variant | None = None, seed: int | None = None
) -> Chain:
    """Give the runs of one variant (None: the whole recipe) with one seed (None: the recipe's first).

    `folder` is where the recipe lies. InputError names the stage whose settings are wrong.
    """
    seed = recipe.seeds[0] if seed is None else seed
    whole = _stages(recipe, folder, overrides, None, recipe.seeds[0], None)
    if seed != recipe.seeds[0]:
        whole = [*whole, *_stages(recipe, folder, overrides, None, seed, whole)]
    if variant is None:
        return Chain("whole", seed, tuple(whole[-len(recipe.stages) :]))
    return Chain(variant.name, seed, tuple(_stages(recipe, folder, overrides, variant, seed, whole)))


def chains(recipe: Recipe, folder: Path, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> list[Chain]:
    """Give every variant with every seed, the whole recipe first; `only` names the variants wanted."""
    variants: dict[str, Variant | None] = {"whole": None, **{variant.name: variant for variant in recipe.variants}}
    for name in only:
        if name not in variants:
            raise InputError(f"--only {name}: there is no such variant; there are {', '.join(variants)}")
    wanted = [variants[name] for name in variants if not only or name in only]
    return [chain(recipe, folder, overrides, variant, seed) for variant in wanted for seed in recipe.seeds]


def check_data(stages: Sequence[Stage]) -> None:
    """InputError names the stages to be run whose corpus, pairs or data set is neither here nor a name of the Hub, so
    that none of them is trained before that is seen."""
    missing: dict[Path, list[str]] = {}
    for stage in stages:
        settings = stage.settings
        reads = {Sft: "corpus", Prmu: "pairs", Rl: "dataset"}[type(settings)]
        place: Path = getattr(settings, reads)
        if not is_finished(stage) and not may_exist(place):
            missing.setdefault(place, []).append(str(settings.output))
    if missing:
        said = "; ".join(f"{place} (for {', '.join(users)})" for place, users in missing.items())
        raise InputError(f"data that stages read does not exist: {said}. The recipe's first lines say how it is made")


def is_finished(stage: Stage) -> bool:
    """Whether its run got to its end; the settings are compared when it is run."""
    path = stage.settings.output / "run.json"
    return path.exists() and read_json(path, RunManifest).status != "running"


def state_of(stage: Stage) -> str:
    """Say what `run_stage` will find in its folder, in words."""
    path = stage.settings.output / "run.json"
    if not path.exists():
        return "to run"
    found = read_json(path, RunManifest)
    if found.config != stage.settings.model_dump(mode="json"):
        return "holds a run of other settings, which will be refused"
    return "to go on with" if found.status == "running" else "finished"


def run_stage(stage: Stage, report: "Report | None" = None) -> RunManifest:
    """Train one stage, or go on with it, or take it as it is when it is finished.

    InputError when its folder holds a run of other settings. Status `running` means a signal stopped it.
    """
    resume = (stage.settings.output / "run.json").exists()
    if isinstance(stage.settings, Sft):
        from tagpr_train.sft import train as train_sft

        return train_sft(stage.settings, resume=resume, report=report)
    if isinstance(stage.settings, Prmu):
        from tagpr_train.prmu_fit import train as train_prmu

        return train_prmu(stage.settings, resume=resume, report=report)
    from tagpr_train.rl import train as train_rl

    return train_rl(stage.settings, resume=resume, report=report)


def write_grid(recipe: Recipe, made: Sequence[Chain]) -> Path:
    """Write OUTPUT/evaluation.toml, a grid of tagpr-eval over the last models of the chains; give its path. A model
    that was taught another style than those of `[evaluation]` is asked in its own."""
    path = recipe.output / "evaluation.toml"
    inputs = dict(recipe.inputs)
    settings = {key: _filled(value, inputs) for key, value in recipe.evaluation.items()}
    models = [*settings.pop("models", []), *(f"{one.name}=hf:{one.model}" for one in _by_stage(made))]
    styles = settings.get("styles")
    own = {
        one.name: {
            **({"styles": [one.style]} if styles and one.style not in styles else {}),
            **({"tagset": one.tagset} if one.tagset and one.tagset != settings.get("tagset") else {}),
        }
        for one in made
    }
    others = {name: options for name, options in own.items() if options}
    if others:
        settings["per_model"] = others | settings.get("per_model", {})
    write_text(path, "\n".join(toml_lines({**settings, "models": models})) + "\n")
    return path


def _by_stage(made: Sequence[Chain]) -> list[Chain]:
    """Put each stage of the whole recipe behind the one before it, so that "the model before" of a table is that one;
    other variants come first, in their order."""
    whole = {stage.settings.output for one in made if one.variant == "whole" for stage in one.stages}
    return sorted(made, key=lambda one: len(one.stages) if one.stages[-1].settings.output in whole else 0)


def _refuse_overruled(places: Iterable[str]) -> None:
    """Refuse `stage.output` and `stage.seed`, which the recipe sets for every stage: they would be passed over."""
    for place in places:
        for setting, instead in (("output", "`output`, in which each stage has a folder"), ("seed", "`seeds`")):
            if place.partition(".")[2] == setting:
                raise ValueError(f"{place} is not set here: the recipe's {instead}")


def _stages(
    recipe: Recipe,
    folder: Path,
    overrides: Sequence[str],
    variant: Variant | None,
    seed: int,
    whole: Sequence[Stage] | None,
) -> list[Stage]:
    """Give the runs of one variant and seed. A run whose settings are those of one in `whole` is that run; None when
    these are the runs of the whole recipe with its first seed."""
    places = {key: _filled(value, recipe.inputs) for key, value in recipe.inputs.items()}
    dropped = set(variant.drop) if variant else set[str]()
    changes = variant.set if variant else {}
    home = recipe.output / (variant.name if variant else "whole") / f"seed{seed}"
    made: list[Stage] = []
    for entry in recipe.stages:
        changed = {
            key.partition(".")[2]: value for key, value in changes.items() if key.partition(".")[0] == entry.name
        }
        values = {key: _filled(value, places, entry.name) for key, value in {**entry.set, **changed}.items()}
        given = [one.partition(".")[2] for one in overrides if one.partition(".")[0].strip() == entry.name]
        lines = [f"{key}={json.dumps(value)}" for key, value in values.items()] + given

        def settings(output: Path, entry: StageEntry = entry, lines: Sequence[str] = lines) -> Settings:
            model, _ = KINDS[entry.kind]
            try:
                return load(model, folder / entry.config, [*lines, f"seed={seed}", f"output={json.dumps(str(output))}"])
            except InputError as error:
                raise InputError(f"stage {entry.name!r}: {error}") from None

        stage = Stage(entry.name, entry.kind, settings(recipe.output / entry.name))
        if entry.name in dropped:
            places[entry.name] = stage.settings.model
            continue
        if whole is not None:
            own = Stage(entry.name, entry.kind, settings(home / entry.name))
            stage = next((one for one in whole if one.name == entry.name and _same(one, own)), own)
        made.append(stage)
        places[entry.name] = str(stage.product)
    return made


def _same(one: Stage, other: Stage) -> bool:
    """Whether two runs have the same settings but for where they lie."""
    return one.settings == other.settings.model_copy(update={"output": one.settings.output})


def toml_lines(values: Mapping[str, Any], section: str = "") -> list[str]:
    """Give the lines of a TOML file; JSON's texts, numbers and lists are TOML's too."""
    lines = [f"[{section}]"] if section else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for key, value in values.items():
        if isinstance(value, dict):
            inner: dict[str, Any] = value
            lines += ["", *toml_lines(inner, f"{section}.{key}" if section else key)]
    return lines


def _filled(value: Any, places: Mapping[str, str], stage: str = "") -> Any:
    """Replace `{name}` in texts, also inside lists."""
    if isinstance(value, str):
        try:
            return value.format_map(places)
        except (KeyError, ValueError, IndexError) as error:
            where = f"stage {stage!r}: " if stage else ""
            known = ", ".join(f"{{{name}}}" for name in places) or "none"
            raise InputError(
                f"{where}{value!r} names no input and no earlier stage ({error}); known: {known}"
            ) from None
    if isinstance(value, list):
        return [_filled(one, places, stage) for one in value]  # pyright: ignore[reportUnknownVariableType]
    return value
