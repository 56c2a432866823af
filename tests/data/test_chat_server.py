import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tagpr_data.build import CorpusConfig, ServedTeacherConfig, build
from tagpr_data.chat_server import Answer, ChatServer, ServerOptions
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.records import CorpusManifest, Message, Sampling
from tagpr_data.tables import read_json

TRACE = (
    "<think>\n<analyze_query>A song.</analyze_query>\n<infer_preference>Likes it.</infer_preference>\n</think>\nrock"
)
QUESTION = (Message(role="user", content="which genre?"),)

# What a stub does with one request: (status, headers, body), "hang" or "close".
Behaviour = tuple[int, dict[str, str], str] | str


def completion(text: str | None = TRACE, reason: str | None = "stop") -> Behaviour:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return 200, {}, json.dumps({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 5}})


class StubServer:
    """A local chat server that behaves as `behave(number of this request, request body)` says, and keeps count."""

    def __init__(self, behave: Callable[[int, dict[str, Any]], Behaviour]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answered: list[str] = []  # prompts answered with 200 and a good body, in order
        self.at_once = self.most_at_once = 0
        lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    stub.requests.append(body)
                    stub.headers.append(dict(self.headers))
                    number = len(stub.requests)
                    stub.at_once += 1
                    stub.most_at_once = max(stub.most_at_once, stub.at_once)
                try:
                    self._answer(behave(number, body), body)
                finally:
                    with lock:
                        stub.at_once -= 1

            def _answer(self, behaviour: Behaviour, body: dict[str, Any]) -> None:
                if behaviour == "hang":
                    time.sleep(0.6)
                if isinstance(behaviour, str):
                    self.close_connection = True
                    return
                status, headers, text = behaviour
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(text.encode())))
                    self.end_headers()
                    self.wfile.write(text.encode())
                except (BrokenPipeError, ConnectionResetError):
                    return
                if status == 200 and '"stop"' in text:
                    with lock:
                        stub.answered.append(body["messages"][-1]["content"])

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def stub() -> Iterator[Callable[[Callable[[int, dict[str, Any]], Behaviour]], StubServer]]:
    servers: list[StubServer] = []

    def start(behave: Callable[[int, dict[str, Any]], Behaviour]) -> StubServer:
        servers.append(StubServer(behave))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def ask(server: StubServer, **options: Any) -> Answer:
    async def once() -> Answer:
        settings = {"base_url": server.url, "model": "m", "backoff_seconds": 0.01, "timeout_seconds": 0.3, **options}
        client = ChatServer(ServerOptions.model_validate(settings))
        try:
            return await client.ask(QUESTION, Sampling(temperature=0.5, stop=("END",)), 11)
        finally:
            await client.close()

    return asyncio.run(once())


def test_an_answer_comes_with_its_counts_and_the_request_carries_the_sampling(stub):
    server = stub(lambda number, body: completion())
    assert ask(server) == Answer(TRACE, "stop", 7, 5)
    assert server.requests == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "which genre?"}],
            "max_tokens": 512,
            "temperature": 0.5,
            "top_p": 1.0,
            "seed": 11,
            "stop": ["END"],
        }
    ]


@pytest.mark.parametrize(
    "fault",
    [
        (500, {}, "oops"),
        (503, {"Retry-After": "0"}, ""),
        (429, {}, "slow down"),
        (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, ""),
        (200, {}, '{"choices": [{"message": {"content": "<thi'),
        (200, {}, '{"choices": []}'),
        (200, {}, "[]"),
        (200, {}, "<html>busy</html>"),
        completion(None),
        completion(TRACE, None),
        "hang",
        "close",
    ],
)
def test_a_fault_that_may_pass_is_tried_again(stub, fault):
    server = stub(lambda number, body: fault if number <= 2 else completion())
    assert ask(server).text == TRACE
    assert len(server.requests) == 3


def test_what_the_servers_filter_withheld_is_an_answer_that_ended_in_an_error(stub):
    server = stub(lambda number, body: completion(None, "content_filter"))
    assert ask(server) == Answer("", "error", 7, 5)


def test_retry_after_holds_back_every_question(stub):
    arrivals: list[float] = []

    def behave(number: int, body: dict[str, Any]) -> Behaviour:
        arrivals.append(time.monotonic())
        return (429, {"Retry-After": "0.5"}, "") if number == 1 else completion()

    server = stub(behave)

    async def two() -> None:
        client = ChatServer(ServerOptions(base_url=server.url, model="m"))
        first = asyncio.create_task(client.ask(QUESTION, Sampling(), 1))
        await asyncio.sleep(0.25)  # the server has asked to wait by now
        await asyncio.gather(first, client.ask(QUESTION, Sampling(), 2))
        await client.close()

    asyncio.run(two())
    assert len(arrivals) == 3
    assert min(arrivals[1:]) - arrivals[0] >= 0.45


def test_a_server_that_stays_broken_is_an_error_that_says_so(stub):
    server = stub(lambda number, body: (502, {}, ""))
    with pytest.raises(CheckFailed, match=r"no answer in 3 tries, last: status 502.*same command goes on"):
        ask(server, retries=2)


def test_a_refusal_ends_at_once_and_never_shows_the_key(stub, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "sk-very-secret")
    server = stub(lambda number, body: (401, {}, "key sk-very-secret is not valid"))
    with pytest.raises(InputError, match="status 401") as caught:
        ask(server, key_env="TEACHER_KEY")
    assert len(server.requests) == 1
    assert server.headers[0]["Authorization"] == "Bearer sk-very-secret"
    assert "sk-very" not in str(caught.value) and "TEACHER_KEY" in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://user:pass@host/v1", "http://host/v1?key=1"])
def test_an_address_that_cannot_be_right_or_carries_a_secret_is_refused(url):
    with pytest.raises(InputError, match="base_url"):
        ChatServer(ServerOptions(base_url=url, model="m"))


def served(config: CorpusConfig, server: StubServer, out: Path, **options: Any) -> CorpusConfig:
    teacher = ServedTeacherConfig(
        type="openai", base_url=server.url, model="stub", backoff_seconds=0.01, timeout_seconds=30,
        **{"concurrency": 3, "retries": 20, **options},
    )  # fmt: skip
    return config.model_copy(update={"teacher": (teacher,), "output": out})


def misbehave(number: int, body: dict[str, Any]) -> Behaviour:
    """A storm of 429 at first, then every few requests another fault; answers depend on the prompt alone."""
    faults: dict[int, Behaviour] = {
        1: (500, {}, ""), 3: (429, {"Retry-After": "0.01"}, ""), 5: (200, {}, '{"choices": []}'), 7: (200, {}, '{"cho'),
    }  # fmt: skip
    if number <= 6:
        return 429, {"Retry-After": "0.05"}, ""
    if number % 10 in faults:
        return faults[number % 10]
    asked = body["messages"][-1]["content"]
    text = (
        TRACE if "rock" in asked else "I cannot help with that." if "jazz" in asked else TRACE.replace("rock", "folk")
    )
    return completion(text)


def corpus_bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*.parquet")
        if path.parts[-2] != ".work"
    }


def test_a_corpus_from_a_misbehaving_server_is_that_of_a_good_one(stub, song_config, tmp_path):
    bad, good = stub(misbehave), stub(lambda number, body: misbehave(20, body))
    build(served(song_config, bad, tmp_path / "bad"))
    build(served(song_config, good, tmp_path / "good"))
    assert corpus_bytes(tmp_path / "bad") == corpus_bytes(tmp_path / "good")
    assert len(bad.requests) > len(good.requests) == 24
    assert set(Counter(bad.answered).values()) == {1}
    assert bad.most_at_once <= 3
    manifest = read_json(tmp_path / "bad/manifest.json", CorpusManifest)
    assert manifest.kept > 0 and manifest.rejected["grammar"] > 0
    assert "127.0.0.1" not in (tmp_path / "bad/manifest.json").read_text()
    # the model was told the grammar; the corpus keeps the short training prompt
    assert "Write exactly one think block" in bad.requests[0]["messages"][0]["content"]


def test_a_teacher_with_hindsight_is_told_the_gold_and_the_corpus_prompt_is_not(stub, song_config, tmp_path):
    server = stub(lambda number, body: completion())
    build(served(song_config, server, tmp_path / "corpus", hindsight=True))
    assert all("This user's own answer was: " in body["messages"][-1]["content"] for body in server.requests)
    assert b"own answer was" not in (tmp_path / "corpus/.work/candidates.jsonl").read_bytes()


def test_when_one_question_fails_for_good_answers_on_their_way_are_kept(stub, song_config, tmp_path):
    def behave(number: int, body: dict[str, Any]) -> Behaviour:
        if number == 3:
            return 403, {}, "not yours"
        time.sleep(0.1 if number > 3 else 0.0)
        return completion()

    server = stub(behave)
    with pytest.raises(InputError, match="status 403"):
        build(served(song_config, server, tmp_path / "corpus"))
    lines = (tmp_path / "corpus/.work/candidates.jsonl").read_text().splitlines()
    assert len(lines) == len(server.answered) == len(server.requests) - 1
    assert not (tmp_path / "corpus/manifest.json").exists()


RUN = """
import sys
from pathlib import Path
from tagpr_data.build import CorpusConfig, build
build(CorpusConfig.model_validate_json(Path(sys.argv[1]).read_text()))
"""


@pytest.mark.slow
def test_kill_9_three_times_gives_the_same_rows_and_pays_each_accepted_answer_once(stub, song_config, tmp_path):
    slow = stub(lambda number, body: (time.sleep(0.02), misbehave(number, body))[1])
    whole = stub(lambda number, body: misbehave(20, body))
    build(served(song_config, whole, tmp_path / "whole"))

    config = served(song_config, slow, tmp_path / "killed")
    (tmp_path / "config.json").write_text(config.model_dump_json())
    journal = tmp_path / "killed/.work/candidates.jsonl"
    for point in (1, 6, 13):
        process = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path / "config.json")], env=dict(os.environ))
        deadline = time.monotonic() + 60
        while not journal.exists() or journal.read_bytes().count(b"\n") < point:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        accepted = [
            json.loads(line)["id"] for line in journal.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")
        ]
        assert len(set(accepted)) == len(accepted)
    before = len(slow.requests)
    missing = 24 - journal.read_bytes().count(b"\n")
    answered_before = len(slow.answered)
    build(config)
    assert len(slow.answered) - answered_before == missing
    assert before < len(slow.requests)
    assert corpus_bytes(tmp_path / "killed") == corpus_bytes(tmp_path / "whole")
