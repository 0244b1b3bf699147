"""Does a concept's token reach the conditioning through another pack's text encoder node, and does the CLIP survive it?"""

from __future__ import annotations

import torch
from beside_packs_frame import Graph, Rows, error_of, out

NAMES = ("beside-one", "beside-two")  # the same token, <v1>, with other vectors
TEXT, PLAIN = "a photo of a <v1> dog, (night:1.2)", "a photo of a dog, (night:1.2)"
SAME = 1e-5


def concepts(folder) -> None:
    """Two saved concepts, written by the pack itself."""
    if (folder / "embeddings" / f"{NAMES[1]}.safetensors").exists():
        return
    from kindred_testing import pack

    draw = torch.Generator().manual_seed(4)
    for name in NAMES:
        token = pack("formats.token").LearnedToken("<v1>", "dog", {"clip_l": torch.randn(2, 768, generator=draw) * 0.05})
        layer = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.diff"
        lora = {layer: torch.zeros(320, 768)}
        pack("formats.concept_file").save(lora, [token], name, folder / "loras" / "kindred", folder / "embeddings", dtype=torch.float32)


class TokenCase:
    """`encode(graph, clip, text)` is the other pack's way from a CLIP and a text to a CONDITIONING."""

    def __init__(self, name: str, encode, equal: bool = False):
        """`equal`: it should give what core's CLIPTextEncode gives."""
        self.name, self.encode, self.equal = name, encode, equal

    def make(self, files) -> None:
        files.model("tiny")
        concepts(files.folder)

    def run(self, bench) -> list[tuple[str, str]]:
        self.bench, rows = bench, Rows()
        core = lambda graph, clip, text: graph.add("CLIPTextEncode", clip=clip, text=text)  # noqa: E731
        for what, check in (
            ("<v1> changes the conditioning with its vector", lambda: self._reaches(TEXT)),
            ("<v1> in core's CLIPTextEncode, afterwards", lambda: self._afterwards(core)),
            (f"embedding:{NAMES[0]} on the concept's CLIP", lambda: self._reaches(TEXT.replace("<v1>", "embedding:{name}"))),
            ("a text without the token, against the plain CLIP", self._plain),
            ("against core's CLIPTextEncode", lambda: self._against(core) if self.equal else "not claimed"),
            ("Conditioning SLERP on its conditionings", self._slerp),
        ):
            try:
                rows.append((what, check()))
            except Exception as error:
                rows.append((what, "REFUSED " + " ".join(str(error).split())[:400]))
        return rows

    def _clip(self, graph: Graph, name: str, strength: float = 1.0):
        base = graph.add("CheckpointLoaderSimple", ckpt_name=self.bench.files.base("tiny"))
        return out(graph.add("KindredLoad", model=base, clip=out(base, 1), name=name, strength=strength), 1), out(base, 1)

    def _tensor(self, make) -> torch.Tensor:
        """The conditioning that `make(graph)` ends in."""
        graph = Graph()
        path = self.bench.server.base / "conditioning.pt"
        graph.add("CompareConditioning", conditioning=make(graph), path=str(path))
        path.unlink(missing_ok=True)
        self.bench.server.run(graph, timeout=300)
        tensors = torch.load(path)
        return torch.cat(tensors)

    def _of(self, encode, text: str, name: str, strength: float = 1.0) -> torch.Tensor:
        return self._tensor(lambda graph: encode(graph, self._clip(graph, name, strength)[0], text.replace("{name}", name)))

    def _reaches(self, text: str) -> str:
        one, two = (self._of(self.encode, text, name) for name in NAMES)
        if not (torch.isfinite(one).all() and torch.isfinite(two).all()):
            return "NOT COMPARED: NaN"
        difference = error_of(one, two)
        again = error_of(self._of(self.encode, text + " ", NAMES[0]), one)  # the second time, as after another prompt
        return f"{'reaches' if difference > 1e-3 else 'SILENT'} {difference:.2g}" + ("" if again < SAME else f", the second time {again:.2g} away")

    def _afterwards(self, core) -> str:
        fresh = self._of(core, TEXT, NAMES[0], strength=0.5)  # another object, which only core has used
        return same(error_of(self._of(core, TEXT, NAMES[0]), fresh))

    def _plain(self) -> str:
        carried = self._of(self.encode, PLAIN, NAMES[0])
        plain = self._tensor(lambda graph: self.encode(graph, self._clip(graph, NAMES[0])[1], PLAIN))
        if not torch.isfinite(plain).all():
            return "NOT COMPARED: their node gives NaN on the plain CLIP, too"
        return same(error_of(carried, plain))

    def _against(self, core) -> str:
        return same(error_of(self._of(self.encode, TEXT, NAMES[0]), self._of(core, TEXT, NAMES[0])))

    def _slerp(self) -> str:
        def make(graph):
            clip, plain = self._clip(graph, NAMES[0])
            subject, kind = self.encode(graph, clip, "a photo of <v1> dog"), self.encode(graph, plain, "a photo of a dog")
            return graph.add("KindredConditioningSLERP", conditioning=subject, class_conditioning=kind, alpha=0.3, beta=0.5, norm="midpoint", align="position")

        result = self._tensor(make)
        return f"works, {list(result.shape)}" if torch.isfinite(result).all() else "NOT FINITE"


def same(error: float) -> str:
    return f"{'equal' if error < SAME else 'DIFFERS'} {error:.2g}"


def node(name: str, **settings):
    return lambda graph, clip, text: graph.add(name, clip=clip, text=text, **settings)


def smz(parser: str):
    size = {"width": 512, "height": 512, "crop_w": 0, "crop_h": 0, "target_width": 512, "target_height": 512}
    flags = {"mean_normalization": True, "multi_conditioning": True, "use_old_emphasis_implementation": False, "with_SDXL": False, "ascore": 6.0}
    return node("smZ CLIPTextEncode", parser=parser, **size, **flags, text_g="", text_l="")


CORE = [TokenCase("core's CLIPTextEncode", node("CLIPTextEncode"), equal=True)]
SMZ = [
    TokenCase(f"CLIP Text Encode++, parser {parser}", smz(parser), equal=parser == "comfy")
    for parser in ("comfy", "comfy++", "A1111", "full", "compel", "fixed attention")
]
ADVANCED = [
    TokenCase(
        f"CLIP Text Encode (Advanced), {way}", node("BNK_CLIPTextEncodeAdvanced", token_normalization="none", weight_interpretation=way), equal=way == "comfy"
    )
    for way in ("comfy", "A1111", "compel", "comfy++", "down_weight")
]
PROMPT_CONTROL = [
    TokenCase("PC: Text Encode", node("PCLazyTextEncode"), equal=True),
    TokenCase("PC: STYLE(A1111)", lambda graph, clip, text: graph.add("PCLazyTextEncode", clip=clip, text="STYLE(A1111) " + text)),
]


def negpip(graph, clip, text):
    base = graph.add("CheckpointLoaderSimple", ckpt_name="tiny.safetensors")
    return graph.add("CLIPTextEncode", clip=out(graph.add("CLIPNegPip", model=base, clip=clip), 1), text=text)


PPM = [TokenCase("CLIP NegPip and core's CLIPTextEncode", negpip)]
