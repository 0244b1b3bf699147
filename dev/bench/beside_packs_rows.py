"""A concept that acts on its token's rows, beside another pack: does the class prompt stay the base model's, and does the token's prompt get what masked
projections give?

Each case of a pack is run with its texts rewritten: every "dog" becomes "<v1> dog", every "cat" "<v2> cat". The brute force is `MaskedRows` of
`two_weights.py`: forward hooks on cross-attention's K and V of the base model, which change the rows whose features are the token's.
"""

from __future__ import annotations

import json
import re
from functools import partial

import torch
from beside_packs_files import make_adapter
from beside_packs_frame import Case, Graph, Rows, Scene, attempt, error_of, out
from safetensors.torch import load_file

CONCEPTS = {"<v1>": ("beside-rows-1", "dog"), "<v2>": ("beside-rows-2", "cat")}
TEXT = "a photo of a dog in a garden"


def concepts(files, base: str) -> None:
    """The two saved concepts for the base model `base`, written by the pack itself."""
    from kindred_testing import pack

    rows, manifest, token_of = pack("formats.token_rows"), pack("formats.manifest"), pack("formats.token").LearnedToken
    state = load_file(files.folder / "checkpoints" / files.base(base))
    lora, _ = make_adapter(state, "kv")
    for seed, (token, (name, word)) in enumerate(CONCEPTS.items()):
        vectors = {"clip_l": torch.randn(2, 768, generator=torch.Generator().manual_seed(seed)) * 0.05}
        digests = manifest.digests(vectors)
        own = {key: value.flip(0) if seed else value for key, value in lora.items()}
        about = {rows.KEY: "token", rows.TOKENS: json.dumps(digests), "modelspec.trigger_phrase": token}
        learned = token_of(token, word, vectors, {rows.KEY: "token", rows.VECTORS: json.dumps(dict(zip(vectors, digests, strict=True)))})
        made = pack("formats.concept_file").LearnedLora(own, about)
        folders = files.folder / "loras" / "kindred", files.folder / "embeddings"
        pack("formats.concept_file").save(made, [learned], f"{base}-{name}", *folders, dtype=torch.float32, overwrite=True)


class Naming(Graph):
    """Rewrites the texts of what is added, and remembers them."""

    def __init__(self, naming: bool):
        super().__init__()
        self.naming, self.texts = naming, []

    def add(self, class_type: str, **inputs):
        for name, value in inputs.items():
            if class_type != "MaskedRows" and isinstance(value, str) and ("dog" in value or "cat" in value):
                if self.naming:
                    inputs[name] = value.replace("dog", "<v1> dog").replace("cat", "<v2> cat")
                self.texts += {re.sub(r"\[(.*?):(.*?):[\d.]+\]", part, inputs[name]) for part in (r"\1", r"\2")}  # a prompt that changes over the steps
        return super().add(class_type, **inputs)


class RowsCase:
    """`case` of the pack with two saved concepts in place of guidance."""

    def __init__(self, case: Case):
        self.case, self.name = case, f"token rows: {case.name}"

    def make(self, files) -> None:
        files.model(self.case.base)
        concepts(files, self.case.base)

    def run(self, bench) -> list[tuple[str, str]]:
        rows = Rows()
        for batch in self.case.batches:
            try:
                base, truth = self._draw(bench, batch, naming=True, concept=""), self._draw(bench, batch, naming=True, concept="masked")
            except Exception as error:
                rows.append((f"batch {batch}: brute force", "NOT COMPARED " + " ".join(str(error).split())[:300]))
                continue
            rows.append((f"batch {batch}: without the concept differs by", f"{error_of(base, truth):.2g}"))
            for order in ("concept first", "pack first") if self.case.apply else ("concept first",):
                truly = attempt(partial(self._draw, bench, batch, naming=True, concept=order), truth)
                rows.append((f"batch {batch}, {order}: against masked projections", truly))
                rows.append((f"batch {batch}, {order}: class prompt", self._class_prompt(bench, batch, order)))
        return rows

    def _class_prompt(self, bench, batch: int, order: str) -> str:
        plain = self._draw(bench, batch, naming=False, concept="")
        try:
            ours = self._draw(bench, batch, naming=False, concept=order)
        except Exception as error:
            return "REFUSED " + " ".join(str(error).split())[:400]
        return "the base model's, bit for bit" if torch.equal(ours, plain) else f"CHANGED by {error_of(ours, plain):.2g}"

    def _draw(self, bench, batch: int, naming: bool, concept: str) -> torch.Tensor:
        """concept: "" = the base model, with the concepts' CLIP; "masked" = the brute force; else where Load Concept stands."""
        if self.case.fresh:
            bench.forget()
        graph, case = Naming(naming), self.case
        loaded = graph.add("CheckpointLoaderSimple", ckpt_name=bench.files.base(case.base))
        model, clip = loaded, out(loaded, 1)
        if case.load:
            model, _ = case.load(graph, bench.files, "")
        plain, untouched = model, clip
        for name, _ in CONCEPTS.values():
            both = graph.add("KindredLoad", model=model, clip=clip, name=f"{case.base}-{name}", strength=1.0)
            model, clip = both, out(both, 1)
        latent = graph.add("EmptyLatentImage", width=case.size, height=case.size, batch_size=batch)
        scene = Scene(graph, bench.files, "rows", [], [], latent, clip if naming else untouched, loaded)
        scene.positive, scene.negative = scene.text(TEXT), scene.text("blurry")
        if case.prepare:
            case.prepare(scene)
        change = case.apply
        apply = (lambda model: change(scene, model)) if change else (lambda model: model)
        if concept == "concept first":
            return bench.draw(scene, apply(model))
        model = apply(plain)
        if concept == "masked":
            for token, (name, _) in CONCEPTS.items():
                files = {"lora": f"{case.base}-{name}", "token": token, "texts": "\n".join(graph.texts)}
                model = graph.add("MaskedRows", model=model, clip=clip, **files)
        elif concept == "pack first":
            for name, _ in CONCEPTS.values():
                model = graph.add("KindredLoad", model=model, clip=untouched, name=f"{case.base}-{name}", strength=1.0)
        return bench.draw(scene, model)
