"""Log-probabilities of completions: logits at completion tokens only, and each prompt read once for its whole group.

trl reads a prompt once per completion and, on a CPU, projects prompt positions on the vocabulary too. Here equal
prompts of a batch are read once into a cache that all their completions attend to. With `prompt_gradient` the cache
carries the gradient, so the result equals trl's up to rounding; without it no gradient reaches the prompt's keys and
values: an approximation, ours, that saves the backward pass through the prompts.

Dimensions: B rows, U different prompts, P prompt tokens, C completion tokens, N scored tokens, D width, V vocabulary.
"""

import functools
import types
from typing import Any

import torch
from torch.nn.functional import linear
from transformers import DynamicCache, PreTrainedModel

from tagpr_train.label_loss import CHUNK, check_head, head_parts


def install(model: PreTrainedModel, temperature: float, *, prompt_gradient: bool) -> None:
    """Make `model(group_scores=True, …)` give what `completion_scores` gives; other calls are unchanged. The patch sits
    on the base model's `forward`, so that peft and DDP wrappers around it stay in play."""
    check_head(model)
    original = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: PreTrainedModel, *args: Any, group_scores: bool = False, **kwargs: Any) -> Any:
        if not group_scores:
            return original(*args, **kwargs)
        batch = {name: kwargs[name] for name in _BATCH}  # peft adds arguments of its own
        return completion_scores(self, **batch, temperature=temperature, prompt_gradient=prompt_gradient)

    model.forward = types.MethodType(forward, model)  # pyright: ignore[reportAttributeAccessIssue] - on purpose


_BATCH = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


def completion_scores(
    model: PreTrainedModel,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
    *,
    temperature: float = 1.0,
    prompt_gradient: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give log p and entropy (without gradient) of each completion token in nats, both (B, C) float32, 0 where masked.

    prompt_ids, prompt_mask (B, P) left-padded; completion_ids, completion_mask (B, C) right-padded. Rows that are
    masked as a whole are not computed.
    """
    kept = completion_mask.any(1).nonzero()[:, 0]
    if len(kept) == 0:
        kept = kept.new_zeros(1)  # so that the result hangs on the weights
    hidden = _states(
        model, prompt_ids[kept], prompt_mask[kept], completion_ids[kept], completion_mask[kept], prompt_gradient
    )
    scored = completion_mask[kept].bool()
    scored[:, 0] |= not completion_mask.any()
    matrix, rows, ids = head_parts(model.get_output_embeddings())
    index = torch.tensor(ids, dtype=torch.long, device=hidden.device)
    bias = getattr(model.get_output_embeddings(), "bias", None)
    labels = completion_ids[kept][scored]
    values, entropies = _TokenScores.apply(hidden[scored], matrix, bias, rows, index, labels, temperature)  # pyright: ignore
    places = torch.zeros_like(completion_mask, dtype=torch.bool)
    places[kept] = scored
    blank = values.new_zeros(completion_mask.shape)
    logps, entropy = blank.masked_scatter(places, values), blank.masked_scatter(places, entropies)
    return logps * completion_mask, entropy * completion_mask


def _states(
    model: PreTrainedModel,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
    prompt_gradient: bool,
) -> torch.Tensor:
    """Give the last hidden states (B, C, D) at the positions that predict the completion."""
    both = torch.stack([prompt_ids * prompt_mask, prompt_mask])  # (2, B, P)
    different, group = both.unique(dim=1, return_inverse=True)
    prompts, masks = different[0], different[1]  # (U, P)
    start = int(masks.any(0).long().argmax())
    prompts, masks = prompts[:, start:-1], masks[:, start:-1]  # the last token is read with the completion
    backbone = model.base_model
    cache = DynamicCache(config=model.config)
    if prompts.shape[1]:
        positions = (masks.cumsum(1) - 1).clamp(min=0)
        with torch.set_grad_enabled(torch.is_grad_enabled() and prompt_gradient):
            backbone(
                input_ids=prompts, attention_mask=masks, position_ids=positions, past_key_values=cache, use_cache=True
            )
        cache.batch_select_indices(group)
    inputs = torch.cat([prompt_ids[:, -1:], completion_ids[:, :-1]], dim=1)  # (B, C)
    own = torch.cat([completion_mask.new_ones(len(inputs), 1), completion_mask[:, :-1]], dim=1)
    mask = torch.cat([masks[group], own], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, masks.shape[1] :]
    return backbone(
        input_ids=inputs, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state


class _TokenScores(torch.autograd.Function):
    """log softmax(hidden · matrixᵀ / temperature)[label] and the entropy, in chunks; the backward pass computes the
    logits anew, so they are never kept. `rows` (R, D) replace the matrix' rows `index`, as peft trains them apart."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        matrix: torch.Tensor,
        bias: torch.Tensor | None,
        rows: torch.Tensor | None,
        index: torch.Tensor,
        labels: torch.Tensor,
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(hidden, matrix, bias, rows, index, labels)
        ctx.temperature = temperature
        values = hidden.new_empty(len(labels), dtype=torch.float32)
        entropies = torch.empty_like(values)
        for start in range(0, len(labels), CHUNK):
            part = slice(start, start + CHUNK)
            logits = _logits(hidden[part], matrix, bias, rows, index, temperature)
            normaliser = logits.logsumexp(1)
            values[part] = logits.gather(1, labels[part, None])[:, 0] - normaliser
            probabilities = (logits - normaliser[:, None]).exp_()
            entropies[part] = normaliser - probabilities.mul_(logits).sum(1)
        ctx.mark_non_differentiable(entropies)
        return values, entropies

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, matrix, bias, rows, index, labels = ctx.saved_tensors
        inputs = (hidden, matrix, bias, rows)
        gradients = [
            torch.zeros_like(value, dtype=torch.float32) if is_needed and value is not None else None
            for value, is_needed in zip(inputs, ctx.needs_input_grad, strict=False)
        ]
        d_hidden, d_matrix, d_bias, d_rows = gradients
        for start in range(0, len(labels), CHUNK):
            part = slice(start, start + CHUNK)
            states, target, weight = hidden[part], labels[part, None], upstream[part, None].float() / ctx.temperature
            slope = _logits(states, matrix, bias, rows, index, ctx.temperature).softmax(1).mul_(-weight)
            slope.scatter_add_(1, target, weight)
            if d_bias is not None:
                d_bias += slope.sum(0)
            slope = slope.to(states.dtype)
            if rows is not None:
                own = slope[:, index]
                slope[:, index] = 0
                if d_rows is not None:
                    d_rows += own.T @ states
                if d_hidden is not None:
                    d_hidden[part] += own @ rows
            if d_hidden is not None:
                d_hidden[part] += slope @ matrix
            if d_matrix is not None:
                d_matrix += slope.T @ states
        typed = [
            None if gradient is None or value is None else gradient.to(value.dtype)
            for gradient, value in zip(gradients, inputs, strict=True)
        ]
        return (*typed, None, None, None)


def _logits(
    states: torch.Tensor,
    matrix: torch.Tensor,
    bias: torch.Tensor | None,
    rows: torch.Tensor | None,
    index: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    logits = linear(states, matrix, bias)
    if rows is not None:
        logits[:, index] = linear(states, rows)
    return logits.float().div_(temperature)
