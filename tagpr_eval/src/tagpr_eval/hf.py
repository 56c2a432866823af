"""A transformers model in this process: greedy or sampled answers to chat prompts, or the log-probabilities of given
labels after them (`log_likelihood.py`); fast on a few CPU cores.

How it is made fast: weights in bf16 where the CPU multiplies in it; prompts of like length in one batch; the batch
padded on the right and read causally without a mask (half the attention work); the key-value cache grown in place;
finished rows dropped; and on a CPU one batch per worker thread instead of several threads per multiplication, which
wait for each other at every small one. Guarantee: which prompts share a batch depends on the prompts alone, and a
batch always computes the same bits on the same machine. Price: the prompts of one run are tokenised up front, and the
memory of the key-value cache bounds the batch.

Sizes: B rows of a batch, T tokens, V vocabulary.
"""

import hashlib
import json
import logging
import math
import os
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagpr_data.constrain import Decoder
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.model_files import files_hash, model_folder
from tagpr_data.tables import canonical_json, sha256_text
from tagpr_eval import forward
from tagpr_eval.config import ChatOptions, Decoding, LocalOptions
from tagpr_eval.log_likelihood import Labels, label_logprobs, label_tree
from tagpr_eval.models import Completion, Finished, Messages, Prompt, is_begun

if TYPE_CHECKING:
    import torch

_CPU_WORKERS = 4
_TAIL_CHARACTERS = 64
"""How much of a prompt is looked at to tell how a label after it is cut into tokens."""
_MOST_LABEL_LOGITS = 2**27
"""Numbers of 4 bytes that one batch holds while labels are scored."""

logger = logging.getLogger(__name__)
_AS_IT_IS = ChatOptions()


class HfModel:
    """A model folder, a LoRA adapter folder, or a repository id of the Hub."""

    def __init__(self, place: str, sampling: Decoding, options: LocalOptions, chat: ChatOptions = _AS_IT_IS) -> None:
        self.folder = model_folder(place)
        self.sampling = sampling
        self.options = options
        self.chat = chat
        self.base = _base_of_adapter(self.folder)
        self._encoded: dict[Messages, list[int]] = {}
        self._labels: dict[tuple[str, tuple[str, ...]], Labels] = {}

    @property
    def identity(self) -> str:
        """Hash of the files' content (weights, config, tokenizer, template; the base model's too), chat options, dtype
        and batch size; the folder's name and place do not matter."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        parts = {
            "model": files_hash(self.folder),
            "base": files_hash(self.base) if self.base else None,
            "chat": [self.chat.template, self.chat.thinking],
            "dtype": str(self._dtype),
            "batch": [self.options.batch_size, self.options.batch_tokens],
        }
        return sha256_text(canonical_json(parts))

    def batches(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Sort by length, longest first, and cut, prompts with the same labels together; InputError names a prompt
        that does not fit the model."""
        encoded = [self._encode(prompt.messages) for prompt in prompts]
        labels = [self._label_tokens(prompt) for prompt in prompts]
        self._check_lengths(encoded, labels)
        alike: dict[Labels, list[int]] = {}
        for index, tokens in enumerate(labels):
            alike.setdefault(tokens, []).append(index)
        planned: list[list[int]] = []
        for tokens in sorted(alike):
            order = sorted(alike[tokens], key=lambda i: (-len(encoded[i]), encoded[i], prompts[i].seed))
            lengths = [len(encoded[index]) + self._room_to_write(tokens) for index in order]
            planned += [[order[place] for place in batch] for batch in self._cut(lengths, self._most_rows(tokens))]
        return planned

    def _cut(self, lengths: Sequence[int], most_rows: int) -> list[list[int]]:
        """Cut places, whose lengths fall, into as many batches for each worker, all about as large; the number of
        workers is a fact of the machine."""
        count = math.ceil(len(lengths) / most_rows)
        size = math.ceil(len(lengths) / (math.ceil(count / self._workers) * self._workers))
        planned: list[list[int]] = []
        room = 0
        for place, length in enumerate(lengths):
            if not planned or len(planned[-1]) == size or (len(planned[-1]) + 1) * room > self.options.batch_tokens:
                planned.append([])
                room = length
            planned[-1].append(place)
        return planned

    def _room_to_write(self, labels: Labels) -> int:
        """Tokens that come after a prompt in the cache."""
        return len(label_tree(labels).tokens) if labels else self.sampling.max_new_tokens

    def _most_rows(self, labels: Labels) -> int:
        if not labels:
            return self.options.batch_size
        logits = max(1, len(label_tree(labels).tokens)) * self._config.get_text_config().vocab_size
        return max(1, min(self.options.batch_size, _MOST_LABEL_LOGITS // logits))

    def generate(self, prompts: Sequence[Prompt], batches: Sequence[Sequence[int]], finished: Finished) -> None:
        """Answer the batches, several at once on a CPU."""
        import torch

        if not batches:
            return
        model = self._model
        lock = threading.Lock()
        stopped = threading.Event()

        def emit(index: int, completion: Completion) -> None:
            with lock:
                if not stopped.is_set():
                    finished(index, completion)

        def work(batch: Sequence[int]) -> None:
            if stopped.is_set():
                return
            if prompts[batch[0]].labels:
                self._score_labels(model, [(index, prompts[index]) for index in batch], emit)
                return
            asked = [(index, prompts[index]) for index in batch]
            try:
                rows = [
                    _Row(i, self._encode(one.messages), one.seed, is_begun(one.messages), self._matcher(one))
                    for i, one in asked
                ]
                self._answer(model, rows, emit)
            except BaseException:
                stopped.set()
                raise

        if self._device.type != "cpu":
            for batch in batches:
                work(batch)
            return
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with ThreadPoolExecutor(
                self._workers, initializer=torch.set_num_threads, initargs=(self._threads,)
            ) as pool:
                for future in [pool.submit(work, batch) for batch in batches]:
                    future.result()
        except BaseException:
            stopped.set()
            raise
        finally:
            torch.set_num_threads(before)

    @property
    def _workers(self) -> int:
        """Batches computed at once."""
        return 1 if self._device.type != "cpu" else min(len(os.sched_getaffinity(0)), _CPU_WORKERS)

    @property
    def _threads(self) -> int:
        """Threads of one batch; always the same, as another number may round differently."""
        return max(1, len(os.sched_getaffinity(0)) // self._workers)

    def _answer(self, model: Any, rows: "list[_Row]", emit: Finished) -> None:
        """Write the completions of one batch; a row is handed out as soon as it ends."""
        import torch

        with torch.inference_mode():
            cache, attended, logits = forward.read_prompts(
                model, [row.prompt for row in rows], self._pad_id, self._device
            )
            logits = logits[:, -1]
            step = 0
            while True:
                step += 1
                chosen = self._choose(logits, rows)  # (B,)
                for row, token in zip(rows, chosen.tolist(), strict=True):
                    if not row.is_done:
                        self._extend(row, token, emit)
                alive = [position for position, row in enumerate(rows) if not row.is_done]
                if not alive:
                    return
                if len(alive) <= 0.875 * len(rows):  # dropping copies the cache, so not for a row or two
                    keep = torch.tensor(alive, device=self._device)
                    cache.batch_select_indices(keep)
                    attended, chosen = attended[keep], chosen[keep]
                    rows = [rows[position] for position in alive]
                attended = torch.cat([attended, attended.new_ones(len(rows), 1)], dim=1)
                places = attended.new_tensor([[len(row.prompt) + step - 1] for row in rows])
                logits = model(
                    input_ids=chosen[:, None], attention_mask=attended, position_ids=places, past_key_values=cache,
                    use_cache=True,
                ).logits[:, -1]  # fmt: skip

    def _score_labels(self, model: Any, asked: Sequence[tuple[int, Prompt]], emit: Finished) -> None:
        """Give each prompt of a batch the label that is likeliest to follow it; the first of equally likely ones."""
        import torch

        labels = self._label_tokens(asked[0][1])
        encoded = [self._encode(prompt.messages) for _, prompt in asked]
        with torch.inference_mode():
            found = label_logprobs(model, encoded, labels, self._pad_id, self._device).tolist()  # (B, L)
        for (index, prompt), read, scores in zip(asked, encoded, found, strict=True):
            if not all(map(math.isfinite, scores)):
                raise CheckFailed(
                    f"model {self.folder} gives a label the log-probability {scores}; are its weights whole?"
                )
            text = prompt.labels[max(range(len(scores)), key=scores.__getitem__)]
            emit(index, Completion(text, "stop", len(read), 0, tuple(scores)))

    def _choose(self, logits: "torch.Tensor", rows: "list[_Row]") -> "torch.Tensor":
        """Pick the next token of each row: (B, V) → (B,). Each row draws from its own generator, so that its
        answer does not depend on its neighbours."""
        import torch

        logits = logits.float()
        if any(row.matcher is not None for row in rows):
            allowed = torch.from_numpy(self._decoder.allowed([row.matcher for row in rows]))
            logits = logits.masked_fill(~allowed.to(logits.device), float("-inf"))
        if self.sampling.temperature == 0:
            return logits.argmax(dim=-1)
        if self.sampling.top_k is not None:
            least = logits.topk(min(self.sampling.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        probabilities = torch.softmax(logits / self.sampling.temperature, dim=-1).cpu()
        if self.sampling.top_p < 1:
            ordered, indices = probabilities.sort(dim=-1, descending=True)
            ordered[ordered.cumsum(dim=-1) - ordered >= self.sampling.top_p] = 0
            probabilities = torch.zeros_like(probabilities).scatter(-1, indices, ordered)
        drawn = [torch.multinomial(line, 1, generator=row.generator) for line, row in
                 zip(probabilities, rows, strict=True)]  # fmt: skip
        return torch.cat(drawn).to(logits.device)

    def _extend(self, row: "_Row", token: int, emit: Finished) -> None:
        """Add a token to a row, or end it: at an end token, a stop string, or the length limit."""
        if token in self._end_ids:
            self._end(row, None, "stop", emit)
            return
        row.written.append(token)
        if row.matcher is not None:
            row.matcher.consume_token(token)
        if self.sampling.stop:
            text = self._text(row)
            if found := [at for at in map(text.find, self.sampling.stop) if at >= 0]:
                self._end(row, text[: min(found)], "stop", emit)
                return
        if len(row.written) >= self.sampling.max_new_tokens:
            self._end(row, None, "length", emit)

    def _end(self, row: "_Row", text: str | None, reason: Any, emit: Finished) -> None:
        row.is_done, row.matcher = True, None
        text = self._text(row) if text is None else text
        emit(row.index, Completion(text, reason, len(row.prompt), len(row.written)))

    def _matcher(self, prompt: Prompt) -> Any:
        """Give the state of the grammar that a completion is kept to, or None; the part of it that the prompt itself
        has written counts (the start of an answer, or a template that opens the think block)."""
        if prompt.constraint is None:
            return None
        if is_begun(prompt.messages):
            begun = prompt.messages[-1].content
        else:
            begun = "<think>\n" if self._chat_text(prompt.messages).rstrip().endswith("<think>") else ""
        return self._decoder.start(prompt.constraint, begun)

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(self._tokenizer, sorted(self._end_ids), self._model.get_output_embeddings().weight.shape[0])

    def _encode(self, messages: Messages) -> list[int]:
        if messages not in self._encoded:
            text = self._chat_text(messages)
            self._encoded[messages] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._encoded[messages]

    def _chat_text(self, messages: Messages) -> str:
        """Give the prompt as text. The start of an answer follows the generation prompt as it is: some templates
        rewrite an assistant turn (they drop its think block), which would not be what the model has to continue."""
        from jinja2.exceptions import TemplateError

        begun = messages[-1].content if is_begun(messages) else ""
        turns = [message.model_dump(mode="json") for message in messages[: -1 if is_begun(messages) else None]]
        switch = {} if self.chat.thinking == "auto" else {"enable_thinking": self.chat.thinking == "on"}
        try:
            text: str = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **switch)
        except (TemplateError, TypeError) as error:
            raise InputError(
                f"the chat template of model {self.folder} does not take a prompt of {len(turns)} turns "
                f"({', '.join(turn['role'] for turn in turns)}): {_first_line(error)}; give another one with "
                "--chat-template-file"
            ) from None
        if begun.startswith("<think>") and text.rstrip().endswith("<think>"):  # the template opens the block too
            text = text.rstrip().removesuffix("<think>")
        return text + begun

    def _label_tokens(self, prompt: Prompt) -> Labels:
        """Give the tokens of each label as they continue a prompt. Where one label begins another (`fix`, `fixup`),
        the end of the turn belongs to every one of them: the shorter could never be the less likely without it."""
        if not prompt.labels:
            return ()
        tail = self._chat_text(prompt.messages)[-_TAIL_CHARACTERS:]
        if tail.rstrip().endswith("<think>"):
            raise InputError(
                f"the chat template of model {self.folder} opens a think block, so no label can follow the prompt at "
                "once; protocol log-likelihood needs --thinking off, or another template (--chat-template-file)"
            )
        if (tail, prompt.labels) not in self._labels:
            is_nested = any(a != b and b.startswith(a) for a in prompt.labels for b in prompt.labels)
            end = [self._tokenizer.eos_token_id] if is_nested else []
            read = self._tokenizer([tail, *(tail + label for label in prompt.labels)], add_special_tokens=False)
            before, *with_labels = read["input_ids"]
            self._labels[tail, prompt.labels] = tuple(
                (*(ids[len(before) :] if ids[: len(before)] == before else self._apart(label)), *end)
                for ids, label in zip(with_labels, prompt.labels, strict=True)
            )
        return self._labels[tail, prompt.labels]

    def _apart(self, label: str) -> list[int]:
        """Tokens of a label that would merge with the prompt's last ones, which the model has read by then."""
        return self._tokenizer(label, add_special_tokens=False)["input_ids"]

    def _text(self, row: "_Row") -> str:
        """What a row has written. Some tokenizers drop a space at the start of what they decode; after the start of
        an answer that space counts."""
        before = row.prompt[-1:] if row.is_begun else []
        return self._decode(before + row.written)[len(self._decode(before)) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _check_lengths(self, encoded: Sequence[Sequence[int]], labels: Sequence[Labels]) -> None:
        limit = getattr(self._config.get_text_config(), "max_position_embeddings", None)
        for read, tokens in zip(encoded, labels, strict=True):
            written = max(map(len, tokens)) if tokens else self.sampling.max_new_tokens
            if limit is not None and len(read) + written > limit:
                raise InputError(
                    f"a prompt has {len(read)} tokens and {written} may be written, but model "
                    f"{self.folder} reads {limit} in all; cut items and input (--item-words, --input-words) or lower "
                    "k. Prompts are never cut silently"
                )

    @cached_property
    def _config(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.base or self.folder, local_files_only=True)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise InputError(f"model {self.folder} has no tokenizer that loads: {_first_line(error)}") from None
        if self.chat.template is not None:
            tokenizer.chat_template = self.chat.template
        if not tokenizer.chat_template:
            raise InputError(
                f"model {self.folder} has no chat template; put one into its tokenizer (chat_template.jinja), or give "
                "one with --chat-template-file"
            )
        if self.chat.thinking != "auto" and "enable_thinking" not in str(tokenizer.chat_template):
            logger.warning(
                "warning: the chat template of model %s knows no enable_thinking; --thinking %s changes nothing",
                self.folder, self.chat.thinking,
            )  # fmt: skip
        return tokenizer

    @cached_property
    def _device(self) -> "torch.device":
        import torch

        return torch.device(self.options.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @cached_property
    def _dtype(self) -> "torch.dtype":
        import torch

        if self.options.dtype != "auto":
            return getattr(torch, self.options.dtype)
        is_fast = self._device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if is_fast else torch.float32

    @cached_property
    def _model(self) -> Any:
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            model = AutoModelForCausalLM.from_pretrained(
                self.base or self.folder, dtype=self._dtype, use_safetensors=True, local_files_only=True
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"model {self.base or self.folder} does not load: {_first_line(error)}") from None
        whole: Any = self._with_adapter(model) if self.base else model
        forward.watch_head(whole)
        return whole.to(self._device).eval().requires_grad_(False)

    def _with_adapter(self, model: Any) -> Any:
        """Load the adapter and merge it into the weights, for speed."""
        from peft import PeftModel

        if len(self._tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(self._tokenizer), mean_resizing=False)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
                return PeftModel.from_pretrained(model, str(self.folder)).merge_and_unload()
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"adapter {self.folder} does not fit {self.base}: {_first_line(error)}") from None

    @cached_property
    def _end_ids(self) -> frozenset[int]:
        ends = self._model.generation_config.eos_token_id
        known = [ends] if isinstance(ends, int) else list(ends or [])
        return frozenset(token for token in (*known, self._tokenizer.eos_token_id) if token is not None)

    @property
    def _pad_id(self) -> int:
        return self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else 0


@dataclass
class _Row:
    """One prompt while it is answered."""

    index: int
    prompt: list[int]
    seed: int
    is_begun: bool
    matcher: Any = None
    written: list[int] = field(default_factory=list)
    is_done: bool = False

    @cached_property
    def generator(self) -> "torch.Generator":
        """Draws of this row alone: seeded by the seed and the prompt's tokens."""
        import torch

        digest = hashlib.sha256(json.dumps([self.seed, self.prompt]).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _base_of_adapter(folder: Path) -> Path | None:
    """Give the base model's folder of a LoRA adapter; None for a whole model."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        return None
    try:
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} does not name base_model_name_or_path; it is no adapter of peft") from None
    if not base:
        raise InputError(f"{path}: base_model_name_or_path is empty; say there which model the adapter belongs to")
    inside = folder / base
    try:
        return model_folder(str(inside) if inside.is_dir() else base)
    except InputError as error:
        raise InputError(
            f"{path} names the base model {base}: {error}; put that model there (the embedded one: `tagpr-train "
            "base-model`) or write its place into the file"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
