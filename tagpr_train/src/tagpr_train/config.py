"""Settings of the training stages, one model per stage. Checked before anything heavy is imported.

trl's own options are not mirrored: what stands under `[trainer]` is handed to trl, and trl knows what is allowed
there. The few options that would contradict ours are refused by name.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, TypeAdapter, ValidationError, field_validator, model_validator

from tagpr_data.config import Config
from tagpr_data.prompts import PromptOptions, Style
from tagpr_data.records import Split
from tagpr_train.rewards import RewardWeights

OWN_OPTIONS = {
    "output_dir": "`output`",
    "seed": "`seed`",
    "data_seed": "`seed`",
    "max_length": "`max_tokens`",
    "packing": "batches are grouped by length instead",
    "eval_packing": "batches are grouped by length instead",
    "padding_free": "batches are grouped by length instead",
    "group_by_length": "batches are always grouped by length",
    "train_sampling_strategy": "batches are always grouped by length",
    "model_init_kwargs": "`model` and `dtype`",
    "dataset_kwargs": "the corpus is tokenised here",
    "eval_strategy": "`eval_every_steps`",
    "resume_from_checkpoint": "the flag --resume",
    "bf16": "`dtype`",
    "fp16": "`dtype`",
    "trust_remote_code": "code of models is never run",
    "push_to_hub": "publishing is a command of its own",
    "assistant_only_loss": "the loss is on the completion only",
    "completion_only_loss": "the loss is on the completion only",
}
"""trl options that may not stand under `[trainer]`, and what to use instead."""

_Count = Annotated[int, Strict(), Field(ge=1)]
_Size = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
_Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
_Share = Annotated[float, Strict(), Field(ge=0, lt=1)]
RANGES: dict[str, Any] = {
    "per_device_train_batch_size": _Count, "gradient_accumulation_steps": _Count, "num_train_epochs": _Positive,
    "max_steps": _Count | Literal[-1], "logging_steps": _Positive, "save_steps": _Positive, "learning_rate": _Size,
    "weight_decay": _Size, "max_grad_norm": _Size, "adam_beta1": _Share, "adam_beta2": _Share, "adam_epsilon": _Size,
    "num_generations": _Count, "steps_per_generation": _Count, "num_iterations": _Count,
    "max_completion_length": _Count, "temperature": _Positive, "top_p": Annotated[float, Strict(), Field(gt=0, le=1)],
    "top_k": Annotated[int, Strict(), Field(ge=0)], "epsilon": _Size, "epsilon_high": _Size, "beta": _Size,
}  # fmt: skip
"""What the commonest of trl's options may be: trl and torch take some of them as they come and fail far from here."""

SEED = Field(default=0, ge=0, lt=2**32)
"""Of numpy, which knows no other seeds."""

Target = Literal["trace", "chain", "answer"]
"""What SFT teaches to write."""

TARGET_STYLES: dict[Target, Style] = {"trace": "trace", "chain": "chain", "answer": "direct"}
"""Target of SFT → the prompt style that a model trained on it is asked in, in RL and in evaluation."""

CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")
"""trl's option to trade time for memory, by its newer and its older name."""


SFT_BATCH_SIZE = 6
"""`trainer.per_device_train_batch_size` of SFT where the config names none."""

PRMU_BATCH_SIZE = 16
"""The same of PRMU."""

RL_DEFAULTS: dict[str, Any] = {
    "num_generations": 8,
    "per_device_train_batch_size": 16,
    "max_completion_length": 256,
    "importance_sampling_level": "sequence",  # GSPO: with these two and the two epsilons
    "loss_type": "grpo",
    "epsilon": 3e-4,
    "epsilon_high": 4e-4,
    "beta": 0.0,
    "mask_truncated_completions": True,
    "learning_rate": 1e-5,
}
"""trl options where ours differ from trl's; `[trainer]` overrides them."""


class Lora(Config):
    """A low-rank adapter on linear layers."""

    r: int = Field(default=16, ge=1)
    """Rank."""
    alpha: float = Field(default=32, gt=0)
    """Scale; the update is multiplied by alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which layers: peft's `all-linear` (all but the head) or names."""


class Sft(Config):
    """Supervised fine-tuning on the traces of a corpus."""

    corpus: Path
    """Corpus folder, or OWNER/NAME[@REVISION] of the Hub (`tagpr_data.data_source`)."""
    output: Path
    """Run folder; refused when it holds another run."""
    model: str = "smollm2-135m-instruct"
    """Base model: the embedded one by this name, a folder, or a Hub id."""
    revision: str | None = None
    """Commit of the model on the Hub; None takes the newest."""
    tasks: tuple[str, ...] | None = None
    """Train on these tasks of the corpus only; None takes all."""
    tagset: Path | None = None
    """Tag-set file of the corpus, or name of a shipped set; None is tagpr-9."""
    target: Target = "trace"
    """`trace`: tagged think block and answer. `chain`: the same words without tags, under the prompt of style `chain`
    (the ablation of the tags). `answer`: the answer alone, under that of style `direct`."""

    adapter: Literal["lora", "none"] = "lora"
    """`lora` trains a small adapter, `none` every weight."""
    lora: Lora = Lora()
    """The adapter's shape."""
    single_token_tags: bool = True
    """Add each tag mark as one token, started at the mean of its pieces; about 40 tokens less per trace. Under LoRA
    only these rows of the embedding are trained."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the weights. The optimiser works on float32 masters in both cases."""
    prompt_gradient: bool = True
    """False: the prompt is read without gradient into a cache, and only the completion is trained through. Nearly
    twice as fast on long prompts, but an approximation: no gradient reaches the keys and values of the prompt."""
    answer_weight: float = Field(default=1.0, gt=0)
    """Weight of the answer's tokens in the loss; those of the think block have 1."""
    max_tokens: int | None = Field(default=None, ge=16)
    """Longest prompt + completion; None is the model's context. A longer prompt loses its middle, and is counted; a
    completion that leaves no room for 16 tokens of prompt is left out, and is counted."""

    max_minutes: float | None = Field(default=None, gt=0)
    """Time budget of the training steps: training stops cleanly before it is spent, and the learning rate decays to
    that moment instead of to the last step. Such a run depends on the machine's speed."""
    warmup_steps: int = Field(default=8, ge=0)
    """Steps of linear warm-up."""
    hold: float = Field(default=0.3, ge=0, le=1)
    """Share of the run (of its steps or its minutes, whichever is further) at the full rate; then linear decay to 0.
    Ignored where `trainer.lr_scheduler_type` asks for one of trl's schedules."""
    eval_every_steps: int | None = Field(default=None, ge=1)
    """Measure the validation loss every so many steps; at the end it is always measured."""
    eval_examples: int = Field(default=64, ge=0)
    """At most so many validation traces, spread over the split; 0 leaves the validation loss out."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; None leaves it to torch."""
    merge: bool = False
    """Save the merged weights in `model/` instead of the adapter: larger, loadable without peft."""
    length_group_batches: int = Field(default=32, ge=1)
    """Batches whose examples are sorted by length together: more, less padding. 1 mixes all lengths, which a short
    run needs when the length tells the kind of example (another task, no profile): batches of one kind each pull
    the model to and fro."""
    seed: int = SEED
    """Seed of everything random."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Options of `trl.SFTConfig` as they are named there."""

    @model_validator(mode="after")
    def _no_contradiction(self) -> "Sft":
        _refuse_own_options(self.trainer, self.max_minutes)
        for name in CHECKPOINTING:
            if not self.prompt_gradient and self.trainer.get(name):
                raise ValueError(f"trainer.{name} needs prompt_gradient = true")
        return self


class Prmu(Config):
    """A reward model that scores a completion for one user, from preference pairs (`tagpr-data pairs`)."""

    pairs: Path
    """Folder of pairs, a corpus folder that holds one, or OWNER/NAME[@REVISION] of the Hub."""
    output: Path
    """Run folder; refused when it holds another run."""
    model: str = "smollm2-135m-instruct"
    """Backbone: the embedded model by this name, a folder, or a Hub id; a causal LM or an encoder."""
    revision: str | None = None
    """Commit of the model on the Hub; None takes the newest."""
    kinds: tuple[Literal["metric", "user", "gold"], ...] | None = None
    """Train on these kinds of pairs only; None takes all. Evaluation always sees all."""
    reads: Literal["completion", "answer"] = "completion"
    """`answer`: whatever stands in the think block is not read, so that nothing written there earns a reward."""

    use_user: bool = True
    """False leaves the user out: the ablation that PRMU must beat."""
    encoder: str = "hashed"
    """What turns past items into a vector: `hashed` (no weights), or folder or Hub id of a transformers encoder."""
    user_dropout: float = Field(default=0.5, ge=0, le=1)
    """Chance that a training user's table row is left out, so that the profile alone carries the user."""

    adapter: Literal["lora", "none"] = "lora"
    """`lora` trains a small adapter in the backbone and merges it at the end, `none` trains every weight. User table,
    projection and head are trained in both cases."""
    lora: Lora = Lora()
    """The adapter's shape."""
    dtype: Literal["bfloat16", "float32"] = "float32"
    """Type of the backbone's weights; the optimiser works on float32 masters, the rest of the model is float32."""
    margin: float = Field(default=0.0, ge=0)
    """Nats that a pair's score difference must exceed for each 1.0 of difference in the task metric."""
    centring: float = Field(default=0.01, ge=0)
    """Weight of the mean square of a pair's score sum, which keeps scores around 0."""
    max_tokens: int | None = Field(default=None, ge=16)
    """Longest prompt + completion; None is the model's context. A longer one loses the front of its prompt."""

    max_minutes: float | None = Field(default=None, gt=0)
    """Time budget of the training steps, as in SFT."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps of linear warm-up."""
    hold: float = Field(default=0.5, ge=0, le=1)
    """Share of the run at the full rate; then linear decay to 0."""
    eval_every_steps: int | None = Field(default=None, ge=1)
    """Measure the held-out loss every so many steps; at the end it is always measured."""
    eval_pairs: int = Field(default=512, ge=0)
    """At most so many held-out pairs for that loss; the evaluation at the end takes all."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; None leaves it to torch."""
    length_group_batches: int = Field(default=32, ge=1)
    """Batches whose examples are sorted by length together: more, less padding. 1 mixes all lengths, which a short
    run needs when the length tells the kind of example (another task, no profile): batches of one kind each pull
    the model to and fro."""
    seed: int = SEED
    """Seed of everything random."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Options of `trl.RewardConfig` as they are named there."""

    @model_validator(mode="after")
    def _no_contradiction(self) -> "Prmu":
        _refuse_own_options(self.trainer, self.max_minutes)
        if "center_rewards_coefficient" in self.trainer:
            raise ValueError("trainer.center_rewards_coefficient is not set here: `centring`")
        return self


RL_OWN_OPTIONS = {
    "max_steps": "`steps`",
    "num_train_epochs": "`steps`",
    "reward_weights": "`rewards`",
    "shuffle_dataset": "the order follows `seed`",
    "log_completions": "all completions are written to the folder completions/",
    "remove_unused_columns": "rows hold what the rewards need",
}
"""Further options that may not stand under `[trainer]` in RL."""


class Rl(Config):
    """One stage of reinforcement learning on the examples of a data set."""

    dataset: Path
    """Data set folder, folder of LaMP's own files, or OWNER/NAME[@REVISION] of the Hub."""
    output: Path
    """Run folder; refused when it holds another run."""
    model: str
    """What to start from: the `model/` folder of an SFT run or of the stage before (adapter or whole), or a Hub id."""
    revision: str | None = None
    """Commit of the model on the Hub; None takes the newest."""
    stage: Literal["guided", "exploratory"] = "guided"
    """`guided`: answer, tags and PRMU by their weights. `exploratory`: the answer alone behind the format gate,
    whatever `rewards.tags` and `rewards.personal` say."""
    split: Split = "train"
    """Split to learn on."""
    eval_split: Split = "validation"
    """Split of the in-loop evaluation."""
    tasks: tuple[str, ...] | None = None
    """Learn on these tasks only; None takes all."""
    tagset: Path | None = None
    """Tag-set file, or name of a shipped set; None is tagpr-9."""
    retriever: str = "bm25"
    """Which retriever chooses the items of a prompt; `full` shows all."""
    k: int = Field(default=4, ge=0)
    """Items per prompt."""
    vary_retrievers: tuple[str, ...] = ()
    """While learning, each question draws its retriever from these; held-out ones keep `retriever`. Empty: all do."""
    vary_k: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """While learning, each question draws its number of items from these; held-out ones keep `k`. Empty: all do."""
    shuffle_items: bool = False
    """While learning, each question shows its items in an order drawn for it, so that the first place earns nothing;
    held-out ones keep the retriever's. Ours; the paper's prompts are not public."""
    prompt: PromptOptions = PromptOptions()
    """How prompts are built; as in the corpus of SFT and in the evaluation to come."""

    rewards: RewardWeights = RewardWeights()
    """Weights of the reward's components."""
    prmu: str | None = None
    """The PRMU: a folder, OWNER/NAME[@REVISION] of the Hub, or the http(s) address of `tagpr-train serve-prmu`; needed
    where `rewards.personal` counts."""
    ignore_gate: bool = False
    """Start although the PRMU did not pass its gate (swapped users, length-only and prompt-only baselines)."""
    overlong_tokens: int = Field(default=0, ge=0)
    """Width of the soft zone before the longest completion in which a penalty grows from 0 to `overlong_weight`."""
    overlong_weight: float = Field(default=0.5, ge=0)
    """Penalty of a completion that reaches the longest length; 0 tokens of zone switch it off."""
    redraws: int = Field(default=2, ge=0)
    """Dynamic sampling: so many times groups whose rewards are all equal are drawn again with other prompts."""

    steps: int = Field(ge=1)
    """Optimiser steps."""
    adapter: Literal["lora", "none"] = "lora"
    """`lora` trains the adapter the model has, or a new one; `none` trains every weight, an adapter being merged."""
    lora: Lora = Lora()
    """The shape of a new adapter."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the weights. The optimiser works on float32 masters in both cases."""
    prompt_gradient: bool = True
    """False: the prompt is read without gradient. An approximation that saves the backward pass through it."""
    eval_every_steps: int | None = Field(default=None, ge=1)
    """Answer the held-out examples every so many steps, at the start and at the end; None: at start and end only."""
    eval_examples: int = Field(default=64, ge=1)
    """Held-out examples."""
    hacking_stop: bool = True
    """Stop when tags or PRMU rise while the held-out answers fall beyond their interval."""
    max_minutes: float | None = Field(default=None, gt=0)
    """Time budget of the training steps, as in SFT."""
    warmup_steps: int = Field(default=2, ge=0)
    """Steps of linear warm-up."""
    hold: float = Field(default=1.0, ge=0, le=1)
    """Share of the run at the full rate; then linear decay to 0."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; None leaves it to torch."""
    merge: bool = False
    """Save the merged weights in `model/` instead of the adapter."""
    seed: int = SEED
    """Seed of everything random."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Options of `trl.GRPOConfig` as they are named there."""

    @property
    def weights(self) -> RewardWeights:
        """The weights that count in this stage."""
        if self.stage == "guided":
            return self.rewards
        return self.rewards.model_copy(update={"tags": 0.0, "personal": 0.0})

    @field_validator("prmu", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @model_validator(mode="after")
    def _no_contradiction(self) -> "Rl":
        for name, instead in RL_OWN_OPTIONS.items():
            if name in self.trainer:
                raise ValueError(f"trainer.{name} is not set here: {instead}")
        _refuse_own_options(self.trainer, self.max_minutes)
        if self.weights.personal > 0 and self.prmu is None:
            raise ValueError(
                "rewards.personal > 0 needs `prmu`, the folder or address of a PRMU; or set rewards.personal = 0"
            )
        if self.split == self.eval_split:
            raise ValueError(f"eval_split is {self.eval_split!r}, as split is: what is learned on is not held out")
        if not any((self.weights.answer, self.weights.tags, self.weights.personal)):
            raise ValueError("all weights under [rewards] that count in this stage are 0: there is nothing to learn")
        if (self.rewards.format_gate == "answer") != (self.prompt.style == "direct"):
            raise ValueError(
                f"rewards.format_gate = {self.rewards.format_gate!r} and prompt.style = {self.prompt.style!r} ask for "
                'different things: "answer" goes with "direct", the others with a style that asks for a think block'
            )
        if self.rewards.format_gate == "trace" and self.prompt.style not in ("trace", "trace-explained"):
            raise ValueError(
                f'rewards.format_gate = "trace" asks for tags, prompt.style = {self.prompt.style!r} for none; '
                'take "block"'
            )
        if self.prompt.style == "direct" and self.weights.tags > 0:
            raise ValueError('rewards.tags > 0, but prompt.style = "direct" asks for no tags; set rewards.tags = 0')
        return self


def _refuse_own_options(trainer: dict[str, Any], max_minutes: float | None) -> None:
    for name, instead in OWN_OPTIONS.items():
        if name in trainer:
            raise ValueError(f"trainer.{name} is not set here: {instead}")
    for name in trainer.keys() & RANGES.keys():
        try:
            TypeAdapter(RANGES[name]).validate_python(trainer[name])
        except ValidationError as error:
            raise ValueError(f"trainer.{name} = {trainer[name]!r}: {error.errors()[0]['msg']}") from None
    if max_minutes is not None and "lr_scheduler_type" in trainer:
        raise ValueError("trainer.lr_scheduler_type does not know of max_minutes; use warmup_steps and hold")
