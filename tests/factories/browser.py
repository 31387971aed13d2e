"""Chromium without a window, spoken to through its own protocol over two pipes."""

import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
WHY_NOT = "Chromium is not on this machine"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--window-size=1300,1000",
    "--remote-debugging-pipe",
)
PATIENCE_S = 180  # the machine may be busy
KEY_CODES = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}  # of keys on which Chromium acts itself


class Page:
    """A tab: what it writes to its console and what it requests is recorded."""

    def __init__(self, to, back):
        self.to, self.back, self.rest, self.last = to, back, b"", 0
        self.session = None
        self.complaints, self.requests, self.events = [], [], []

    def tell(self, method, *, seconds=PATIENCE_S, **given):
        """Send a command; its answer."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": given}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            reply = self._next(until)
            if reply.get("id") == self.last:
                assert "error" not in reply, reply
                return reply["result"]
        raise TimeoutError(method)

    def _next(self, until):
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.back], [], [], max(0, until - time.monotonic()))
            if not ready:
                return {}
            self.rest += os.read(self.back, 1 << 20)
        line, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(line)
        if message.get("sessionId") == self.session:  # not of a tab that was closed
            self._note(message)
        return message

    def _note(self, message):
        method, given = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(given["exceptionDetails"])
        elif method == "Log.entryAdded" and given["entry"]["level"] == "error":
            self.complaints.append(given["entry"])
        elif method == "Runtime.consoleAPICalled" and given["type"] in ("error", "assert"):
            self.complaints.append(given["args"])
        elif method:
            self.events.append(method)

    def go(self, url):
        """Open a page and wait until it has loaded."""
        self.events.clear()
        self.tell("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, words, seconds=PATIENCE_S):
        """The value of an expression, awaited if it is a promise."""
        given = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        answer = self.tell("Runtime.evaluate", expression=words, seconds=seconds, **given)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, words, seconds=PATIENCE_S):
        """Until an expression is true."""
        until = time.monotonic() + seconds
        while not self.run(words):
            assert time.monotonic() < until, words
            time.sleep(0.05)

    def worked(self):
        """The processor seconds of the page's main thread since the page was opened.

        Unlike what a clock says, hardly more on a busy machine.
        """
        metrics = self.tell("Performance.getMetrics")["metrics"]
        return next(each["value"] for each in metrics if each["name"] == "TaskDuration")

    def press(self, key):
        """Press a key where the focus is."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = KEY_CODES.get(key, 0)
        for kind, typed in (("keyDown", text), ("keyUp", "")):
            self.tell(
                "Input.dispatchKeyEvent", type=kind, key=key, text=typed, windowsVirtualKeyCode=code
            )

    def write(self, text):
        """Type a text where the focus is."""
        self.tell("Input.insertText", text=text)

    def click(self, query, across=0.5):
        """Click on what a selector finds, half way down and so far across."""
        box = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(query)});"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            f"return [b.x + b.width * {across}, b.y + b.height / 2]; }})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.tell(
                "Input.dispatchMouseEvent",
                type=kind,
                x=box[0],
                y=box[1],
                button="left",
                clickCount=1,
            )

    @contextmanager
    def tab(self, downloads):
        """A tab with a storage of its own, whose downloads go to a folder; closed at the end."""
        self.complaints, self.requests, self.events = [], [], []
        context = {"browserContextId": self.tell("Target.createBrowserContext")["browserContextId"]}
        self.tell(
            "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads), **context
        )
        target = self.tell("Target.createTarget", url="about:blank", **context)["targetId"]
        attached = self.tell("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        try:
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.tell(f"{domain}.enable")
            self.tell("Performance.enable", timeDomain="threadTicks")
            yield self
        finally:
            self.session = None
            self.tell("Target.disposeBrowserContext", **context)

    def emulate(self, **features):
        """Pretend that the reader prefers something, or prints."""
        media = features.pop("media", "")
        wanted = [
            {"name": name.replace("_", "-"), "value": value} for name, value in features.items()
        ]
        self.tell("Emulation.setEmulatedMedia", media=media, features=wanted)


@contextmanager
def browsing(profile):
    """Start a Chromium, which opens tabs."""
    ours, theirs = os.pipe(), os.pipe()

    pipes = f"3<&{ours[0]} 4>&{theirs[1]}"  # where Chromium looks for them
    ran = subprocess.Popen(
        ["bash", "-c", f'exec "$0" "$@" {pipes}', CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(ours[0], theirs[1]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(ours[0])
    os.close(theirs[1])
    try:
        yield Page(ours[1], theirs[0])
    finally:
        ran.terminate()
        ran.wait(20)
        os.close(ours[1])
        os.close(theirs[0])
