"""The evidence's report: what it reads from the results of trainings is what stands in them."""

import json
import lzma
import sys

import pytest
from kindred_testing import ROOT
from PIL import Image

sys.path.append(str(ROOT / "dev" / "bench"))

import evidence
import evidence_report


def results(*, seeds: int = 2, prompts: int = 4) -> list[dict]:
    """Every cell of two subjects: plain tuning scores half, guidance a quarter more on the subject, in every picture."""
    found = []
    for subject in evidence.SUBJECTS[:2]:
        for seed in range(1, seeds + 1):
            for cell in evidence.cells():
                base = 0.5 + 0.05 * seed
                gain = 0.25 if cell.way.omega == 0.6 and cell.way.mode == "personalization" else 0.0
                scores = {"subject": [base + gain] * prompts, **{name: [1.0, 0.0] * (prompts // 2) for name in ("class", "accessory", "place", "prompt")}}
                found.append({"subject": subject, "seed": seed, "key": cell.key(), "prompts": prompts, "drift": 0.1, "scores": scores})
    return found


def test_the_report_says_what_the_results_hold_and_leaves_unfinished_seeds_out(tmp_path):
    cells, entries = evidence.cells(), results()
    plain, guided = (next(c.key() for c in cells if c.section == "d" and c.name == name) for name in ("plain", "PG"))
    whole = evidence_report.Results(entries, [cell.key() for cell in cells])
    assert len(whole.runs) == 4 and whole.left_out == 0
    change = whole.difference(guided, plain, "subject")
    assert change.value == pytest.approx(0.25) and change.low == pytest.approx(0.25) == change.high
    assert whole.mean(plain, "subject").value == pytest.approx(0.575)

    cut = evidence_report.Results(entries[:-1], [cell.key() for cell in cells])
    assert {seed for _, seed, _ in cut.runs} == {1} and len(cut.runs) == 2 and cut.left_out == 2

    path = evidence_report.write(entries, cells, evidence.STEPS, "abcdef0", tmp_path)
    text = path.read_text("utf-8")
    assert "**+0.250 [+0.250, +0.250]**" in text and "2 seeds" in text and "abcdef0" in text
    assert all(f"| {cell.name}{' (baseline)' * cell.baseline} |" in text for cell in cells)
    for section in "abcd":
        with Image.open(tmp_path / "evidence" / f"{section}.png") as plot:
            assert len(plot.convert("RGB").getcolors(1 << 20)) > 8, f"{section}: an empty plot"


def test_the_report_that_is_shown_is_of_the_results_beside_it():
    found = [json.loads(line) for line in lzma.decompress(evidence.RESULTS.read_bytes()).decode().splitlines()]
    assert {entry["key"] for entry in found} <= {cell.key() for cell in evidence.cells()}, (
        "the ways to draw have changed since: run dev/bench/evidence.py again"
    )
    results = evidence_report.Results(found, [cell.key() for cell in evidence.cells()])
    text = (ROOT / "dev" / "bench" / "evidence.md").read_text("utf-8")
    assert f"**{len(results.runs)} trainings a setting" in text
    assert all(str(results.mean(cell.key(), "subject")) in text for cell in evidence.cells())


def test_a_stopped_run_finds_its_results_again(tmp_path):
    log = tmp_path / "evidence.jsonl"
    log.write_text("".join(json.dumps(entry) + "\n" for entry in results(seeds=1)), "utf-8")
    assert {(e["subject"], e["key"]) for e in evidence.entries(log)} == {(s, c.key()) for s in evidence.SUBJECTS[:2] for c in evidence.cells()}
    assert evidence.entries(tmp_path / "none.jsonl") == []
