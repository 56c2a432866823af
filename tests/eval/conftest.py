"""What the evaluation's tests share: a tiny random Llama, a small data set, and a server that misbehaves on purpose."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tagpr_data.dataset import Dataset, write_dataset
from tagpr_data.records import Example, ProfileItem, Task
from tagpr_data.tables import sha256_text

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COLOUR = Task(
    name="colour", kind="classification", labels=("red", "blue", "green"), question="Which colour?",
    answer_form="a colour", item_template="{label}: {text}",
)  # fmt: skip
NOTE = Task(name="note", kind="generation", question="Name it:", answer_form="a name", item_template="{title}: {text}")


def write_tokenizer(folder, template=TEMPLATE):
    """Byte-level, no merges; ids 0 to 2 are <|endoftext|>, <|im_start|>, <|im_end|>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate([*special, *alphabet])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=template
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_model(folder, *, window=None, ends=(2,), seed=0, context=1024):
    """A random Llama of 20,000 parameters, or with `window` a Mistral whose layers see so many tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    tokenizer = write_tokenizer(folder)
    settings = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": context,
        "eos_token_id": list(ends), "pad_token_id": 0, "bos_token_id": 1, "initializer_range": 0.3,
    }  # fmt: skip
    torch.manual_seed(seed)
    if window:
        model = MistralForCausalLM(MistralConfig(**settings, head_dim=8, sliding_window=window))
    else:
        model = LlamaForCausalLM(LlamaConfig(**settings))
    model.save_pretrained(folder)
    return folder


def write_data(folder, users=5, each=3, dated=True, tasks=(COLOUR, NOTE)):
    """Users u0 … with 0, 2, 4, … items and `each` test examples a task; every gold is the user's own colour."""
    items, examples, train = [], [], []
    for user in range(users):
        colour = COLOUR.labels[user % 3]
        items += [
            ProfileItem(
                profile_id=f"p{user}", position=n, item_id=f"u{user}i{n}", label=colour, title=f"{colour} {n}",
                text=f"thing {n} of user {user}", date=f"2020-01-{n + 1:02d}" if dated else None,
            )
            for n in range(2 * user)
        ]  # fmt: skip
        for task in tasks:
            for n in range(each):
                row = {"task": task.name, "user_id": f"u{user}", "profile_id": f"p{user}", "profile_size": 2 * user}
                gold = colour if task is COLOUR else f"{colour} thing"
                text = f"thing {n} asked"
                examples.append(Example(id=f"{task.name}-{user}-{n}", input=text, output=gold, **row))
                train.append(Example(id=f"train-{task.name}-{user}-{n}", input=text + " before", output=gold, **row))
    write_dataset(
        folder, name="toy", source="made up", licence="CC0-1.0", tasks=list(tasks), items=items, parameters={},
        examples={"train": train, "test": examples}, skipped={},
    )  # fmt: skip
    return folder


class Server:
    """An OpenAI-compatible server on this machine. Its answer is a hash of the prompt; before that, `plan` may say
    how the n-th request (from 0) is treated: a status, (status, headers), or one of drop, hang, half, empty, null."""

    def __init__(self):
        self.plan = {}
        self.always = None
        self.requests = []
        self.answered = Counter()
        self.delay_seconds = 0.0
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        self.release = threading.Event()
        self.start(0)

    def start(self, port):
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                server.handle(self)

            def log_message(self, *_):
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_):  # a client that went away
                pass

        self.http = Quiet(("127.0.0.1", port), Handler)
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self):
        self.release.set()
        self.http.shutdown()
        self.http.server_close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def handle(self, request):
        body = json.loads(request.rfile.read(int(request.headers["content-length"])))
        with self.lock:
            number = len(self.requests)
            self.requests.append((request.path, dict(request.headers), body))
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            self.answer(request, body, self.plan.get(number, self.always))
        finally:
            with self.lock:
                self.in_flight -= 1

    def answer(self, request, body, treatment):
        if self.delay_seconds:
            self.release.wait(self.delay_seconds)
        prompt = json.dumps(body["messages"])
        answer = {
            "choices": [
                {"message": {"role": "assistant", "content": sha256_text(prompt)[:12]}, "finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": len(prompt), "completion_tokens": 12},
        }
        status, headers = 200, {}
        if treatment == "hang":
            self.release.wait(30)
            return
        if treatment == "drop":
            request.close_connection = True
            return
        if isinstance(treatment, int):
            status = treatment
        elif isinstance(treatment, tuple):
            status, headers = treatment
        elif treatment == "empty":
            answer["choices"] = []
        elif treatment == "null":
            answer["choices"][0]["message"]["content"] = None
        elif isinstance(treatment, dict):
            answer = treatment
        content = json.dumps(answer).encode()
        if treatment == "half":
            content = content[: len(content) // 2]
        if isinstance(treatment, bytes):
            content = treatment
        if status == 200 and treatment is None:
            with self.lock:
                self.answered[prompt] += 1
        request.send_response(status)
        for name, value in {**headers, "content-length": str(len(content))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(content)


@pytest.fixture(scope="session")
def server_class():
    return Server


@pytest.fixture
def server():
    running = Server()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def make_model(tmp_path):
    def make(name="other", **settings):
        return write_model(tmp_path / name, **settings)

    return make


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture(scope="session")
def toy(toy_data) -> Dataset:
    return Dataset.load(toy_data)


@pytest.fixture
def make_data(tmp_path):
    def make(name="data", **settings):
        return write_data(tmp_path / name, **settings)

    return make
