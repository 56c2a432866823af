"""Local models against transformers' own `generate`, the other implementation, one prompt at a time in float32."""

import json
import shutil

import pytest
import torch

from tagpr_data.errors import InputError
from tagpr_data.records import Message
from tagpr_eval.config import ChatOptions, Decoding, EvaluationConfig, LocalOptions, from_options
from tagpr_eval.hf import HfModel
from tagpr_eval.models import Prompt, effective_seed, open_model, parse_spec


def prompts(count=9, seed=0):
    texts = [f"{'word ' * (n * n % 23)}{n}?" for n in range(count)]
    return [
        Prompt((Message(role="system", content="Be brief."), Message(role="user", content=text)), seed)
        for text in texts
    ]


def answers(folder, asked, batch_size=4, chat=None, **sampling):
    sampling = Decoding(**{"max_new_tokens": 20, **sampling})
    model = HfModel(str(folder), sampling, LocalOptions(dtype="float32", batch_size=batch_size), chat or ChatOptions())
    found = {}
    batches = model.batches(asked)
    assert sorted(index for batch in batches for index in batch) == list(range(len(asked)))
    model.generate(asked, batches, lambda index, completion: found.update({index: completion}))
    return [found[index] for index in range(len(asked))]


def reference(folder, asked, model=None, max_new_tokens=20):
    """Greedy tokens by transformers, and whether it ended by itself."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = model or AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ends = model.generation_config.eos_token_id
    found = []
    for prompt in asked:
        turns = [message.model_dump() for message in prompt.messages]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        out = model.generate(**ids, do_sample=False, max_new_tokens=max_new_tokens)[
            0, ids["input_ids"].shape[1] :
        ].tolist()
        ended = out[-1] in (ends if isinstance(ends, list) else [ends])
        found.append((tokenizer.decode(out[:-1] if ended else out), "stop" if ended else "length"))
    return found


def pairs(completions):
    return [(completion.text, completion.finish_reason) for completion in completions]


BEGUN = ("<think>\n<examine_examples>[P2] was", "<think>\n<a>x</a>\n", "The answer is", " a", "<think>", "")


def begun(prompt, text):
    return Prompt((*prompt.messages, Message(role="assistant", content=text)), prompt.seed)


@pytest.mark.parametrize("text", BEGUN)
def test_an_answer_that_is_begun_is_continued_as_transformers_would(tiny_model, text):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    reader = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    asked = [begun(prompt, text) for prompt in prompts(4)]
    for prompt, completion in zip(asked, answers(tiny_model, asked), strict=True):
        turns = [message.model_dump() for message in prompt.messages]
        ids = tokenizer.apply_chat_template(
            turns, continue_final_message=True, return_dict=True, return_tensors="pt"
        )["input_ids"]  # fmt: skip
        out = reader.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20)
        assert completion.text == tokenizer.decode(out[0, ids.shape[1] :]).removesuffix("<|im_end|>")
        assert completion.input_tokens == ids.shape[1]


def test_a_begun_answer_goes_on_where_the_whole_one_was_cut(tiny_model):
    whole = answers(tiny_model, prompts())
    cut = [(n, at) for n, one in enumerate(whole) for at in range(1, len(one.text)) if one.text[:at].isascii()][-1]
    start = whole[cut[0]].text[: cut[1]]
    (rest,) = answers(tiny_model, [begun(prompts()[cut[0]], start)])
    assert (start + rest.text).startswith(whole[cut[0]].text)


def test_a_think_block_is_opened_once_where_the_template_opens_it_too(tiny_model, tmp_path):
    folder = tmp_path / "opens"
    shutil.copytree(tiny_model, folder)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("assistant\n{%", "assistant\n<think>\n{%"))
    texts = ("<think>\n<a>x</a>", "<think> y", "plain")
    expected = [*(answers(tiny_model, [begun(prompts(1)[0], text)]) for text in texts[:2])]
    assert [answers(folder, [begun(prompts(1)[0], text)]) for text in texts[:2]] == expected
    as_opened = answers(tiny_model, [begun(prompts(1)[0], "<think>\n" + texts[2])])
    assert answers(folder, [begun(prompts(1)[0], texts[2])]) == as_opened


@pytest.fixture(scope="module")
def ending_model(tiny_model, tmp_path_factory):
    """The tiny model with end tokens that it does write: rows of a batch end at different lengths."""
    folder = tmp_path_factory.mktemp("ending") / "model"
    shutil.copytree(tiny_model, folder)
    from transformers import AutoTokenizer

    texts = [completion.text for completion in answers(tiny_model, prompts())]
    letters = {letter for text in texts for letter in text if "!" <= letter <= "~"}
    split = min(sorted(letters), key=lambda letter: abs(sum(letter in text for text in texts) - len(texts) / 2))
    ends = AutoTokenizer.from_pretrained(tiny_model)(split, add_special_tokens=False)["input_ids"]
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [2, *ends]}))
    return folder


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_greedy_answers_are_those_of_transformers_whatever_the_batch(ending_model, batch_size):
    expected = reference(ending_model, prompts())
    assert {reason for _, reason in expected} == {"stop", "length"}  # rows do end early, or this shows little
    assert pairs(answers(ending_model, prompts(), batch_size)) == expected


def test_a_model_that_sees_a_window_only_is_padded_where_it_does_no_harm(make_model):
    folder = make_model(window=16)
    assert pairs(answers(folder, prompts(), 4)) == reference(folder, prompts())


def test_long_prompts_come_in_smaller_batches(tiny_model):
    asked = prompts(9)
    options = LocalOptions(dtype="float32", batch_size=9, batch_tokens=400)
    model = HfModel(str(tiny_model), Decoding(max_new_tokens=10), options)
    for batch in model.batches(asked):
        longest = max(len(model._encode(asked[index].messages)) for index in batch)
        assert len(batch) == 1 or len(batch) * (longest + 10) <= 400
    assert sorted(index for batch in model.batches(asked) for index in batch) == list(range(9))


def test_tokens_are_counted_without_padding_and_end(ending_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ending_model)
    for prompt, completion in zip(prompts(), answers(ending_model, prompts()), strict=True):
        turns = [message.model_dump() for message in prompt.messages]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert completion.input_tokens == len(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert completion.finish_reason == "stop" or completion.output_tokens == 20


def test_samples_depend_on_the_seed_and_not_on_the_batch(tiny_model):
    first = answers(tiny_model, prompts(seed=1), 1, temperature=1.0, top_p=0.9)
    assert answers(tiny_model, prompts(seed=1), 5, temperature=1.0, top_p=0.9) == first
    assert answers(tiny_model, prompts(seed=2), 5, temperature=1.0, top_p=0.9) != first


def test_a_tiny_nucleus_is_greedy(tiny_model):
    assert answers(tiny_model, prompts(), temperature=0.7, top_p=1e-6) == answers(tiny_model, prompts())


def test_of_the_likeliest_token_alone_nothing_but_it_is_drawn(tiny_model):
    asked = prompts(seed=3)
    assert answers(tiny_model, asked, temperature=2.0, top_k=1) == answers(tiny_model, asked)
    assert answers(tiny_model, asked, temperature=2.0, top_k=10**6) == answers(tiny_model, asked, temperature=2.0)
    assert answers(tiny_model, asked, temperature=2.0, top_k=3) != answers(tiny_model, asked, temperature=2.0)


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(tiny_model):
    plain = answers(tiny_model, prompts())
    stop = plain[0].text[3:5]
    for before, after in zip(plain, answers(tiny_model, prompts(), stop=(stop,)), strict=True):
        assert after.text == before.text.split(stop)[0]
        assert after.finish_reason == ("stop" if stop in before.text else "length")
    assert stop in plain[0].text


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft 0.21 on transformers 5.23
def test_a_lora_adapter_answers_as_unmerged_with_added_tokens_too(tiny_model, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["<think>", "</think>"])
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    ids = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    torch.manual_seed(5)
    rows = {"embed_tokens": ids, "lm_head": ids}
    settings = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, trainable_token_indices=rows)
    tuned = get_peft_model(model, settings)
    tuned.save_pretrained(tmp_path, save_embedding_layers=False)
    tokenizer.save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    whole = PeftModel.from_pretrained(base, tmp_path)
    expected = reference(tmp_path, prompts(), whole)
    assert expected != reference(tiny_model, prompts())
    assert pairs(answers(tmp_path, prompts())) == expected


def test_what_a_batch_raises_ends_the_call_and_the_process_is_left_as_it_was(tiny_model):
    model = HfModel(str(tiny_model), Decoding(max_new_tokens=5), LocalOptions(batch_size=1, dtype="float32"))
    asked = prompts()
    threads = torch.get_num_threads()
    seen = []

    def full_disk(index, _):
        seen.append(index)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        model.generate(asked, model.batches(asked), full_disk)
    assert len(seen) == 1
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads


def test_the_identity_is_the_content_not_the_place(tiny_model, tmp_path, make_model):
    def identity(folder, **options):
        return HfModel(str(folder), Decoding(), LocalOptions(dtype="float32", **options)).identity

    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    assert identity(copy) == identity(tiny_model)
    assert identity(make_model(seed=1)) != identity(tiny_model)
    (copy / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert identity(copy) != identity(tiny_model)
    assert identity(tiny_model, batch_size=2) != identity(tiny_model)


def test_a_prompt_that_does_not_fit_is_an_error_and_never_cut(make_model):
    with pytest.raises(InputError, match=r"has \d+ tokens and 20 may be written, but .* reads 64 in all"):
        answers(make_model(context=64), prompts())


def test_folders_that_are_no_models_are_refused(tmp_path, tiny_model):
    def spoilt(name, *files):
        shutil.copytree(tiny_model, tmp_path / name)
        for file in files:
            (tmp_path / name / file).unlink()
        return tmp_path / name

    (tmp_path / "empty").mkdir()
    for folder, message in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "empty", "neither config.json nor adapter_config.json"),
        (spoilt("weightless", "model.safetensors"), "no \\*.safetensors"),
        (spoilt("silent", "chat_template.jinja"), "no chat template"),
        (spoilt("wordless", "tokenizer.json", "tokenizer_config.json"), "no tokenizer"),
    ):
        with pytest.raises(InputError, match=message):
            model = HfModel(str(folder), Decoding(), LocalOptions())
            assert model.identity
            model.batches(prompts(1))
    torn = spoilt("torn")
    whole = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="does not load"):
        answers(torn, prompts(1))


def test_an_adapter_without_a_base_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="base_model_name_or_path"):
        HfModel(str(tmp_path), Decoding(), LocalOptions())
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/nowhere/base"}))
    with pytest.raises(InputError, match="/nowhere/base does not exist"):
        HfModel(str(tmp_path), Decoding(), LocalOptions())


def test_specs_name_kind_and_place():
    specs = [parse_spec(text) for text in ("hf:a/b", "tuned=hf:out/model", "openai:org/m:7b", "knn", "nn=knn")]
    assert [(spec.name, spec.kind, spec.place) for spec in specs] == [
        ("hf:a/b", "hf", "a/b"),
        ("tuned", "hf", "out/model"),
        ("openai:org/m:7b", "openai", "org/m:7b"),
        ("knn", "baseline", "knn"),
        ("nn", "baseline", "knn"),
    ]
    for wrong in ("gpt-4", "hf:", "=knn", "vllm:"):
        with pytest.raises(InputError, match=r"is unknown; known: hf:DIR_OR_ID, openai:NAME, vllm:DIR_OR_ID, majority"):
            parse_spec(wrong)


def test_greedy_answers_share_one_seed():
    assert [effective_seed(Decoding(), seed) for seed in (1, 2)] == [0, 0]
    assert [effective_seed(Decoding(temperature=0.5), seed) for seed in (1, 2)] == [1, 2]


KNOWING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% endif %}"
)


def test_thinking_is_what_the_template_is_told(tiny_model, caplog):
    asked = prompts(2)
    found = {
        thinking: answers(tiny_model, asked, chat=ChatOptions(template=KNOWING, thinking=thinking))
        for thinking in ("auto", "on", "off")
    }
    assert found["auto"] == found["on"] == answers(tiny_model, asked)
    assert found["off"] == answers(tiny_model, [begun(prompt, "<think>\n\n</think>\n\n") for prompt in asked])
    assert not caplog.records


def test_a_template_that_knows_no_thinking_is_said_once(tiny_model, caplog):
    assert answers(tiny_model, prompts(3), chat=ChatOptions(thinking="off")) == answers(tiny_model, prompts(3))
    (record,) = caplog.records
    assert "knows no enable_thinking; --thinking off changes nothing" in record.getMessage()


def test_another_template_is_used_instead_of_the_models_own_and_may_be_refused(tiny_model):
    loud = "{{ messages[-1]['content'] | upper }}:"
    (one,) = answers(tiny_model, prompts(1), chat=ChatOptions(template=loud))
    assert one.input_tokens == len(" 0?:") - 1
    for template, message in (
        ("{{ raise_exception('no system turn') }}", "no system turn; give another one with --chat-template-file"),
        ("{% for %}", "of 2 turns \\(system, user\\)"),
    ):
        with pytest.raises(InputError, match=message):
            answers(tiny_model, prompts(1), chat=ChatOptions(template=template))


def test_every_option_that_changes_an_answer_changes_the_identity(tiny_model):
    def identity(**chat):
        return HfModel(str(tiny_model), Decoding(), LocalOptions(dtype="float32"), ChatOptions(**chat)).identity

    chats = ({}, {"thinking": "on"}, {"thinking": "off"}, {"template": KNOWING}, {"template": KNOWING + " "})
    assert len({identity(**chat) for chat in chats}) == len(chats)
    assert identity(system_prompt="Be kind.") == identity()  # it is in the prompt


def served(**settings):
    config = EvaluationConfig(
        dataset="d", models=("openai:m",), server={"base_url": "http://127.0.0.1:9/v1"}, **settings
    )
    return open_model(parse_spec("openai:m"), config)


def test_a_server_is_told_what_its_template_and_sampling_need():
    def body(**settings):
        return served(**settings).options.extra_body

    assert body() == {}
    assert body(chat={"thinking": "off"}) == {"chat_template_kwargs": {"enable_thinking": False}}
    assert body(chat={"thinking": "on"}, sampling={"top_k": 20}) == {
        "top_k": 20, "chat_template_kwargs": {"enable_thinking": True},
    }  # fmt: skip
    identities = {
        served(**settings).identity for settings in ({}, {"chat": {"thinking": "on"}}, {"sampling": {"top_k": 2}})
    }
    assert len(identities) == 3


def test_what_a_server_cannot_do_is_refused():
    with pytest.raises(InputError, match="log-likelihood needs the probabilities of given texts"):
        served(protocols=("log-likelihood",))
    with pytest.raises(InputError, match="its own chat template"):
        served(chat={"template": "x"})


def test_prompts_and_templates_are_read_from_files_once(tmp_path):
    (tmp_path / "system.txt").write_text("Be kind.\n")
    (tmp_path / "chat.jinja").write_text("{{ messages }}\n")
    chat = ChatOptions(system_prompt_file=tmp_path / "system.txt", template_file=str(tmp_path / "chat.jinja"))
    assert (chat.system_prompt, chat.template) == ("Be kind.", "{{ messages }}\n")
    assert ChatOptions.model_validate(chat.model_dump(mode="json")) == chat
    for wrong, message in (
        ({"system_prompt_file": str(tmp_path / "none.txt")}, r"system_prompt_file .*none.txt' cannot be read"),
        ({"system_prompt_file": "x", "system_prompt": "y"}, "are both given"),
        ({"thinking": "maybe"}, "thinking"),
    ):
        with pytest.raises(InputError, match=message):
            from_options({"dataset": "d", "models": ["knn"], "chat": wrong})
