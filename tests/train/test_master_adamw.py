"""AdamW on float32 masters."""

import copy

import torch

from tagpr_train.master_adamw import MasterAdamW

OPTIONS = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1}


def _steps(optimiser: torch.optim.Optimizer, weight: torch.nn.Parameter, gradients: list[torch.Tensor]) -> None:
    for gradient in gradients:
        weight.grad = gradient.to(weight.dtype)
        optimiser.step()


def _gradients(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, generator=generator).bfloat16().float() for _ in range(count)]


def test_on_bfloat16_weights_it_is_torchs_adamw_on_float32_weights_rounded() -> None:
    start = torch.linspace(-1, 1, 5).bfloat16()
    weight, exact = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.float())
    _steps(MasterAdamW([weight], **OPTIONS), weight, _gradients(20))
    _steps(torch.optim.AdamW([exact], **OPTIONS), exact, _gradients(20))
    assert torch.equal(weight, exact.bfloat16())


def test_updates_too_small_for_bfloat16_add_up() -> None:
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    _steps(MasterAdamW([weight], lr=1e-4, weight_decay=0.0), weight, [torch.ones(1)] * 100)
    assert weight.item() == 0.98828125  # 1 - 100 · 1e-4 = 0.99, rounded; a single step of 1e-4 would round to 1


def test_saved_state_continues_as_if_never_stopped() -> None:
    whole, parted = (torch.nn.Parameter(torch.ones(5, dtype=torch.bfloat16)) for _ in range(2))
    _steps(MasterAdamW([whole], **OPTIONS), whole, _gradients(10))
    first = MasterAdamW([parted], **OPTIONS)
    _steps(first, parted, _gradients(10)[:4])
    saved = copy.deepcopy(first.state_dict())
    second = MasterAdamW([parted], lr=9.0)
    second.load_state_dict(saved)
    assert second.param_groups[0]["lr"] == OPTIONS["lr"]
    _steps(second, parted, _gradients(10)[4:])
    assert torch.equal(whole, parted)


def test_schedule_reaches_the_masters_and_the_saved_state() -> None:
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimiser = MasterAdamW([weight], lr=0.5, weight_decay=0.0)
    optimiser.param_groups[0]["lr"] = 0.0
    assert optimiser.state_dict()["adamw"]["param_groups"][0]["lr"] == 0.0
    _steps(optimiser, weight, [torch.ones(1)])
    assert weight.item() == 1.0
