"""Completions sampled here, without a server: each prompt is read once and shared by all its completions.

transformers' own `generate` reads a prompt as often as it is answered and copies the whole cache at every token. Here
the prompt's keys and values are computed once, copied for the group, and the cache has room to grow in place; rows that
ended are dropped. Guarantee: greedy completions equal `generate`'s; a prompt's completions follow from its own seed,
whatever other prompts are answered beside it (up to the rounding of the model).

Dimensions: U prompts, B rows (U · copies), T prompt tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROWS = 128
"""Rows decoded together at most, or one group where that is larger."""


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen."""

    max_new_tokens: int
    """Longest completion, the end token included."""
    end_ids: tuple[int, ...]
    """Tokens that end a completion; they are part of it."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Smallest set of tokens with this much probability."""
    top_k: int = 0
    """That many likeliest tokens; 0 is all."""


def complete(
    model: Any, prompts: Sequence[Sequence[int]], copies: int, sampler: Sampler, pad: int, seeds: Sequence[int]
) -> list[list[int]]:
    """Give `copies` completions of each prompt, those of the first prompt first; one seed per prompt; `pad` is any
    token id."""
    was_training = model.training
    model.eval()
    size = max(1, ROWS // copies)
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    results: dict[int, list[list[int]]] = {}
    try:
        for start in range(0, len(order), size):
            part = order[start : start + size]
            draws = torch.cat([_draws(seeds[index], copies, sampler.max_new_tokens) for index in part])
            rows = _complete([prompts[index] for index in part], model, copies, sampler, pad, draws)
            for place, index in enumerate(part):
                results[index] = rows[place * copies : (place + 1) * copies]
    finally:
        model.train(was_training)
    return [row for index in range(len(prompts)) for row in results[index]]


@torch.inference_mode()
def _complete(
    prompts: Sequence[Sequence[int]], model: Any, copies: int, sampler: Sampler, pad: int, draws: torch.Tensor
) -> list[list[int]]:
    """`draws` (B, max_new_tokens) in [0, 1) choose the tokens."""
    device = next(model.parameters()).device
    draws = draws.to(device)
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts], device=device)  # (U, T)
    attended = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=device)
    cache = roomy_cache(model, sampler.max_new_tokens)
    places = (attended.cumsum(1) - 1).clamp(min=0)
    logits = model(
        input_ids=ids, attention_mask=attended, position_ids=places, past_key_values=cache, use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]  # fmt: skip
    group = torch.arange(len(prompts), device=device).repeat_interleave(copies)  # (B,)
    cache.batch_select_indices(group)
    attended, logits = attended[group], logits[group]
    lengths = attended.sum(1, keepdim=True)
    ends = torch.tensor(sampler.end_ids, device=device)
    written: list[list[int]] = [[] for _ in range(len(group))]
    alive = list(range(len(group)))
    for step in range(sampler.max_new_tokens):
        chosen = choose(logits, sampler, draws[:, step])
        for row, token in zip(alive, chosen.tolist(), strict=True):
            written[row].append(token)
        going = (~torch.isin(chosen, ends)).nonzero()[:, 0]
        if len(going) == 0 or step + 1 == sampler.max_new_tokens:
            break
        if len(going) < len(alive):
            alive = [alive[place] for place in going.tolist()]
            chosen, attended, lengths, draws = chosen[going], attended[going], lengths[going], draws[going]
            cache.batch_select_indices(going)
        attended = torch.cat([attended, attended.new_ones(len(alive), 1)], dim=1)
        logits = model(
            input_ids=chosen[:, None], attention_mask=attended, position_ids=lengths + step, past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]  # fmt: skip
    return written


def _draws(seed: int, copies: int, tokens: int) -> torch.Tensor:
    """Give uniform numbers (copies, tokens) in double precision, on the CPU: the same on every machine."""
    return torch.rand(copies, tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def choose(logits: torch.Tensor, sampler: Sampler, draws: torch.Tensor) -> torch.Tensor:
    """Choose the next token of each row by a number in [0, 1): (B, V), (B,) → (B,)."""
    logits = logits.float()
    if sampler.temperature == 0:
        return logits.argmax(-1)
    logits = logits / sampler.temperature
    if 0 < sampler.top_k < logits.shape[-1]:
        least = logits.topk(sampler.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.softmax(-1)
    if sampler.top_p < 1:
        ordered, indices = probabilities.sort(-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered >= sampler.top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter(-1, indices, ordered)
    totals = probabilities.double().cumsum(-1)
    chosen = torch.searchsorted(totals, draws[:, None] * totals[:, -1:], right=True)[:, 0]
    return chosen.clamp(max=logits.shape[-1] - 1)


def roomy_cache(model: Any, room: int) -> DynamicCache:
    """Give an empty cache whose full-attention layers, once filled, take `room` more tokens without being copied."""

    class Layer(DynamicLayer):
        def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self.whole = [_with_room(states, room) for states in (key_states, value_states)]
                self.used = 0
            start, self.used = self.used, self.used + key_states.shape[-2]
            if self.used > self.whole[0].shape[-2]:
                self.whole = [_with_room(states[:, :, :start], room) for states in self.whole]
            for whole, states in zip(self.whole, (key_states, value_states), strict=True):
                whole[:, :, start : self.used] = states
            self.keys, self.values = (whole[:, :, : self.used] for whole in self.whole)
            return self.keys, self.values

        def batch_select_indices(self, indices: torch.Tensor) -> None:
            self.whole = [whole[indices] for whole in self.whole]
            self.keys, self.values = (whole[:, :, : self.used] for whole in self.whole)

    cache = DynamicCache(config=model.config)
    cache.layers = [Layer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _with_room(states: torch.Tensor, room: int) -> torch.Tensor:
    """Give room for `room` tokens after `states` (B, H, T, D)."""
    whole = states.new_empty(*states.shape[:2], states.shape[2] + room, states.shape[3])
    whole[:, :, : states.shape[2]] = states
    return whole
