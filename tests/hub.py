"""A stub of a Hugging Face hub on loopback: repositories, LFS uploads and commits, each checked as it arrives."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.http_servers import serving

TOKEN = "hf_secret_of_the_tests"


@dataclass
class Repository:
    """One repository: the files of each commit by path, the newest last, and tags."""

    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])
    messages: list[str] = field(default_factory=lambda: ["initial commit"])
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, bytes]:
        """The files on main."""
        return self.commits[-1]

    @property
    def head(self) -> str:
        """The name of the newest commit: 40 hex digits."""
        return f"{len(self.commits):040x}"


@dataclass
class Hub:
    """What the stub holds, and what was asked of it."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    """Uploaded LFS objects by their SHA-256, which was checked."""
    asked: list[str] = field(default_factory=list)
    refused: tuple[str, int] = ("", 0)
    """A part of the paths that it refuses, with this status."""


def _blob_id(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()


def _is_lfs(path: str) -> bool:
    return path.endswith(".safetensors")


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _reply(self, status: int, content: Any = None, **headers: str) -> None:
        body = json.dumps(content or {}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer(self, method: str) -> None:
        path = self.path.partition("?")[0]
        self.hub.asked.append(f"{method} {path}")
        body = self._body()
        if not path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._reply(401, {"error": "Invalid credentials"})
            return
        part, status = self.hub.refused
        if part and part in path:
            self._reply(
                status, {"error": f"refused with {self.headers.get('Authorization')}"}, **{"Retry-After": "3600"}
            )
            return
        for known, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and known == method:
                self._reply(*answer(self.hub, body, *match.groups()))
                return
        self._reply(404, {"error": f"no such route: {method} {path}"})

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def log_message(self, *_: object) -> None:
        pass


def _create(hub: Hub, body: bytes) -> tuple[int, Any]:
    wanted = json.loads(body)
    name = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
    url = {"url": f"{hub.url}/{name}", "name": name}
    if name in hub.repositories:
        return 409, url
    hub.repositories[name] = Repository(private=bool(wanted.get("private") or wanted.get("visibility") == "private"))
    return 200, url


def _info(hub: Hub, _: bytes, name: str, _revision: str | None = None) -> tuple[int, Any]:
    if name not in hub.repositories:
        return 404, {"error": "Repository not found"}
    repository = hub.repositories[name]
    files = [{"rfilename": path} for path in repository.files]
    return 200, {"id": name, "sha": repository.head, "private": repository.private, "siblings": files}


def _preupload(hub: Hub, body: bytes, name: str) -> tuple[int, Any]:
    files = hub.repositories[name].files
    answers = []
    for one in json.loads(body)["files"]:
        path = one["path"]
        there = files.get(path)
        oid = None
        if there is not None:
            oid = hashlib.sha256(there).hexdigest() if _is_lfs(path) else _blob_id(there)
        mode = "lfs" if _is_lfs(path) else "regular"
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return 200, {"files": answers}


def _batch(hub: Hub, body: bytes, _name: str) -> tuple[int, Any]:
    objects: list[dict[str, Any]] = []
    for one in json.loads(body)["objects"]:
        entry = {"oid": one["oid"], "size": one["size"]}
        if one["oid"] not in hub.blobs:
            entry["actions"] = {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}}
        objects.append(entry)
    return 200, {"transfer": "basic", "objects": objects}


def _store(hub: Hub, body: bytes, oid: str) -> tuple[int, Any]:
    if hashlib.sha256(body).hexdigest() != oid:
        return 400, {"error": "the content is not what its name says"}
    hub.blobs[oid] = body
    return 200, {}


def _commit(hub: Hub, body: bytes, name: str) -> tuple[int, Any]:
    repository = hub.repositories[name]
    files = dict(repository.files)
    for line in body.splitlines():
        entry = json.loads(line)
        value = entry["value"]
        match entry["key"]:
            case "header":
                if value.get("parentCommit") not in {None, repository.head}:
                    return 412, {"error": "main has moved"}
                repository.messages.append(value["summary"])
            case "file":
                files[value["path"]] = base64.b64decode(value["content"], validate=True)
            case "lfsFile":
                files[value["path"]] = hub.blobs[value["oid"]]
                assert len(files[value["path"]]) == value["size"]
            case "deletedFile":
                del files[value["path"]]
            case other:
                return 400, {"error": f"unknown operation {other}"}
    repository.commits.append(files)
    return 200, {"commitUrl": f"{hub.url}/{name}/commit/{repository.head}", "commitOid": repository.head}


def _tag(hub: Hub, body: bytes, name: str, revision: str) -> tuple[int, Any]:
    tag = json.loads(body)["tag"]
    if tag in hub.repositories[name].tags:
        return 409, {"error": "the tag exists"}
    hub.repositories[name].tags[tag] = revision
    return 200, {}


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = (
    ("POST", "/api/repos/create", _create),
    ("GET", f"/api/models/{_NAME}", _info),
    ("GET", f"/api/models/{_NAME}/revision/(main)", _info),
    ("POST", "/api/validate-yaml", lambda *_: (200, {"errors": [], "warnings": []})),
    ("POST", f"/api/models/{_NAME}/preupload/main", _preupload),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _batch),
    ("PUT", r"/lfs/([0-9a-f]{64})", _store),
    ("POST", f"/api/models/{_NAME}/commit/main", _commit),
    ("POST", f"/api/models/{_NAME}/tag/([0-9a-f]+)", _tag),
)


@contextmanager
def running() -> Iterator[Hub]:
    """A hub for the length of a `with` block."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    with serving(server):
        yield hub
