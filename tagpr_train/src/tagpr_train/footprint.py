"""What one stage will hold and compute, by arithmetic from its settings: bytes by what they are for, and FLOP.

No weights are loaded: the shape comes from the model's config.json, the batches from `workload`. The formulae:

    weights       sums over the layers' matrices; LoRA r·(in + out) for each layer it sits on, and the added marks' rows
    optimiser     AdamW: 8 bytes a trained weight, 4 more for a float32 master of a bfloat16 one (`master_adamw`)
    activations   what autograd keeps of a layer for a token that has a gradient, counted on transformers' own Llama
                  (`kept_bytes`; a test compares it with what autograd really keeps); checkpointing keeps D of them
    logits        `label_loss.CHUNK` rows at a time, 8 bytes a word; with every weight trained, the head's gradient too
    caches        keys and values of prompts and of completions being written
    compute       forward 2 FLOP a weight and token, backward as much for the activations and as much again for the
                  weights that are trained (Kaplan et al. 2020, sec. 2.1), attention 4·keys·width a layer and query

Memory is the larger of what the forward and backward pass and what the optimiser's step hold at once, for one process.
Formulae without a source are ours. How far they are off is measured: README, "Plan". D width, B rows, P prompt and C
completion positions, V vocabulary.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tagpr_data.errors import InputError
from tagpr_train import base_model, workload
from tagpr_train.config import CHECKPOINTING, RL_DEFAULTS, Lora, Prmu, Rl, Sft
from tagpr_train.workload import Batch, Workload

Settings = Sft | Prmu | Rl

GIB = 2**30

_PROCESS_BYTES = {"cpu": int(0.72 * GIB), "cuda": 0}  # an estimate for Python with torch, transformers, trl
_LOGIT_ROWS = 512  # label_loss.CHUNK, which needs torch
_DRAWN_ROWS = 128  # rl_generate.ROWS
_PROFILE_FEATURES = 1024  # of the hashed profile encoder
_MARKS = 20  # think and nine tags, opened and closed
_TOKEN_OBJECT_BYTES = 45  # a token of the data set as a Python number in a list, with its loss weight
_PLAIN_MODELS = ("bert", "roberta", "electra", "distilbert", "gpt2", "gpt_neox", "xlm-roberta", "mpnet")


@dataclass(frozen=True, slots=True)
class Shape:
    """A transformer as its config.json describes it."""

    layers: int
    width: int
    """D."""
    heads: int
    kv_heads: int
    head: int
    """Width of a head."""
    inner: int
    """Width inside the MLP."""
    vocabulary: int
    context: int
    """Most positions."""
    tied: bool
    """Whether the head's matrix is the embedding's."""
    gated: bool
    """Whether the MLP has a gate (three matrices instead of two)."""
    learned_positions: int = 0
    """Rows of position and segment embeddings."""
    biases: bool = False
    """Whether every linear layer has a bias."""
    qkv_biases: bool = False
    """Whether the projections to queries, keys and values have one."""

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's matrices, by their usual names."""
        queries, keys = self.heads * self.head, self.kv_heads * self.head
        mlp = {"gate_proj": (self.width, self.inner)} if self.gated else {}
        return {
            "q_proj": (self.width, queries),
            "k_proj": (self.width, keys),
            "v_proj": (self.width, keys),
            "o_proj": (queries, self.width),
            "up_proj": (self.width, self.inner),
            "down_proj": (self.inner, self.width),
            **mlp,
        }

    @property
    def layer_weights(self) -> int:
        """Weights of the matrices of all layers: what a token is multiplied with, but for the head."""
        return self.layers * sum(a * b for a, b in self.linear.values())

    def weights(self, *, head: bool = True) -> int:
        """Give all weights; `head` False leaves the output matrix out (a backbone)."""
        norms = (2 if self.learned_positions else 1) * (2 * self.layers + 1) * self.width
        biased = ("q_proj", "k_proj", "v_proj") if self.qkv_biases else tuple(self.linear) if self.biases else ()
        biases = self.layers * sum(self.linear[name][1] for name in biased)
        own_head = self.vocabulary * self.width if head and not self.tied else 0
        return self.layer_weights + norms + biases + (self.vocabulary + self.learned_positions) * self.width + own_head

    def lora_weights(self, lora: Lora) -> int:
        """Give the weights of an adapter."""
        return self.layers * lora.r * sum(sum(self.linear[name]) for name in self._adapted(lora))

    def lora_layers(self, lora: Lora) -> int:
        """Give how many matrices of a layer carry the adapter."""
        return len(self._adapted(lora))

    def _adapted(self, lora: Lora) -> list[str]:
        wanted = lora.target_modules
        names = (wanted,) if isinstance(wanted, str) else wanted
        return [name for name in self.linear if wanted == "all-linear" or name in names]


@dataclass(frozen=True)
class Prediction:
    """What one stage will need. Bytes and FLOP are those of one process."""

    work: Workload
    """Steps, examples, tokens and what was assumed."""
    memory: dict[str, int]
    """Bytes by what they are for; their sum is the peak."""
    flop: float
    """Arithmetic of the whole run of one process."""
    weights: int
    """Weights of the model."""
    trained: int
    """Weights that are trained."""
    notes: tuple[str, ...] = field(default=())
    """What was assumed."""

    @property
    def peak(self) -> int:
        """Most memory held at once by one process, in bytes."""
        return sum(self.memory.values())


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it will run."""

    device: str = "cpu"
    """`cpu` or `cuda`."""
    processes: int = 1
    """Processes, one to a GPU; each reads its own batches."""
    sharded: bool = False
    """Whether weights, gradients and optimiser are split among them (FSDP, DeepSpeed 3)."""


def predict(
    settings: Settings,
    machine: Machine | None = None,
    products: Mapping[str, Settings] | None = None,
    completion_tokens: float | None = None,
) -> Prediction:
    """Predict one stage. `products` are stages to come whose output folders `settings` names. InputError where model or
    data are not what they should be."""
    machine = machine or Machine()
    shape, folder = shape_of_model(settings.model, settings.revision, products or {})
    if isinstance(settings, Sft):
        work = workload.of_sft(settings, folder, shape.context, machine.processes)
    elif isinstance(settings, Prmu):
        work = workload.of_prmu(settings, folder, shape.context, machine.processes)
    else:
        work = workload.of_rl(settings, folder, shape.context, machine.processes, completion_tokens)
    scorer = _scorer(settings, products or {})
    own = shape.weights(head=not isinstance(settings, Prmu))
    return Prediction(
        work=work,
        memory=_memory(settings, shape, work, machine, scorer),
        flop=_flop(settings, shape, work, scorer),
        weights=own,
        trained=_trained(settings, shape, work),
        notes=work.notes,
    )


def flop_between(settings: Settings, first: int, last: int) -> float:
    """FLOP of the steps after `first` up to `last`, as `_flop` counts them."""
    shape, _ = shape_of_model(settings.model, settings.revision)
    prediction = predict(settings)
    if isinstance(settings, Rl) or last * accumulation(settings) > len(prediction.work.batches):
        assert prediction.work.steps
        return prediction.flop * (last - first) / prediction.work.steps
    batches = prediction.work.batches[first * accumulation(settings) : last * accumulation(settings)]
    return sum(_pass_flop(settings, shape, batch) for batch in batches)


def accumulation(settings: Settings) -> int:
    """Give how many passes make a step."""
    return int(settings.trainer.get("gradient_accumulation_steps", 1))


def shape_of_model(
    name: str, revision: str | None = None, products: Mapping[str, Settings] | None = None
) -> tuple[Shape, Path | None]:
    """Give a model's shape and its folder (None where it has none yet): a folder, also of an adapter or one that a
    stage of `products` is to write, the embedded model, or a name of the Hub."""
    if products and name in products:
        earlier = products[name]
        return shape_of_model(earlier.model, earlier.revision, products)
    folder = Path(name)
    if (folder / "adapter_config.json").is_file():
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        return shape_of_model(str(base), None, products)[0], folder
    if name.lower() == base_model.EMBEDDED:
        facts, found = base_model.embedded_config()
        return shape_of(facts), found
    resolved = base_model.resolve(name)
    if not Path(resolved).is_dir():
        found = _from_hub(name, revision)
        return shape_of(_read(found / "config.json")), found
    return shape_of(_read(Path(resolved) / "config.json")), Path(resolved)


def shape_of(facts: Mapping[str, Any]) -> Shape:
    """Read a config.json. InputError names the field that is missing."""
    facts = facts.get("backbone") or facts.get("text_config") or facts

    def number(*names: str, default: int | None = None) -> int:
        for name in names:
            if isinstance(value := facts.get(name), int) and not isinstance(value, bool):
                return value
        if default is None:
            raise InputError(f"config.json of the model has no {' or '.join(names)}; plan knows transformers only")
        return default

    kind = str(facts.get("model_type", ""))
    width, heads = number("hidden_size", "n_embd", "dim"), number("num_attention_heads", "n_head", "n_heads")
    plain = kind in _PLAIN_MODELS
    context = number("max_position_embeddings", "n_positions", default=1 << 20)
    return Shape(
        layers=number("num_hidden_layers", "n_layer", "n_layers"),
        width=width,
        heads=heads,
        kv_heads=number("num_key_value_heads", default=heads),
        head=number("head_dim", default=width // heads),
        inner=number("intermediate_size", "n_inner", "hidden_dim", default=4 * width),
        vocabulary=number("vocab_size"),
        context=context,
        tied=bool(facts.get("tie_word_embeddings", plain)),
        gated=not plain,
        learned_positions=context + int(facts.get("type_vocab_size", 0)) if plain else 0,
        biases=plain,
        qkv_biases=bool(facts.get("attention_bias", False)) or kind == "qwen2",
    )


def kept_bytes(shape: Shape, size: int, *, every_weight: bool, lora: Lora | None = None) -> int:
    """Give the bytes that autograd keeps of one layer for one token that has a gradient, keys and values apart.

    `size` bytes a number. Norms compute in float32 and keep their input; with every weight trained also its normalised
    form. Linear layers keep their input (two D: of attention and MLP), attention its queries and result, a gated MLP
    four times its inner width; adapters their r numbers.
    """
    norms = 2 * (4 * shape.width + (size * shape.width if every_weight else 0) + 4)
    inner = (4 if shape.gated else 2) * shape.inner
    queries = 2 * shape.heads * shape.head
    adapters = shape.lora_layers(lora) * lora.r if lora is not None else 0
    return norms + size * (2 * shape.width + inner + queries + adapters) + 4 * shape.heads


def _memory(settings: Settings, shape: Shape, work: Workload, machine: Machine, scorer: Shape | None) -> dict[str, int]:
    """Bytes of one process, by what they are for."""
    size = _size(settings)
    shards = machine.processes if machine.sharded else 1
    weights = shape.weights(head=not isinstance(settings, Prmu)) * size // shards
    trained = _trained(settings, shape, work) // shards
    states = trained * (12 if size == 2 else 8)
    gradients = trained * size
    accumulates = int(settings.trainer.get("gradient_accumulation_steps", 1)) > 1
    options = RL_DEFAULTS | settings.trainer if isinstance(settings, Rl) else settings.trainer
    passing = _activations(settings, shape, work.largest, size) + _logits(settings, shape, work.largest, size)
    if isinstance(settings, Rl):
        passing = max(passing, _drawing_bytes(shape, work, size))
    stepping = gradients + (4 * trained if size == 2 else 0)
    fixed = {
        "process": _PROCESS_BYTES[machine.device],
        "data": work.data_tokens * _TOKEN_OBJECT_BYTES if machine.device == "cpu" else 0,
        "weights": weights,
        "optimiser": states,
    }
    if isinstance(settings, Prmu):
        fixed["users"] = work.users * _PROFILE_FEATURES * 4
    if scorer is not None:
        fixed["reward model"] = 4 * scorer.weights(head=False)
    if isinstance(settings, Rl) and float(options.get("beta", 0.0)) > 0 and settings.adapter == "none":
        fixed["reference model"] = weights
    held = gradients if accumulates else 0
    if passing + held >= stepping:
        return fixed | {"gradients": held, "activations and logits": passing}
    return fixed | {"gradients": stepping, "activations and logits": 0}


def _activations(settings: Settings, shape: Shape, batch: Batch, size: int) -> int:
    """What one pass keeps for its backward: all positions, or those of the completion and the cache they attend to."""
    prompt_gradient = not isinstance(settings, Prmu) and settings.prompt_gradient
    queries, keys = shape.heads * shape.head * size, shape.kv_heads * shape.head * size
    every_weight = settings.adapter == "none"
    lora = None if every_weight else settings.lora
    token = kept_bytes(shape, size, every_weight=every_weight, lora=lora)
    whole = batch.prompt + batch.completion

    def layers(rows: int, asking: int, attended: int) -> int:
        one = rows * (asking * token + 2 * attended * queries + asking * attended * size)
        if any(settings.trainer.get(name) for name in CHECKPOINTING):
            return shape.layers * rows * asking * shape.width * size + one
        return shape.layers * one + rows * asking * token  # and what the backward pass of one layer holds beside

    if isinstance(settings, Rl):
        cache = 2 * shape.layers * batch.rows * whole * keys
        prompts = layers(batch.prompts, batch.prompt, batch.prompt) if prompt_gradient else 0
        return prompts + layers(batch.rows, batch.completion, whole) + cache
    if prompt_gradient or isinstance(settings, Prmu):
        return layers(batch.rows, whole, whole)
    cache = 2 * shape.layers * batch.rows * whole * keys
    return layers(batch.rows, batch.completion, whole) + cache


def _logits(settings: Settings, shape: Shape, batch: Batch, size: int) -> int:
    """Logits of a chunk in the type of the weights, in float32 and as their gradient; the head's gradient."""
    if isinstance(settings, Prmu):
        return 0
    rows = min(_LOGIT_ROWS, batch.labels)
    head = (4 + size) * shape.vocabulary * shape.width if settings.adapter == "none" else 0
    return rows * shape.vocabulary * 8 + batch.labels * shape.width * 4 + head


def _drawing_bytes(shape: Shape, work: Workload, size: int) -> int:
    """What is held while completions are written: their cache, twice while rows are dropped, and the next token's
    probabilities (8 bytes summed, 4 twice)."""
    assert work.drawing is not None
    rows = max(min(_DRAWN_ROWS, work.drawing.groups * work.drawing.copies), work.drawing.copies)
    whole = work.largest.prompt + work.largest.completion
    cache = 2 * shape.layers * rows * whole * shape.kv_heads * shape.head * size
    return 2 * cache + rows * shape.vocabulary * (16 + size)


def _flop(settings: Settings, shape: Shape, work: Workload, scorer: Shape | None) -> float:
    """All passes of one process, and in RL what it writes and scores."""
    share = work.passes / max(1, len(work.batches))
    total = sum(_pass_flop(settings, shape, batch) for batch in work.batches) * share
    return total + _drawing_flop(shape, work, scorer)


def _pass_flop(settings: Settings, shape: Shape, batch: Batch) -> float:
    every_weight = settings.adapter == "none"
    backward = 2 if every_weight else 1  # in units of a forward pass: activations, and weights where they are trained
    checkpointing = any(settings.trainer.get(name) for name in CHECKPOINTING)
    width = shape.heads * shape.head

    def layers(tokens: float, keys: float, times: float) -> float:
        return times * (2 * shape.layer_weights * tokens) + shape.layers * 4 * tokens * keys * width * times

    with_gradient = 1 + backward + checkpointing
    prompt_gradient = isinstance(settings, Prmu) or settings.prompt_gradient
    whole = batch.prompt + batch.completion
    head = 2 * batch.labels * shape.vocabulary * shape.width * (1 + backward)
    if isinstance(settings, Rl):
        head += 2 * batch.labels * shape.vocabulary * shape.width  # made anew in the backward pass
    prompt = layers(batch.prompts * batch.prompt, batch.prompt, with_gradient if prompt_gradient else 1)
    return prompt + layers(batch.rows * batch.completion, whole, with_gradient) + head


def _drawing_flop(shape: Shape, work: Workload, scorer: Shape | None) -> float:
    drawing = work.drawing
    if drawing is None:
        return 0.0
    each = 2 * (shape.layer_weights + shape.vocabulary * shape.width)
    prompts = drawing.rounds * drawing.groups + drawing.held_out
    completions = drawing.rounds * drawing.groups * drawing.copies + drawing.held_out
    written = prompts * drawing.prompt * 2 * shape.layer_weights + completions * drawing.completion * each
    if scorer is not None:
        written += completions * (drawing.prompt + drawing.completion) * 2 * scorer.layer_weights
    return written


def _trained(settings: Settings, shape: Shape, work: Workload) -> int:
    own = 0
    if isinstance(settings, Prmu):
        own = (work.users + _PROFILE_FEATURES + 1 + shape.width) * shape.width
    if settings.adapter == "none":
        return own + shape.weights(head=not isinstance(settings, Prmu))
    marks = 0
    if isinstance(settings, Sft) and settings.single_token_tags:
        marks = _MARKS * shape.width * (1 if shape.tied else 2)
    return own + shape.lora_weights(settings.lora) + marks


def _scorer(settings: Settings, products: Mapping[str, Settings]) -> Shape | None:
    """The reward model that RL holds beside the model it trains."""
    if not isinstance(settings, Rl) or settings.weights.personal == 0 or settings.prmu is None:
        return None
    if str(settings.prmu) in products:
        earlier = products[str(settings.prmu)]
        return shape_of_model(earlier.model, earlier.revision, products)[0]
    if settings.prmu.startswith(("http://", "https://")):  # it is another machine's
        return None
    name, _, revision = settings.prmu.partition("@")
    folder = Path(settings.prmu)
    return shape_of(_read((folder if folder.is_dir() else _from_hub(name, revision or None)) / "config.json"))


def _size(settings: Settings) -> int:
    return 2 if settings.dtype == "bfloat16" else 4


def _read(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not isinstance(facts, dict):
        raise InputError(f"{path} is not the config of a model")
    return facts


def _from_hub(name: str, revision: str | None) -> Path:
    """Fetch config and tokenizer of a model, nothing else."""
    from huggingface_hub import snapshot_download

    try:
        files = ["config.json", "tokenizer.json"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except Exception as error:  # many kinds: no network, no such name, no right to it
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"config.json of model {name!r} cannot be fetched: {reason}") from None
