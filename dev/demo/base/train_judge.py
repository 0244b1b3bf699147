"""Trains the miniature world's judge on renders and reports it on renders it has never seen:

    python dev/demo/base/train_judge.py --work FOLDER [--out dev/demo/base/judge.safetensors]

Held out from training: one combination of attributes in eight, all coats of the test, and every personal subject.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from world import scene, subjects  # noqa: E402

from base import judge as judges  # noqa: E402
from base import loop, pictures  # noqa: E402
from base.rooms import load  # noqa: E402
from base.settings import Settings  # noqa: E402


def _pair(job: tuple[int, int, int]) -> tuple[np.ndarray, list]:
    """A family: a stranger and a look-alike of the same class, ``views`` pictures of each: uint8 [2, views, 3, S, S] and their labels."""
    seed, views, size = job
    rng = random.Random(f"family|{seed}")
    creature = rng.choice(scene.CLASSES)
    first = subjects.stranger(rng)
    staged = [[subjects.stranger_scene(rng, creature, look) for _ in range(views)] for look in (first, subjects.stranger(rng, near=first))]
    pixels = [[np.asarray(one.draw(size)).transpose(2, 0, 1) for one in row] for row in staged]
    return np.array(pixels), [[_labels(one.attributes().values()) for one in row] for row in staged]


def _labels(words) -> list[int]:
    """Indices of the attribute words; -1 for a colour that has no name."""
    return [known.index(word) if word else -1 for known, word in zip(scene.ATTRIBUTES.values(), words, strict=True)]


def families(count: int, seed: int, size: int, views: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures uint8 [count, 2, views, 3, S, S] and labels [count, 2, views, 4]."""
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(2) as pool:
        parts = list(pool.map(_pair, [(seed + i, views, size) for i in range(count)], chunksize=20))
    return torch.from_numpy(np.stack([x for x, _ in parts])), torch.tensor([labels for _, labels in parts])


def disturb(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """What an autoencoder and a sampler do to a picture, in the crude: shifts, softness, tint, noise. Renders stay renders."""
    shift = torch.randint(-3, 4, (2,), generator=g).tolist()
    x = F.pad(x, (3, 3, 3, 3), mode="replicate")[..., 3 + shift[0] : 3 + shift[0] + x.shape[-2], 3 + shift[1] : 3 + shift[1] + x.shape[-1]]
    if torch.rand((), generator=g) < 0.5:
        x = x.flip(-1)
    if torch.rand((), generator=g) < 0.5:
        small = int(torch.randint(32, 60, (), generator=g))
        x = F.interpolate(F.interpolate(x, (small, small), mode="bilinear", antialias=True), x.shape[-2:], mode="bilinear")
    tint = 1 + 0.06 * torch.randn(len(x), 3, 1, 1, generator=g)
    return (x * tint + 0.04 * torch.rand((), generator=g) * torch.randn(x.shape, generator=g)).clamp(0, 1)


def train(settings: Settings, work: Path, log: loop.Log):
    named, (pairs, pair_labels) = pictures.load(settings, work), families(3000, 10_000_000, settings.size)
    values = {name: list(words) for name, words in scene.ATTRIBUTES.items()}
    labels = torch.tensor([_labels(label) for label in named.labels])
    torch.manual_seed(settings.seed + 3)
    judge = judges.Judge(values)
    half = settings.judge_batch // 2

    def loss(step: int) -> dict[str, torch.Tensor]:
        g = loop.generator(settings.seed, "judge", step)
        index = torch.randint(len(labels), (half,), generator=g)
        family = torch.randint(len(pairs), (half // 4,), generator=g)
        views = torch.randperm(pairs.shape[2], generator=g)[:2]
        twins = pairs[family][:, :, views].flatten(0, 2).float() / 255  # 2 individuals x 2 views a family
        with loop.autocast(torch.device("cpu")):
            logits, identity = judge(disturb(torch.cat([named.batch(index), twins]), g))
        logits, identity = {name: x.float() for name, x in logits.items()}, identity.float()
        # Coats without a name are read as well: on plain coats alone it learned faces so poorly that it took a two-tone dog for a bear.
        truth = torch.cat([labels[index], pair_labels[family][:, :, views].flatten(0, 2)])
        read = {name: F.cross_entropy(logits[name], truth[:, i], ignore_index=-1) for i, name in enumerate(values)}
        who = torch.arange(half // 2).repeat_interleave(2)
        identity = identity[half:]
        same = (identity @ identity.T / 0.1).masked_fill(torch.eye(len(who), dtype=torch.bool), -1e9)
        contrast = F.cross_entropy(same, torch.arange(len(who)) ^ 1)  # each one's other view; the look-alike is among the wrong ones
        total = sum(read.values()) + contrast
        return {"loss": total, "identity": contrast, **read}

    loop.train("judge", judge, loss, settings.judge_steps, settings.judge_lr, work, log, every=100)
    return judge.eval()


def report(judge, settings: Settings, log: loop.Log) -> None:
    """Accuracy on unseen renders with 95% intervals: attributes, individuals against look-alikes, the personal subjects."""
    tools = load("evaluation.bootstrap")
    for what, unseen, seed in (("seen combinations", False, 777_000_000), ("held-out combinations", True, 778_000_000)):
        test = pictures.render(1000, settings, seed, strangers=0.0, unseen=unseen)
        wanted = [dict(zip(scene.ATTRIBUTES, label, strict=True)) for label in test.labels]
        right = _right(judge, test.pixels.float() / 255, wanted)
        log.write(
            stage="judge",
            test=f"new renders, {what}",
            all_four=str(tools.share([all(r.values()) for r in right])),
            **{k: sum(r[k] for r in right) / len(right) for k in right[0]},
        )
    pairs, labels = families(500, 20_000_000, settings.size, views=5)
    flat, truth = pairs.flatten(0, 2).float() / 255, labels.flatten(0, 2)
    right = _right(judge, flat, [{name: scene.ATTRIBUTES[name][t[i]] for i, name in enumerate(scene.ATTRIBUTES) if t[i] >= 0} for t in truth.tolist()])
    log.write(stage="judge", test="new renders, coats without a name: class, accessory and place", all_three=str(tools.share([all(r.values()) for r in right])))
    e = judge.identity(flat).reshape(500, 2, 5, -1)
    own = torch.einsum("nd,nvd->nv", e[:, 0, 0], e[:, 0, 1:]).mean(1)
    other = torch.einsum("nd,nvd->nv", e[:, 0, 0], e[:, 1, 1:]).mean(1)
    log.write(stage="judge", test="unseen individual nearer to its 4 photos than to its look-alike's", right=str(tools.share((own > other).tolist())))
    right, gaps, read = [], [], []
    for subject in subjects.SUBJECTS.values():
        rng = random.Random(f"subject|{subject.name}")
        references = judge.identity(_stack(subjects.photos(subject.name, settings.size))).mean(0)
        for _ in range(40):
            like = subjects.stranger(rng, near=subject.look)
            wish = {"accessory": rng.choice(scene.ACCESSORIES), "place": rng.choice(scene.PLACES)}
            mine = subject.scene(**wish, seed=rng.randrange(1 << 30))
            theirs = subjects.stranger_scene(rng, subject.class_word, like)
            both = _stack([mine.draw(settings.size), theirs.draw(settings.size)])
            a, b = (judge.identity(both) @ references).tolist()
            read += judge.right(both[:1], [{"class": subject.class_word, **wish}])
            right.append(a > b)
            gaps.append(a - b)
    log.write(stage="judge", test="personal subject nearer to its photos than a look-alike", right=str(tools.share(right)), gap=str(tools.mean(gaps)))
    log.write(stage="judge", test="personal subjects: class, accessory and place", all_three=str(tools.share([all(r.values()) for r in read])))


def _right(judge, images: torch.Tensor, wanted: list[dict[str, str]], batch: int = 100) -> list[dict[str, bool]]:
    return [r for at in range(0, len(images), batch) for r in judge.right(images[at : at + batch], wanted[at : at + batch])]


def _stack(images) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.asarray(image).copy()).movedim(-1, 0).float() / 255 for image in images])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=HERE / "judge.safetensors")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    log_file = loop.Log(options.work / "judge.log.jsonl")
    trained = train(Settings(), options.work.resolve(), log_file)
    trained.save(options.out)
    report(judges.Judge.load(options.out), Settings(), log_file)
