"""A headless Chromium that tests drive over a pipe by the DevTools protocol: real keys, real layout, its console."""

import base64
import fcntl
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe",
]  # fmt: skip


class Page:
    """A page in the browser."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out, self._in = os.fdopen(to_browser, "wb"), os.fdopen(from_browser, "rb")
        self._numbers, self._rest, self._session = itertools.count(1), b"", ""
        self.complaints: list[Any] = []  # errors and warnings of the console, exceptions of scripts, requests beyond the file
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the result of a command; events that come before it are kept as complaints, where they are any."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._out.write(json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0")
        self._out.flush()
        while True:
            found = self._receive()
            if found.get("id") == number:
                assert "error" not in found, found["error"]
                result: dict[str, Any] = found["result"]
                return result
            self._note(found["method"], found["params"])

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._in.fileno(), 2**20)
            assert piece, "the browser has ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _note(self, event: str, details: dict[str, Any]) -> None:
        url = details.get("request", {}).get("url", "")
        if event in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded") or url.startswith("http"):
            self.complaints.append(details)

    def open(self, file: Path, width: int, *, scheme: str = "light") -> None:
        """Show ``file`` in a window of ``width`` pixels, to a reader who prefers the colour ``scheme``."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=file.resolve().as_uri())
        self.run("new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', () => done()))")

    def run(self, script: str) -> Any:
        """Return the value of ``script``, a JavaScript expression; a promise is waited for."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press and release a key, such as "End" with its Windows virtual-key code 35."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def picture(self, path: Path) -> None:
        """Write a PNG of the whole page."""
        content = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")["data"]
        path.write_bytes(base64.b64decode(content))

    def close(self) -> None:
        self._out.close()
        self._in.close()


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Start the browser, with its data in the folder ``profile``; skip the test where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium here (Debian's package chromium)")
    from_us, to_browser = os.pipe()
    from_browser, to_us = os.pipe()

    def connect() -> None:
        """The browser reads from file 3 and writes to file 4."""
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (from_us, to_us)]  # one may be 3 or 4 itself
        for number, end in enumerate(ends, 3):
            os.dup2(end, number)

    words = [program, *FLAGS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(words, preexec_fn=connect, pass_fds=(3, 4), stderr=subprocess.DEVNULL)
    os.close(from_us)
    os.close(to_us)
    try:
        page = Page(to_browser, from_browser)
        try:
            yield page
        finally:
            page.close()
    finally:
        process.terminate()
        process.wait(timeout=30)
