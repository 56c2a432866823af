"""The forward pass of a causal model over a batch of prompts: what generation and label scoring share.

Sizes: B rows of a batch, T places, P places the head reads, D width, V vocabulary. Guarantee: logits are computed only
where they are asked for, never for whole prompts.
"""

import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_GROW_TOKENS = 64
_VOCABULARY_BLOCK = 8192


def read_prompts(
    model: Any, prompts: Sequence[Sequence[int]], pad: int, device: Any, last: int = 1, is_exact: bool = False
) -> "tuple[Any, torch.Tensor, torch.Tensor]":
    """Read all prompts at once; give the cache, which of its places count (B, T), and the logits of the `last` places
    of each prompt (B, last, V). `is_exact`: logits in float32, see `head_reads`.

    Padding stands on the right, where causal attention never sees it, unless the model has layers that look at a
    window only: their cache keeps the last places, so these must be real ones.
    """
    import torch

    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    width = int(lengths.max())
    on_left = not has_full_attention_only(model.config)
    padded = [
        [pad] * (width - len(prompt)) + [*prompt] if on_left else [*prompt] + [pad] * (width - len(prompt))
        for prompt in prompts
    ]
    place = torch.arange(width, device=device)[None, :]
    attended = (place >= width - lengths[:, None]) if on_left else (place < lengths[:, None])
    attended = attended.long()  # (B, T)
    positions = (attended.cumsum(dim=1) - 1).clamp(min=0) if on_left else place.expand(len(prompts), -1)
    cache = _growing_cache(model.config)
    ends = torch.full_like(lengths, width) if on_left else lengths
    with head_reads(ends[:, None] - last + torch.arange(last, device=device), is_exact):
        logits = model(
            input_ids=torch.tensor(padded, device=device), attention_mask=attended if on_left else None,
            position_ids=positions, past_key_values=cache, use_cache=True,
        ).logits  # fmt: skip
    return cache, attended, logits


def watch_head(model: Any) -> None:
    """Make `head_reads` work for a model; all worker threads share it."""
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(_pick_places)
    head.register_forward_hook(_multiply_exactly)


_head = threading.local()
"""What the head is to do in this thread's forward: `places` (B, P), `is_exact`; and `picked` (B, P, D) on its way."""


@contextmanager
def head_reads(places: "torch.Tensor", is_exact: bool = False) -> Generator[None, None, None]:
    """Let the head see P places (B, P) of each row: logits of all T places would be T / P times as many.

    `is_exact`: multiply in float32 whatever the weights are. bf16 logits of size 20 lie 0.125 apart, so that labels
    would tie that do not.
    """
    _head.places, _head.is_exact = places, is_exact
    try:
        yield
    finally:
        _head.places = _head.picked = None
        _head.is_exact = False


def has_full_attention_only(config: Any) -> bool:
    """Whether every layer sees all earlier places."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        return set(kinds) == {"full_attention"}
    return getattr(text, "sliding_window", None) is None


def _pick_places(_head_module: Any, inputs: tuple[Any, ...]) -> Any:
    """Hook before the head: hidden states (B, T, D) → (B, P, D); none at all where `_multiply_exactly` follows."""
    import torch

    if (places := getattr(_head, "places", None)) is None:
        return None
    rows = torch.arange(len(places), device=places.device)[:, None]
    picked = inputs[0][rows, places]
    if _head.is_exact:
        _head.picked, picked = picked, picked[:, :0]
    return (picked, *inputs[1:])


def _multiply_exactly(head: Any, _inputs: Any, output: Any) -> Any:
    """Hook after the head: the picked states times the weights in float32, some of the vocabulary at a time."""
    import torch

    if not getattr(_head, "is_exact", False):
        return None
    hidden = _head.picked.float()  # (B, P, D)
    logits = hidden.new_empty(*hidden.shape[:2], output.shape[-1])
    for start in range(0, logits.shape[-1], _VOCABULARY_BLOCK):
        block = slice(start, start + _VOCABULARY_BLOCK)
        bias = None if head.bias is None else head.bias[block].float()
        logits[..., block] = torch.nn.functional.linear(hidden, head.weight[block].float(), bias)
    return logits


def _growing_cache(config: Any) -> Any:
    """A dynamic cache whose full-attention layers write into spare room instead of copying all at every token."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class GrowingLayer(DynamicLayer):
        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self.room = [key_states.new_empty(0), value_states.new_empty(0)]
            have = self.get_seq_length()
            need = have + key_states.shape[-2]
            views = []
            for number, (old, new) in enumerate(((self.keys, key_states), (self.values, value_states))):
                room = self.room[number]
                if room.dim() != 4 or room.shape[-2] < need:
                    room = new.new_empty(*new.shape[:2], need + _GROW_TOKENS, new.shape[-1])
                    if have:
                        room[:, :, :have] = old
                    self.room[number] = room
                room[:, :, have:need] = new
                views.append(room[:, :, :need])
            self.keys, self.values = views
            return self.keys, self.values

        def batch_select_indices(self, indices: Any) -> None:
            have = self.get_seq_length()
            self.room = [room[indices] for room in self.room]
            self.keys, self.values = (room[:, :, :have] for room in self.room)

    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
