"""vllm_chat.py on a stand-in of vLLM 0.32; the last test compares the signatures where vLLM is installed."""

import asyncio
import inspect
import json
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from typer.testing import CliRunner

from tagpr_data.build import CorpusConfig, build
from tagpr_data.chat_server import Answer, PromptRefused
from tagpr_data.cli import app
from tagpr_data.constrain import Constraint, request_fields
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.records import CorpusManifest, Message, Rejected, Sampling, Trace
from tagpr_data.tables import read_json, read_records
from tagpr_data.tags import load_tagset
from tagpr_data.vllm_chat import Question, VllmChat, VllmOptions, VllmServer

TRACE = (
    "<think>\n<analyze_query>A song.</analyze_query>\n<infer_preference>Likes it.</infer_preference>\n</think>\nrock"
)


@dataclass
class StandInStructuredOutputs:
    grammar: str | None = None


@dataclass
class StandInSamplingParams:
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    structured_outputs: StandInStructuredOutputs | None = None
    skip_special_tokens: bool = True


class StandInClientError(Exception):
    """What vLLM raises for a request that it does not take."""


class StandInLLM:
    """Answers with a trace; refuses prompts that say `too long` as a whole batch, and breaks on `boom`."""

    def __init__(self, model, *, dtype="auto", seed=0, disable_log_stats=False, max_model_len=None):
        self.calls = CALLS
        CALLS.append(("load", (model, dtype, max_model_len)))

    def chat(
        self, messages, sampling_params=None, use_tqdm=True, lora_request=None, priority=None, chat_template=None,
        chat_template_content_format="auto", add_generation_prompt=True, continue_final_message=False, tools=None,
        chat_template_kwargs=None, tokenization_kwargs=None, mm_processor_kwargs=None,
    ):  # fmt: skip
        assert add_generation_prompt is not continue_final_message
        assert len(messages) == len(sampling_params)
        said = [chat[-1]["content"] for chat in messages]
        CALLS.append(("chat", (said, sampling_params, continue_final_message, chat_template, chat_template_kwargs)))
        if any("boom" in text for text in said):
            raise RuntimeError("the engine is dead\nat line 3")
        if any("too long" in text for text in said):
            raise StandInClientError("The decoder prompt is longer than the maximum model length")
        ended = [SimpleNamespace(text=f"{TRACE}", finish_reason="stop", token_ids=[1, 2, 3]) for _ in said]
        return [SimpleNamespace(outputs=[one], prompt_token_ids=[7] * 5) for one in ended]


CALLS: list[tuple[str, tuple]] = []


@pytest.fixture
def calls(monkeypatch):
    CALLS.clear()
    top, sampling, exceptions = ModuleType("vllm"), ModuleType("vllm.sampling_params"), ModuleType("vllm.exceptions")
    top.LLM, top.SamplingParams = StandInLLM, StandInSamplingParams
    sampling.StructuredOutputsParams = StandInStructuredOutputs
    exceptions.VLLMClientError = StandInClientError
    for module in (top, sampling, exceptions):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return CALLS


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def question(text="which genre?", begun=None, **settings):
    messages = [Message(role="user", content=text)]
    if begun is not None:
        messages.append(Message(role="assistant", content=begun))
    return Question(messages, Sampling(temperature=0.5, top_p=0.9, max_new_tokens=7, stop=("END",)), 11, **settings)


def test_sampling_seed_grammar_template_and_counts_arrive(calls, model):
    chat = VllmChat(str(model), "bfloat16", "{{ template }}", "off", {"max_model_len": 99})
    assert calls == []  # nothing is loaded before the first question
    answers = chat.answer([question(top_k=5, grammar="root ::= x"), question(grammar=None)])
    assert answers == [Answer(TRACE, "stop", 5, 3)] * 2
    assert calls[0] == ("load", (str(model), "bfloat16", 99))
    said, parameters, is_begun, template, thinking = calls[1][1]
    assert (said, is_begun, template) == (["which genre?"] * 2, False, "{{ template }}")
    assert thinking == {"enable_thinking": False}
    assert parameters[0] == StandInSamplingParams(
        max_tokens=7, temperature=0.5, top_p=0.9, top_k=5, seed=11, stop=["END"],
        structured_outputs=StandInStructuredOutputs("root ::= x"),
    )  # fmt: skip
    assert parameters[1].structured_outputs is None and parameters[1].top_k == 0


def test_answers_begun_and_not_begun_go_in_two_calls_and_come_back_in_order(calls, model):
    texts = [("a", None), ("b", "It"), ("c", None)]
    answers = VllmChat(str(model)).answer([question(text, begun) for text, begun in texts])
    assert len(answers) == 3
    assert [call[1][0] for call in calls[1:]] == [["a", "c"], ["It"]]
    assert [call[1][2] for call in calls[1:]] == [False, True]


def test_a_refused_prompt_costs_the_others_of_its_batch_nothing(calls, model):
    texts = ["a", "b", "much too long", "c", "d"]
    answers = VllmChat(str(model)).answer([question(text) for text in texts])
    assert [type(answer) for answer in answers] == [Answer, Answer, PromptRefused, Answer, Answer]
    assert "longer than the maximum model length" in str(answers[2])


def test_single_questions_go_to_vllm_together(calls, model):
    async def ask_all() -> list[Answer | BaseException]:
        server = VllmServer(VllmOptions(model=str(model), constrain="vllm"))
        grammar = request_fields("vllm", Constraint(load_tagset(), 0))
        texts = ["much too long", *(f"q{n}" for n in range(6))]
        answers = await asyncio.gather(
            *(server.ask(question(text).messages, Sampling(), n, grammar) for n, text in enumerate(texts)),
            return_exceptions=True,
        )
        await server.close()
        return answers

    answers = asyncio.run(ask_all())
    assert isinstance(answers[0], PromptRefused) and all(isinstance(answer, Answer) for answer in answers[1:])
    said, parameters, *_ = calls[1][1]
    assert len(said) == 7
    assert [one.seed for one in parameters] == list(range(7))
    assert all("root ::=" in one.structured_outputs.grammar for one in parameters)


def test_an_engine_that_dies_and_a_stop_are_no_traceback(calls, model):
    async def ask(text: str, is_stopped: bool = False) -> None:
        server = VllmServer(VllmOptions(model=str(model)))
        if is_stopped:
            server.stop()
        try:
            await server.ask(question(text).messages, Sampling(), 0)
        finally:
            await server.close()

    with pytest.raises(CheckFailed, match=r"vLLM broke off: RuntimeError: the engine is dead\. All answers so far"):
        asyncio.run(ask("boom"))
    with pytest.raises(CheckFailed, match="stopped before there was an answer"):
        asyncio.run(ask("q", is_stopped=True))


def test_a_corpus_is_built_by_an_offline_teacher_whose_rows_name_no_path(calls, model, song_folder, tmp_path):
    teacher = {"type": "vllm", "model": str(model), "constrain": "vllm", "engine": {"max_model_len": 64}}
    config = CorpusConfig.model_validate(
        {"name": "songs", "dataset": song_folder, "output": tmp_path / "corpus",
         "teacher": teacher, "tasks": ["genre"]}
    )  # fmt: skip
    manifest = build(config)
    rows = [row for path in (tmp_path / "corpus/traces").glob("*.parquet") for row in read_records(path, Trace)]
    rows += [row for path in (tmp_path / "corpus/rejected").glob("*.parquet") for row in read_records(path, Rejected)]
    assert len(rows) == manifest.candidates > 0
    assert {row.teacher for row in rows} == {"small"}
    (revision,) = {row.teacher_revision for row in rows}
    assert str(tmp_path) not in json.dumps(manifest.model_dump(mode="json"))
    read_json(tmp_path / "corpus/manifest.json", CorpusManifest)
    assert max(len(call[1][0]) for call in calls if call[0] == "chat") > 1  # batched
    (model / "model.safetensors").write_bytes(b"other weights")
    changed = build(config.model_copy(update={"output": tmp_path / "again"}))
    others = [row for path in (tmp_path / "again/rejected").glob("*.parquet") for row in read_records(path, Rejected)]
    others += [row for path in (tmp_path / "again/traces").glob("*.parquet") for row in read_records(path, Trace)]
    assert changed.candidates == len(others) and revision not in {row.teacher_revision for row in others}


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_command_names_the_extra(model, song_folder, tmp_path):
    path = tmp_path / "songs.toml"
    path.write_text(
        f'name = "songs"\ndataset = "{song_folder}"\noutput = "{tmp_path / "corpus"}"\n'
        f'[teacher]\ntype = "vllm"\nmodel = "{model}"\n'
    )
    result = CliRunner().invoke(app, ["generate", str(path)])
    assert isinstance(result.exception, InputError)
    assert "pip install 'tagpr-data[vllm]'" in str(result.exception)


def test_an_adapter_and_a_folder_that_is_no_model_are_refused(model, tmp_path):
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="LoRA adapter"):
        VllmChat(str(model))
    with pytest.raises(InputError, match="no model folder"):
        VllmChat(str(tmp_path))


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_the_stand_in_has_the_signatures_of_vllm():
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    assert set(inspect.signature(StandInLLM.chat).parameters) <= set(inspect.signature(LLM.chat).parameters)
    for stand_in, real in (
        (StandInSamplingParams, SamplingParams),
        (StandInStructuredOutputs, StructuredOutputsParams),
    ):
        assert set(inspect.signature(stand_in).parameters) <= set(inspect.signature(real).parameters)
