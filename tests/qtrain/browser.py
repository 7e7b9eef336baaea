"""Drives a headless Chromium by the DevTools protocol over two pipes, with the standard library."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


class Page:
    """One tab.

    complaints   console messages, uncaught errors and what the browser logs, as text
    requests     addresses of everything it asked for
    """

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._buffer = b""
        self._count = 0
        self._session: str | None = None
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, path: Path, *, fragment: str = "", script: bool = True) -> None:
        """Load a file and wait for it; `script`: whether its script may run."""
        self.complaints.clear()
        self.requests.clear()
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call("Page.navigate", url="about:blank")
        self._until("Page.loadEventFired")
        self.call("Page.navigate", url=f"{path.resolve().as_uri()}{fragment}")
        self._until("Page.loadEventFired")

    def resize(self, width: int, height: int, *, scheme: str = "light") -> None:
        """A window of so many pixels, in the light or dark scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
            mobile=width < 600,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until the expression is true; AssertionError after five seconds."""
        for _ in range(100):
            if self.evaluate(expression):
                return
            time.sleep(0.05)
        raise AssertionError(f"never true: {expression}")

    def set(self, id: str, value: str) -> None:
        """Give a control a value, as a user does who types or chooses it."""
        self.evaluate(
            f"(() => {{ const c = document.getElementById('{id}'); c.value = '{value}';"
            "for (const kind of ['input', 'change']) c.dispatchEvent(new Event(kind)); })()"
        )

    def box(self, selector: str) -> list[float]:
        """Left, top, width and height of an element, brought into the window."""
        found: list[float] = self.evaluate(
            f"(() => {{ const e = document.querySelector('{selector}');"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            "return [b.left, b.top, b.width, b.height]; })()"
        )
        return found

    def move(self, x: float, y: float) -> None:
        """Move the pointer."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str, code: int) -> None:
        """Press and release a key that writes nothing."""
        for kind in ("keyDown", "keyUp"):
            values = {"key": key, "code": key, "windowsVirtualKeyCode": code}
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, **values, **text)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of the window, or of the whole page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """One command, and its answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": values}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def _until(self, method: str) -> None:
        while self._next().get("method") != method:
            pass

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._read, 2**16)
            assert part, "the browser is gone"
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        values = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        if message.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown",
                                     "Log.entryAdded"):  # fmt: skip
            self.complaints.append(json.dumps(values))
        return message


@contextmanager
def browser(profile: Path, flags: Sequence[str] = _FLAGS) -> Iterator[Page]:
    """A page of a browser of its own, whose profile is in the folder `profile`."""
    assert CHROMIUM is not None
    to_child, write = os.pipe()
    read, from_child = os.pipe()
    # the browser reads commands from descriptor 3 and answers on 4
    shell = f'exec "$@" 3<&{to_child} 4>&{from_child}'
    command = ["bash", "-c", shell, "sh", CHROMIUM, *flags, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        command, pass_fds=(to_child, from_child), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(to_child)
    os.close(from_child)
    try:
        yield Page(read, write)
    finally:
        process.terminate()
        process.wait(20)
        os.close(read)
        os.close(write)
