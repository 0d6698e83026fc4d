"""Servers on this machine that answer as asked, and fail in every way that a network can."""

import gzip
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Handler = BaseHTTPRequestHandler
SLOW = 0.5  # seconds before a slow server's answer


class Server:
    """An HTTP server on a free port of 127.0.0.1, in threads, until the end of a ``with``."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        owner = self

        class Requests(Handler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                owner.answer(self, gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)

            do_GET = do_HEAD = do_POST = do_PUT = answer

            def log_message(self, *_: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """Clients that leave are part of the test."""

        self._server = Quiet(("127.0.0.1", 0), Requests)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, request: Handler, body: bytes) -> None:
        raise NotImplementedError

    def reply(self, request: Handler, content: bytes, code: int = 200, length: int | None = None) -> None:
        request.send_response(code)
        request.send_header("Content-Length", str(len(content) if length is None else length))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)

    def hang(self, request: Handler) -> None:
        self._ended.wait(300)
        request.close_connection = True

    def close(self) -> None:
        """From now on the port refuses connections."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.close()


class WandbServer(Server):
    """As much of wandb's server as its client needs to record a run; ``mode`` says how it behaves from now on."""

    def __init__(self, mode: str = "works") -> None:
        super().__init__()
        self.history: dict[int, dict[str, Any]] = {}  # by step, what runs have sent
        self.runs: set[str] = set()  # their identities
        self.mode = mode
        if mode == "away":
            self.close()

    def answer(self, request: Handler, body: bytes) -> None:
        codes = {"refuses the key": 401, "forbids": 403, "knows nothing": 404, "fails": 500}
        if self.mode == "hangs":
            self.hang(request)
        elif self.mode in codes:
            self.reply(request, b'{"errors": [{"message": "no"}]}', codes[self.mode])
        elif self.mode == "garbles":
            self.reply(request, b"\x00\xff<html>")
        else:
            assert self.mode in ("works", "is slow"), self.mode
            time.sleep(SLOW if self.mode == "is slow" else 0)
            self.reply(request, json.dumps(self._work(request.path, body)).encode())

    def _work(self, path: str, body: bytes) -> dict[str, Any]:
        if path.endswith("/file_stream"):
            for line in json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", []):
                values = json.loads(line)
                self.history.setdefault(values["_step"], {}).update(values)
        if not path.startswith("/graphql"):
            return {}
        query = json.loads(body)
        text, variables = query["query"], query.get("variables") or {}
        project = {"id": "p", "name": "msngan", "entity": {"id": "e", "name": "me"}}
        if "upsertBucket" in text:
            self.runs.add(variables["name"])
            bucket = {"id": "b", "name": variables["name"], "displayName": "run", "config": "{}", "project": project}
            return {"data": {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0}, "inserted": True}}}
        if "RunResumeStatus" in text:
            return {"data": {"model": {**project, "bucket": None}}}
        if "createRunFiles" in text:
            files = [{"name": name, "uploadUrl": f"{self.url}/files/{name}"} for name in variables["files"]]
            return {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}}
        viewer = {"id": "u", "username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}}
        info = {"cliVersionInfo": {"max_cli_version": "0.99.0"}, "latestLocalVersionInfo": None, "features": []}
        return {"data": {"viewer": viewer, "serverInfo": info}}


class FileServer(Server):
    """Serves ``files`` by path. ``behaviour`` gets a path and the number of times that it was asked for, from 1, and says
    what happens: "whole", "half" (the connection breaks), "stalls" half way, "wrong" bytes or "missing"."""

    def __init__(self, files: dict[str, bytes], behaviour: Callable[[str, int], str] = lambda *_: "whole") -> None:
        self.files, self.behaviour = files, behaviour
        self.asked: Counter[str] = Counter()
        super().__init__()

    def answer(self, request: Handler, body: bytes) -> None:
        name = request.path.lstrip("/")
        if request.command == "HEAD":
            return self.reply(request, b"", length=0)
        self.asked[name] += 1
        content, behaviour = self.files[name], self.behaviour(name, self.asked[name])
        half = content[: len(content) // 2]
        if behaviour == "missing":
            return self.reply(request, b"", 404)
        if behaviour == "wrong":
            content = half + bytes(len(content) - len(half))
        broken = behaviour in ("half", "stalls")
        self.reply(request, half if broken else content, length=len(content))
        if behaviour == "stalls":
            request.wfile.flush()
            self.hang(request)
        request.close_connection = broken
        return None
