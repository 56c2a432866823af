"""The loss at label positions against transformers' own, and its gradients."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tagpr_data.errors import InputError
from tagpr_data.records import Trace
from tagpr_data.tags import load_tagset
from tagpr_train import dataset, label_loss, tag_tokens

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def _batch(folder: Path, traces: list[Trace], answer_weight: float = 1.0) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = dataset.encode(traces, tokenizer, load_tagset(), context=1024, answer_weight=answer_weight)
    rows = [
        {"id": e.id, "prompt": e.prompt, "completion": e.completion, "weights": e.weights} for e in encoded.examples
    ]
    batch = dataset.Collator(tokenizer.pad_token_id)(rows)
    batch.pop("ids")
    return batch


def _reference(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    """Sum of transformers' per-example losses, each with the labels on the completion, unpadded."""
    total = torch.zeros(())
    for row in range(len(batch["labels"])):
        prefix = batch["prefix_ids"][row][batch["prefix_mask"][row] == 1]
        inputs = batch["input_ids"][row][batch["attention_mask"][row] == 1]
        labels = batch["labels"][row][batch["labels"][row] >= 0]
        ids = torch.cat([prefix, inputs, labels[-1:]])[None]
        target = torch.cat([torch.full((len(prefix) + 1,), -100), labels])[None]
        total = total + model(input_ids=ids, labels=target).loss * len(labels)
    return total


@pytest.mark.parametrize("prompt_gradient", [True, False])
@pytest.mark.parametrize("chunk", [7, 512])
def test_loss_is_the_one_transformers_computes_on_the_completion(
    tiny_model: Path, make_trace: Callable, prompt_gradient: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_loss, "CHUNK", chunk)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    batch = _batch(tiny_model, [make_trace(n) for n in range(3)])
    expected = _reference(model, batch)
    label_loss.install(model, prompt_gradient=prompt_gradient)
    assert model(**batch).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("folder", ["tiny_model", "untied_model"])
def test_gradient_of_every_weight_is_the_full_computations(
    folder: str, make_trace: Callable, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(folder)
    model = AutoModelForCausalLM.from_pretrained(path)
    batch = _batch(path, [make_trace(n) for n in range(3)])
    expected = torch.autograd.grad(_reference(model, batch), list(model.parameters()))
    label_loss.install(model, prompt_gradient=True)
    found = torch.autograd.grad(model(**batch), list(model.parameters()))
    for (name, _), mine, theirs in zip(model.named_parameters(), found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("folder", ["tiny_model", "untied_model"])
def test_adapter_and_added_rows_get_the_gradient_peft_would_give_them(
    folder: str, make_trace: Callable, request: pytest.FixtureRequest
) -> None:
    from peft import LoraConfig, get_peft_model

    path = request.getfixturevalue(folder)
    model = AutoModelForCausalLM.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = tag_tokens.add_marks(model, tokenizer, load_tagset())
    examples = dataset.encode([make_trace(n) for n in range(3)], tokenizer, load_tagset(), context=1024).examples
    assert any(index in example.completion for index in ids for example in examples)
    rows = [{"id": e.id, "prompt": e.prompt, "completion": e.completion, "weights": e.weights} for e in examples]
    batch = dataset.Collator(tokenizer.pad_token_id)(rows)
    batch.pop("ids")
    label_loss.install(model, prompt_gradient=True)
    torch.manual_seed(1)
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False,
        trainable_token_indices=tag_tokens.trainable_rows(model, ids),
    )  # fmt: skip
    wrapped = get_peft_model(model, lora)
    trained = {name: weight for name, weight in wrapped.named_parameters() if weight.requires_grad}
    assert sum("trainable_tokens" in name for name in trained) == (1 if folder == "tiny_model" else 2)
    expected = torch.autograd.grad(_reference(wrapped, batch), list(trained.values()))
    loss = wrapped(**batch)
    assert loss.item() == pytest.approx(_reference(wrapped, batch).item(), rel=1e-5)
    for name, mine, theirs in zip(trained, torch.autograd.grad(loss, list(trained.values())), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4, msg=name)


def test_without_prompt_gradient_only_the_prompts_share_is_missing(tiny_model: Path, make_trace: Callable) -> None:
    """Detaching keys and values of the prompt in the full computation gives the same gradient."""
    from transformers import DynamicCache

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    batch = _batch(tiny_model, [make_trace(0)])
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=batch["prefix_ids"], past_key_values=cache, use_cache=True)
    logits = model(input_ids=batch["input_ids"], past_key_values=cache, use_cache=True).logits
    detached = torch.nn.functional.cross_entropy(logits[0], batch["labels"][0], reduction="sum")
    expected = torch.autograd.grad(detached, list(model.parameters()))
    full = torch.autograd.grad(_reference(model, batch), list(model.parameters()))
    label_loss.install(model, prompt_gradient=False)
    found = torch.autograd.grad(model(**batch), list(model.parameters()))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    assert max((mine - exact).abs().max().item() for mine, exact in zip(found, full, strict=True)) > 0.01


def test_weights_count_each_token_as_often_as_they_say(tiny_model: Path, make_trace: Callable) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    label_loss.install(model, prompt_gradient=True)
    plain, heavy = (_batch(tiny_model, [make_trace(0)], weight) for weight in (1.0, 3.0))
    answer_only = dict(plain, weights=(heavy["weights"] > 1).float())
    assert answer_only["weights"].sum() == len("\nred") + 1  # bytes, and the end of the turn
    expected = model(**plain).item() + 2 * model(**answer_only).item()
    assert model(**heavy).item() == pytest.approx(expected, rel=1e-6)


def test_model_that_caps_its_logits_is_refused(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(InputError, match="final_logit_softcapping"):
        label_loss.install(model, prompt_gradient=True)


def test_generation_and_the_models_own_loss_are_untouched(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids, labels=ids).loss.item(), model.generate(ids, max_new_tokens=3, do_sample=False)
    label_loss.install(model, prompt_gradient=False)
    assert model(input_ids=ids, labels=ids).loss.item() == before[0]
    assert torch.equal(model.generate(ids, max_new_tokens=3, do_sample=False), before[1])
