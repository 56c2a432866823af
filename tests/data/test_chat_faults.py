"""The client against servers that break in the middle of an answer, storm, die, or are several."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from tagpr_data.chat_server import ChatServer, ServerOptions, work_through
from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.records import Message, Sampling


def completion(text: str = "yes") -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


def whole(content: bytes, status: str = "200 OK", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + content


GOOD = whole(json.dumps(completion()).encode())
BUSY = whole(b"busy", "429 Too Many Requests")


class RawServer:
    """Writes exactly the bytes that `behave(number of this request from 0, its body)` gives, then hangs up unless
    they are a whole answer."""

    def __init__(self, behave: Callable[[int, dict[str, Any]], bytes], delay_seconds: float = 0.0) -> None:
        self.behave, self.delay_seconds = behave, delay_seconds
        self.bodies: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0
        self.seen_at_once: list[int] = []

    async def __aenter__(self) -> "RawServer":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).lower():
                length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                number = len(self.bodies)
                self.bodies.append(body)
                self.at_once += 1
                self.seen_at_once.append(self.at_once)
                self.most_at_once = max(self.most_at_once, self.at_once)
                await asyncio.sleep(self.delay_seconds)
                self.at_once -= 1
                answer = self.behave(number, body)
                writer.write(answer)
                await writer.drain()
                if answer not in (GOOD, BUSY) and not answer.endswith(b"}"):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()


async def ask(url: Any, count: int = 1, **options: Any) -> tuple[list[str], ChatServer]:
    settings = {"base_url": url, "model": "m", "backoff_seconds": 0.01, "timeout_seconds": 2.0, "retries": 4, **options}
    client = ChatServer(ServerOptions.model_validate(settings))
    found: list[str] = [""] * count

    async def one(number: int) -> None:
        message = Message(role="user", content=f"question {number}")
        found[number] = (await client.ask((message,), Sampling(), number)).text

    await work_through(range(count), one, client.options.at_once, client)
    return found, client


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"choices\"",
        CHUNKED,
        CHUNKED + b"9\r\n{\"choices\r\n",
        CHUNKED + b"9\r\n{\"cho",
        CHUNKED + b"zz\r\n{}",
        b"not HTTP at all\r\n\r\n",
        whole(b"[" * 100_000),
        whole(b"\xff\xfe\x00"),
        whole(b'{"choices": [{"message": {"content": ["a"]}, "finish_reason": "stop"}]}')[:-1] + b" ",
    ],
)  # fmt: skip
def test_an_answer_that_breaks_off_is_asked_for_again(broken: bytes):
    async def scenario() -> None:
        async with RawServer(lambda number, body: broken if number < 2 else GOOD) as server:
            found, _ = await ask(server.url)
            assert found == ["yes"] and len(server.bodies) == 3

    asyncio.run(scenario())


def test_bytes_that_are_no_text_are_mended_and_not_asked_for_again():
    content = json.dumps(completion("a?b")).encode().replace(b"a?b", b"a\xffb")

    async def scenario() -> None:
        async with RawServer(lambda number, body: whole(content)) as server:
            found, _ = await ask(server.url)
            assert found == ["a\ufffdb"] and len(server.bodies) == 1

    asyncio.run(scenario())


def test_a_storm_of_429_halves_what_is_on_its_way_and_answers_let_it_grow_again():
    limit = 4  # the server says 429 to all above

    async def scenario() -> None:
        server = RawServer(lambda number, body: GOOD, delay_seconds=0.02)
        server.behave = lambda number, body: BUSY if server.seen_at_once[number] > limit else GOOD
        async with server:
            found, client = await ask(server.url, 120, concurrency=32, retries=20)
            assert found == ["yes"] * 120
            assert 1 <= client.room < 16
            refused = sum(now > limit for now in server.seen_at_once)
            assert refused < len(server.bodies) / 2  # without adapting nearly all are refused at first
            assert server.most_at_once <= 32

    asyncio.run(scenario())


def test_room_comes_back_after_a_storm():
    async def scenario() -> None:
        async with RawServer(lambda number, body: BUSY if number < 8 else GOOD) as server:
            _, client = await ask(server.url, 200, concurrency=8, retries=9)
            assert client.room == 8

    asyncio.run(scenario())


def test_several_servers_share_the_questions_and_one_that_is_dead_costs_nothing():
    async def scenario() -> None:
        async with RawServer(lambda number, body: GOOD, 0.01) as first, RawServer(lambda n, body: GOOD, 0.01) as second:
            dead = "http://127.0.0.1:9/v1"
            found, _ = await ask([first.url, dead, second.url], 60, concurrency=4, backoff_seconds=0.2)
            assert found == ["yes"] * 60
            asked = Counter(body["messages"][0]["content"] for body in (*first.bodies, *second.bodies))
            assert set(asked.values()) == {1}
            assert min(len(first.bodies), len(second.bodies)) >= 15
            assert max(first.most_at_once, second.most_at_once) <= 4

    asyncio.run(scenario())


def test_when_all_servers_are_away_the_error_names_them():
    with pytest.raises(CheckFailed, match=r"127.0.0.1:9/v1.*127.0.0.1:11/v1.* gave no answer in 4 tries"):
        asyncio.run(ask(["http://127.0.0.1:9/v1", "http://127.0.0.1:11/v1"], retries=1))


def test_a_refusal_lets_what_is_on_its_way_arrive_and_stops_the_rest():
    def behave(number: int, body: dict[str, Any]) -> bytes:
        if body["messages"][0]["content"] == "question 2":
            return whole(b'{"error": "too long"}', "400 Bad Request")
        return GOOD

    async def scenario() -> None:
        async with RawServer(behave, 0.05) as server:
            settings = ServerOptions(base_url=server.url, model="m", concurrency=4)
            client, arrived = ChatServer(settings), []

            async def one(number: int) -> None:
                message = Message(role="user", content=f"question {number}")
                await client.ask((message,), Sampling(), 0)
                arrived.append(number)

            with pytest.raises(InputError, match="status 400"):
                await work_through(range(40), one, 4, client)
            assert len(arrived) == len(server.bodies) - 1 and len(arrived) < 12

    asyncio.run(scenario())


def test_further_fields_and_the_start_of_an_answer_are_sent_and_own_fields_are_refused():
    async def scenario() -> None:
        async with RawServer(lambda number, body: GOOD) as server:
            options = ServerOptions(base_url=server.url, model="m", extra_body={"top_k": 5})
            client = ChatServer(options)
            begun = (Message(role="user", content="q"), Message(role="assistant", content="<think>"))
            await client.ask(begun, Sampling(), 0, {"grammar": "root ::= [a]"})
            await client.ask(begun[:1], Sampling(), 0)
            await client.close()
        first, second = server.bodies
        assert (first["top_k"], first["grammar"]) == (5, "root ::= [a]")
        assert first["continue_final_message"] is True and first["add_generation_prompt"] is False
        assert second["top_k"] == 5 and not {"grammar", "continue_final_message"} & set(second)

    asyncio.run(scenario())
    with pytest.raises(InputError, match="extra_body must not set seed"):
        ChatServer(ServerOptions(base_url="http://h/v1", model="m", extra_body={"seed": 1}))
    with pytest.raises(InputError, match="each once"):
        ChatServer(ServerOptions(base_url=("http://h/v1", "http://h/v1"), model="m"))


def test_the_next_question_goes_out_before_an_answer_is_worked_on():
    servers: list[RawServer] = []
    ready, over = threading.Event(), threading.Event()

    async def serve() -> None:  # in a thread of its own: it goes on while the client's event loop stands still
        async with RawServer(lambda number, body: GOOD) as server:
            servers.append(server)
            ready.set()
            while not over.is_set():
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(30)
        bodies = servers[0].bodies
        client = ChatServer(ServerOptions(base_url=servers[0].url, model="m", concurrency=1))
        seen: list[int] = []

        async def one(number: int) -> None:
            await client.ask((Message(role="user", content="?"),), Sampling(), number)
            deadline = time.monotonic() + 20
            while len(bodies) < min(number + 2, 3) and time.monotonic() < deadline:
                time.sleep(0.005)  # work that lets nothing else run
            seen.append(len(bodies))

        asyncio.run(work_through(range(3), one, 2, client))
    finally:
        over.set()
        thread.join()
    assert seen == [2, 3, 3] and servers[0].most_at_once == 1


@pytest.mark.parametrize("steps", range(12))
def test_a_question_given_up_while_it_waits_leaves_its_room_to_the_next(steps: int):
    async def scenario() -> None:
        async with RawServer(lambda number, body: GOOD, 0.01) as server:
            client = ChatServer(ServerOptions(base_url=server.url, model="m", concurrency=1))
            question = (Message(role="user", content="?"),)
            tasks = [asyncio.create_task(client.ask(question, Sampling(), number)) for number in range(3)]
            while not server.bodies or server.at_once:
                await asyncio.sleep(0)
            for _ in range(steps):  # the answer to the first arrives within these steps of the event loop
                await asyncio.sleep(0)
            tasks[1].cancel()
            assert (await asyncio.wait_for(tasks[2], 20)).text == "yes"
            with suppress(asyncio.CancelledError):
                await tasks[1]
            await client.close()

    asyncio.run(scenario())
