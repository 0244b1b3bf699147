"""What a real server loses when it is killed, and what it keeps in memory when it is not.

    python dev/bench/kills.py kills [--count 100] [--seed 0] [--minutes 30]     kill -9 at random moments of encoding, training, writing a state, saving a concept
    python dev/bench/kills.py memory [--count 300] [--minutes 30]               so many different prompts in one server

A killed server is started again and the run continued. What was learned must have the bits of a run that nobody disturbed, and no
file in the making may be left. Needs COMFYUI_PATH (or the host that `kindred.py test` made).
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "support"))  # the small model and the real host under the tests

STEPS = 5
MOMENTS = ("encoding", "training", "writing a state", "saving")
QUICK = ("--disable-api-nodes", "--disable-metadata", "--cache-classic")


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def training(photos: str, name: str, steps: int = STEPS, seed: int = 5, **settings) -> dict:
    """Checkpoint and photos -> Train Concept (node 4) -> Save Concept (node 5)."""
    from kindred_testing.server import TestServer

    given = {
        "method": "kv + token",
        "spl_weight": 1.0,
        "prior_weight": 1.0,
        "steps": steps,
        "batch_size": 1,
        "learning_rate": 1e-3,
        "resolution": 64,
        "seed": seed,
    }
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name=TestServer.CHECKPOINT),
        "2": node("KindredPhotos", folder=photos),
        "3": node("KindredConcept", images=["2", 0], token="<v1>", class_word="dog"),
        "4": node(
            "KindredTrain",
            **{"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "concepts.concept_0": ["3", 0], **given, "run_name": name, "save_every": 1, **settings},
        ),
        "5": node("KindredSave", lora=["4", 2], tokens=["4", 3], name=name, overwrite=True, dtype="float32"),
    }


# -- kills -----------------------------------------------------------------------------------------------------------------


class Killer:
    """Ends the server with SIGKILL at a moment of its kind; what it has seen comes from the server's events and from the run's folder."""

    def __init__(self, server, run: Path, moment: str, chance: random.Random):
        self.server, self.run, self.moment, self.chance = server, run, moment, chance
        self.step = chance.randint(1, STEPS - 1)
        self.done = threading.Event()
        if moment == "writing a state":
            threading.Thread(target=self._watch, daemon=True).start()

    def event(self, kind: str, data: dict) -> None:
        if kind == "kindred.run" and "encoding" in data["note"] and self.moment == "encoding":
            self._kill(0.05)
        if kind == "kindred.training" and data["step"] >= self.step and self.moment == "training":
            self._kill(0.15)
        if kind == "executing" and data.get("node") == "5" and self.moment == "saving":
            self._kill(0.04)

    def _watch(self) -> None:
        """Until a file in the making is seen, of a step of chance."""
        while not self.done.is_set():
            states = sorted(self.run.glob("state-*"))
            reached = (states and int(states[-1].stem[-8:]) >= self.step - 1) or self.step == 1
            if reached and any(path.name.startswith(".") for path in self._names()):
                self._kill(0.004)
            time.sleep(0.0005)

    def _names(self) -> list[Path]:
        try:
            return list(self.run.iterdir())
        except OSError:
            return []

    def _kill(self, most: float) -> None:
        if not self.done.is_set():
            time.sleep(self.chance.random() * most)
            self.done.set()
            self.server.process.kill()


def learned(server, name: str) -> dict:
    from safetensors.torch import load_file

    models = server.base / "models"
    files = (models / "loras" / "kindred" / f"{name}.safetensors", models / "embeddings" / f"{name}.safetensors")
    return {f"{file.parent.name}/{key}": value for file in files for key, value in load_file(file).items()}


def kills(count: int, seed: int, base: Path, minutes: float) -> int:
    import torch
    from kindred_testing.server import PromptError, TestServer

    chance, seen, wrong = random.Random(seed), collections.Counter(), []
    server = TestServer(base, QUICK)
    photos = server.noise_photos("noise", count=8)
    server.start()
    done, end = 0, time.monotonic() + minutes * 60
    try:
        server.run(training(photos, "whole"))
        whole = learned(server, "whole")
        for index in range(count):
            if time.monotonic() > end:
                break
            moment, name = MOMENTS[index % len(MOMENTS)], f"run{seed}-{index}"
            run = server.base / "output" / "kindred" / "runs" / name
            killer = Killer(server, run, moment, chance)
            try:
                server.run(training(photos, name), killer.event)
                seen["the run was faster"] += 1
            except PromptError:
                raise
            except Exception:  # the connection is gone with the server
                if not killer.done.is_set():
                    raise
                seen[moment] += 1
            killer.done.set()
            server.stop()
            parts = sum(1 for path in server.base.rglob(".*.part") if path.stat().st_size)
            seen["left half a file"] += bool(parts)
            server.start()
            said = ""

            def note(kind: str, data: dict) -> None:
                nonlocal said
                said = data["note"] if kind == "kindred.run" and data["note"] else said

            try:
                server.run(training(photos, name, resume="continue"), note)
                seen["result taken whole" if "finished before" in said else "went on after a state"] += 1
            except PromptError as error:
                if "no interrupted training" not in str(error):
                    raise
                seen["no state yet: began again"] += 1
                server.run(training(photos, name))
            again = learned(server, name)
            same = again.keys() == whole.keys() and all(torch.equal(again[key], whole[key]) for key in whole)
            left = [str(path.relative_to(server.base)) for path in server.base.rglob(".*") if path.suffix == ".part" or path.name.startswith(".tmp")]
            if not same or left:
                wrong.append((name, moment, same, left))
            print(f"{index + 1}/{count} {moment}: {'same bits' if same else 'OTHER BITS'}{f', left {left}' if left else ''}   {said[:90]}", flush=True)
            done += 1
    finally:
        server.stop()
    print(dict(seen))
    print(f"{done - len(wrong)} of {done} ended with the bits of the undisturbed run and left no file in the making {wrong or ''}")
    return 1 if wrong else 0


# -- memory ----------------------------------------------------------------------------------------------------------------


def mixed(index: int, photos: str) -> dict:
    """One of five kinds of prompt, never twice the same."""
    from kindred_testing.server import TestServer

    base = {"1": node("CheckpointLoaderSimple", ckpt_name=TestServer.CHECKPOINT)}
    sampling = {"seed": index, "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    empty = {"20": node("EmptyLatentImage", width=64, height=64, batch_size=1), "21": node("CLIPTextEncode", clip=["1", 1], text="")}

    def picture(latent: list) -> dict:
        return {"30": node("VAEDecode", samples=latent, vae=["1", 2]), "31": node("PreviewImage", images=["30", 0])}

    kind = index % 5
    if kind == 0:
        return training(photos, f"memory-{index % 10}", steps=2, seed=index)
    if kind == 1:
        return training(photos, "other", steps=2, seed=index, save_every=0, method="lora + token", **{"method.rank": 2, "method.targets": "attention"})
    loaded = {**base, "2": node("KindredLoad", model=["1", 0], clip=["1", 1], name="memory-0", strength=1.0)}
    if kind == 2:
        drawn = node("CLIPTextEncode", clip=["2", 1], text=f"a photo of a <v1> dog {index}")
        sampled = node("KSampler", model=["2", 0], positive=["3", 0], negative=["21", 0], latent_image=["20", 0], **sampling)
    elif kind == 3:
        drawn = node("CLIPTextEncode", clip=["2", 1], text=f"a photo of a <v1> dog {index}")
        wires = {"positive": ["3", 0], "negative": ["21", 0], "latent_image": ["20", 0]}
        sampled = node("KindredKSampler", model=["2", 0], base_model=["1", 0], omega=0.4, **wires, **sampling)
    else:
        drawn = node("KindredTextEncode", clip=["2", 1], text=f"a photo of a <v1> dog {index}", alpha=0.2, beta=0.5)
        sampled = node("KSampler", model=["1", 0], positive=["3", 0], negative=["21", 0], latent_image=["20", 0], **sampling)
    return {**loaded, **empty, "3": drawn, "4": sampled, **picture(["4", 0])}


def memory(count: int, base: Path, minutes: float) -> int:
    import psutil
    from kindred_testing.server import TestServer

    resident = []
    with TestServer(base, QUICK) as server:
        photos = server.noise_photos("noise")
        process = psutil.Process(server.process.pid)
        end = time.monotonic() + minutes * 60
        for index in range(count):
            if time.monotonic() > end:
                break
            server.wait(server.submit(mixed(index, photos)))
            resident.append(process.memory_info().rss / 2**20)
            if (index + 1) % 25 == 0:
                print(f"{index + 1:4d} prompts: {resident[-1]:.0f} MB resident (mean of the last 25: {sum(resident[-25:]) / 25:.0f})", flush=True)
    after = resident[50:]
    tenth = max(1, len(after) // 10)
    first, last = (sum(part) / tenth for part in (after[:tenth], after[-tenth:]))
    print(
        f"after the first 50: {min(after):.0f} to {max(after):.0f} MB; first tenth {first:.1f}, last tenth {last:.1f}: {last - first:+.1f} MB over {len(after)} prompts"
    )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("kills", "memory"))
    parser.add_argument("--count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=600, help="begin nothing after this time; what was done is reported")
    arguments = parser.parse_args()
    from kindred_testing import start_host

    start_host()
    with tempfile.TemporaryDirectory() as place:
        base = Path(place) / "server"
        limit = arguments.minutes
        return kills(arguments.count or 100, arguments.seed, base, limit) if arguments.what == "kills" else memory(arguments.count or 300, base, limit)


if __name__ == "__main__":
    sys.exit(main())
