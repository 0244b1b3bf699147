"""The miniature world as a laboratory: learn a subject, draw prompts with any of the methods, let the judge score. In this process, on the real host.

    lab = Lab()
    tuned = lab.learn("biscuit", steps=300, spl_weight=0.0)
    pictures = lab.draw(tuned, lab.prompts("biscuit", 8), Way(omega=0.6, alpha=0.2))
    scores = lab.score(pictures, "biscuit", prompts)

Pictures of one call share the noise of every other call with the same seed and prompts, so that methods are compared in pairs.
"""

from __future__ import annotations

import random
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
for place in (ROOT / "tests" / "support", ROOT / "dev" / "demo"):  # the real host under the tests; the world
    if str(place) not in sys.path:
        sys.path.append(str(place))

TOKEN = "<v1>"
SIDE = 64


@dataclass(frozen=True)
class Way:
    """One way to draw with a tuned model. The default is plain CFG.

    omega       of Personalization Guidance, 1 = CFG;  mode, scale: the guider's relatives (`guidance.modes`)
    alpha       TEA's rotation, beta and norm its length; level "prompt" (Conditioning SLERP) or "token" (Token SLERP); "auto" = chosen per prompt
    align       which rows of the two prompts meet there: "token" (each word its own) or "position"; "" where nothing turns
    """

    omega: float = 1.0
    cfg: float = 5.0
    mode: str = "personalization"
    scale: float = 1.0
    alpha: float | str = 0.0
    beta: float = 0.5
    norm: str = "midpoint"
    level: str = "prompt"
    align: str = ""


@dataclass
class Learned:
    """A tuned model and text encoder, the token, and what the training measured."""

    model: Any
    clip: Any
    class_word: str
    drift: float = 0.0
    history: list = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class Prompt:
    """What is asked for, and the sentence with the token and with the class word."""

    wish: dict[str, str]
    text: str
    class_text: str


class Lab:
    def __init__(self, checkpoint: Path | None = None, threads: int = 1, sampling_steps: int = 12):
        from kindred_testing import host, pack, start_host

        start_host()
        torch.set_num_threads(threads)
        from base import judge, loop, storage

        self._conditionings: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
        self.precision = "bf16" if loop.fast_in_half(torch.device("cpu")) else "fp32"  # of training and drawing
        if checkpoint is None:
            checkpoint = host.BASE / "models" / "checkpoints" / "miniature.safetensors"
            storage.expand(ROOT / "dev" / "demo" / "base" / "miniature.safetensors.xz", checkpoint)
        self.pack, self.sampling_steps = pack, sampling_steps
        self.model, self.clip, self.vae = pack("host.checkpoint").load_checkpoint(checkpoint.name, checkpoint.resolve().parent)
        _leave_out_identities(self.clip)
        for network in (self.model.model.diffusion_model, self.vae.first_stage_model):
            _channels_last(network)
        self.judge, self.sharpness = judge.Judge.load(judge.STORED), judge.sharpness

    # -- learn -------------------------------------------------------------------------------------------------------------

    def learn(self, subject: str, snapshots: Sequence[int] = (), initializer: str = "", **settings) -> dict[int, Learned]:
        """Trains on the subject's five photos; the states after each of ``snapshots`` steps and after the last, by step.

        ``settings`` are TrainSettings'; the resolution is the world's.
        """
        from world import subjects

        class_word = subjects.SUBJECTS[subject].class_word
        photos = torch.stack([_tensor(photo) for photo in subjects.photos(subject, SIDE)])
        concept = self.pack("training.data.concept").make_concept([photos], TOKEN, class_word, initializer=initializer or class_word)
        usual = {"resolution": SIDE, "augment": False, "precision": self.precision}
        rows = settings.pop("rows", None)
        chosen = self.pack("training.settings").TrainSettings(**{**usual, **settings})
        if rows is not None:  # also those that only an experiment may choose
            self.pack("formats.token_rows").reach(rows)
            object.__setattr__(chosen, "rows", rows)
        kept: dict[int, Learned] = {}

        def watch(run, done: int) -> None:
            if done in snapshots and done < chosen.steps:
                kept[done] = self._tuned(run.result(), class_word)

        with torch.inference_mode():
            result = self.pack("training.trainer").train(self.model, self.clip, self.vae, [concept], chosen, preview=watch)
            kept[chosen.steps] = self._tuned(result, class_word)
        return kept

    def _tuned(self, result, class_word: str) -> Learned:
        with torch.inference_mode():
            model, clip = self.pack("host.lora").apply_lora(self.model, self.clip, result.lora)
            clip = self.pack("host.text").carry_tokens(clip, result.tokens) if result.tokens else clip
        drift = result.history[-1].drift.get(TOKEN, 0.0) if result.history else 0.0
        return Learned(model, clip, class_word, drift, list(result.history))

    # -- draw --------------------------------------------------------------------------------------------------------------

    def prompts(self, subject: str, count: int, seed: int = 0) -> list[Prompt]:
        """Prompts that ask for something to wear and a place, every accessory and place about equally often. The photos show neither."""
        from world import scene, subjects

        class_word = subjects.SUBJECTS[subject].class_word
        pairs = [(a, p) for a in scene.ACCESSORIES for p in scene.PLACES if (a, p) != ("none", "plain")]
        random.Random(seed).shuffle(pairs)
        used: dict[str, int] = {}
        chosen = []
        for _ in range(count):
            pair = min(pairs, key=lambda one: (one in chosen, sum(used.get(word, 0) * (5 if word in scene.ACCESSORIES else 7) for word in one)))
            chosen.append(pair)
            for word in pair:
                used[word] = used.get(word, 0) + 1
        out = []
        for accessory, place in chosen:
            text = scene.caption(f"{TOKEN} {class_word}", None, accessory, place)
            wish = {"class": class_word, "accessory": accessory, "place": place}
            out.append(Prompt(wish, text, scene.caption(class_word, None, accessory, place)))
        return out

    @torch.inference_mode()
    def draw(self, tuned: Learned | None, prompts: Sequence[Prompt], way: Way | None = None, seed: int = 1) -> torch.Tensor:
        """Pictures [n, 3, 64, 64] in [0, 1], one a prompt, in one batch. ``tuned`` None: the base model draws the class prompts."""
        import comfy.sample
        import comfy.samplers

        way = way or Way()
        clip = tuned.clip if tuned else self.clip
        positive = self._encoded(clip, [p.text if tuned else p.class_text for p in prompts], way if tuned else Way())
        negative = self._encoded(self.clip, [""] * len(prompts), Way())
        model = tuned.model if tuned else self.model
        without = self._encoded(self.clip, [p.class_text for p in prompts], Way()) if "subject-agnostic" in way.mode else None
        if way.omega == 1.0 and way.mode == "personalization":
            guider = comfy.samplers.CFGGuider(model)
            guider.set_conds(positive, negative)
            guider.set_cfg(way.cfg)
        else:
            schedule = self.pack("guidance.schedule").Schedule(way.omega)
            guider = self.pack("guidance.guider").make_guider(model, self.model, positive, negative, way.cfg, schedule, way.mode, without, way.scale)
        latent = torch.zeros(len(prompts), 4, SIDE // 8, SIDE // 8)
        noise = comfy.sample.prepare_noise(latent, seed)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", self.sampling_steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            done = guider.sample(noise, latent, comfy.samplers.sampler_object("dpmpp_2m"), sigmas, seed=seed, disable_pbar=True)
        return self.vae.decode(done).movedim(-1, 1).float().clamp(0, 1)

    def _encoded(self, clip, texts: Sequence[str], way: Way) -> list:
        """The host's CONDITIONING of all texts as one batch, turned toward the class as ``way`` says."""
        if way.alpha and way.level == "token":
            clip = self.pack("embedding.carried").adjust_clip(clip, TOKEN, "", way.alpha, way.beta, way.norm)[0]
        rows = []
        for text in texts:
            encoded = self._known(clip, text)
            if way.alpha and way.level == "prompt":
                alpha = None if way.alpha == "auto" else way.alpha
                turned = self.pack("embedding.prompt").encode_concept(
                    clip, text, class_clip=self.clip, alpha=alpha, beta=way.beta, norm=way.norm, align=way.align
                )
                encoded = turned.conditioning
            rows.append(encoded[0][0])
        return [[torch.cat(rows), {}]]

    def _known(self, clip, text: str) -> list:
        """The host's CONDITIONING of one text; each text once for each CLIP, as the host's cache would have it."""
        known = self._conditionings.setdefault(clip, {})
        if text not in known:
            known[text] = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        return known[text]

    # -- score -------------------------------------------------------------------------------------------------------------

    def score(self, pictures: torch.Tensor, subject: str, prompts: Sequence[Prompt]) -> dict[str, list[float]]:
        """One value a picture: what of the prompt is there (class, accessory, place; their mean is prompt fidelity), likeness, sharpness."""
        from world import subjects

        right = self.judge.right(pictures, [p.wish for p in prompts])
        references = self.judge.identity(torch.stack([_tensor(photo).movedim(-1, 0) for photo in subjects.photos(subject, SIDE)]))
        likeness = (self.judge.identity(pictures) @ references.T).mean(1).tolist()
        edges = self.sharpness(pictures).tolist()
        return {
            **{name: [float(r[name]) for r in right] for name in ("class", "accessory", "place")},
            "prompt": [sum(r.values()) / len(r) for r in right],
            "subject": likeness,
            "sharpness": edges,
        }


@torch.no_grad()
def _channels_last(network: torch.nn.Module) -> None:
    """The layout in which a processor's convolutions take two thirds of the time; the same numbers."""
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):  # a new parameter: one that was loaded in inference mode cannot be given other memory
            layer.weight = torch.nn.Parameter(layer.weight.data.clone(memory_format=torch.channels_last), requires_grad=False)


def _leave_out_identities(clip) -> None:
    """Takes out the text encoder's layers that add nothing (ten of the miniature base's twelve): the same numbers at a fifth of the work."""
    layers = clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers
    idle = [i for i, layer in enumerate(layers) if not any(p.any() for part in (layer.self_attn.out_proj, layer.mlp.fc2) for p in part.parameters())]
    for i in reversed(idle):
        del layers[i]


def sheet(pictures: torch.Tensor, columns: int, scale: int = 2):
    """A plain contact sheet of pictures [n, 3, h, w], to look at."""
    from PIL import Image

    rows = [torch.cat(list(pictures[at : at + columns]), 2) for at in range(0, len(pictures), columns)]
    image = Image.fromarray((torch.cat(rows, 1) * 255).round().byte().movedim(0, -1).numpy())
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def _tensor(picture) -> torch.Tensor:
    """[h, w, 3] in [0, 1]."""
    import numpy as np

    return torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).float() / 255
