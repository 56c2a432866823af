"""A headless chromium, driven over a pipe by its DevTools protocol; nothing to install beside the browser."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
]


def find():
    """Path of the browser; None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Chromium:
    """One browser with one tab. Use as a context."""

    def __init__(self, width=1400, height=1000):
        self.folder = tempfile.mkdtemp()
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        options = [*FLAGS, f"--user-data-dir={self.folder}", f"--window-size={width},{height}"]
        # the protocol is read from descriptor 3 and written to 4
        shell = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", shell, find(), *options, "about:blank"],
            pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._count, self._rest, self._session = 0, b"", None
        self.requests, self.faults = [], []
        targets = self._wait(lambda: [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"])
        attached = self.call("Target.attachToTarget", targetId=targets[0]["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._to)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, method, **parameters):
        """Send one command and give its result; events that pass by are noted."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def open(self, path: Path):
        """Load a page and wait until its script is ready; give the seconds to first paint and to ready."""
        start = time.perf_counter()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self._wait(lambda: self.value("document.documentElement?.dataset.ready === 'true'"))
        ready = time.perf_counter() - start
        script = "performance.getEntriesByName('first-contentful-paint').map(e => e.startTime)[0] ?? null"
        paint = self._wait(lambda: self.value(script))
        return paint / 1000, ready

    def value(self, script):
        """Evaluate a script and give its value."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"].get("description", script))
        return found["result"].get("value")

    def press(self, *keys):
        """Press keys as a person does."""
        for key in keys:
            text = {"text": key} if len(key) == 1 else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def screenshot(self, path: Path):
        """Save what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _wait(self, check, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if (found := check()) not in (None, False, []):
                return found
            time.sleep(0.05)
        raise TimeoutError

    def _receive(self):
        while b"\0" not in self._rest:
            block = os.read(self._from, 1 << 20)
            if not block:
                raise RuntimeError("the browser has gone")
            self._rest += block
        text, _, self._rest = self._rest.partition(b"\0")
        return json.loads(text)

    def _note(self, event):
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(event["params"]["request"]["url"])
        if event.get("method") == "Runtime.exceptionThrown":
            self.faults.append(event["params"]["exceptionDetails"])
