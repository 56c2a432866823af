"""A served PRMU: the same scores as in process, its limits and refusals, batching, draining, and RL's side of it.

The real server runs in a process of its own; what needs a slow or failing model runs the application in this one.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.prmu_client import RemotePRMU
from tagpr_data.records import Message, ProfileItem
from tagpr_train import rl_judge
from tagpr_train.config import Rl
from tagpr_train.prmu import PRMU
from tagpr_train.prmu_server import Full, Limits, ScoreGroup, Scorer

ITEMS = [
    ProfileItem(profile_id="p", position=n, item_id=str(n), text=f"{word} lamp", label=word)
    for n, word in enumerate(("warm", "cold", "warm"))
]
QUESTION = (Message(role="user", content="which lamp?"),)


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random PRMU with one user, ann, in a folder."""
    folder = tmp_path_factory.mktemp("served") / "prmu"
    torch.manual_seed(0)
    backbone, tokenizer = AutoModel.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    model = PRMU.from_backbone(backbone, tokenizer, {"ann": ITEMS}, max_tokens=400)
    model.config.score_mean, model.config.score_std = 0.5, 2.0
    model.save_pretrained(folder)
    (folder / "prmu_eval.json").write_text('{"splits": {}}')
    return folder


@pytest.fixture(scope="module")
def prmu(folder: Path) -> PRMU:
    return PRMU.from_pretrained(folder)


class Served:
    """A server in a process of its own."""

    def __init__(self, folder: Path, *options: object, port: int = 0) -> None:
        code = "from tagpr_train.cli import main; main()"
        command = [sys.executable, "-c", code, "serve-prmu", str(folder), "--port", str(port), *map(str, options)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        lines: list[str] = []
        for line in self.process.stderr:
            lines.append(line)
            if found := re.search(r"on (http://127\.0\.0\.1:(\d+))", line):
                self.url, self.port = found[1], int(found[2])
                return
        raise AssertionError("".join(lines))

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=120)
        return self.process.returncode


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """A server with small limits."""
    served = Served(folder, "--max-completions", 40, "--max-waiting", 40, "--max-bytes", 20_000)
    yield served.url
    assert served.stop() == 0, "SIGTERM ends it well"


def test_scores_over_http_are_those_in_process(url: str, prmu: PRMU) -> None:
    remote = RemotePRMU(url)
    who = [("ann", None), ("bob", ITEMS), ("ann", ITEMS[:1]), (ITEMS, None), ((), None)]
    users = [user for user in who for _ in range(3)]
    texts = [f"{word} {number}" for number in range(5) for word in ("warm", "cold", "ünïcode \U0001f4a1 <think>")]
    prompts: list[Any] = [QUESTION if number % 2 else "which?" for number in range(5) for _ in range(3)]
    ours, theirs = ([model.embed_user(*user) for user in users] for model in (prmu, remote))
    expected = prmu.score_batch(ours, prompts, texts)
    found = remote.score_batch(theirs, prompts, texts)
    assert found == pytest.approx(expected, abs=1e-6) and len(set(found)) > 10
    assert remote.standardised(found) == pytest.approx(prmu.standardised(expected), abs=1e-6)
    body = {"requests": [{"prompt": "which?", "user": "ann", "completions": ["warm", "cold"]}]}
    answer = httpx.post(f"{url}/score", json=body).json()
    assert answer["standardised"][0] == pytest.approx(prmu.standardised(answer["scores"][0]), abs=1e-6)


def test_more_than_a_request_may_hold_is_sent_in_parts(url: str, prmu: PRMU) -> None:
    remote = RemotePRMU(url)
    texts = [f"lamp {number} {'long ' * (number % 90)}" for number in range(101)]  # 40 a request, 20,000 bytes each
    user = remote.embed_user("ann")
    found = remote.score_batch([user] * 101, ["which?"] * 101, texts)
    assert found == pytest.approx(prmu.score_batch(["ann"] * 101, ["which?"] * 101, texts), abs=1e-6)
    with pytest.raises(InputError, match=r"one completion .* takes \d+ bytes, .*--max-bytes"):
        remote.score_batch([user], ["which?"], ["x" * 30_000])


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 422, "JSON"),
        (b"[]", 422, "valid dictionary|object"),
        (b'{"requests": []}', 422, "requests: .*at least 1"),
        (b'{"requests": [{"prompt": "x", "completions": ["y"]}]}', 422, r"requests\.0: .*`user` or `items`"),
        (b'{"requests": [{"prompt": "x", "completions": [], "user": "ann"}]}', 422, r"requests\.0\.completions"),
        (b'{"requests": [{"prompt": "x", "completions": [1], "user": "ann"}]}', 422, r"completions\.0: .*string"),
        (b'{"requests": [{"prompt": "x", "completions": ["y"], "user": "ann", "k": 1}]}', 422, r"0\.k: Extra"),
        (b'{"requests": [{"prompt": "x", "completions": ["y"], "items": [{}]}]}', 422, r"items\.0\.profile_id"),
        (b'{"requests": [{"prompt": "x", "completions": ["y"], "user": "carl"}]}', 422, "0.user: .carl. is not"),
        (b'{"requests": [{"prompt": "x", "completions": ["\\ud800"], "user": "ann"}]}', 422, "surrogates not allowed"),
        (json.dumps({"requests": [{"prompt": "x", "completions": ["y"] * 41, "user": "ann"}]}).encode(), 422,
         "41 completions in one request; at most 40"),
        (b" " * 20_001, 413, "longer than 20000 bytes"),
    ],
)  # fmt: skip
def test_what_is_malformed_or_too_much_is_refused_with_the_reason(
    url: str, body: bytes, status: int, says: str
) -> None:
    response = httpx.post(f"{url}/score", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status and re.search(says, response.json()["detail"]), response.text
    assert httpx.get(f"{url}/health").json()["status"] == "ok"


def test_a_body_without_a_length_is_limited_too(url: str) -> None:
    response = httpx.post(f"{url}/score", content=(b" " * 1000 for _ in range(100)))
    assert response.status_code == 413


def test_what_is_served_is_told_without_the_place_it_lies_in(url: str, folder: Path) -> None:
    about = httpx.get(f"{url}/model").json()
    assert about["users"] == 1 and about["evaluation"] == {"splits": {}} and about["limits"]["max_completions"] == 40
    assert len(about["weights"]) == 64 and str(folder.parent.parent) not in json.dumps(about)
    assert "/score" in httpx.get(f"{url}/openapi.json").json()["paths"]


class _Slow(PRMU):
    """Simulated: a PRMU whose score is the length of the text, and which waits until it is let go."""

    def __init__(self) -> None:
        self.users, self.go, self.batches = {"ann": 0}, threading.Event(), []

    def embed_user(self, user: Any, items: Any = None) -> Any:
        return user

    def score_batch(self, users: Any, prompts: Any, completions: Any, batch_size: int = 32) -> list[float]:
        assert self.go.wait(60)
        self.batches.append(len(completions))
        if "bad" in completions:
            raise RuntimeError("a bad text")
        return [float("nan") if text == "nan" else float(len(text)) for text in completions]


def _group(*texts: str) -> list[ScoreGroup]:
    return [ScoreGroup(prompt="x", completions=texts, user="ann")]


def test_requests_that_meet_are_scored_together_and_the_queue_is_bounded() -> None:
    model = _Slow()
    scorer = Scorer(model, Limits(max_waiting=6, max_completions=4))
    first = scorer.submit(_group("a"))
    while len(scorer._jobs):  # until the thread has taken it
        time.sleep(0.005)
    rest = [scorer.submit(_group("bb", "ccc")), scorer.submit(_group("dddd")), scorer.submit(_group("e", "f"))]
    assert scorer.waiting == 6
    with pytest.raises(Full):
        scorer.submit(_group("g"))
    assert scorer.refused == 1
    model.go.set()
    assert first.result(60) == [[1.0]]
    assert [future.result(60) for future in rest] == [[[2.0, 3.0]], [[4.0]], [[1.0, 1.0]]]
    assert model.batches == [1, 3, 2]  # at most four at once
    scorer.close()
    assert scorer.waiting == 0 and scorer.scored == 6
    with pytest.raises(Full):
        scorer.submit(_group("h"))


def test_a_job_that_fails_spoils_no_other(caplog: pytest.LogCaptureFixture) -> None:
    model = _Slow()
    scorer = Scorer(model, Limits())
    held = scorer.submit(_group("a"))
    while len(scorer._jobs):
        time.sleep(0.005)
    good, bad, nan = scorer.submit(_group("ok")), scorer.submit(_group("bad")), scorer.submit(_group("nan"))
    model.go.set()
    assert held.result(60) == [[1.0]] and good.result(60) == [[2.0]]
    with pytest.raises(RuntimeError, match="a bad text"):
        bad.result(60)
    with pytest.raises(ValueError, match="not a finite number"):
        nan.result(60)
    scorer.close()


@pytest.mark.slow
def test_a_full_server_is_asked_again_until_all_is_scored(folder: Path, prmu: PRMU) -> None:
    served = Served(folder, "--max-completions", 8, "--max-waiting", 8)
    texts = [f"lamp {number}" for number in range(24)]

    def ask(_: int) -> list[float]:
        remote = RemotePRMU(served.url)
        user = remote.embed_user("ann")
        return remote.score_batch([user] * 24, ["which?"] * 24, texts)

    try:
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(ask, range(6)))
    finally:
        assert served.stop() == 0
    expected = prmu.score_batch(["ann"] * 24, ["which?"] * 24, texts)
    assert all(answer == pytest.approx(expected, abs=1e-6) for answer in answers)


@pytest.mark.slow
def test_sigterm_answers_what_was_taken_and_then_ends(folder: Path, prmu: PRMU) -> None:
    served = Served(folder, "--max-completions", 1000, "--batch-size", 4)
    texts = [f"lamp {'on ' * 40}{number}" for number in range(1000)]
    body = {"requests": [{"prompt": "which?", "user": "ann", "completions": texts}]}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{served.url}/score", json=body, timeout=300)
        while not httpx.get(f"{served.url}/health").json()["waiting"]:
            time.sleep(0.01)
        served.process.send_signal(signal.SIGTERM)
        response = answer.result(300)
    assert response.status_code == 200 and len(response.json()["scores"][0]) == 1000
    served.process.communicate(timeout=120)
    assert served.process.returncode == 0
    with pytest.raises(InputError, match=r"does not answer .*ConnectError.*3 attempts.*--resume"):
        RemotePRMU(served.url, waits_seconds=(0.01, 0.01))


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back_is_found_again(folder: Path, prmu: PRMU) -> None:
    served = Served(folder)
    remote = RemotePRMU(served.url, waits_seconds=(1.0,) * 60)
    served.stop(signal.SIGKILL)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(remote.score_batch, [remote.embed_user("ann")], ["which?"], ["warm"])
        again = Served(folder, port=served.port)
        assert answer.result(120) == pytest.approx(prmu.score_batch(["ann"], ["which?"], ["warm"]), abs=1e-6)
    assert again.stop() == 0


@pytest.fixture
def simulated(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, Any]]]:
    """A simulated server: its address, and the answers by path, a JSON value or (status, value, headers)."""
    answers: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            found = answers[self.path]
            status, value, headers = found if isinstance(found, tuple) else (200, found, {})
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", answers
    server.shutdown()
    server.server_close()


ABOUT = {
    "weights": "a" * 64, "score_mean": 0.0, "score_std": 1.0, "evaluation": None,
    "limits": {"max_completions": 10, "max_bytes": 10_000},
}  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        ({"scores": [[1.0]], "weights": "b" * 64}, CheckFailed, "serves another PRMU now"),
        ({"scores": [[1.0, 2.0]], "weights": "a" * 64}, InputError, "as many finite scores"),
        ({"scores": [[None]], "weights": "a" * 64}, InputError, "as many finite scores"),
        ((422, {"detail": "requests.0.user: who?"}, {}), InputError, r"refused POST /score .*422: .*who\?"),
        ((500, b"<html>oops", {}), InputError, "500: '<html>oops'"),
        ((200, b"<html>hello", {}), InputError, "did not answer with a JSON object"),
        ((503, b"", {}), InputError, "does not answer .*503.*2 attempts"),
    ],
)
def test_a_server_that_answers_wrongly_is_told(simulated: Any, answer: Any, error: Any, says: str) -> None:
    url, answers = simulated
    answers |= {"/model": ABOUT, "/score": answer}
    remote = RemotePRMU(url, waits_seconds=(0.01,))
    with pytest.raises(error, match=says):
        remote.score_batch([remote.embed_user("ann")], ["which?"], ["warm"])


def test_an_address_of_something_else_is_told(simulated: Any) -> None:
    url, answers = simulated
    answers["/model"] = {"hello": 1}
    with pytest.raises(InputError, match="not that of a PRMU server"):
        RemotePRMU(url)
    with pytest.raises(InputError, match="is not the address of a PRMU server"):
        RemotePRMU("http://[::1", waits_seconds=())


def test_rl_takes_a_served_prmu_behind_its_gate(url: str, tmp_path: Path, simulated: Any) -> None:
    def settings(**changes: Any) -> Rl:
        return Rl(dataset=tmp_path, output=tmp_path / "run", model="x", steps=1, **{"prmu": url} | changes)

    with pytest.raises(CheckFailed, match=r"did not pass its gate.*NOT MET"):
        rl_judge.load_prmu(settings())
    assert isinstance(rl_judge.load_prmu(settings(ignore_gate=True)), RemotePRMU)
    bare, answers = simulated
    answers["/model"] = ABOUT
    with pytest.raises(InputError, match=r"has no prmu_eval\.json"):
        rl_judge.load_prmu(settings(prmu=bare))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere/at/all",), "PRMU nowhere/at/all does not exist"),
        (("--max-completions", "50", "--max-waiting", "40"), "--max-completions 50 is more than --max-waiting 40"),
        (("--port", "TAKEN"), "cannot listen on 127.0.0.1:"),
    ],
)
@pytest.mark.slow
def test_wrong_use_of_the_command_is_told(folder: Path, url: str, arguments: tuple[str, ...], says: str) -> None:
    given = [word.replace("TAKEN", url.rpartition(":")[2]) for word in arguments]
    command = [sys.executable, "-c", "from tagpr_train.cli import main; main()", "serve-prmu"]
    words = given if "nowhere" in given[0] else [str(folder), *given]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr


def test_a_judge_gives_the_same_rewards_with_a_served_prmu(url: str, prmu: PRMU, make_questions: Any) -> None:
    from tagpr_data.tags import load_tagset

    config, questions = make_questions
    texts = [f"<think>\n<infer_preference>x</infer_preference>\n</think>\n{q.gold}" for q in questions]
    judged = [
        rl_judge.Judge(config, load_tagset(), 100, model)(questions, texts, [9] * len(texts))
        for model in (prmu, RemotePRMU(url))
    ]
    ours, theirs = ([row.reward.personal for row in rows] for rows in judged)
    assert theirs == pytest.approx(ours, abs=1e-6) and len(set(ours)) > 1


@pytest.fixture
def make_questions(tmp_path: Path) -> tuple[Rl, Any]:
    """Settings of RL and some questions of synthetic people."""
    from tagpr_data.dataset import Dataset
    from tagpr_data.sources import personas
    from tagpr_data.tags import load_tagset
    from tagpr_train import rl_prompts

    personas.construct(tmp_path / "people", users=10, events=8)
    config = Rl(dataset=tmp_path / "people", output=tmp_path / "run", model="x", steps=1, prmu="x", k=2)
    questions, _ = rl_prompts.questions(
        Dataset.load(tmp_path / "people"), "train", 6, config, load_tagset(), lambda messages: True
    )
    return config, questions
