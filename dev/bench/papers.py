"""The papers' own protocol on a real model: photos, prompts and scorers by path, our numbers beside the papers'. Started by `dev/bench/evidence.py --checkpoint`.

    python dev/bench/evidence.py --work FOLDER --checkpoint v1-5-pruned-emaonly.safetensors --photos dreambooth --prompts-file dreambooth/prompts_and_classes.txt
                             --clip FOLDER --dino FOLDER [--blip2 FOLDER] [--seeds 1]

--photos holds one folder of photos a subject. --prompts-file is DreamBooth's file with its classes and two lists, or a text file of prompts, one a line,
that say `{}` where the subject stands (ViCo's lists are printed in Steering Guidance, table 14); classes then come from lines `subject,class` in it. The
scorers are folders in transformers' layout; nothing is downloaded. 500 steps at 512 pixels need a GPU. Pictures stay in --work, and what is there is not
drawn again. Run so far with the miniature base and toy scorers (`--side 64 --steps 3 --sampling-steps 4`, 2026-11-27): real weights are not at hand where this is built.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
LIVING = {"cat", "dog"}  # DreamBooth's live subjects
SIDE, SAMPLING = 512, {"steps": 50, "cfg": 7.5, "sampler_name": "ddim", "scheduler": "ddim_uniform"}
TRAININGS = {  # Steering Guidance, appendix: DreamBooth-LoRA of rank 4 at 1e-4, batch 1; ClassDiffusion as its code has it
    "DB-LoRA": {"method": "lora", "rank": 4, "learning_rate": 1e-4, "batch_size": 1, "spl_weight": 0.0, "augment": False},
    "ClassDiffusion": {"method": "kv + token"},
}
WAYS = {"CFG": (1.0, 0.0), "PG, omega 0.6": (0.6, 0.0), "PG, omega 0": (0.0, 0.0), "CFG + TEA": (1.0, 0.2), "PG 0.6 + TEA": (0.6, 0.2)}  # (omega, alpha)
PUBLISHED = {  # SD 1.5 on ViCo's 16 concepts x 31 prompts (Steering Guidance, tables 1 and 2)
    ("DB-LoRA", "CFG"): {"DINO": 0.4701, "CLIP-I": 0.7349, "CLIP-T": 0.3345},
    ("DB-LoRA", "PG, omega 0.6"): {"DINO": 0.5024, "CLIP-I": 0.7510, "CLIP-T": 0.3288},
    ("DB-LoRA", "PG, omega 0"): {"DINO": 0.4985, "CLIP-I": 0.7516, "CLIP-T": 0.3260},
    ("ClassDiffusion", "CFG"): {"DINO": 0.5287, "CLIP-I": 0.7517, "CLIP-T": 0.3305},
    ("ClassDiffusion", "PG, omega 0"): {"DINO": 0.5700, "CLIP-I": 0.7656, "CLIP-T": 0.3297},
}


@dataclass(frozen=True)
class Subject:
    name: str
    class_word: str
    photos: Path
    prompts: tuple[str, ...]  # with {} for the subject


def subjects(photos: Path, file: Path) -> list[Subject]:
    """The folders of `photos` with their classes and prompts. ValueError for a subject without a class."""
    text = file.read_text("utf-8")
    classes = dict(re.findall(r"^([\w-]+),([\w ]+)$", text, re.MULTILINE))
    lists = [tuple(prompt.replace("{0} {1}", "{}") for prompt in re.findall(r"'([^']*\{0\} \{1\}[^']*)'", part)) for part in text.split("prompt_list")[1:]]
    plain = tuple(line.strip() for line in text.splitlines() if "{}" in line)
    found = []
    for folder in sorted(path for path in photos.iterdir() if path.is_dir()):
        if folder.name not in classes:
            raise ValueError(f"{file.name} names no class for the subject {folder.name!r}. Add a line '{folder.name},dog' with its kind.")
        word = classes[folder.name]
        prompts = plain or (lists[-1] if word in LIVING else lists[0] if lists else ())
        if not prompts:
            raise ValueError(f"{file.name} has no prompts: neither DreamBooth's lists nor lines with {{}}.")
        found.append(Subject(folder.name, word, folder, prompts))
    return found


def main(options) -> None:
    pack = _pack(options)
    chosen = subjects(options.photos.resolve(), options.prompts_file.resolve())
    models = pack("host.checkpoint").load_checkpoint(options.checkpoint.name, options.checkpoint.resolve().parent)
    named = {name: getattr(options, name) for name in ("clip", "dino", "blip2") if getattr(options, name)}
    scorers = pack("evaluation.scorers").load(named, pack("host.scoring").device())
    if not scorers:
        raise SystemExit("evidence: no scorer is given; name CLIP's and DINO's folders with --clip and --dino.")
    scores: dict[tuple[str, str], dict[str, list]] = {}  # one value a picture, and the subject's name under "subject"
    for training in TRAININGS:
        for subject in chosen:
            references = pack("evaluation.scores").together([_photo(pack, path) for path in pack("training.data.photos").photo_files(subject.photos)], "photos")
            for way, (pictures, prompts) in drawn(pack, models, options, training, subject).items():
                report = pack("evaluation.metrics").evaluate(pictures, references, prompts, scorers)
                into = scores.setdefault((training, way), {})
                for name, values in report.scores.items():
                    into.setdefault(name, []).extend(values)
                into.setdefault("subject", []).extend([subject.name] * len(prompts))
            print(f"  {training}, {subject.name}", flush=True)
    table = _table(pack, scores)
    (options.work / "papers.md").write_text(table, "utf-8")
    print(table)


def drawn(pack, models, options, training: str, subject: Subject) -> dict[str, tuple[torch.Tensor, list[str]]]:
    """Way -> (pictures, class prompts): read where they lie in the work folder, else the concept is trained and they are drawn."""
    token = "sks" if TRAININGS[training]["method"] == "lora" else "<v1>"
    jobs = [(i, seed, template) for seed in range(options.seeds) for i, template in enumerate(subject.prompts)]
    place = options.work / training / subject.name
    path = {(way, i, seed): place / way / f"{i:03d}-{seed}.png" for way in WAYS for i, seed, _ in jobs}
    if not all(one.is_file() for one in path.values()):
        with torch.inference_mode():
            model, clip = _learn(pack, models, options, training, subject, token)
            for way, (omega, alpha) in WAYS.items():
                guided = pack("guidance.guider").personalize(model, models[0], pack("guidance.schedule").Schedule(omega))
                (place / way).mkdir(parents=True, exist_ok=True)
                for i, seed, template in jobs:
                    if not path[way, i, seed].is_file():
                        picture = _draw(pack, models, guided, clip, options, template, token, subject.class_word, alpha, seed)
                        pack("formats.picture_file").write(picture.numpy(), path[way, i, seed])
    class_prompts = [template.replace("{}", subject.class_word) for _, _, template in jobs]
    pictures = {way: [_photo(pack, path[way, i, seed]) for i, seed, _ in jobs] for way in WAYS}
    return {way: (pack("evaluation.scores").together(found, way), class_prompts) for way, found in pictures.items()}


def _learn(pack, models, options, training: str, subject: Subject, token: str):
    photos = [_photo(pack, path) for path in pack("training.data.photos").photo_files(subject.photos)]
    concept = pack("training.data.concept").make_concept(photos, token, subject.class_word)
    size = {"resolution": options.side or SIDE} | ({"steps": options.steps} if options.steps else {})
    settings = pack("training.settings").TrainSettings(**{**TRAININGS[training], **size})
    result = pack("training.trainer").train(*models, [concept], settings)
    model, clip = pack("host.lora").apply_lora(models[0], models[1], result.lora)
    return model, pack("host.text").carry_tokens(clip, result.tokens) if result.tokens else clip


def _draw(pack, models, model, clip, options, template: str, token: str, class_word: str, alpha: float, seed: int) -> torch.Tensor:
    encode, side = pack("host.drawing").conditioning, options.side or SIDE
    prompt, class_prompt = template.replace("{}", f"{token} {class_word}"), template.replace("{}", class_word)
    positive = encode(clip, prompt)
    if alpha:  # by token: the class prompt is a word shorter, and by position every word behind it would meet its neighbour
        partners = pack("embedding.prompt").text_partners(clip, prompt, class_prompt)
        positive = pack("embedding.conditioning").adjust_conditioning(positive, encode(models[1], class_prompt), alpha, partners=partners)
    sampling = {**SAMPLING, **({"steps": options.sampling_steps} if options.sampling_steps else {})}
    return pack("host.drawing").draw(model, models[2], positive, encode(models[1], ""), side, side, 1, seed, sampling)[0]


def _photo(pack, path: Path) -> torch.Tensor:
    return torch.from_numpy(pack("training.data.photos").read_photo(path).pixels)[None]


def _table(pack, scores: dict) -> str:
    mean = pack("evaluation.bootstrap").mean
    names = [name for name in next(iter(scores.values())) if name != "subject"]
    lines = ["| training | drawing | " + " | ".join(f"{name} | published" for name in names) + " |", "|---|---|" + "---|---|" * len(names)]
    for (training, way), values in scores.items():
        published = PUBLISHED.get((training, way), {})
        cells = [f"{mean(values[name], values['subject'])} | {f'{published[name]:.4f}' if name in published else ''}" for name in names]
        lines.append(f"| {training} | {way} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "95% intervals over subjects. The published numbers are of other subjects unless the photos are ViCo's."]) + "\n"


def _pack(options):
    """The pack's modules by dotted name, on the real host, on the card where there is one."""
    sys.path.append(str(ROOT / "host" / "standalone"))
    import kindred_standalone

    kindred_standalone.start_host(Path(options.comfyui), options.work)
    return kindred_standalone.load
