"""One stage of reinforcement learning: a run folder with a model, its curves and every completion it learned from.

trl's GRPOTrainer gives loss and advantages (GSPO unless told otherwise), `loop.Durable` the loop; here prompts are read
once per group (`rl_generate`, `rl_scores`), groups without variance are drawn again, the held-out examples are answered
as in an evaluation, and a reward that is being gamed stops the run (`rl_watch`). Stage `guided` has all components of
the reward, stage `exploratory` the answer alone. The paper names GSPO and the two stages; every setting is ours.

Guarantee: on a CPU the same config, data, model and versions give the same weights bit for bit, also when the run was
interrupted at any step and resumed; not with `max_minutes`, which follows the clock. Draws depend on seed, step, try
and the group's place, so the state of dynamic sampling needs no saving, and several ranks ask and draw what one does.
vLLM (`trainer.use_vllm`) is passed through to trl: not verified.

    RUN/completions/step-00000.parquet   records.Rollout: every completion, as it was read and rewarded
    RUN/best/step-N/                     weights of the best held-out answers so far
"""

import dataclasses
import hashlib
import json
import logging
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset as Rows
from transformers import TrainerCallback, set_seed
from trl.import_utils import is_vllm_available
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from tagpr_data import answers
from tagpr_data.data_source import find_dataset
from tagpr_data.dataset import Dataset
from tagpr_data.errors import InputError
from tagpr_data.lamp import metrics
from tagpr_data.records import Rollout, RunManifest, Split
from tagpr_data.tables import frame_from_records, write_table, write_text
from tagpr_data.tags import load_tagset
from tagpr_train import (
    loop,
    model_card,
    pretrained,
    ranks,
    rl_generate,
    rl_prompts,
    rl_scores,
    rl_watch,
    runs,
    sft,
)
from tagpr_train.config import RL_DEFAULTS, Rl
from tagpr_train.dataset import prompt_tokens
from tagpr_train.loop import Durable, Report, Weights, newest_checkpoint, stopping_on_signals
from tagpr_train.rl_judge import COMPONENTS, Judge, Judged, content_of, load_prmu
from tagpr_train.rl_prompts import Question
from tagpr_train.rl_watch import Measurement

logger = logging.getLogger(__name__)

_NOT_SAMPLED_HERE = (
    "min_p",
    "repetition_penalty",
    "generation_kwargs",
    "use_vllm",
    "use_transformers_continuous_batching",
)


def train(config: Rl, *, resume: bool = False, report: Report | None = None) -> RunManifest:
    """Train as `config` says into `config.output`; give the run's manifest.

    Its status is `running` when a signal stopped it (a checkpoint is there, `resume` goes on), `partial` when the
    hacking stop did (`results["stopped"]` says why, `model/` is the best one), else `complete`.
    """
    arguments = trainer_arguments(config)
    tagset = load_tagset(config.tagset)
    data = Dataset.load(find_dataset(config.dataset))
    with runs.held(config.output):
        hashes = {data.manifest.name: data.manifest.content_hash}
        manifest = runs.open_run(config.output, "rl", config, hashes, config.seed, resume)
        if manifest.status != "running":
            return runs.same_models(config.output, manifest, lambda: _models_here(config))
        if config.threads:
            torch.set_num_threads(config.threads)
        set_seed(config.seed)
        prmu = load_prmu(config)
        model, tokenizer = load(config)
        manifest = runs.same_models(
            config.output,
            manifest,
            lambda: pretrained.content_hashes(config.model, config.revision) | content_of(prmu),
        )
        room = model.config.get_text_config().max_position_embeddings - arguments.max_completion_length
        wanted: dict[Split, int] = {config.split: _askable(config, arguments), config.eval_split: config.eval_examples}
        asked, left_out = {}, {}
        for split, number in wanted.items():
            asked[split], left_out[split] = rl_prompts.questions(
                data, split, number, config, tagset, lambda messages: len(prompt_tokens(tokenizer, messages)) <= room
            )
        judge = Judge(config, tagset, arguments.max_completion_length, prmu)
        trainer = RlTrainer(
            config, arguments, model, tokenizer, asked[config.split], asked[config.eval_split], judge, report
        )
        sft.check_sharding(trainer, model, merge=config.merge)
        with stopping_on_signals(trainer):
            trainer.train(resume_from_checkpoint=newest_checkpoint(config.output))
        if trainer.stopped_by is not None:
            return manifest
        results = trainer.results() | {"left_out": left_out, "licence": data.manifest.licence}
        kept = trainer.best_folder() if trainer.hacking is not None else None
        if kept is not None and not trainer.is_sharded():
            trainer.load_weights(kept)
        weights = trainer.gathered()

        def finish() -> RunManifest:
            with runs.atomic_folder(config.output / "model") as folder:
                sft.save(trainer.network, tokenizer, folder, merge=config.merge, weights=weights)
                if kept is not None and trainer.is_sharded():
                    shutil.copytree(kept, folder, dirs_exist_ok=True)  # the same files, with the best weights
            status = "partial" if trainer.hacking is not None else "complete"
            finished = runs.finish_run(config.output, manifest, status, results)
            model_card.write(config.output)
            for name in ("checkpoints", "best"):
                shutil.rmtree(config.output / name, ignore_errors=True)
            return finished

        return ranks.first_does(finish)


def _models_here(config: Rl) -> dict[str, str]:
    """Give the content hashes of what the run reads as far as it is in folders here."""
    found = pretrained.content_hashes(config.model, here_only=True)
    prmu = Path(config.prmu) if config.prmu is not None and config.weights.personal > 0 else None
    return found | ({"prmu": pretrained.content_hash(prmu)} if prmu is not None and prmu.is_dir() else {})


def trainer_arguments(config: Rl) -> Any:
    """Give trl's settings; InputError on an option trl does not know or a value it refuses."""
    weights = config.weights.model_dump() | {"overlong": config.overlong_weight if config.overlong_tokens else 0.0}
    settings = config.model_copy(update={"trainer": RL_DEFAULTS | config.trainer})
    fixed = {
        "max_steps": config.steps,
        "reward_weights": [weights[name] for name in COMPONENTS],
        "shuffle_dataset": False,
        "log_completions": False,
    }
    arguments = loop.trainer_arguments(GRPOConfig, settings, RL_DEFAULTS["per_device_train_batch_size"], fixed)
    if arguments.use_vllm and not is_vllm_available():
        raise InputError("trainer.use_vllm needs vLLM, on Linux with a GPU: pip install 'tagpr-train[vllm]'; or false")
    local = arguments.per_device_train_batch_size * arguments.steps_per_generation
    if local % arguments.num_generations:
        raise InputError(
            f"trainer.per_device_train_batch_size x steps_per_generation = {local} does not hold whole groups of "
            f"num_generations = {arguments.num_generations}; make it a multiple"
        )
    if config.overlong_tokens > arguments.max_completion_length:
        raise InputError(
            f"overlong_tokens = {config.overlong_tokens} is more than trainer.max_completion_length = "
            f"{arguments.max_completion_length}"
        )
    return arguments


def load(config: Rl) -> tuple[Any, Any]:
    """Load model and tokenizer for training: an adapter goes on being trained (or is merged), a whole model gets a new
    adapter (or none)."""
    model, tokenizer = sft.load(config)
    return sft.with_adapter(model, config, []), tokenizer


@dataclasses.dataclass
class Draw:
    """This rank's completions of one generation batch: whole groups, `rows` being the question of each completion."""

    rows: list[int]
    """Index of each completion's question."""
    ids: list[list[int]]
    """Its tokens, the end token last unless it was cut."""
    logprobs: list[Any] | None
    """What the sampler thought of them; None from our own."""
    judged: list[Judged]
    """What they earned."""

    def take(self, other: "Draw", place: int, group: int, size: int) -> None:
        """Put the group at `place` of another draw into the place of our `group`."""
        theirs, ours = slice(place * size, (place + 1) * size), slice(group * size, (group + 1) * size)
        self.rows[ours], self.ids[ours] = other.rows[theirs], other.ids[theirs]
        self.judged[ours] = other.judged[theirs]
        if self.logprobs is not None and other.logprobs is not None:
            self.logprobs[ours] = other.logprobs[theirs]


class RlTrainer(Durable, GRPOTrainer):
    """trl's trainer in our loop, with shared prompts, dynamic sampling and a watch on the held-out answers."""

    def __init__(
        self,
        config: Rl,
        arguments: Any,
        model: Any,
        tokenizer: Any,
        questions: Sequence[Question],
        held_out: Sequence[Question],
        judge: Judge,
        report: Report | None = None,
    ) -> None:
        self.settings = arguments
        self.group_size: int = arguments.num_generations
        self.questions = questions
        self.held_out = held_out
        self.judge = judge
        self.measurements: list[Measurement] = []
        self._best_saved: Path | None = None
        self.hacking: str | None = None
        self._tokens: dict[str, list[int]] = {}
        self._draw: Draw | None = None
        rows = [{"row": row, "prompt": _turns(question)} for row, question in enumerate(questions)]
        super().__init__(
            config,
            [],
            report,
            model=model,
            args=arguments,
            reward_funcs=[self._component(name) for name in COMPONENTS],
            train_dataset=Rows.from_list(rows),
            processing_class=tokenizer,
        )
        self._pad: int = tokenizer.pad_token_id
        self._ends: Any = self.eos_token_ids
        self._samples_here = self._is_plain() and not any(config.trainer.get(name) for name in _NOT_SAMPLED_HERE)
        self._check_ranks()
        per_rank = arguments.per_device_train_batch_size * arguments.steps_per_generation // self.group_size
        per_forward, rest = divmod(arguments.per_device_train_batch_size, self.group_size)
        self._places = rl_prompts.places(per_rank, 0 if rest else per_forward, ranks.index(), ranks.count())
        networks: list[Any] = [self.network, self.ref_model]
        for network in networks:
            if network is not None:
                base: Any = network.get_base_model() if hasattr(network, "peft_config") else network
                rl_scores.install(base, self.temperature, prompt_gradient=config.prompt_gradient)
        self.add_callback(_Watch(self))

    # What the loop asks for.

    def validation_loss(self) -> float | None:
        """Give nothing: held-out answers are measured instead."""
        return None

    def save_weights(self, folder: Path, weights: Weights = None) -> None:
        """Write adapter or weights."""
        sft.write_weights(self.network, folder, weights)

    def load_weights(self, folder: Path) -> None:
        """Take over what `save_weights` wrote."""
        self._load_from_checkpoint(str(folder))

    def count(self, inputs: Any) -> tuple[int, int]:
        """Give nothing: completions are counted when they are drawn, and counted as examples."""
        return 0, 0

    def batch(self, inputs: Any) -> dict[str, Any]:
        """Give the completions of the micro-batch at hand."""
        assert self._buffered_inputs is not None
        return self._buffered_inputs[(self._step - 1) % self.settings.steps_per_generation]

    def logged(self, logs: dict[str, Any]) -> dict[str, Any]:
        """Give all numbers that say something of the step."""
        return {
            name: value for name, value in logs.items() if name not in _NOT_LOGGED and not name.startswith("rewards/")
        }

    def results(self) -> dict[str, Any]:
        """Give the run's headline numbers."""
        first, last = self.measurements[0], self.measurements[-1]
        change = rl_watch.paired_change(first.answers, last.answers, last.users)
        return {
            "steps": self.state.global_step,
            "stage": self.config.stage,
            "stopped": self.hacking,
            "held_out_examples": len(last.answers),
            "held_out_answer_first": first.answer,
            "held_out_answer": last.answer,
            "held_out_change": dataclasses.asdict(change),
            "held_out_best": rl_watch.best(self.measurements).answer,
            "curve": [_line(measurement) for measurement in self.measurements],
            **self.clock.totals(),
        }

    # The held-out examples.

    def measure(self) -> None:
        """Answer the held-out examples greedily, note how well, keep the weights when it is the best so far."""
        mine = range(len(self.held_out))
        if self._is_plain():  # sharded weights need all ranks in every forward pass, so there each one answers all
            mine = mine[ranks.index() :: ranks.count()]
        questions = [self.held_out[place] for place in mine]
        prompts = [self._prompt(question) for question in questions]
        greedy = self._sampler(greedy=True)
        ids = rl_generate.complete(self._unwrapped(), prompts, 1, greedy, self._pad, [0] * len(prompts))
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        own = self.judge(questions, texts, [len(row) for row in ids])
        found = dict(ranks.gathered(list(zip(mine, own, strict=True))))
        judged = [found[place] for place in range(len(self.held_out))]
        count = len(judged)
        has_prmu = judged[0].reward.personal is not None
        measured = Measurement(
            step=self.state.global_step,
            answers={row.question.example.id: _answer_score(row) for row in judged},
            users={row.question.example.id: row.question.example.user_id for row in judged},
            tags=sum(row.raw("tags") for row in judged) / count,
            personal=sum(row.raw("personal") for row in judged) / count if has_prmu else None,
        )
        self.measurements.append(measured)
        change = rl_watch.paired_change(self.measurements[0].answers, measured.answers, measured.users)
        figures = {
            "valid": sum(row.parsed.is_valid for row in judged) / count,
            "change": change.mean,  # of the answers since the start, with its interval
            "change_low": change.low,
            "change_high": change.high,
        }
        self.write(
            {
                "step": measured.step,
                **{f"held_out_{k}": v for k, v in (_line(measured) | figures).items() if k != "step"},
            }
        )
        if not self.config.hacking_stop:
            return
        if rl_watch.best(self.measurements) is measured:
            weights = self.gathered()
            if ranks.is_first():
                with runs.atomic_folder(self.best_folder()) as folder:
                    self.save_weights(folder, weights)
                self._drop_worse()
        ranks.wait()
        self.hacking = rl_watch.why_stop(self.measurements, self.judge.weights)

    def best_folder(self) -> Path:
        """Give where the weights of the best measurement but the last that shows hacking are."""
        history = self.measurements if self.hacking is None else self.measurements[:-1]
        return self.config.output / "best" / f"step-{rl_watch.best(history).step}"

    def _drop_worse(self) -> None:
        """Remove weights that are neither the best now nor were so at the checkpoint that a resumed run starts from."""
        kept = {self.best_folder(), self._best_saved}
        for folder in (self.config.output / "best").glob("step-*"):
            if folder not in kept:
                shutil.rmtree(folder)

    # Generation: draw, judge, draw groups without variance again.

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """Give the next micro-batch. As trl's, but groups stay together, so that their prompt is read once."""
        if self._step % _repeats(self.settings) == 0 or self._buffered_inputs is None:
            batch = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = split_tensor_dict(batch, self.settings.steps_per_generation)
        return self._buffered_inputs[self._step % self.settings.steps_per_generation]

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        size = self.group_size
        self._draw, redrawn = self.draw([row["row"] for row in inputs[::size]])
        inputs = [{"row": row, "prompt": _turns(self.questions[row])} for row in self._draw.rows]
        output = super()._generate_and_score_completions(inputs)
        self.clock.count(
            len(self._draw.judged),
            sum(len(self._prompt(row.question)) for row in self._draw.judged[::size])
            + sum(row.tokens for row in self._draw.judged),
        )
        judged = [row for group in self._gathered(self._draw) for row in group]
        for name, value in self.judge.figures(judged, size).items():
            self._metrics["train"][name].append(value)
        self._metrics["train"]["redrawn"].append(float(sum(redrawn)))
        if ranks.is_first():
            self._write_completions(self.judge.rollouts(self.state.global_step, judged, size, redrawn))
        self._draw = None
        return output

    def draw(self, rows: Sequence[int]) -> tuple[Draw, list[int]]:
        """Give completions for the questions `rows` of this rank, one group each, and how many groups were dropped in
        each place of the generation batch, all ranks together.

        A group whose rewards are all equal is replaced by one of a question that is not in the batch (while there are
        any), `redraws` times at most; what still has no variance then stays, and teaches nothing. All ranks see all
        rewards, so they decide alike.
        """
        size = self.group_size
        redrawn = [0] * (len(rows) * ranks.count())
        whole = self._answered(list(rows), self._places, attempt=0)
        for attempt in range(1, self.config.redraws + 1):
            groups = self._gathered(whole)
            totals = [self.judge.totals(group) for group in groups]
            dead = [place for place, group in enumerate(totals) if max(group) - min(group) <= 1e-8]
            if not dead:
                break
            used = {group[0].question.example.id for group in groups}
            others = [row for row, question in enumerate(self.questions) if question.example.id not in used]
            chance = random.Random(self._seed(attempt, 0))
            enough = len(others) >= len(dead)
            drawn = (
                chance.sample(others, len(dead)) if enough else chance.choices(range(len(self.questions)), k=len(dead))
            )
            fresh = dict(zip(dead, drawn, strict=True))
            for place in dead:
                redrawn[place] += 1
            ours = [group for group, place in enumerate(self._places) if place in fresh]
            if ours:
                places = [self._places[group] for group in ours]
                again = self._answered([fresh[place] for place in places], places, attempt)
                for place, group in enumerate(ours):
                    whole.take(again, place, group, size)
        return whole, redrawn

    def _gathered(self, draw: Draw) -> list[list[Judged]]:
        """Give the judged groups of all ranks, in the order of the generation batch."""
        size = self.group_size
        own = [draw.judged[start : start + size] for start in range(0, len(draw.judged), size)]
        found = dict(ranks.gathered(list(zip(self._places, own, strict=True))))
        return [found[place] for place in sorted(found)]

    def _answered(self, rows: list[int], places: Sequence[int], attempt: int) -> Draw:
        size = self.group_size
        prompts = [self._prompt(self.questions[row]) for row in rows]
        logprobs = None
        if self._samples_here:
            seeds = [self._seed(attempt, place) for place in places]
            ids = rl_generate.complete(self._unwrapped(), prompts, size, self._sampler(), self._pad, seeds)
        else:
            repeated = [prompt for prompt in prompts for _ in range(size)]
            ids, logprobs = super()._generate_single_turn(repeated, None, {}, size)
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        each = [row for row in rows for _ in range(size)]
        judged = self.judge([self.questions[row] for row in each], texts, [len(row) for row in ids])
        return Draw(each, ids, logprobs, judged)

    def _tokenize_prompts(self, prompts: Any) -> Any:
        assert self._draw is not None
        return [self._prompt(self.questions[row]) for row in self._draw.rows], None, {}

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        assert self._draw is not None, "drawn and judged before trl asks"
        return self._draw.ids, self._draw.logprobs

    def _component(self, name: str) -> Any:
        """Give a reward function for trl: what the judge has found already."""

        def component(**_: Any) -> list[float]:
            assert self._draw is not None
            return [row.gated(name) for row in self._draw.judged]

        component.__name__ = name
        return component

    def _sampler(self, *, greedy: bool = False) -> rl_generate.Sampler:
        return rl_generate.Sampler(
            max_new_tokens=self.settings.max_completion_length,
            end_ids=tuple(self._ends),
            temperature=0.0 if greedy else self.temperature,
            top_p=1.0 if greedy else self.top_p,
            top_k=0 if greedy else self.top_k,
        )

    def _seed(self, attempt: int, place: int) -> int:
        """Give the seed of a group's draw: of the run, the micro-step, the try and its place in the batch."""
        names = (self.config.seed, self._step, attempt, place)
        return int.from_bytes(hashlib.sha256(json.dumps(names).encode()).digest()[:8], "big") >> 1

    def _prompt(self, question: Question) -> list[int]:
        name = question.example.id
        if name not in self._tokens:
            self._tokens[name] = prompt_tokens(self._tokenizer, question.messages)
        return self._tokens[name]

    def _unwrapped(self) -> Any:
        return self.accelerator.unwrap_model(self.model_wrapped)

    def _write_completions(self, rollouts: list[Rollout]) -> None:
        path = self.config.output / "completions" / f"step-{self.state.global_step:05}.parquet"
        write_table(path, frame_from_records(rollouts, Rollout), Rollout, ["row"])

    # The loss, from shared prompts.

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, batch_size: Any = None, **rest: Any
    ) -> Any:
        if self._entropy_bonus_enabled or self.aux_loss_enabled:  # both need what trl's own head gives
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size=batch_size, **rest
            )
        parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        size = batch_size or len(input_ids)
        for start in range(0, len(input_ids), size):
            ids, mask = input_ids[start : start + size], attention_mask[start : start + size]
            with self.accelerator.autocast():
                parts.append(
                    model(
                        group_scores=True,
                        prompt_ids=ids[:, :-logits_to_keep],
                        prompt_mask=mask[:, :-logits_to_keep],
                        completion_ids=ids[:, -logits_to_keep:],
                        completion_mask=mask[:, -logits_to_keep:],
                    )
                )
        logps, entropies = (torch.cat(part) for part in zip(*parts, strict=True))
        return logps, entropies, None

    # Order, and what a resumed run needs besides.

    def global_batches(self) -> list[list[int]]:
        """Give the rows of every generation batch of the run, as often as its completions are used."""
        repeats, batches = _repeats(self.settings), _batches(self.settings)
        prompts = self.settings.generation_batch_size // self.group_size
        rows = rl_prompts.order(len(self.questions), prompts, self.group_size, repeats, batches, self.config.seed)
        size = prompts * self.group_size
        flat = list(rows)
        return [flat[start : start + size] for start in range(0, len(flat), size)]

    def share(self, batch: Sequence[int]) -> list[int]:
        """Give this rank's groups of a generation batch."""
        size = self.group_size
        return [row for place in self._places for row in batch[place * size : (place + 1) * size]]

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        state = {"step": self._step, "buffered": self._buffered_inputs}
        torch.save(state, folder / f"generation-{self.accelerator.process_index}.pt")
        if ranks.is_first():
            write_text(folder / "measurements.json", json.dumps([dataclasses.asdict(row) for row in self.measurements]))
            self._best_saved = self.best_folder()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / f"generation-{self.accelerator.process_index}.pt"
        state = torch.load(path, weights_only=True)
        self._step, self._buffered_inputs = state["step"], state["buffered"]

    def resume_measurements(self, checkpoint: Path) -> None:
        """Take over the held-out measurements made before a checkpoint."""
        rows = json.loads((checkpoint / "measurements.json").read_text(encoding="utf-8"))
        self.measurements = [Measurement(**row) for row in rows]
        self._best_saved = self.best_folder()

    def train(self, resume_from_checkpoint: Path | None = None, **kwargs: Any) -> Any:
        """Train to the end, to a signal, or to the hacking stop."""
        if resume_from_checkpoint is not None:
            self.resume_measurements(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_sharded() or not sft.load_adapter(self.network, Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _is_plain(self) -> bool:
        return not self.is_sharded()

    def _check_ranks(self) -> None:
        if ranks.count() > 1 and not self._samples_here and self.config.redraws:
            raise InputError(
                "redraws > 0 with several processes works with our own sampling only (not with vLLM, FSDP, DeepSpeed); "
                "set redraws = 0"
            )


def _batches(arguments: Any) -> int:
    """How often completions are generated in a run."""
    return -(-arguments.max_steps * arguments.gradient_accumulation_steps // _repeats(arguments))


def _repeats(arguments: Any) -> int:
    """For how many micro-steps completions are used."""
    return arguments.num_iterations * arguments.steps_per_generation


def _askable(config: Rl, arguments: Any) -> int:
    """How many questions a run can ask at most."""
    return _batches(arguments) * (arguments.generation_batch_size // arguments.num_generations) * (1 + config.redraws)


class _Watch(TrainerCallback):
    """Measures the held-out examples between steps."""

    def __init__(self, trainer: RlTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._trainer.measurements:
            self._trainer.measure()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer
        every = trainer.config.eval_every_steps
        if every and state.global_step % every == 0 and state.global_step < state.max_steps:
            trainer.measure()
        if trainer.hacking is not None:
            logger.warning("stopped: %s", trainer.hacking)
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer
        if trainer.stopped_by is None and trainer.measurements[-1].step < state.global_step:
            trainer.measure()


_NOT_LOGGED = ("num_tokens", "step_time", "total_flos", "train_runtime", "frac_reward_zero_std")


def _turns(question: Question) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in question.messages]


def _answer_score(row: Judged) -> float:
    """The evaluation's metric for one sample of the parsed answer; 0 where there is none."""
    task = row.question.task
    answer = answers.parsed(row.text, task).answer
    return metrics.reward(task, answer, row.question.gold) if answer is not None else 0.0


def _line(measured: Measurement) -> dict[str, Any]:
    line = {"step": measured.step, "answer": measured.answer, "tags": measured.tags}
    return line if measured.personal is None else line | {"personal": measured.personal}
