"""Evaluation, teacher and constrained decoding against a real server with a real small model: `make test-server`.

Left out unless `TAGPR_SERVER_URL` names a running one (README, "A real server"); `TAGPR_SERVER_MODEL` is the served
name (small), `TAGPR_SERVER_GRAMMAR` how it takes grammars (vllm, llama-cpp).
"""

import asyncio
import os

import pytest

from tagpr_data.chat_server import ChatServer
from tagpr_data.chat_server import ServerOptions as TeacherServer
from tagpr_data.errors import InputError
from tagpr_data.prompts import PromptOptions, chat_prompt
from tagpr_data.records import Message, Prediction, Sampling
from tagpr_data.tables import read_records
from tagpr_data.tags import load_tagset, parse
from tagpr_data.teachers import Assignment, ServedTeacher
from tagpr_eval.config import EvaluationConfig
from tagpr_eval.run import evaluate

URL = os.environ.get("TAGPR_SERVER_URL")
MODEL = os.environ.get("TAGPR_SERVER_MODEL", "small")
GRAMMAR = os.environ.get("TAGPR_SERVER_GRAMMAR", "vllm")
pytestmark = pytest.mark.skipif(URL is None, reason="no real server: TAGPR_SERVER_URL is not set")


def settings(toy_data, **options):
    server = {"base_url": URL, "concurrency": 4, "constrain": GRAMMAR}
    return EvaluationConfig.model_validate(
        {"dataset": str(toy_data), "models": [f"openai:{MODEL}"], "retrievers": ["recency"], "k": [2], "examples": 4,
         "server": server, **options}
    )  # fmt: skip


def test_a_run_gets_every_answer_and_counts_tokens(toy_data, tmp_path):
    manifest = evaluate(settings(toy_data, sampling={"max_new_tokens": 8}), tmp_path / "run")
    rows = read_records(tmp_path / "run/predictions.parquet", Prediction)
    assert manifest.status == "complete" and len(rows) == 8
    assert all(row.text and row.input_tokens and row.output_tokens for row in rows)


def test_the_server_keeps_answers_to_the_labels(toy_data, tmp_path):
    sampling = {"max_new_tokens": 8, "constrain": "labels", "temperature": 1.5}
    evaluate(settings(toy_data, sampling=sampling, tasks=["colour"]), tmp_path / "run")
    rows = read_records(tmp_path / "run/predictions.parquet", Prediction)
    assert {row.text for row in rows} <= {"red", "blue", "green"}


def test_a_teacher_writes_in_the_grammar(toy):
    task, tagset = toy.task("colour"), load_tagset()
    messages = chat_prompt(task, "a thing", (), PromptOptions(), tagset)

    async def write():
        options = TeacherServer.model_validate({"base_url": URL, "model": MODEL, "constrain": GRAMMAR})
        teacher = ServedTeacher(ChatServer(options), tagset, hindsight=False, model_revision="1")
        sampling = Sampling(max_new_tokens=300, temperature=0.8)
        assignments = [Assignment(task, "a thing", (), messages, "red", sampling, seed) for seed in range(4)]
        replies = await asyncio.gather(*map(teacher.write, assignments))
        await teacher.close()
        return replies

    for reply in asyncio.run(write()):
        assert reply.text.startswith("<think>\n<")
        assert "[P" not in reply.text  # there is no item to cite
        if reply.finish_reason == "stop":
            assert parse(reply.text, tagset, 0).is_valid


def test_the_start_of_an_answer_is_continued():
    async def ask():
        client = ChatServer(TeacherServer.model_validate({"base_url": URL, "model": MODEL}))
        begun = (Message(role="user", content="Count to five."), Message(role="assistant", content="1, 2, 3,"))
        answer = await client.ask(begun, Sampling(max_new_tokens=6), 0)
        await client.close()
        return answer.text

    if GRAMMAR == "vllm":  # the only one that has the field
        assert "4" in asyncio.run(ask())


def test_a_wrong_model_name_is_said_at_once(toy_data, tmp_path):
    if GRAMMAR == "vllm":  # llama.cpp's server answers to any name
        with pytest.raises(InputError, match="status 404"):
            evaluate(settings(toy_data, models=["openai:nobody"]), tmp_path / "run")
