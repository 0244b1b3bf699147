"""The demo's scores: the judge, its measures and the pack's intervals, in a process of their own as `dev/demo/run.py` has them."""

import re
import subprocess
import sys

from kindred_testing import ROOT

# The path is that of run.py, and the host is never imported: what the scores need must come without it.
SCORES = """
import sys
sys.path.insert(0, sys.argv[1])
import compare
from world import scene, subjects
honey = subjects.SUBJECTS["honey"]
told = compare.scores(subjects.photos("honey", 64))
wishes = [("hat", "moon"), ("scarf", "city"), ("glasses", "snow"), ("headphones", "beach")]
prompts = [f"a photo of a <v1> {honey.class_word} wearing {'a ' if worn in ('hat', 'scarf') else ''}{worn} on the {place}" for worn, place in wishes]
for subject in (honey, next(one for one in subjects.SUBJECTS.values() if one.class_word != honey.class_word)):
    print(*told([subject.scene(worn, place, 5).draw(64) for worn, place in wishes], prompts))
assert "comfy" not in sys.modules and "nodes" not in sys.modules
"""


def test_the_demo_scores_renders_of_its_subject_high_and_of_another_low():
    run = subprocess.run([sys.executable, "-c", SCORES, str(ROOT / "dev" / "demo")], capture_output=True, text=True, timeout=120, cwd="/")
    assert run.returncode == 0, run.stderr
    (prompt, subject), (others_prompt, others_subject) = [
        (int(line[1]), float(line[2])) for line in re.finditer(r"^prompt (\d+)%  \[\d+%, \d+%\] subject (-?[\d.]+)  \[-?[\d.]+, -?[\d.]+\]$", run.stdout, re.M)
    ]
    assert prompt == 100 > others_prompt  # the class word is part of the prompt
    assert subject > others_subject + 0.2
