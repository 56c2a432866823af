"""Log-probabilities of labels after prompts: how likely the model is to write each label next.

A label's score is the sum of the log-probabilities of its tokens, given the prompt and its own earlier tokens, in nats
(natural logarithm); not divided by its length. The answer is the label of the highest score, the first of equal ones.

How it is made fast: a prompt is read once. The labels form a tree over their tokens (those that begin alike share
nodes), and all of it goes through the model in one further forward: each node stands at its own position and sees the
prompt and its own beginning only, by the attention mask. Labels of one token need no second forward. Price: a model
with layers that look at a window only takes no such mask; it reads the prompt again for every label of several tokens.

Sizes: B prompts of a batch, L labels, N nodes, T places of the prompts, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tagpr_eval import forward

if TYPE_CHECKING:
    import torch

Labels = tuple[tuple[int, ...], ...]
"""Tokens of each label, at least one."""


@dataclass(frozen=True)
class LabelTree:
    """The labels' tokens as a tree. A node is a token after which some label goes on."""

    tokens: tuple[int, ...]
    """Token of each node; parents stand before their children."""
    parents: tuple[int, ...]
    """Node before each; −1: the prompt."""
    paths: tuple[tuple[tuple[int, int], ...], ...]
    """Of each label: (node, token that follows it), for each of its tokens."""

    @property
    def depths(self) -> list[int]:
        """Nodes before each node."""
        found: list[int] = []
        for parent in self.parents:
            found.append(0 if parent < 0 else found[parent] + 1)
        return found

    @property
    def sees(self) -> list[list[bool]]:
        """(N, N): whether a node sees another, which is itself or before it."""
        rows: list[list[bool]] = []
        for node, parent in enumerate(self.parents):
            row = list(rows[parent]) if parent >= 0 else [False] * len(self.parents)
            row[node] = True
            rows.append(row)
        return rows


@lru_cache(maxsize=256)
def label_tree(labels: Labels) -> LabelTree:
    """Join labels that begin with the same tokens."""
    nodes: dict[tuple[int, int], int] = {}
    paths: list[tuple[tuple[int, int], ...]] = []
    for label in labels:
        path = [(-1, label[0])]
        for token, following in pairwise(label):
            node = nodes.setdefault((path[-1][0], token), len(nodes))
            path.append((node, following))
        paths.append(tuple(path))
    return LabelTree(tuple(token for _, token in nodes), tuple(parent for parent, _ in nodes), tuple(paths))


def label_logprobs(
    model: Any, prompts: Sequence[Sequence[int]], labels: Labels, pad: int, device: Any
) -> "torch.Tensor":
    """Score every label after every prompt → (B, L) float64 on the CPU, in nats, ≤ 0. `model` is one whose head is
    watched (`forward.watch_head`); logits are computed in float32 at the places that are needed."""
    import torch

    tree = label_tree(labels)
    cache, attended, logits = forward.read_prompts(model, prompts, pad, device, is_exact=True)
    steps = {-1: _logprobs(logits[:, -1:])[:, 0]}  # node → (B, V) of what follows it
    if not tree.tokens:
        return torch.stack([steps[-1][:, path[0][1]] for path in tree.paths], dim=1).double().cpu()
    if forward.has_full_attention_only(model.config):
        found = _logprobs(_read_tree(model, tree, cache, attended))  # (B, N, V)
        steps |= {node: found[:, node] for node in range(len(tree.tokens))}
        scores = [sum(steps[node][:, token].double() for node, token in path) for path in tree.paths]
        return torch.stack(scores, dim=1).cpu()  # pyright: ignore[reportArgumentType] - no path is empty
    return torch.stack([_read_again(model, prompts, label, pad, device) for label in labels], dim=1).cpu()


def _read_tree(model: Any, tree: LabelTree, cache: Any, attended: "torch.Tensor") -> "torch.Tensor":
    """Put the tree behind the prompts in the cache → logits (B, N, V)."""
    import torch

    rows, nodes = len(attended), len(tree.tokens)
    device = attended.device
    lengths = attended.sum(dim=1, keepdim=True)  # (B, 1)
    sees = torch.tensor(tree.sees, device=device)
    seen = torch.cat(
        [attended.bool()[:, None].expand(-1, nodes, -1), sees[None].expand(rows, -1, -1)], dim=2
    )  # (B, N, T + N)
    mask = torch.zeros(rows, 1, nodes, seen.shape[2], dtype=model.dtype, device=device)
    mask.masked_fill_(~seen[:, None], torch.finfo(model.dtype).min)
    with forward.head_reads(torch.arange(nodes, device=device).expand(rows, -1), is_exact=True):
        return model(
            input_ids=torch.tensor(tree.tokens, device=device).expand(rows, -1), attention_mask=mask,
            position_ids=lengths + torch.tensor(tree.depths, device=device), past_key_values=cache, use_cache=True,
        ).logits  # fmt: skip


def _read_again(
    model: Any, prompts: Sequence[Sequence[int]], label: tuple[int, ...], pad: int, device: Any
) -> "torch.Tensor":
    """Score one label by reading prompt and label together → (B,)."""
    import torch

    rows = [(*prompt, *label[:-1]) for prompt in prompts]
    _, _, logits = forward.read_prompts(model, rows, pad, device, last=len(label), is_exact=True)
    tokens = torch.tensor(label, device=device).expand(len(rows), -1)[..., None]
    return _logprobs(logits).gather(2, tokens)[..., 0].double().sum(dim=1)


def _logprobs(logits: "torch.Tensor") -> "torch.Tensor":
    """Give log-probabilities (B, P, V) of logits, in place."""
    return logits.sub_(logits.logsumexp(dim=-1, keepdim=True))
