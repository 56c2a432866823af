"""Fit a PRMU on preference pairs: a run folder with a reward model that loads by `PRMU.from_pretrained`.

trl's RewardTrainer computes the Bradley-Terry loss, -log σ(chosen - rejected - margin), in the loop that all stages
share (`loop.Durable`); a collator of ours adds who is asked. A pair meets the user as known *then*: the table's row
(left out at random) and the profile up to the example, never the answer that the pair is about. Afterwards the adapter
is merged, the scores of training completions are measured, so that RL can standardise, and the model is evaluated
(`prmu_eval`). The paper's hyper-parameters are not public; every setting is ours.

Guarantee: the same config, pairs, versions and machine give the same weights bit for bit on a CPU, and a run that was
interrupted and resumed gives what an uninterrupted one gives; both without `max_minutes`, which follows the clock.
"""

import logging
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, set_seed
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from tagpr_data.data_source import find_pairs
from tagpr_data.errors import InputError
from tagpr_data.pairs import PairFolder
from tagpr_data.records import PreferencePair, ProfileItem, RunManifest
from tagpr_train import base_model, loop, model_card, pretrained, prmu_eval, ranks, runs
from tagpr_train.config import PRMU_BATCH_SIZE, Prmu
from tagpr_train.loop import Durable, Report, Weights, newest_checkpoint, stopping_on_signals
from tagpr_train.prmu import PRMU, pad
from tagpr_train.user_embedding import prefix_profiles

logger = logging.getLogger(__name__)

_TRAINABLE = "trainable.safetensors"
_CALIBRATION_PAIRS = 1000


def train(config: Prmu, *, resume: bool = False, report: Report | None = None) -> RunManifest:
    """Train as `config` says into `config.output`; give the run's manifest.

    Its status is `running` when SIGTERM or SIGINT stopped it: the folder then holds a checkpoint, and `resume` goes on.
    A complete run is given back as it is when `resume` is set. `report` gets every line of metrics.jsonl.
    """
    arguments = trainer_arguments(config)
    folder = PairFolder(find_pairs(config.pairs))
    data = {folder.manifest.name: folder.manifest.content_hash}
    name = base_model.resolve(config.model)
    with runs.held(config.output):
        manifest = runs.open_run(config.output, "prmu", config, data, config.seed, resume)
        if manifest.status == "complete":
            return runs.same_models(
                config.output, manifest, lambda: pretrained.content_hashes(config.model, here_only=True)
            )
        if config.threads:
            torch.set_num_threads(config.threads)
        set_seed(config.seed)
        pairs = _training_pairs(folder, config)
        model = make_model(name, config, folder, pairs)
        manifest = runs.same_models(
            config.output, manifest, lambda: pretrained.content_hashes(config.model, config.revision)
        )
        held_out = _spread([*folder.pairs("seen"), *folder.pairs("unseen")], config.eval_pairs)
        batches = encode(model, folder, [*pairs, *held_out])
        model.standardise_profiles(batches.profiles[: batches.distinct(len(pairs))])
        with_adapter(model, config)
        if cut := sum(batches.cut[: len(pairs)]):
            logger.warning("train: %d of %d pairs: prompts_cut", cut, len(pairs))
        trainer = PrmuTrainer(config, arguments, model, batches, len(pairs), report)
        trainer.refuse_sharded("a PRMU")
        with stopping_on_signals(trainer):
            trainer.train(resume_from_checkpoint=newest_checkpoint(config.output))
        if trainer.stopped_by is not None:
            return manifest
        validation_loss = trainer.validation_loss()
        totals = trainer.results() | {
            "validation_loss": validation_loss,
            "training_pairs": len(pairs),
            "counts": {"prompts_cut": cut},
            "licence": folder.manifest.licence,
        }
        return ranks.first_does(lambda: _finish(config, manifest, model, folder, pairs, totals))


def _finish(
    config: Prmu,
    manifest: RunManifest,
    model: PRMU,
    folder: PairFolder,
    pairs: Sequence[PreferencePair],
    totals: dict[str, Any],
) -> RunManifest:
    """Merge, calibrate, evaluate and save; one rank does it, however many trained."""
    if config.adapter == "lora":
        model.backbone = model.backbone.merge_and_unload()
    model.float().eval()
    calibrate(model, folder, _spread(pairs, _CALIBRATION_PAIRS))
    evaluation = prmu_eval.evaluate(model, folder)
    with runs.atomic_folder(config.output / "prmu") as target:
        model.save_pretrained(target)
    prmu_eval.write(config.output, evaluation)
    finished = runs.finish_run(config.output, manifest, "complete", totals | prmu_eval.headline(evaluation))
    model_card.write(config.output)
    shutil.rmtree(config.output / "checkpoints", ignore_errors=True)
    return finished


def trainer_arguments(config: Prmu) -> RewardConfig:
    """Give trl's settings; InputError on an option trl does not know or a value it refuses."""
    return loop.trainer_arguments(
        RewardConfig, config, PRMU_BATCH_SIZE, {"center_rewards_coefficient": config.centring or None}
    )


def make_model(name: str, config: Prmu, folder: PairFolder, pairs: Sequence[PreferencePair]) -> PRMU:
    """Give an untrained PRMU on the backbone `name`; its table holds the users of `pairs`, each with all past items
    that the pairs know of. Safetensors only, no remote code."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=config.revision)
        backbone, found = AutoModel.from_pretrained(
            name, revision=config.revision, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise InputError(f"model {config.model!r} cannot be loaded: {str(error).splitlines()[0]}") from None
    pretrained.refuse_missing(found, f"model {config.model!r}")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    context = backbone.config.max_position_embeddings - config.use_user
    model = PRMU.from_backbone(
        backbone,
        tokenizer,
        _users(folder, pairs),
        encoder=config.encoder,
        use_user=config.use_user,
        user_dropout=config.user_dropout,
        max_tokens=min(config.max_tokens or context, context),
        reads=config.reads,
    )
    model.backbone.to(getattr(torch, config.dtype))
    return model


def with_adapter(model: PRMU, config: Prmu) -> None:
    """Put a LoRA adapter into the backbone and freeze the rest of it; nothing without one."""
    if config.adapter == "none":
        return
    from peft import LoraConfig, get_peft_model

    targets = config.lora.target_modules
    lora = LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,  # pyright: ignore[reportArgumentType] - a float works; peft says int
        lora_dropout=config.lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    try:
        model.backbone = get_peft_model(model.backbone, lora, autocast_adapter_dtype=False)
    except ValueError as error:
        raise InputError(f"lora.target_modules = {targets!r} does not fit the model: {error}") from None


@dataclass(frozen=True)
class Batches:
    """Pairs as token ids, and the profile embeddings they point to."""

    rows: list[dict[str, Any]]
    """`id`, `chosen_ids`, `rejected_ids`, `user_index`, `profile_row`, `margin`; in the order of the pairs."""
    profiles: Tensor
    """Distinct dated profiles (N, F), in the order in which the pairs meet them."""
    cut: list[bool]
    """Whether a pair did not fit, so that its prompt lost its front."""

    def distinct(self, count: int) -> int:
        """Give how many profiles the first `count` pairs point to."""
        return 1 + max(row["profile_row"] for row in self.rows[:count])


def encode(model: PRMU, folder: PairFolder, pairs: Sequence[PreferencePair]) -> Batches:
    """Tokenise pairs and embed the profiles as known when each was asked. Users not in the table have index -1."""
    longest: dict[str, int] = {}
    for pair in pairs:
        longest[pair.profile_id] = max(pair.profile_size, longest.get(pair.profile_id, 0))
    prefixes: dict[str, Any] = {}
    places: dict[tuple[str, int], int] = {}
    profiles: list[Tensor] = []
    rows: list[dict[str, Any]] = []
    cut: list[bool] = []
    for pair in pairs:
        if pair.profile_id not in prefixes:
            items = folder.profile(pair.profile_id, longest[pair.profile_id])
            prefixes[pair.profile_id] = prefix_profiles(model.encoder, items)
        key = (pair.profile_id, pair.profile_size)
        if key not in places:
            places[key] = len(profiles)
            profiles.append(torch.from_numpy(prefixes[pair.profile_id][pair.profile_size]))
        rows.append(
            {
                "id": pair.id,
                "chosen_ids": model.encode(pair.prompt, pair.chosen),
                "rejected_ids": model.encode(pair.prompt, pair.rejected),
                "user_index": model.users.get(pair.user_id, -1),
                "profile_row": places[key],
                "margin": pair.margin,
            }
        )
        full = [name for name in ("chosen", "rejected") if len(rows[-1][f"{name}_ids"]) == model.config.max_tokens]
        cut.append(any(model.is_cut(pair.prompt, getattr(pair, name)) for name in full))
    return Batches(rows, torch.stack(profiles), cut)


@dataclass(frozen=True)
class Collator:
    """Makes a batch of pairs: all chosen, then all rejected, as trl splits them. B pairs → tensors of 2B rows."""

    profiles: Tensor
    """What `profile_row` points into, (N, F)."""
    margin: float
    """Nats for each 1.0 of difference in the task metric."""

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Batch rows of `Batches`."""
        ids, mask = pad([row["chosen_ids"] for row in examples] + [row["rejected_ids"] for row in examples])
        users = torch.tensor([row["user_index"] for row in examples])
        profiles = self.profiles[torch.tensor([row["profile_row"] for row in examples])]
        return {
            "ids": [row["id"] for row in examples],
            "input_ids": ids,
            "attention_mask": mask,
            "user_index": torch.cat([users, users]),
            "profiles": torch.cat([profiles, profiles]),
            "margin": self.margin * torch.tensor([row["margin"] for row in examples]),
            "weights": torch.ones(len(examples)),
        }


class PrmuTrainer(Durable, RewardTrainer):
    """trl's reward trainer in our loop, told who is asked."""

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        config: Prmu,
        arguments: RewardConfig,
        model: PRMU,
        batches: Batches,
        training_pairs: int,
        report: Report | None = None,
    ) -> None:
        rows = batches.rows[:training_pairs]
        self.held_out = batches.rows[training_pairs:]
        super().__init__(
            config,
            [len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows],
            report,
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=model.tokenizer,
            data_collator=Collator(batches.profiles, config.margin),  # pyright: ignore[reportArgumentType]
        )

    def results(self) -> dict[str, Any]:
        """Give the run's headline numbers. Losses are nats per pair."""
        losses = [line["loss"] for line in self.state.log_history if "loss" in line]
        return {
            "steps": self.state.global_step,
            "train_loss_last_10": sum(losses[-10:]) / max(1, len(losses[-10:])),
            **self.clock.totals(),
        }

    @torch.no_grad()
    def validation_loss(self) -> float | None:
        """Give the mean loss per held-out pair, without margin and centring; None without any."""
        if not self.held_out:
            return None
        was_training = self.network.training
        self.network.eval()
        total = 0.0
        rows = sorted(self.held_out, key=lambda row: len(row["chosen_ids"]))[ranks.index() :: ranks.count()]
        size = self.args.per_device_train_batch_size * 2
        for start in range(0, len(rows), size):
            batch = self._prepare_inputs(self.data_collator(rows[start : start + size]))
            chosen, rejected = self.network(**batch).logits[:, 0].chunk(2)
            total -= torch.nn.functional.logsigmoid(chosen - rejected).sum().item()
        self.network.train(was_training)
        return ranks.summed(total)[0] / len(self.held_out)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Give trl's loss of a batch, -log σ(chosen - rejected - margin) and the centring, summed over its pairs and
        divided by the pairs of the whole step on all ranks. Notes accuracy and margin."""
        assert not return_outputs, "nobody asks for the scores"
        inputs["use_cache"] = False
        chosen, rejected = model(**inputs, keep_rows=self._kept(inputs)).logits[:, 0].chunk(2)
        weights = inputs["weights"]
        losses = -torch.nn.functional.logsigmoid(chosen - rejected - inputs["margin"])
        losses = losses + self.config.centring * (chosen + rejected) ** 2
        with torch.no_grad():
            right, ahead = (weights * (chosen > rejected)).sum().item(), (weights * (chosen - rejected)).sum().item()
        right, ahead, count = ranks.summed(right, ahead, weights.sum().item())
        self._metrics["train"]["accuracy"].append(right / count)
        self._metrics["train"]["margin"].append(ahead / count)
        total = num_items_in_batch if num_items_in_batch is not None else weights.sum()
        return (weights * losses).sum() / total * ranks.count()

    def mute(self, inputs: Any) -> None:
        """Make a batch count for nothing in the loss."""
        inputs["weights"].zero_()

    def _kept(self, inputs: Any) -> Tensor | None:
        """Draw for whom the user's row stays: by seed, step, pair and side, whichever rank reads the pair."""
        if not self.config.user_dropout:
            return None
        step = f"{self.config.seed}/{self.state.global_step}"
        draws = [random.Random(f"{step}/{name}/{side}").random() for side in range(2) for name in inputs["ids"]]
        return torch.tensor(draws, device=inputs["input_ids"].device)[:, None] >= self.config.user_dropout

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        return loop.weight_of_step(batch_samples)

    def save_weights(self, folder: Path, weights: Weights = None) -> None:
        """Write the weights that are trained."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        own = {name: weight.detach() for name, weight in self.network.named_parameters() if weight.requires_grad}
        save_file({name: (weights or own)[name].contiguous() for name in own}, folder / _TRAINABLE)

    def count(self, inputs: Any) -> tuple[int, int]:
        """Give how many pairs and tokens a batch holds; none where it only stands in."""
        if not inputs["weights"].any():
            return 0, 0
        return len(inputs["ids"]), int(inputs["attention_mask"].sum())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from safetensors.torch import load_file

        found = load_file(Path(resume_from_checkpoint) / _TRAINABLE)
        _, unexpected = self.network.load_state_dict(found, strict=False)
        assert not unexpected, f"checkpoint weights do not fit: {unexpected[:3]}"


def calibrate(model: PRMU, folder: PairFolder, pairs: Sequence[PreferencePair]) -> None:
    """Set `score_mean` and `score_std` from the scores of these pairs' completions, for `PRMU.standardised`."""
    scores = torch.tensor(prmu_eval.pair_scores(model, folder, pairs).right)
    model.config.score_mean = scores.mean().item()
    model.config.score_std = max(scores.std().item(), 1e-6)


def _training_pairs(folder: PairFolder, config: Prmu) -> list[PreferencePair]:
    pairs = folder.pairs("train")
    found = sorted({pair.kind for pair in pairs})
    if missing := set(config.kinds or ()) - set(found):
        raise InputError(f"{folder.folder} holds no training pairs of kind {sorted(missing)}; it has: {found}")
    return [pair for pair in pairs if config.kinds is None or pair.kind in config.kinds]


def _users(folder: PairFolder, pairs: Sequence[PreferencePair]) -> dict[str, list[ProfileItem]]:
    """Give each user's items: the longest known part of every profile, in the order of their ids."""
    sizes: dict[str, dict[str, int]] = {}
    for pair in pairs:
        own = sizes.setdefault(pair.user_id, {})
        own[pair.profile_id] = max(pair.profile_size, own.get(pair.profile_id, 0))
    return {
        user: [item for profile_id, size in sorted(own.items()) for item in folder.profile(profile_id, size)]
        for user, own in sizes.items()
    }


def _spread(rows: Sequence[Any], count: int) -> list[Any]:
    """Give `count` rows at even distances."""
    if count >= len(rows):
        return list(rows)
    return [rows[index * len(rows) // count] for index in range(count)]
