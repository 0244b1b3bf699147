"""The miniature world: pictures that a seed decides, captions that say what is drawn, subjects that no caption can name."""

import itertools
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

DEMO = Path(__file__).resolve().parents[2] / "dev" / "demo"
if str(DEMO) not in sys.path:
    sys.path.append(str(DEMO))

from world import scene, subjects  # noqa: E402


def array(image):
    return np.asarray(image).astype(float) / 255


def test_a_seed_decides_the_picture_in_every_process():
    """Nothing may hang on the process's hash seed or on what was drawn before."""
    code = "import sys, hashlib; sys.path.insert(0, sys.argv[1]); from world import scene, subjects as s; import random; " + (
        "r = random.Random(4); a = scene.named('frog', 'blue', 'scarf', 'moon', 9); b = s.stranger_scene(r, 'cat', s.stranger(r)); "
        "print(hashlib.sha256(a.draw(64).tobytes() + b.draw(64).tobytes()).hexdigest())"
    )
    runs = {
        subprocess.run([sys.executable, "-c", code, str(DEMO)], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": str(seed)}).stdout
        for seed in (1, 2)
    }
    assert len(runs) == 1


def test_one_scene_looks_alike_at_every_size():
    for seed, (creature, place) in enumerate(zip(scene.CLASSES, itertools.cycle(scene.PLACES), strict=False)):
        staged = scene.named(creature, "orange", "headphones", place, seed)
        small, large = staged.draw(64), staged.draw(512).reduce(8)
        assert np.abs(array(small) - array(large)).mean() < 0.02, (creature, place)


def test_each_attribute_changes_the_picture_and_only_its_own():
    base = {"creature": "bear", "look": scene.Look(scene.COLOURS["pink"]), "accessory": "none", "place": "beach"}
    picture = array(scene.Scene(**base).draw(64))
    for change in ({"creature": "robot"}, {"look": scene.Look(scene.COLOURS["blue"])}, {"accessory": "hat"}, {"accessory": "glasses"}, {"place": "city"}):
        changed = np.abs(array(scene.Scene(**{**base, **change}).draw(64)) - picture).max(-1) > 0.1
        assert changed.mean() > 0.02, change
    hat = np.abs(array(scene.Scene(**{**base, "accessory": "hat"}).draw(64)) - picture).max(-1) > 0.02
    assert not hat[40:].any(), "a hat must not change the picture below the face"


def test_a_white_creature_keeps_its_outline_in_the_snow():
    """Along its edge a darker line must separate the creature from the snow."""
    staged = scene.Scene("bear", scene.Look(scene.COLOURS["white"]), "none", "snow")
    luminance = array(staged.draw(256)).mean(-1)
    row = luminance[round(0.43 * 256)]
    assert row[20:128].min() < 0.6 * np.median(row)


def test_the_captions():
    assert scene.caption("dog", "red", "hat", "beach") == "a photo of a red dog wearing a hat on the beach"
    assert scene.caption("frog", "orange") == "a photo of an orange frog"
    assert scene.caption("cat", None, "glasses") == "a photo of a cat wearing glasses"
    said = [scene.caption(*combo) for combo in scene.combinations()]
    assert len(set(said)) == len(said) == 8 * 8 * 5 * 7


def test_held_out_combinations_leave_every_pair_covered():
    held, every = scene.held_out(), scene.combinations()
    assert len(held) == len(every) // 8
    for i, j in itertools.combinations(range(4), 2):
        total, kept = Counter((c[i], c[j]) for c in every), Counter((c[i], c[j]) for c in every if c not in held)
        assert min(kept[pair] / total[pair] for pair in total) > 0.8


def test_personal_subjects_are_beyond_words_and_apart():
    assert len(subjects.SUBJECTS) >= 6
    assert len({s.class_word for s in subjects.SUBJECTS.values()}) >= 3
    for name, subject in subjects.SUBJECTS.items():
        assert subject.look.pattern != "plain"
        photos = subjects.photos(name, 64)
        assert 4 <= len(photos) <= 6
        assert len({p.tobytes() for p in photos}) == len(photos)
        for other in subjects.SUBJECTS.values():
            assert other is subject or other.class_word != subject.class_word or subjects.distance(subject.look, other.look) > subjects.NEAR
    with pytest.raises(KeyError, match="biscuit"):
        subjects.photos("rex", 64)


def test_strangers_are_nobody_and_look_alikes_share_all_but_one_thing():
    rng = random.Random(5)
    for _ in range(200):
        look = subjects.stranger(rng)
        assert all(subjects.distance(look, s.look) > subjects.NEAR for s in subjects.SUBJECTS.values())
        like = subjects.stranger(rng, near=look)
        assert sum((like.main == look.main, like.second == look.second, like.pattern == look.pattern)) == 2
