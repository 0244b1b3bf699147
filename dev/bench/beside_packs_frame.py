"""The frame of `beside_packs.py`: graphs, cases, and what draws them in the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from beside_packs_files import OMEGA, STRENGTH, Files
from safetensors.torch import load_file

EXACT = 2e-5
SEED, STEPS, CFG = 7, 2, 7.5


class Graph(dict):
    """A prompt in API form. `add` gives the new node's first output; `out(node, 1)` another one."""

    def add(self, class_type: str, **inputs):
        name = str(len(self) + 1)
        self[name] = {"class_type": class_type, "inputs": inputs}
        return [name, 0]


def out(link, index: int):
    return [link[0], index]


@dataclass
class Scene:
    """What a case may use and change before the pack's node is put in."""

    graph: Graph
    files: Files
    tuning: str
    positive: list
    negative: list
    latent: list
    clip: list
    loaded: list  # the checkpoint, before anything else
    node: str = "KSampler"
    sampler: dict = field(default_factory=lambda: {"sampler_name": "euler", "scheduler": "normal"})

    @property
    def vae(self) -> list:
        return out(self.loaded, 2)

    def text(self, text: str, clip=None) -> list:
        return self.graph.add("CLIPTextEncode", clip=clip or self.clip, text=text)

    def half(self, left: bool = True, share: float = 0.5) -> list:
        """A mask of the left or right part of the picture."""
        width = int(128 * share)
        whole = self.graph.add("SolidMask", value=0.0, width=128, height=128)
        part = self.graph.add("SolidMask", value=1.0, width=width, height=128)
        return self.graph.add("MaskComposite", destination=whole, source=part, x=0 if left else 128 - width, y=0, operation="add")


@dataclass
class Case:
    """One way to use a pack. `apply(scene, model)` gives the model after the pack's node; `prepare(scene)` changes conditionings or latent before."""

    name: str
    apply: Callable | None = None
    prepare: Callable | None = None
    tunings: tuple[str, ...] = ("lora", "kv")
    batches: tuple[int, ...] = (2,)
    size: int = 64
    base: str = "tiny"
    dual: bool = False  # compare with core's DualModelGuider on two loaded checkpoints, too
    orders: tuple[str, ...] = ("pack first", "guidance first")
    fresh: bool = False  # all models unloaded before each run: for nodes that compute with the weights that the model has at that moment
    load: Callable | None = None  # (graph, files, tuning) -> (tuned, base) where the pack has loaders of its own; tuning "": the base twice
    note: str = ""

    def make(self, files: Files) -> None:
        """The files that it needs."""
        files.adapters(self.base, self.tunings)


class Bench:
    def __init__(self, server, files: Files):
        self.server, self.files, self.kept = server, files, {}

    def scene(self, case: Case, tuning: str, batch: int, checkpoint: str = "", truth: bool = False) -> tuple[Scene, list, list]:
        """(scene, tuned model, base model)."""
        graph = Graph()
        loaded = graph.add("CheckpointLoaderSimple", ckpt_name=checkpoint or self.files.base(case.base))
        if case.load and not checkpoint and not truth:
            tuned, base = case.load(graph, self.files, tuning)
        elif checkpoint:
            tuned = base = loaded
        elif tuning == "full":  # a whole fine-tune: two loaded checkpoints
            tuned, base = graph.add("CheckpointLoaderSimple", ckpt_name=self.files.tuned(case.base, tuning)), loaded
        else:
            tuned, base = graph.add("LoraLoaderModelOnly", model=loaded, lora_name=self.files.adapter(case.base, tuning), strength_model=STRENGTH), loaded
        clip = out(loaded, 1)
        latent = graph.add("EmptyLatentImage", width=case.size, height=case.size, batch_size=batch)
        scene = Scene(graph, self.files, tuning, [], [], latent, clip, loaded)
        scene.positive, scene.negative = scene.text("a photo of a dog in a garden"), scene.text("blurry")
        if case.prepare:
            case.prepare(scene)
        return scene, tuned, base

    def draw(self, scene: Scene, model) -> torch.Tensor:
        inputs = {"seed": SEED, "steps": STEPS, "cfg": CFG, "denoise": 1.0, **scene.sampler}
        conditions = {"positive": scene.positive, "negative": scene.negative, "latent_image": scene.latent}
        return self.latent(scene.graph, scene.graph.add(scene.node, model=model, **conditions, **inputs))

    def latent(self, graph: Graph, samples) -> torch.Tensor:
        saved = graph.add("SaveLatent", samples=samples, filename_prefix="beside/latent")
        result = self.server.run(graph, timeout=900)
        entry = result.ui[saved[0]]["latents"][0]
        path = self.server.base / "output" / entry["subfolder"] / entry["filename"]
        tensor = load_file(path)["latent_tensor"]
        path.unlink()
        return tensor

    def way(self, case: Case, tuning: str, batch: int, order: str) -> torch.Tensor:
        if case.fresh:
            self.forget()
        return self._way(case, tuning, batch, order)

    def forget(self) -> None:
        """Unload all models and empty the executor's cache; a small prompt goes first, because one may be taken before the host frees."""
        self.server.post("/free", {"free_memory": True, "unload_models": True})
        graph = Graph()
        graph.add("PreviewImage", images=graph.add("EmptyImage", width=8, height=8, batch_size=1, color=0))
        self.server.run(graph)

    def _way(self, case: Case, tuning: str, batch: int, order: str) -> torch.Tensor:
        """The final latent of one order: brute force, plain, pack first, guidance first, both, or the KSampler of ours."""
        scene, tuned, base = self.scene(case, tuning, batch, truth=order == "brute force")
        change = case.apply
        apply = (lambda model: change(scene, model)) if change else (lambda model: model)
        add = scene.graph.add
        if order == "brute force":
            return self.draw(scene, add("TwoWeights", model=apply(tuned), weak_checkpoint=self.files.weak_path(case.base, tuning), negative=scene.negative))
        if order == "plain":
            return self.draw(scene, apply(tuned))
        if order == "pack first":
            return self.draw(scene, add("KindredPersonalizationGuidance", model=apply(tuned), base_model=base, omega=OMEGA))
        if order == "both through the pack":
            return self.draw(scene, add("KindredPersonalizationGuidance", model=apply(tuned), base_model=apply(base), omega=OMEGA))
        if order == "guidance first":
            return self.draw(scene, apply(add("KindredPersonalizationGuidance", model=tuned, base_model=base, omega=OMEGA)))
        raise ValueError(order)

    def dual(self, case: Case, tuning: str, batch: int) -> torch.Tensor:
        """Core's DualModelGuider on two separately loaded checkpoints with explicit weights, each through the pack's node."""
        scene, strong, _ = self.scene(case, tuning, batch, self.files.tuned(case.base, tuning))
        add = scene.graph.add
        weak = add("CheckpointLoaderSimple", ckpt_name=self.files.weak(case.base, tuning))
        strong, weak = (case.apply(scene, model) if case.apply else model for model in (strong, weak))
        guider = add("DualModelGuider", model=strong, positive=scene.positive, cfg=CFG, model_negative=weak, negative=scene.negative)
        sampler = add("KSamplerSelect", sampler_name=scene.sampler["sampler_name"])
        sigmas = add("BasicScheduler", model=strong, scheduler=scene.sampler["scheduler"], steps=STEPS, denoise=1.0)
        noise = add("RandomNoise", noise_seed=SEED)
        return self.latent(scene.graph, add("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=scene.latent))

    def run(self, case: Case) -> list[tuple[str, str]]:
        """(what, result) of each tuning, batch and order."""
        rows = Rows()
        for tuning in case.tunings:
            for batch in case.batches:
                key = f"{tuning}, batch {batch}"
                try:
                    truth = self.way(case, tuning, batch, "brute force")
                    if batch == case.batches[0]:
                        plain = self.way(case, tuning, batch, "plain")
                except Exception as error:
                    rows.append((f"{key}: brute force", "NOT COMPARED " + " ".join(str(error).split())[:300]))
                    continue
                if batch == case.batches[0]:
                    rows.append((f"{key}: plain CFG differs by", f"{error_of(plain, truth):.2g}"))
                if case.dual:
                    rows.append((f"{key}: DualModelGuider", attempt(lambda: self.dual(case, tuning, batch), truth)))  # noqa: B023
                for order in case.orders if case.apply else case.orders[:1]:
                    rows.append((f"{key}: {order}", attempt(lambda: self.way(case, tuning, batch, order), truth)))  # noqa: B023
        return rows


class Rows(list):
    def append(self, row) -> None:
        print("   ", *row, flush=True)
        super().append(row)


def attempt(draw, truth) -> str:
    try:
        error = error_of(draw(), truth)
    except Exception as problem:
        return "REFUSED " + " ".join(str(problem).split())[:400]
    return f"{'exact' if error <= EXACT else 'WRONG'} {error:.2g}"


def error_of(one: torch.Tensor, truth: torch.Tensor) -> float:
    return float((one - truth).norm() / truth.norm()) if one.shape == truth.shape else float("nan")
