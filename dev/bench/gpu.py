"""Everything that needs a graphics card, in one command without network: tests on the device, the demo, and what guidance and training cost.

    python dev/bench/gpu_carry.py                    first, on a machine with network: writes .kindred/gpu/carried.tar.xz
    python dev/bench/gpu.py --out results            then, where the card is: a Python with PyTorch and transformers is all it needs

Each part is a process of its own with a limit of time, so that one that fails does not end the others. Results are `results/PART.log`,
`results/costs.jsonl` and `results/summary.md`. `--only guidance training` takes some parts. Whole, it takes about 25 minutes at most.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".kindred" / "gpu"
COSTS = "dev/bench/gpu_costs.py"
TESTS = "tests/guidance tests/embedding tests/training tests/host/test_lora.py"
# part -> (command below the repository's root, minutes that it may take). `OUT` stands for the file of the costs.
PARTS = {
    "demo": (["dev/demo/run.py", "demo"], 4),
    "tests": (f"-m pytest -q --maxfail=60 -n 6 --dist loadfile {TESTS}".split(), 7),
    "guidance SD15": ([COSTS, "guidance", "--out", "OUT"], 3),
    "guidance SDXL": ([COSTS, "guidance", "--family", "SDXL", "--pixels", "1024", "--steps", "30", "--out", "OUT"], 4),
    "training SD15": ([COSTS, "training", "--out", "OUT"], 3),
    "training SDXL": ([COSTS, "training", "--family", "SDXL", "--pixels", "1024", "--out", "OUT"], 4),
    "compiled": ([COSTS, "compiled", "--out", "OUT"], 6),
    "ratios": (["dev/bench/guidance.py", "--families", "SD15", "--rounds", "5"], 6),
}
SHOWN = ("way", "family", "pixels", "batch", "precision", "steps", "median", "first run", "peak MB", "model MB", "launches a step", "difference", "error")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--only", nargs="+", metavar="PART", choices=sorted(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=25, help="no part begins after these")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **unpacked(), "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "KINDRED_TEST_ARGUMENTS": "--force-fp32"}
    begun, told = time.monotonic(), []
    for name in options.only or PARTS:
        command, minutes = PARTS[name]
        left = options.minutes * 60 - (time.monotonic() - begun)
        if left < 30:
            told.append((name, "not begun: no time was left"))
            continue
        told.append((name, run(name, command, min(minutes * 60, left), out, environment)))
        print(f"{name}: {told[-1][1]}", flush=True)
        (out / "summary.md").write_text(summary(told, out / "costs.jsonl"), "utf-8")
    print(summary(told, out / "costs.jsonl"))
    return 0 if all(result.startswith("done") for _, result in told) else 1


def unpacked() -> dict[str, str]:
    """ComfyUI and the carried packages in place; the environment variables that name them."""
    carried = HOME / "carried.tar.xz"
    if not (HOME / "host" / "main.py").is_file():
        if not carried.is_file():
            raise SystemExit(f"Write the carried files first, with dev/bench/gpu_carry.py, and bring them along as {carried}")
        with tarfile.open(carried) as archive:
            archive.extractall(HOME, filter="data")
    return {"COMFYUI_PATH": str(HOME / "host"), "PYTHONPATH": str(HOME / "site")}


def run(name: str, command: list[str], seconds: float, out: Path, environment: dict[str, str]) -> str:
    command = [str(out / "costs.jsonl") if part == "OUT" else part for part in command]
    begun = time.monotonic()
    with (out / f"{name.replace(' ', '-')}.log").open("wb") as log:
        try:
            code = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s"
    took = f"{time.monotonic() - begun:.0f} s"
    return f"done in {took}" if code == 0 else f"ended with code {code} after {took}"


def summary(told: list[tuple[str, str]], costs: Path) -> str:
    rows = [json.loads(line) for line in costs.read_text("utf-8").splitlines()] if costs.is_file() else []
    lines = ["| part | |", "|---|---|", *(f"| {name} | {result} |" for name, result in told), ""]
    for part in dict.fromkeys(row["part"] for row in rows):
        mine = [row for row in rows if row["part"] == part]
        names = [name for name in SHOWN if any(row.get(name) is not None for row in mine)]
        lines += [f"### {part}", "", "| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
        lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in mine] + [""]
    return "\n".join(lines + ([rows[-1]["machine"]] if rows else [])) + "\n"


if __name__ == "__main__":
    sys.exit(main())
