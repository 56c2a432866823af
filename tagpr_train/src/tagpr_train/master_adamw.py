"""AdamW on float32 master copies of bfloat16 weights.

bfloat16 has 8 bits of precision: an update below 1/256 of a weight is lost in it. The masters keep it; the model's
weights are their rounded image after every step. Price: 4 bytes per trained weight beside AdamW's own 8.
"""

from collections.abc import Callable
from typing import Any

import torch


class MasterAdamW(torch.optim.Optimizer):
    """Like `torch.optim.AdamW(params, **options)`, with state and arithmetic in float32 whatever the weights' type."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, options)
        self._inner = torch.optim.AdamW(
            [
                {**group, "params": [weight.detach().float().clone() for weight in group["params"]]}
                for group in self.param_groups
            ],
            **options,
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - torch's overloads
        """Take one step from the gradients of the model's weights."""
        assert closure is None, "line search is not AdamW's"
        self._hand_over_options()
        for weight, master in self._pairs():
            master.grad = None if weight.grad is None else weight.grad.float()
        self._inner.step()
        for weight, master in self._pairs():
            weight.copy_(master)
            master.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Give masters and AdamW's state; together with the weights all that a resumed run needs."""
        self._hand_over_options()
        return {"adamw": self._inner.state_dict(), "masters": [master for _, master in self._pairs()]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._inner.load_state_dict(state_dict["adamw"])
        for group, inner in zip(self.param_groups, self._inner.param_groups, strict=True):
            group.update({name: value for name, value in inner.items() if name != "params"})
        for (_, master), saved in zip(self._pairs(), state_dict["masters"], strict=True):
            master.copy_(saved)

    def _hand_over_options(self) -> None:
        """Tell AdamW the options of the groups, which a schedule may have changed."""
        for group, inner in zip(self.param_groups, self._inner.param_groups, strict=True):
            inner.update({name: value for name, value in group.items() if name != "params"})

    def _pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [
            pair
            for group, inner in zip(self.param_groups, self._inner.param_groups, strict=True)
            for pair in zip(group["params"], inner["params"], strict=True)
        ]
