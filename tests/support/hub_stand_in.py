"""A small stand-in of the Hugging Face hub on 127.0.0.1, with repositories of a few megabytes.

It answers what huggingface_hub asks: facts about a repository, its list of files, and files, also in ranges.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

MODEL = re.compile(r"/api/models/(?P<id>[^/]+/[^/]+)(/(?P<what>revision|tree)/(?P<revision>[^/?]+))?")
FILE = re.compile(r"/(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")


@dataclass
class Repository:
    """Files by name, as bytes, at one commit that is ``main`` too."""

    files: dict[str, bytes]
    commit: str = "a" * 40
    gated: bool = False
    broken: Literal["short", "spoiled"] | None = None  # how its safetensors come
    licence: str = "mit"

    @classmethod
    def of_folder(cls, folder: Path, **changes: Any) -> Repository:
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return cls({path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}, **changes)

    def body(self, name: str) -> bytes:
        """What is sent for a file."""
        content = self.files[name]
        if not name.endswith(".safetensors") or self.broken is None:
            return content
        return content[: len(content) // 2] if self.broken == "short" else b"x" * len(content)


@dataclass
class Hub:
    """The running stand-in."""

    repositories: dict[str, Repository]
    endpoint: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)  # method and path of each request
    tokens: set[str] = field(default_factory=set)  # that came in a header, as they should

    def fetched(self) -> set[str]:
        """Names of the files that were sent as a whole."""
        found = (FILE.match(path) for method, path in self.asked if method == "GET")
        return {match["name"] for match in found if match}


@contextmanager
def serve(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """The stand-in on a free port, until the block ends."""
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *words: object) -> None:
        """Nothing: it would go to the tests' stderr."""

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        if "Range" not in self.headers:
            self.hub.asked.append((self.command, path))
        if token := self.headers.get("Authorization"):
            self.hub.tokens.add(token)
        model, file = MODEL.fullmatch(path), FILE.fullmatch(path)
        match = model or file
        repository = self.hub.repositories.get(match["id"]) if match else None
        if match is None or repository is None:
            return self._fail(404, "RepoNotFound")
        if (match["revision"] or "main") not in ("main", repository.commit):
            return self._fail(404, "RevisionNotFound")
        if file is not None:
            return self._send_file(repository, file["name"])
        return self._send_json(_tree(repository) if match["what"] == "tree" else _facts(match["id"], repository))

    def _send_file(self, repository: Repository, name: str) -> None:
        if repository.gated:
            return self._fail(403, "GatedRepo")
        if name not in repository.files:
            return self._fail(404, "EntryNotFound")
        whole = repository.files[name]
        facts = {
            "ETag": f'"{hashlib.sha256(whole).hexdigest()}"',
            "X-Repo-Commit": repository.commit,
            "Accept-Ranges": "bytes",
        }
        if self.command == "HEAD":
            return self._send(200, facts, b"", length=len(whole))
        body = repository.body(name)
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(body)), len(body) - 1)
            facts["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            return self._send(206, facts, body[first : last + 1])
        return self._send(200, facts, body)

    def _send_json(self, data: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(data).encode())

    def _fail(self, status: int, code: str) -> None:
        self._send(status, {"X-Error-Code": code, "X-Error-Message": code}, b"")

    def _send(self, status: int, facts: dict[str, str], body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in facts.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _facts(model_id: str, repository: Repository) -> dict[str, Any]:
    files = [{"rfilename": name, "size": len(content)} for name, content in repository.files.items()]
    return {
        "id": model_id,
        "modelId": model_id,
        "sha": repository.commit,
        "private": False,
        "gated": "auto" if repository.gated else False,
        "tags": ["diffusers", f"license:{repository.licence}"],
        "siblings": files,
    }


def _tree(repository: Repository) -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for name, content in repository.files.items()
    ]
