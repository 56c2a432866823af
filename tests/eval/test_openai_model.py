"""The served model against a local server that misbehaves on purpose."""

import time

import pytest

from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.records import Message
from tagpr_data.tables import sha256_text
from tagpr_eval.config import Decoding, ServerOptions
from tagpr_eval.models import Prompt
from tagpr_eval.openai_chat import OpenAIModel


def ask(server, count=6, sampling=None, into=None, **options):
    options = {"backoff_seconds": 0.01, "timeout_seconds": 5.0, "concurrency": 4, "retries": 4, **options}
    model = OpenAIModel("tiny", sampling or Decoding(max_new_tokens=7), ServerOptions(base_url=server.url, **options))
    prompts = [Prompt((Message(role="user", content=f"question {n}"),), seed=n) for n in range(count)]
    found = {} if into is None else into
    model.generate(prompts, model.batches(prompts), lambda index, completion: found.update({index: completion}))
    return found


def right(number):
    return sha256_text(f'[{{"role": "user", "content": "question {number}"}}]')[:12]


def assert_all_right(found, count=6):
    assert {index: completion.text for index, completion in found.items()} == {n: right(n) for n in range(count)}


def test_requests_carry_the_prompt_the_sampling_and_the_key_of_the_environment(server, monkeypatch):
    monkeypatch.setenv("TOY_KEY", "s3cret")
    sampling = Decoding(max_new_tokens=7, temperature=0.5, top_p=0.9, stop=("###",))
    found = ask(server, 1, sampling, api_key_env="TOY_KEY")
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert {name.lower(): value for name, value in headers.items()}["authorization"] == "Bearer s3cret"
    assert body == {
        "model": "tiny", "messages": [{"role": "user", "content": "question 0"}], "max_tokens": 7,
        "temperature": 0.5, "top_p": 0.9, "seed": 0, "stop": ["###"],
    }  # fmt: skip
    assert (found[0].finish_reason, found[0].output_tokens) == ("stop", 12)


def test_without_a_key_none_is_sent(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    ask(server, 1)
    assert "authorization" not in {name.lower() for name in server.requests[0][1]}


@pytest.mark.parametrize(
    "fault", [429, 500, 502, 503, 408, "drop", "half", "empty", "null", b"<html>busy</html>", b"\xff\xfe"]
)
def test_a_passing_fault_costs_one_more_request_and_no_sample(server, fault):
    server.plan = {0: fault, 3: fault}
    assert_all_right(ask(server))
    assert len(server.requests) == 8
    assert set(server.answered.values()) == {1}  # nothing that was answered is asked again


def test_a_storm_of_refusals_is_sat_out_and_the_wait_that_is_asked_for_is_kept(server):
    server.plan = dict.fromkeys(range(4), (429, {"retry-after": "0.3"}))
    began = time.monotonic()
    assert_all_right(ask(server))
    assert time.monotonic() - began >= 0.3
    assert len(server.requests) == 10


def test_a_wait_given_as_a_date_is_understood(server):
    server.plan = {0: (503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}), 1: (503, {"retry-after": "soon"})}
    assert_all_right(ask(server, 1), 1)


def test_a_server_that_hangs_is_asked_again(server):
    server.plan = {0: "hang"}
    assert_all_right(ask(server, 2, timeout_seconds=0.3), 2)


def test_a_server_that_stays_away_ends_in_an_error_with_everything_kept(server):
    server.plan = dict.fromkeys(range(3, 99), 500)
    found = {}
    with pytest.raises(CheckFailed, match=r"no answer in 3 tries, last: status 500.*are kept"):
        ask(server, 9, into=found, concurrency=1, retries=2)
    assert_all_right(found, 3)
    port = server.port
    server.stop()
    with pytest.raises(CheckFailed, match="no answer in 2 tries, last: ClientConnectorError"):
        ask(server, 1, retries=1)
    server.start(port)  # it comes back: the fixture stops it again


def test_a_server_that_dies_and_returns_loses_nothing(server):
    import threading

    port, found = server.port, {}
    server.stop()
    back = threading.Timer(0.3, lambda: server.start(port))
    back.start()
    try:
        assert_all_right(ask(server, into=found, retries=8, backoff_seconds=0.1))
    finally:
        back.join()


def test_a_refusal_that_will_not_pass_ends_at_once_with_the_servers_words(server):
    server.always = 404
    with pytest.raises(InputError, match=r"refused model 'tiny' with status 404"):
        ask(server, 20, concurrency=2)
    assert len(server.requests) <= 2


def test_an_empty_answer_that_did_arrive_is_an_answer(server):
    server.always = {"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}
    found = ask(server, 1)
    assert (found[0].text, found[0].finish_reason, found[0].input_tokens) == ("", "length", None)


def test_a_think_block_that_the_server_took_out_is_put_back(server):
    message = {"content": "red", "reasoning_content": "I look at [P1]."}
    server.always = {"choices": [{"message": message, "finish_reason": "stop"}]}
    assert ask(server, 1)[0].text == "<think>I look at [P1].</think>red"
    server.always = {"choices": [{"message": {**message, "content": None}, "finish_reason": "length"}]}
    assert ask(server, 1)[0].text == "<think>I look at [P1]."


def test_texts_that_utf8_cannot_hold_are_mended(server):
    server.always = {"choices": [{"message": {"content": "a\ud800b"}, "finish_reason": "stop"}]}
    assert ask(server, 1)[0].text == "a?b"


def test_a_huge_answer_arrives_whole(server):
    server.always = {"choices": [{"message": {"content": "word " * 100_000}, "finish_reason": "stop"}]}
    assert len(ask(server, 1)[0].text) == 500_000


def test_requests_in_flight_are_bounded_and_reached(server):
    server.delay_seconds = 0.3
    assert_all_right(ask(server, 24, concurrency=8), 24)
    assert server.most_in_flight == 8


def test_addresses_that_cannot_be_are_refused():
    for url, message in (
        (None, "needs --base-url"),
        ("localhost:8000/v1", "no http"),
        ("http://user:secret@localhost/v1", "must not carry"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            OpenAIModel("tiny", Decoding(), ServerOptions(base_url=url))
        assert "secret" not in str(caught.value)
