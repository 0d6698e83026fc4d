"""A Hugging Face Hub on this machine, as far as huggingface_hub calls it to download a repository and to commit to one."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs

import pytest
from huggingface_hub import constants

TOKEN = "hf_may_write"


class FakeHub:
    """Repositories by name; what was asked, and what was asked to be changed."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.sizes: dict[str, int] = {}  # of files, where they are claimed to be others
        self.private: set[str] = set()
        self.asked: list[str] = []

    def revision(self, name: str) -> str:
        content = json.dumps({path: _oid(content) for path, content in self.repositories[name].items()}, sort_keys=True)
        return _oid(content.encode())

    def entries(self, name: str) -> list[dict[str, object]]:
        files = self.repositories[name].items()
        return [
            {"type": "file", "path": path, "size": self.sizes.get(path, len(content)), "oid": _oid(content)}
            for path, content in files
        ]


def _oid(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            if found := re.fullmatch(r"/api/models/(\w+/[\w-]+)/(revision|tree)/(\w+)(\?.*)?", self.path):
                name, what, revision = found.groups()[:3]
                if self._finds(name, revision):
                    siblings = [{"rfilename": path} for path in hub.repositories[name]]
                    about = {"id": name, "sha": hub.revision(name), "siblings": siblings}
                    self._send(about if what == "revision" else hub.entries(name))
            elif found := re.fullmatch(r"/(\w+/[\w-]+)/resolve/(\w+)/(.+)", self.path):
                name, revision, path = found.groups()
                if self._finds(name, revision):
                    content = hub.repositories[name][path]
                    self._send(content, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": hub.revision(name)})
            else:
                self._refuse(404, "EntryNotFound")

        def do_POST(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found = re.fullmatch(r"/api/models/(\w+/[\w-]+)/(paths-info|preupload|commit)/(\w+)", self.path)
            if found and found[2] == "paths-info":
                if self._finds(found[1], found[3]):
                    asked = parse_qs(body.decode())["paths"]
                    self._send([entry for entry in hub.entries(found[1]) if entry["path"] in asked])
            elif self.path == "/api/validate-yaml":
                self._send({"warnings": [], "errors": []})
            elif not self._may_write():
                self._refuse(401, "", "Invalid username or password.")
            elif self.path == "/api/repos/create":
                self._create(json.loads(body))
            elif found and found[2] == "preupload":
                files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
                self._send({"files": files})
            elif found:
                self._commit(found[1], body)

        def _create(self, wanted: dict[str, str]) -> None:
            name = f"{wanted['organization']}/{wanted['name']}"
            there = name in hub.repositories
            if not there:
                hub.repositories[name] = {}
                hub.private |= {name} if wanted["visibility"] == "private" else set()
            self._send({"url": f"{constants.ENDPOINT}/{name}"}, code=409 if there else 200)

        def _commit(self, name: str, body: bytes) -> None:
            files = hub.repositories[name]
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "deletedFile":
                    del files[entry["value"]["path"]]
            revision = hub.revision(name)
            self._send({"commitUrl": f"{constants.ENDPOINT}/{name}/commit/{revision}", "commitOid": revision})

        def _may_write(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {TOKEN}"

        def _finds(self, name: str, revision: str) -> bool:
            if name not in hub.repositories or (name in hub.private and not self._may_write()):
                self._refuse(404, "RepoNotFound")
            elif revision not in ("main", hub.revision(name)):
                self._refuse(404, "RevisionNotFound")
            else:
                return True
            return False

        def _send(self, content: object, headers: dict[str, str] | None = None, code: int = 200) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(code)
            for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def _refuse(self, code: int, error: str, message: str = "") -> None:
            self._send({"error": message}, {"X-Error-Code": error}, code)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    return Handler


@contextmanager
def fake_hub(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Let huggingface_hub call a fake in place of the hub, with an empty cache in ``folder`` and no token."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    go_to(f"http://127.0.0.1:{server.server_port}", patch)
    patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def go_to(endpoint: str, patch: pytest.MonkeyPatch) -> None:
    """Set the address that HF_ENDPOINT sets when huggingface_hub is imported."""
    patch.setattr(constants, "ENDPOINT", endpoint)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
