"""A model hub on the loopback interface: the routes that huggingface_hub needs to look up and download models."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


def commit_of(text: str) -> str:
    """A commit as the hub would name it."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


@dataclass
class Repository:
    """One repository: its commits, newest last, each a directory."""

    commits: dict[str, Path]
    gated: str | bool = False
    private: bool = False

    @property
    def head(self) -> str:
        return list(self.commits)[-1]


@dataclass
class HubServer:
    """What is served and what was asked."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """``METHOD path`` of every request, a leading ``!`` when it carried a credential."""
    broken: bool = False
    """Whether every answer is 503."""

    def add(self, model_id: str, directory: Path, **flags: object) -> str:
        """Publish a directory as the head of a repository; returns the commit."""
        repository = self.repositories.setdefault(model_id, Repository({}))
        commit = commit_of(f"{model_id} {len(repository.commits)}")
        repository.commits[commit] = directory
        for name, value in flags.items():
            setattr(repository, name, value)
        return commit

    def downloads(self) -> list[str]:
        """Names of the files that were sent whole or in part."""
        return [line.rsplit("/", 1)[1] for line in self.asked if line.startswith("GET") and "/resolve/" in line]


def lead_client_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does for a process that has not imported huggingface_hub yet."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@contextmanager
def serving() -> Iterator[HubServer]:
    """A hub that answers until the block ends."""
    hub = HubServer()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        credential = "!" if "Authorization" in self.headers else ""
        self.hub.asked.append(f"{credential}{self.command} {path}")
        if self.hub.broken:
            self.send(503)
        elif path.startswith("/api/models/"):
            self.answer_about(path.removeprefix("/api/models/"))
        else:
            self.answer_file(path.removeprefix("/"))

    def answer_about(self, rest: str) -> None:
        model_id, separator, revision = rest.partition("/revision/")
        if not separator:
            model_id, tree, revision = rest.partition("/tree/")
        repository = self.find(model_id)
        if repository is None:
            return
        commit = revision or repository.head
        if commit not in repository.commits:
            self.send(404, {"X-Error-Code": "RevisionNotFound"})
            return
        files = sorted(item for item in repository.commits[commit].rglob("*") if item.is_file())
        named = [(item.relative_to(repository.commits[commit]).as_posix(), item.stat().st_size) for item in files]
        if not separator and tree:
            value: object = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in named]
        else:
            siblings = [{"rfilename": name, "size": size} for name, size in named]
            flags = {"gated": repository.gated, "private": repository.private}
            value = {"_id": "1", "id": model_id, "modelId": model_id, "sha": commit, "siblings": siblings, **flags}
        self.send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def answer_file(self, path: str) -> None:
        model_id, _, rest = path.partition("/resolve/")
        repository = self.find(model_id)
        if repository is None:
            return
        if repository.gated:
            self.send(401, {"X-Error-Code": "GatedRepo"})
            return
        commit, _, name = rest.partition("/")
        file = repository.commits.get(commit, Path("/nowhere")) / name
        if not file.is_file():
            code = "EntryNotFound" if commit in repository.commits else "RevisionNotFound"
            self.send(404, {"X-Error-Code": code, "X-Repo-Commit": commit})
            return
        data = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1 if last else None]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            self.send(206, headers, part)
        else:
            self.send(200, headers, data)

    def find(self, model_id: str) -> Repository | None:
        """The repository, when it is there and not private; else the answer is sent here."""
        repository = self.hub.repositories.get(model_id)
        if repository is None or repository.private:
            self.send(401 if repository else 404, {"X-Error-Code": "RepoNotFound"})
            return None
        return repository

    def send(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
