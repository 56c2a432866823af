"""Asking a served model: evaluation and corpus generation beside a bare asyncio client, on the same prompts.

    .venv/bin/python tests/bench/bench_served.py [--rounds 5] [--requests 1500] [--json]

The server is a stub in a process of its own that answers after 50 ms; 64 requests are on their way. The bare client
is the fastest honest one we could write: raw sockets, 64 connections kept open, one JSON text out and one read for
each request, nothing kept. Ours check each answer, survive faults and write each one to disk before the next. Claim:
both reach at least 90 % of the bare client's requests/s (median of the rounds, which are interleaved). aiohttp and
httpx without anything around them stand beside, to show what a client library costs. The processor time of a request
(least of the rounds, this process alone, without the stub's) says on a shared machine what requests/s cannot: below
latency / concurrency = 0.78 ms a free core keeps up. Exit code 1 when a claim fails.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from statistics import median

from tagpr_data.chat_server import ChatServer, ServerOptions
from tagpr_data.dataset import Dataset, write_dataset
from tagpr_data.generate import Prompt as TeacherPrompt
from tagpr_data.generate import Retrieval, TeacherPlan, generate
from tagpr_data.generate import make_prompts as make_teacher_prompts
from tagpr_data.prompts import PromptOptions
from tagpr_data.records import Example, ProfileItem, Sampling, Task
from tagpr_data.tables import frame_from_records, write_table
from tagpr_data.tags import load_tagset
from tagpr_data.teachers import ServedTeacher
from tagpr_eval import config
from tagpr_eval.models import Prompt
from tagpr_eval.openai_chat import OpenAIModel
from tagpr_eval.store import SampleStore

LATENCY_SECONDS = 0.05
CONCURRENCY = 64
CLAIM = 0.9
TRACE = (
    "<think>\n" + "<infer_preference>This user keeps to short titles.</infer_preference>\n" * 6 + "</think>\na title"
)
TASK = Task(name="title", kind="generation", question="Which title?", answer_form="a title", item_template="{text}")
SAMPLING = Sampling(max_new_tokens=256)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        port = int(server.stdout.readline())
        results = compare(port, options.rounds, options.requests)
    finally:
        server.terminate()
        server.wait()
    if options.json:
        print(json.dumps(results))
    else:
        print(f"{options.requests} requests, {CONCURRENCY} at once, {LATENCY_SECONDS * 1000:g} ms latency: at most "
              f"{CONCURRENCY / LATENCY_SECONDS:,.0f} requests/s")  # fmt: skip
        bare = [rate for rate, _ in results["bare"]]
        for name, rounds in results.items():
            rates = [rate for rate, _ in rounds]
            ratios = [rate / bare for rate, bare in zip(rates, bare, strict=True)]
            print(f"{name:<11} {median(rates):7,.0f} requests/s   {median(ratios):6.1%} of bare "
                  f"({min(ratios):.1%} to {max(ratios):.1%})   {min(cpu for _, cpu in rounds) * 1e3:.2f} ms of the "
                  "processor a request")  # fmt: skip
    slow = [name for name in ("evaluation", "generation") if ratio(results, name) < CLAIM]
    if slow:
        sys.exit(f"below {CLAIM:.0%} of the bare client: {', '.join(slow)}")


def ratio(results: dict[str, list[tuple[float, float]]], name: str) -> float:
    return median(ours / bare for (ours, _), (bare, _) in zip(results[name], results["bare"], strict=True))


def compare(port: int, rounds: int, requests: int) -> dict[str, list[tuple[float, float]]]:
    """Give (requests/s, processor seconds a request) of each round."""
    with tempfile.TemporaryDirectory() as folder:
        dataset, prompts = make_prompts(Path(folder) / "data", requests)
        bodies = [body(prompt.messages, 0) for prompt in prompts]
        url = f"http://127.0.0.1:{port}/v1"
        sides = {
            "bare": lambda _: asyncio.run(ask_bare(port, bodies)),
            "evaluation": lambda place: evaluate(url, prompts, place),
            "generation": lambda place: write_corpus(url, prompts, dataset, Path(folder) / "data", place),
            "aiohttp": lambda _: asyncio.run(ask_aiohttp(url, bodies)),
            "httpx": lambda _: asyncio.run(ask_httpx(url, bodies[: requests // 10])),
        }
        results = {name: [] for name in sides}
        for number in range(rounds + 1):
            for name, side in sides.items():
                place = Path(folder) / f"{name}-{number}"
                begin, cpu = time.perf_counter(), time.process_time()
                side(place)
                seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
                if number:  # the first round warms up
                    done = requests // 10 if name == "httpx" else requests
                    results[name].append((done / seconds, cpu / done))
    return results


def make_prompts(folder: Path, count: int) -> tuple[Dataset, list[TeacherPrompt]]:
    """Prompts of about 2,000 characters, four items each."""
    items = [
        ProfileItem(profile_id="p", position=n, item_id=f"i{n}", date=f"2020-01-0{n + 1}",
                    text=f"the quick brown fox {n} " * 15)
        for n in range(8)
    ]  # fmt: skip
    examples = [
        Example(id=f"e{n}", task="title", user_id="u", profile_id="p", profile_size=8, output="x",
                input=f"a text {n} " + "about foxes " * 30)
        for n in range(count)
    ]  # fmt: skip
    write_dataset(folder, name="toy", source="made up", licence="CC0-1.0", tasks=[TASK], items=items, parameters={},
                  examples={"train": examples}, skipped={})  # fmt: skip
    dataset = Dataset.load(folder)
    asked = [("train", example) for example in examples]
    retrieval = Retrieval("recency", 4, 0.0, 0)
    rows = list(make_teacher_prompts(dataset, asked, retrieval, PromptOptions(), load_tagset(), Counter()))
    write_table(folder / "prompts.parquet", frame_from_records(rows, TeacherPrompt), TeacherPrompt, ["prompt_hash"])
    return dataset, sorted(rows, key=lambda row: row.prompt_hash)


def body(messages, seed: int) -> bytes:
    turns = [message.model_dump(mode="json") for message in messages]
    return json.dumps({"model": "m", "messages": turns, "max_tokens": 256, "seed": seed}).encode()


def evaluate(url: str, prompts: list[TeacherPrompt], place: Path) -> None:
    place.mkdir()
    store = SampleStore(place)
    model = OpenAIModel(
        "m", config.Decoding(**SAMPLING.model_dump()), config.ServerOptions(base_url=url, concurrency=CONCURRENCY)
    )
    asked = [Prompt(prompt.messages, 0) for prompt in prompts]
    model.generate(asked, model.batches(asked), lambda n, completion: store.add(prompts[n].prompt_hash, completion))
    assert len(store) == len(prompts)
    store.close()


def write_corpus(url: str, prompts: list[TeacherPrompt], dataset: Dataset, data: Path, place: Path) -> None:
    server = ChatServer(ServerOptions(base_url=url, model="m", concurrency=CONCURRENCY))
    teacher = ServedTeacher(server, load_tagset(), hindsight=False, model_revision="1")
    plan = TeacherPlan(teacher, (SAMPLING,), CONCURRENCY, ahead=CONCURRENCY)
    rows = data / "prompts.parquet"
    done = generate(place, rows, [plan], dataset, PromptOptions(), 0, lambda candidate, prompt, items: None)
    assert done.tally.answers == len(prompts) and done.status == "complete"


async def ask_bare(port: int, bodies: list[bytes]) -> None:
    jobs = iter(bodies)
    texts = []

    async def worker():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for content in jobs:
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: stub\r\nContent-Type: application/json\r\n"
                         b"Content-Length: %d\r\n\r\n" % len(content) + content)  # fmt: skip
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            answer = json.loads(await reader.readexactly(length))
            texts.append(answer["choices"][0]["message"]["content"])
        writer.close()

    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    assert texts == [TRACE] * len(bodies)


async def ask_aiohttp(url: str, bodies: list[bytes]) -> None:
    import aiohttp

    jobs = iter(bodies)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def worker():
            for content in jobs:
                async with session.post(url + "/chat/completions", data=content) as response:
                    assert json.loads(await response.read())["choices"][0]["message"]["content"] == TRACE

        await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))


async def ask_httpx(url: str, bodies: list[bytes]) -> None:
    import httpx

    jobs = iter(bodies)
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=CONCURRENCY)) as client:

        async def worker():
            for content in islice(jobs, len(bodies)):
                response = await client.post(url + "/chat/completions", content=content)
                assert response.json()["choices"][0]["message"]["content"] == TRACE

        await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))


class Stub(asyncio.Protocol):
    """Answers every request on a connection after the latency, without looking into it."""

    answer = json.dumps(
        {
            "choices": [{"index": 0, "message": {"role": "assistant", "content": TRACE}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 500, "completion_tokens": 100},
        }
    ).encode()
    whole = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer

    def connection_made(self, transport):
        self.transport = transport
        self.have = b""

    def data_received(self, data):
        self.have += data
        head, found, rest = self.have.partition(b"\r\n\r\n")
        if found and len(rest) >= int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]):
            self.have = b""
            asyncio.get_running_loop().call_later(LATENCY_SECONDS, self.transport.write, self.whole)


async def serve() -> None:
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()  # goes with its parent
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    main()
