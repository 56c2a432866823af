"""Scores from shared prompts against the full computation: values, gradients, padding, masks, adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tagpr_train import rl_scores
from tagpr_train.rl_generate import Sampler, choose, complete

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12, 13]]
COMPLETIONS = [[20, 21, 22, 2], [23, 24, 2], [30, 31, 32, 33, 34], [35, 2]]


def _batch() -> dict[str, torch.Tensor]:
    """Two groups of two, prompts padded on the left, completions on the right, in mixed order."""
    order = [0, 2, 1, 3]
    prompts = [PROMPTS[row // 2] for row in order]
    completions = [COMPLETIONS[row] for row in order]
    width, length = max(map(len, prompts)), max(map(len, completions))
    return {
        "prompt_ids": torch.tensor([[0] * (width - len(p)) + p for p in prompts]),
        "prompt_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
        "completion_ids": torch.tensor([c + [0] * (length - len(c)) for c in completions]),
        "completion_mask": torch.tensor([[1] * len(c) + [0] * (length - len(c)) for c in completions]),
    }


def _reference(model: Any, batch: dict[str, torch.Tensor], temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row by itself, without padding, all logits."""
    logps = torch.zeros(batch["completion_ids"].shape)
    entropies = torch.zeros_like(logps)
    for row in range(len(logps)):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
        if len(completion) == 0:
            continue
        logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1] / temperature
        log_softmax = logits.log_softmax(-1)
        logps[row, : len(completion)] = log_softmax.gather(1, completion[:, None])[:, 0]
        entropies[row, : len(completion)] = -(log_softmax.exp() * log_softmax).sum(-1)
    return logps, entropies


def _gradients(model: Any, logps: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = torch.linspace(-1, 1, logps.numel()).reshape(logps.shape)
    (logps * weights).sum().backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("fixture", ["tiny_model", "untied_model"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_equal_the_full_computation(
    fixture: str, temperature: float, request: pytest.FixtureRequest
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(request.getfixturevalue(fixture))
    batch: Any = _batch()
    expected, expected_entropies = _reference(model, batch, temperature)
    expected_gradients = _gradients(model, expected)
    found, entropies = rl_scores.completion_scores(model, **batch, temperature=temperature)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropies, expected_entropies, rtol=1e-5, atol=1e-5)
    gradients = _gradients(model, found)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_without_prompt_gradient_values_stay_and_gradients_differ(tiny_model: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    batch: Any = _batch()
    exact, _ = rl_scores.completion_scores(model, **batch)
    exact_gradients = _gradients(model, exact)
    found, _ = rl_scores.completion_scores(model, prompt_gradient=False, **batch)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)
    gradients = _gradients(model, found)
    name = "model.layers.0.self_attn.k_proj.weight"
    assert (gradients[name] - exact_gradients[name]).abs().max() > 1e-3


def test_rows_that_are_masked_as_a_whole_score_zero_and_change_nothing(tiny_model: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    batch: Any = _batch()
    batch["completion_mask"][1] = 0
    expected, _ = _reference(model, batch, 1.0)
    found, _ = rl_scores.completion_scores(model, **batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    batch["completion_mask"][:] = 0
    nothing, _ = rl_scores.completion_scores(model, **batch)
    nothing.sum().backward()  # a batch without any signal must not break the step
    assert nothing.abs().max() == 0 and all(w.grad is None or w.grad.abs().max() == 0 for w in model.parameters())


def test_rows_trained_apart_by_an_adapter_get_the_gradient_of_the_full_computation(tiny_model: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(0)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules="all-linear",
        trainable_token_indices={"embed_tokens": [20, 31]},
        init_lora_weights=False,
    )
    model = get_peft_model(base, lora)
    batch: Any = _batch()
    expected, _ = _reference(model, batch, 1.0)
    expected_gradients = _gradients(model, expected)
    rl_scores.install(model.get_base_model(), 1.0, prompt_gradient=True)  # pyright: ignore
    found, _ = model(group_scores=True, **batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    gradients = _gradients(model, found)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_greedy_completions_equal_generate(tiny_model: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    sampler = Sampler(max_new_tokens=12, end_ids=(2, 77), temperature=0.0)
    found = complete(model, PROMPTS, 2, sampler, pad=0, seeds=[0, 0])
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=[2, 77]
        )
        assert found[2 * row] == found[2 * row + 1] == out[0, len(prompt) :].tolist()


def test_sampled_tokens_follow_the_distribution_and_end_at_the_end_token(tiny_model: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    sampler = Sampler(max_new_tokens=2, end_ids=(2,))
    rows = complete(model, [PROMPTS[0]], 4000, sampler, pad=0, seeds=[1])
    assert rows == complete(model, [PROMPTS[0]], 4000, sampler, pad=0, seeds=[1])
    assert rows != complete(model, [PROMPTS[0]], 4000, sampler, pad=0, seeds=[2])
    assert all(len(row) == (1 if row[0] == 2 else 2) for row in rows)
    with torch.no_grad():
        probabilities = model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1)
    shares = torch.tensor([row[0] for row in rows]).bincount(minlength=len(probabilities)) / len(rows)
    assert (shares - probabilities).abs().max() < 0.04  # 4 standard deviations of a share of 0.25 are 0.027


def test_top_p_and_top_k_leave_the_likeliest_tokens_only() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(500, 1)
    draw = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert choose(logits, Sampler(1, (), top_k=1), draw).unique().tolist() == [0]
    assert choose(logits, Sampler(1, (), top_k=3), draw).unique().tolist() == [0, 1, 2]
    assert choose(logits, Sampler(1, (), top_p=0.6), draw).unique().tolist() == [0, 1]
    assert choose(logits, Sampler(1, ()), draw).unique().tolist() == [0, 1, 2, 3]
    cold = choose(logits, Sampler(1, (), temperature=0.05), draw)
    assert (cold == 0).float().mean() > 0.99
