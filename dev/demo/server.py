"""A ComfyUI server as a process of its own, driven through its public API: HTTP to queue, the websocket to follow.

Knows the server's protocol and nothing of the pack; the demo and the tests stand on it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

Event = Callable[[str, dict], None]


class PromptError(RuntimeError):
    """A node failed, or the server refused the prompt. `node_id` and `kind` (the exception's name) say where and what."""

    def __init__(self, message: str, node_id: str = "", kind: str = ""):
        super().__init__(message)
        self.node_id, self.kind = node_id, kind


class Interrupted(PromptError):
    """The prompt was stopped by the host's interrupt."""


@dataclass
class Result:
    """What one prompt gave: `images` and `ui` by node id, and the ids of the nodes that really ran (not from the cache)."""

    prompt_id: str
    images: dict[str, list[bytes]] = field(default_factory=dict)
    ui: dict[str, dict] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ComfyServer:
    """`with ComfyServer(comfyui, base) as server:` starts the server in `base` and ends it, whatever happens inside."""

    def __init__(
        self,
        comfyui: Path,
        base: Path,
        arguments: tuple[str, ...] = (),
        log: Path | None = None,
        port: int | None = None,
        environment: dict[str, str] | None = None,
    ):
        self.comfyui, self.base, self.arguments = Path(comfyui), Path(base), arguments
        self.log = log or self.base / "server.log"
        self.port = port or free_port()
        self.environment = environment or {}  # of the server, where ours has no such variable
        self.process: subprocess.Popen | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self, timeout: float = 600.0) -> None:
        """Start the server and wait until it answers. RuntimeError with the log's end when it does not."""
        self.base.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-u",
            str(self.comfyui / "main.py"),
            "--listen",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--base-directory",
            str(self.base),
            "--database-url",
            f"sqlite:///{self.base / 'comfyui.db'}",
            "--disable-api-nodes",
            *self.arguments,
        ]
        # Passive: threads that wait for work sleep. On a busy machine the default, spinning, makes a step take ten times as long.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **self.environment, **os.environ, "PYTHONIOENCODING": "utf-8"}
        with self.log.open("wb") as log:
            # A group of its own: Ctrl-C reaches only us, and we end the server in order.
            self.process = subprocess.Popen(
                command, cwd=self.comfyui, env=environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=os.name == "posix"
            )
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended while starting (exit code {self.process.returncode}). The end of {self.log}:\n{self.log_tail()}")
            try:
                self.get("/system_stats", timeout=5)
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"ComfyUI did not answer within {timeout:.0f} s. The end of {self.log}:\n{self.log_tail()}")

    def stop(self) -> None:
        """End the server: politely, then not. Nothing of it runs afterwards."""
        process, self.process = self.process, None
        if process is None or process.poll() is not None:
            return
        for stop in (lambda: process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM), process.terminate, process.kill):
            stop()
            try:
                process.wait(timeout=8)
                return
            except subprocess.TimeoutExpired:
                continue

    def log_tail(self, lines: int = 25) -> str:
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])

    # -- HTTP ------------------------------------------------------------------------------------------------------

    def get(self, path: str, timeout: float = 60, **query):
        """The JSON (or the bytes, where it is none) at `path`."""
        url = self.address + path + ("?" + urllib.parse.urlencode(query) if query else "")
        return self._open(urllib.request.Request(url), timeout)

    def post(self, path: str, body: dict, timeout: float = 60):
        request = urllib.request.Request(self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return self._open(request, timeout)

    def _open(self, request, timeout):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy must not stand between us and 127.0.0.1
        with opener.open(request, timeout=timeout) as answer:
            data = answer.read()
            return json.loads(data) if answer.headers.get_content_type() == "application/json" and data else data

    def submit(self, prompt: dict, client_id: str = "", workflow: dict | None = None) -> str:
        """Queue a prompt in API form and return its id. PromptError with the server's words when it is refused."""
        body = {"prompt": prompt, "client_id": client_id or uuid.uuid4().hex}
        if workflow is not None:
            body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        try:
            return self.post("/prompt", body)["prompt_id"]
        except urllib.error.HTTPError as error:
            raise PromptError(_refusal(json.loads(error.read() or b"{}"))) from None

    def interrupt(self, prompt_id: str | None = None) -> None:
        self.post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    # -- one prompt from the queue to its pictures -----------------------------------------------------------------

    def run(self, prompt: dict, on_event: Event | None = None, workflow: dict | None = None, timeout: float = 3600) -> Result:
        """Queue `prompt`, follow it on the websocket (`on_event(type, data)` sees each message) and collect what it made."""
        return asyncio.run(asyncio.wait_for(self._run(prompt, on_event, workflow), timeout))

    async def _run(self, prompt, on_event, workflow) -> Result:
        client_id = uuid.uuid4().hex
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{self.address}/ws?clientId={client_id}", max_msg_size=0) as socket_:
            result = Result(await asyncio.to_thread(self.submit, prompt, client_id, workflow))
            async for message in socket_:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data)
                kind, data = event.get("type", ""), event.get("data") or {}
                if data.get("prompt_id") not in (None, result.prompt_id):
                    continue
                if on_event:
                    on_event(kind, data)
                if kind == "executing" and data.get("node"):
                    result.executed.append(data["node"])
                elif kind == "execution_error":
                    raise PromptError(data["exception_message"].strip(), data.get("node_id", ""), data.get("exception_type", ""))
                elif kind == "execution_interrupted":
                    raise Interrupted("The run was interrupted.", data.get("node_id", ""))
                elif kind == "execution_success":
                    return await asyncio.to_thread(self.wait, result)
            raise RuntimeError(f"ComfyUI closed the connection. The end of {self.log}:\n{self.log_tail()}")

    def wait(self, prompt: str | Result, timeout: float = 3600) -> Result:
        """Wait until the server has written down what became of a prompt (an id from `submit`), and collect what it made."""
        result = prompt if isinstance(prompt, Result) else Result(prompt)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{result.prompt_id}").get(result.prompt_id)
            if entry:
                for kind, data in entry["status"]["messages"]:
                    if kind == "execution_error":
                        raise PromptError(data["exception_message"].strip(), data.get("node_id", ""), data.get("exception_type", ""))
                    if kind == "execution_interrupted":
                        raise Interrupted("The run was interrupted.", data.get("node_id", ""))
                return self._collect(result, entry["outputs"])
            time.sleep(0.1)
        raise TimeoutError(f"Prompt {result.prompt_id} did not end within {timeout:.0f} s.")

    def _collect(self, result: Result, outputs: dict) -> Result:
        for node_id, output in outputs.items():
            result.ui[node_id] = output
            result.images[node_id] = [
                self.get("/view", filename=image["filename"], subfolder=image["subfolder"], type=image["type"]) for image in output.get("images", [])
            ]
        return result


def _refusal(answer: dict) -> str:
    lines = [answer.get("error", {}).get("message", "The server refused the prompt.")]
    for node_id, node in answer.get("node_errors", {}).items():
        lines += [f"node {node_id} ({node.get('class_type')}): {error['message']}: {error['details']}" for error in node.get("errors", [])]
    return "\n".join(lines)
