"""The loss at label positions only, with the prompt optionally read without gradient into a cache.

transformers' own loss projects every position on the vocabulary in float32; with prompts of 300 tokens and 49,152
words that is most of the time and nearly all the memory. Here the head sees only positions that have a label, in
chunks, and its gradient is made while the chunk's logits are at hand, so the logits are never kept.

Guarantee: with `prompt_gradient` the loss and every gradient equal the full computation's (up to rounding). Without it
the loss is the same, but no gradient flows into the prompt's keys and values: an approximation, ours, that nearly
doubles the speed. Models that scale or cap their logits are refused (`check_head`).

Dimensions: B batch, P prefix, C completion, N label positions, D width, V vocabulary, R trained rows.
"""

import types
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear

from tagpr_data.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK = 512
"""Label positions whose logits are in memory at a time."""

_HEAD_ATTRIBUTES = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)


def install(model: "PreTrainedModel", *, prompt_gradient: bool) -> None:
    """Make `model(**batch)` with a `dataset.Collator` batch give the weighted sum of negative log-likelihoods.

    Other calls of the model (generation, its own loss) are unchanged. The patch sits on the model's `forward`, so that
    peft, DDP and FSDP wrappers around it stay in play.
    """
    check_head(model)
    original = model.forward

    def forward(self: "PreTrainedModel", *args: Any, prefix_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if prefix_ids is None:
            return original(*args, **kwargs)
        batch = {"prefix_ids": prefix_ids, **{name: kwargs[name] for name in _BATCH}}
        hidden = completion_states(self, batch, prompt_gradient=prompt_gradient)
        has_label = batch["labels"] >= 0
        return weighted_nll(self, hidden[has_label], batch["labels"][has_label], batch["weights"][has_label])

    model.forward = types.MethodType(forward, model)  # pyright: ignore[reportAttributeAccessIssue] - on purpose


_BATCH = ("prefix_mask", "input_ids", "attention_mask", "labels", "weights")


def check_head(model: "PreTrainedModel") -> None:
    """Raise InputError for a model whose logits are more than head · hidden state."""
    config = model.config.get_text_config()
    for name in _HEAD_ATTRIBUTES:
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise InputError(
                f"models with {name} are not supported ({config.model_type}); only plain heads are known here"
            )


def completion_states(
    model: "PreTrainedModel", batch: dict[str, torch.Tensor], *, prompt_gradient: bool
) -> torch.Tensor:
    """Give the last hidden states (B, C, D) at the positions that predict the completion."""
    mask = torch.cat([batch["prefix_mask"], batch["attention_mask"]], dim=1)  # (B, P + C)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    prefix, inputs = batch["prefix_ids"], batch["input_ids"]
    width = prefix.shape[1]
    backbone = model.base_model
    if prompt_gradient or width == 0:
        ids = torch.cat([prefix, inputs], dim=1)
        output = backbone(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
        return output.last_hidden_state[:, width:]
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        backbone(
            input_ids=prefix,
            attention_mask=batch["prefix_mask"],
            position_ids=positions[:, :width],
            past_key_values=cache,
            use_cache=True,
        )
    output = backbone(
        input_ids=inputs,
        attention_mask=mask,
        position_ids=positions[:, width:],
        past_key_values=cache,
        use_cache=True,
    )
    return output.last_hidden_state


def weighted_nll(
    model: "PreTrainedModel", hidden: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Give Σ weight · −log p(label) as a float32 scalar; hidden (N, D), labels (N,) int64, weights (N,) ≥ 0."""
    head = model.get_output_embeddings()
    matrix, rows, ids = head_parts(head)
    bias = getattr(head, "bias", None)
    index = torch.tensor(ids, dtype=torch.long, device=hidden.device)
    return _WeightedNll.apply(hidden, matrix, bias, rows, index, labels, weights.float())  # pyright: ignore


def head_parts(head: Any) -> tuple[torch.Tensor, torch.Tensor | None, list[int]]:
    """Split a head into its matrix (V, D) and, where peft trains some rows apart, those rows (R, D) and their ids.
    peft itself would copy the whole matrix in every forward and take a gradient of its full size."""
    adapter = getattr(head, "token_adapter", None)
    if adapter is None:
        return head.weight, None, []
    (name,) = adapter.active_adapters
    return adapter.base_layer.weight, adapter.trainable_tokens_delta[name], list(adapter.token_indices[name])


class _WeightedNll(torch.autograd.Function):
    """Weighted sum of −log softmax(hidden · matrixᵀ + bias)[label], gradients taken chunk by chunk in the forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        matrix: torch.Tensor,
        bias: torch.Tensor | None,
        rows: torch.Tensor | None,
        index: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        inputs = (hidden, matrix, bias, rows)
        needed = zip(inputs, ctx.needs_input_grad, strict=False)
        gradients = [
            torch.zeros_like(value, dtype=torch.float32) if value is not None and is_needed else None
            for value, is_needed in needed
        ]
        d_hidden, d_matrix, d_bias, d_rows = gradients
        total = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, len(labels), CHUNK):
            part = slice(start, start + CHUNK)
            states, weight, target = hidden[part], weights[part, None], labels[part, None]
            logits = linear(states, matrix, bias)
            if rows is not None:
                logits[:, index] = linear(states, rows)
            logits = logits.float()  # (N, V)
            normaliser = logits.logsumexp(dim=1, keepdim=True)
            total += (weight * (normaliser - logits.gather(1, target))).sum()
            if all(gradient is None for gradient in gradients):
                continue
            slope = logits.sub_(normaliser).exp_()
            slope.scatter_add_(1, target, -torch.ones_like(slope[:, :1])).mul_(weight)
            if d_bias is not None:
                d_bias += slope.sum(dim=0)
            slope = slope.to(hidden.dtype)
            if rows is not None:
                own = slope[:, index]  # (N, R)
                slope[:, index] = 0
                if d_rows is not None:
                    d_rows += own.T @ states
                if d_hidden is not None:
                    d_hidden[part] += own @ rows
            if d_hidden is not None:
                d_hidden[part] += slope @ matrix
            if d_matrix is not None:
                d_matrix += slope.T @ states
        ctx.gradients = [
            None if gradient is None or value is None else gradient.to(value.dtype)
            for gradient, value in zip(gradients, inputs, strict=True)
        ]
        return total

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scaled = [None if gradient is None else gradient * upstream.to(gradient.dtype) for gradient in ctx.gradients]
        return (*scaled, None, None, None)
