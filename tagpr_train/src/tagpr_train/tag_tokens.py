"""Tag marks as single tokens: `<think>`, `</think>` and each tag's opening and closing mark.

A new token's embedding (and head row, where it is not tied) starts as the mean of the pieces the mark had before,
which is far better than chance: the first trained step is close to the untouched model. Under LoRA only these rows
of the embedding are trained (`adapter`'s `trainable_token_indices` in peft).
"""

from typing import TYPE_CHECKING, Any

from tagpr_data.tags import TagSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def marks(tagset: TagSet) -> list[str]:
    """Give every mark of a tag set, the think marks first."""
    return [f"<{slash}{name}>" for name in ("think", *tagset.names) for slash in ("", "/")]


def lacking(tokenizer: "PreTrainedTokenizerBase", tagset: TagSet) -> list[str]:
    """Give the marks that a tokenizer takes apart."""
    return [mark for mark in marks(tagset) if len(tokenizer(mark, add_special_tokens=False)["input_ids"]) > 1]


def add_marks(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", tagset: TagSet) -> list[int]:
    """Add the marks the tokenizer lacks, widen the model where needed, start their rows; give the new token ids."""
    import torch
    from tokenizers import AddedToken

    new = lacking(tokenizer, tagset)
    pieces = {mark: tokenizer(mark, add_special_tokens=False)["input_ids"] for mark in new}
    added: list[Any] = [AddedToken(mark, normalized=False, special=False) for mark in new]
    tokenizer.add_tokens(added)
    if len(tokenizer) > _matrices(model)[0].weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    matrices = {id(layer.weight): layer.weight for layer in _matrices(model)}.values()
    ids: list[int] = tokenizer.convert_tokens_to_ids(new)  # pyright: ignore[reportAssignmentType] - a list for a list
    with torch.no_grad():
        for matrix in matrices:
            for mark, index in zip(new, ids, strict=True):
                matrix[index] = matrix[pieces[mark]].float().mean(dim=0).to(matrix.dtype)
    return ids


def trainable_rows(model: "PreTrainedModel", ids: list[int]) -> dict[str, list[int]]:
    """Give peft's `trainable_token_indices`: the new rows of the embedding, and of the head where it is not tied.

    A tied head must not be named: peft ties it to the embedding's rows, but not the embedding to the head's.
    """
    embedding, *head = _matrices(model)
    layers = [embedding, *(layer for layer in head if layer.weight is not embedding.weight)]
    names = {module: name.rpartition(".")[2] for name, module in model.named_modules()}
    return {names[layer]: ids for layer in layers} if ids else {}


def _matrices(model: "PreTrainedModel") -> list[Any]:
    return [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
