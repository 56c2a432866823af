"""A Hub in one process, for data sets and models: what huggingface_hub, datasets, transformers, peft and hf:// ask for,
over loopback. A name is one repository, of one kind.

Repositories are lists of commits (path → bytes) in memory. Faults are put into `faults` by the test: a function of
(method, path) that gives a status to answer with, "cut" to close the connection in the middle, "hang" to wait, or None.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_stand_in_token_that_must_never_be_shown"
LARGE = (".parquet", ".safetensors")


@dataclass
class Repo:
    private: bool
    kind: str = "datasets"
    commits: list[tuple[str, dict[str, bytes], str]] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> str | None:
        found = self.branches.get(revision) or self.tags.get(revision)
        return found or next((oid for oid, _, _ in self.commits if oid == revision), None)

    def files(self, oid: str) -> dict[str, bytes]:
        return next(files for commit, files, _ in self.commits if commit == oid)

    def commit(self, files: dict[str, bytes], message: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits.append((oid, files, message))
        return oid


class HubStandIn:
    """The server; use as a context manager. `requests` holds (method, path) of all that was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: Callable[[str, str], Any] = lambda method, path: None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "HubStandIn":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Any, token: str = TOKEN) -> dict[str, str]:
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": token,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def count(self, method: str, part: str) -> int:
        return sum(asked == method and part in path for asked, path in self.requests)

    def _handler(hub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                return

            def handle(self) -> None:
                try:
                    super().handle()
                except (ConnectionError, TimeoutError):
                    self.close_connection = True

            def do_GET(self) -> None:
                self.answer()

            do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

            def answer(self) -> None:
                parts = urlsplit(self.path)
                path, query = unquote(parts.path), parse_qs(parts.query)
                hub.requests.append((self.command, path))
                fault = hub.faults(self.command, path)
                if fault == "cut":
                    self.close_connection = True
                    self.connection.close()
                    return None
                if fault == "hang":
                    time.sleep(30)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if isinstance(fault, int):
                    return self.send(fault, {"error": f"fault {fault}"})
                is_lfs_store = path.startswith("/lfs-store/")
                if not is_lfs_store and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.send(401, {"error": "Invalid credentials"}, {"X-Error-Message": "Invalid credentials"})
                for method, pattern, act in ROUTES:
                    match = re.fullmatch(pattern, path)
                    if match and self.command in method:
                        groups = match.groupdict()
                        self.kind = groups.pop("kind", None) or "models"
                        return act(self, body, query, **groups)
                return self.send(404, {"error": f"no route {self.command} {path}"})

            def send(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                    self.send_header(name, value)
                if "Content-Length" not in (headers or {}):
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def at(self, repo: str, revision: str) -> tuple[Repo, str] | None:
                """Give repository and commit, or answer that one of them is not there."""
                found = hub.repos.get(repo)
                if found is None or found.kind != self.kind:
                    self.send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
                    return None
                oid = found.resolve(unquote(revision))
                if oid is None:
                    self.send(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
                    return None
                return found, oid

            def whoami(self, body: bytes, query: Any) -> None:
                self.send(200, {"type": "user", "name": "curator", "orgs": []})

            def info(self, body: bytes, query: Any, repo: str, revision: str = "main") -> None:
                if found := self.at(repo, revision):
                    it, oid = found
                    siblings = [{"rfilename": path} for path in sorted(it.files(oid))]
                    self.send(200, {
                        "_id": repo, "id": repo, "sha": oid, "siblings": siblings, "private": it.private,
                        "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0,
                        "lastModified": "2026-01-01T00:00:00.000Z",
                    })  # fmt: skip

            def create(self, body: bytes, query: Any) -> None:
                asked = json.loads(body)
                repo = f"{asked.get('organization') or 'curator'}/{asked['name']}"
                if repo in hub.repos:
                    return self.send(
                        409, {"error": "You already created this repo", "url": f"{hub.url}/datasets/{repo}"}
                    )
                kind = f"{asked.get('type') or 'model'}s"
                private = bool(asked.get("private")) or asked.get("visibility") == "private"
                made = hub.repos[repo] = Repo(private, kind)
                made.branches["main"] = made.commit({".gitattributes": b"*.parquet filter=lfs\n"}, "initial commit")
                return self.send(200, {"url": f"{hub.url}/datasets/{repo}"})

            def preupload(self, body: bytes, query: Any, repo: str, revision: str) -> None:
                if found := self.at(repo, revision):
                    it, oid = found
                    there = it.files(oid)
                    self.send(200, {"files": [
                        {
                            "path": asked["path"], "shouldIgnore": False,
                            "uploadMode": "lfs" if asked["path"].endswith(LARGE) else "regular",
                            "oid": _blob(there[asked["path"]]) if asked["path"] in there else None,
                        }
                        for asked in json.loads(body)["files"]
                    ]})  # fmt: skip

            def lfs_batch(self, body: bytes, query: Any, repo: str) -> None:
                objects = []
                for asked in json.loads(body)["objects"]:
                    answer = {"oid": asked["oid"], "size": asked["size"]}
                    if asked["oid"] not in hub.lfs:
                        answer["actions"] = {"upload": {"href": f"{hub.url}/lfs-store/{asked['oid']}"}}
                    objects.append(answer)
                self.send(
                    200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"}
                )

            def lfs_put(self, body: bytes, query: Any, oid: str) -> None:
                if hashlib.sha256(body).hexdigest() != oid:
                    return self.send(422, {"error": "hash differs"})
                hub.lfs[oid] = body
                return self.send(200, b"")

            def yaml(self, body: bytes, query: Any) -> None:
                self.send(200, {"errors": [], "warnings": []})

            def commit(self, body: bytes, query: Any, repo: str, revision: str) -> None:
                if not (found := self.at(repo, revision)):
                    return None
                it, oid = found
                header, *operations = [json.loads(line) for line in body.splitlines()]
                parent = header["value"].get("parentCommit")
                if parent and parent != oid:
                    return self.send(412, {"error": "A commit has happened since"})
                files = dict(it.files(oid))
                for operation in operations:
                    value = operation["value"]
                    if operation["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif operation["key"] == "lfsFile":
                        files[value["path"]] = hub.lfs[value["oid"]]
                    elif operation["key"] == "deletedFile":
                        del files[value["path"]]
                made = it.commit(files, header["value"]["summary"])
                it.branches[unquote(revision)] = made
                url = f"{hub.url}/datasets/{repo}/commit/{made}"
                return self.send(200, {"success": True, "commitOid": made, "commitUrl": url, "pullRequestUrl": None})

            def tree(self, body: bytes, query: Any, repo: str, revision: str, folder: str | None = None) -> None:
                if not (found := self.at(repo, revision)):
                    return None
                it, oid = found
                files, prefix = it.files(oid), f"{folder}/" if folder else ""
                below = {path: content for path, content in files.items() if path.startswith(prefix)}
                if folder and not below:
                    return self.send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
                deep = query.get("recursive", ["false"])[0].lower() in ("true", "1")
                entries: dict[str, Any] = {}
                for path, content in sorted(below.items()):
                    names = path.removeprefix(prefix).split("/")
                    for depth in range(1, len(names)):
                        inner = prefix + "/".join(names[:depth])
                        if deep or depth == 1:
                            entries[inner] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": inner}
                    if deep or len(names) == 1:
                        entries[path] = _entry(path, content)
                return self.send(200, list(entries.values()))

            def paths_info(self, body: bytes, query: Any, repo: str, revision: str) -> None:
                if not (found := self.at(repo, revision)):
                    return
                it, oid = found
                try:
                    asked = json.loads(body)["paths"]
                except json.JSONDecodeError:
                    asked = parse_qs(body.decode())["paths"]
                files, answer = it.files(oid), []
                for path in [asked] if isinstance(asked, str) else asked:
                    if path in files:
                        answer.append(_entry(path, files[path]))
                    elif any(name.startswith(f"{path}/") for name in files):
                        answer.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": path})
                self.send(200, answer)

            def content(self, body: bytes, query: Any, repo: str, revision: str, file: str) -> None:
                if not (found := self.at(repo, revision)):
                    return None
                it, oid = found
                if file not in it.files(oid):
                    return self.send(
                        404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid}
                    )
                whole = it.files(oid)[file]
                headers = {
                    "ETag": f'"{_entry(file, whole).get("lfs", {}).get("oid") or _blob(whole)}"',
                    "X-Repo-Commit": oid,
                    "Accept-Ranges": "bytes",
                    "Content-Type": "application/octet-stream",
                }
                asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
                if asked:
                    start, end = int(asked[1]), min(int(asked[2] or len(whole) - 1), len(whole) - 1)
                    part = whole[start : end + 1]
                    headers |= {"Content-Range": f"bytes {start}-{end}/{len(whole)}", "Content-Length": str(len(part))}
                    return self.send(206, part, headers)
                return self.send(200, whole, headers | {"Content-Length": str(len(whole))})

            def refs(self, body: bytes, query: Any, repo: str) -> None:
                it = hub.repos[repo]
                answer: dict[str, Any] = {"converts": []}
                for kind, refs in (("branches", it.branches), ("tags", it.tags)):
                    answer[kind] = [
                        {"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": oid} for n, oid in refs.items()
                    ]
                self.send(200, answer)

            def branch(self, body: bytes, query: Any, repo: str, name: str) -> None:
                it = hub.repos[repo]
                if name in it.branches:
                    return self.send(409, {"error": "Reference already exists"})
                it.branches[name] = it.branches["main"]
                return self.send(200, {})

            def tag(self, body: bytes, query: Any, repo: str, revision: str) -> None:
                if found := self.at(repo, revision):
                    found[0].tags[json.loads(body)["tag"]] = found[1]
                    self.send(200, {})

        repo, revision = r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
        api = f"/api/(?P<kind>datasets|models)/{repo}"
        page = f"(/(?P<kind>datasets))?/{repo}"
        ROUTES: list[tuple[tuple[str, ...], str, Any]] = [
            (("GET",), "/api/whoami-v2", Handler.whoami),
            (("POST",), "/api/repos/create", Handler.create),
            (("POST",), "/api/validate-yaml", Handler.yaml),
            (("GET",), api, Handler.info),
            (("GET",), f"{api}/refs", Handler.refs),
            (("GET",), f"{api}/revision/{revision}", Handler.info),
            (("POST",), f"{api}/preupload/{revision}", Handler.preupload),
            (("POST",), f"{api}/commit/{revision}", Handler.commit),
            (("POST",), f"{api}/branch/(?P<name>.+)", Handler.branch),
            (("POST",), f"{api}/tag/{revision}", Handler.tag),
            (("GET",), f"{api}/tree/{revision}(/(?P<folder>.+))?", Handler.tree),
            (("POST",), f"{api}/paths-info/{revision}", Handler.paths_info),
            (("POST",), f"{page}\\.git/info/lfs/objects/batch", Handler.lfs_batch),
            (("PUT",), "/lfs-store/(?P<oid>[0-9a-f]{64})", Handler.lfs_put),
            (("GET", "HEAD"), f"{page}/resolve/{revision}/(?P<file>.+)", Handler.content),
        ]
        return Handler


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": _blob(content), "size": len(content), "path": path}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry
