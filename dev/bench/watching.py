"""What watching a training costs it: events to a page, the curves kept for a later page, states on the disk.

    python dev/bench/watching.py [--steps 100] [--rounds 5]

The real server answers a real client, a process of its own that reads every event. The smallest model is the hardest case: its short steps tell as
much as long ones do. Reported is the share of a run, from its first step to its last, that goes into
    telling     the calls from the training's thread and all that the server's thread does meanwhile (it takes turns with the training)
    states      what a resumed run needs, written every 100 steps
and, for what no clock of ours sees, the processor time of whole runs that are watched against runs that are not, in alternation.
Needs COMFYUI_PATH (or the host that `kindred.py test` made).
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "support"))  # the small model and the real host under the tests
sys.path.append(str(ROOT / "dev" / "bench"))

import harness  # noqa: E402

CLIENT = """
import asyncio, collections, json, sys, aiohttp
async def main():
    seen = collections.Counter()
    async with aiohttp.ClientSession() as session, session.ws_connect(sys.argv[1]) as socket:
        print("ready", flush=True)
        async for message in socket:
            if message.type == aiohttp.WSMsgType.TEXT:
                kind = json.loads(message.data)["type"]
                seen[kind] += 1
                if kind == "bench.end":
                    break
    print(seen["kindred.training"], flush=True)
asyncio.run(main())
"""


class Watcher:
    """The host's server in a thread of this process, and a client in another process: `with Watcher() as watcher`."""

    def __enter__(self):
        from kindred_testing.server import demo_server
        from server import PromptServer  # pyright: ignore[reportAttributeAccessIssue]: the host's server, not the demo's

        self.server = PromptServer.instance
        self.loop = self.server.loop
        port = demo_server.free_port()
        self.server.add_routes()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self.server.start("127.0.0.1", port, verbose=False), self.loop).result(60)
        self.publishing = asyncio.run_coroutine_threadsafe(self.server.publish_loop(), self.loop)
        url = f"ws://127.0.0.1:{port}/ws?clientId=bench"
        self.client = subprocess.Popen([sys.executable, "-c", CLIENT, url], stdout=subprocess.PIPE, text=True)
        assert self.client.stdout is not None and self.client.stdout.readline() == "ready\n"
        return self

    def watch(self, on: bool) -> None:
        self.server.client_id = "bench" if on else None

    def seconds(self) -> float:
        """Processor time of the server's thread so far."""

        async def now():
            return time.thread_time()

        return asyncio.run_coroutine_threadsafe(now(), self.loop).result(60)

    def __exit__(self, *_):
        self.watch(False)
        self.server.send_sync("bench.end", {}, "bench")
        self.events = int(self.client.communicate(timeout=60)[0])
        self.publishing.cancel()
        self.loop.call_soon_threadsafe(self.loop.stop)


@dataclasses.dataclass
class Shares:
    """Of one run: seconds a step, and the shares of the time from the first step to the last."""

    step: float
    telling: float
    states: float
    processor: float  # seconds of processor time of all threads, from the first step to the last


def measured(pack, base, concept, settings, watcher: Watcher) -> Shares:
    trainer, kind = pack("training.trainer"), pack("training.run").Run
    spent, telling, marks, step = [], [], [], kind.step
    busy: list[float] = []

    def timed(self, index):
        start = time.perf_counter()
        try:
            return step(self, index)
        finally:
            spent.append(time.perf_counter() - start)

    with pack("host.progress").TrainingProgress("1", settings.steps, [concept.token], {"workflow": {"id": "bench"}}) as progress:

        def on_step(value):
            start = time.perf_counter()
            progress.step(value)
            marks.append(time.perf_counter())
            telling.append(marks[-1] - start)
            if len(marks) in (1, settings.steps):
                busy.append(watcher.seconds())
                busy.append(time.process_time())

        kind.step = timed
        try:
            with tempfile.TemporaryDirectory() as place, torch.inference_mode():
                # One state in all: as often as a run of any length pays for it.
                trainer.train(*base, [concept], settings, on_step, keeping=trainer.Keeping(Path(place), "bench", 100))
        finally:
            kind.step = step
    whole = marks[-1] - marks[0]
    told = sum(telling[1:])
    server = busy[2] - busy[0]
    return Shares(statistics.median(spent), (told + server) / whole, (whole - sum(spent[1:]) - told) / whole, busy[3] - busy[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    from kindred_testing import pack, start_host
    from kindred_testing.models import load, sd15_checkpoint

    start_host()
    torch.set_num_threads(1)
    base = load(sd15_checkpoint(dtype="float32"))
    photos = torch.rand(4, 256, 256, 3, generator=torch.Generator().manual_seed(0))
    concept = pack("training.data.concept").make_concept([photos], "<v1>", "dog")
    settings = pack("training.settings").TrainSettings(steps=arguments.steps, batch_size=1, resolution=64, augment=False)
    watched, alone = [], []
    with Watcher() as watcher:
        for index in range(arguments.rounds):
            for on in (True, False) if index % 2 else (False, True):
                watcher.watch(on)
                (watched if on else alone).append(measured(pack, base, concept, settings, watcher))

    def median(name: str) -> float:
        return statistics.median(getattr(run, name) for run in watched)

    ratios = [one.processor / other.processor for one, other in zip(watched, alone, strict=True)]
    print(f"a step: {median('step') * 1000:.0f} ms; {arguments.rounds} runs of {arguments.steps} steps watched, {watcher.events} events read by the client")
    print(f"telling {median('telling'):.2%} of the run, states {median('states'):.2%}")
    print(f"processor time, watched against not: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    print(harness.machine_line())


if __name__ == "__main__":
    main()
