"""A made-up teacher behind a local chat server: labels numbered sentences by rule, and misbehaves on demand."""

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = {
    "prose": "unreadable-reply",
    "words": "unreadable-reply",
    "unknown": "unknown-tag",
    "missing": "missing-sentence",
    "twice": "repeated-sentence",
    "extra": "unknown-sentence",
    "length": "cut-off",
    "megabyte": "unreadable-reply",
}
"""What it does with a chain that names the fault, and the reason that belongs into the ledger."""


Names = list[str] | Callable[[list[str]], list[str]] | None
"""Labels for the sentences of every chain, or a function of them."""


class LabellingStub:
    """Answers each sentence with a tag by rule (or in turn from `names`); a chain that ends in a word of `FAULTS` gets
    that fault, with `bad_first` only at temperature 0."""

    def __init__(self, names: Names = None, bad_first: bool = False, seconds: float = 0.0) -> None:
        self.requests: list[dict[str, Any]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.requests.append(body)
                time.sleep(seconds)
                text, finish = stub.reply(body, names, bad_first)
                choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
                content = json.dumps({"choices": [choice]}).encode()
                try:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def reply(self, body: dict[str, Any], names: Names, bad_first: bool) -> tuple[str, str]:
        """Give text and finish reason."""
        lines = body["messages"][-1]["content"].rpartition("The sentences:\n")[2].split("\n")
        pieces = [json.loads(line.partition(": ")[2]) for line in lines]
        tags = names(pieces) if callable(names) else names or [_tag(piece) for piece in pieces]
        labels = [f"{number}: {tag}" for number, (tag, _) in enumerate(zip(tags, pieces, strict=False), start=1)]
        found = re.search(r"(\w+)\.\s*$", pieces[-1])
        fault = found[1] if found and found[1] in FAULTS else ""
        if bad_first and body["temperature"] > 0:
            fault = ""
        good = "\n".join(labels)
        bad = {
            "prose": f"Of course, here are the labels:\n{good}",
            "words": "\n".join(f"{label} {piece.strip()}" for label, piece in zip(labels, pieces, strict=True)),
            "unknown": f"{labels[0]}x\n" + "\n".join(labels[1:]),
            "missing": "\n".join(labels[1:]),
            "twice": f"{good}\n{labels[0]}",
            "extra": f"{good}\n{len(labels) + 1}: verify_answer",
            "megabyte": "a" * 2**20,
        }
        return bad.get(fault, good), "length" if fault == "length" else "stop"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _tag(piece: str) -> str:
    if "[P" in piece:
        return "examine_examples"
    return "infer_preference" if "user" in piece else "analyze_query"
