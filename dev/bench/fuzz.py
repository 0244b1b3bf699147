#!/usr/bin/env python3
"""Damaged files of every kind that the pack reads, through its own readers:

    python dev/bench/fuzz.py                        10,000 of each kind, a process for each
    python dev/bench/fuzz.py --kind png --count 500 --seed 3
    python dev/bench/fuzz.py --count 100 --together    one process for all, as the tests do

A case passes when the file is read, or refused by a ValueError that names it, within 10 seconds. What does not is kept in the folder that is
printed. Seed and case number give the same bytes again. Needs what the pack needs, and no ComfyUI.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import select
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT / "host" / "standalone")]

import fuzz_pictures  # noqa: E402
import fuzz_weights  # noqa: E402
import kindred_standalone  # noqa: E402

KINDS = {**fuzz_pictures.KINDS, **fuzz_weights.KINDS}
PATIENCE = 10  # seconds for one file
MEMORY = 1000  # MB, of the whole process


def worker(kinds: list[str], count: int, seed: int, keep: Path) -> None:
    """Print the number of each case before it is read, and at the end of each kind what happened, as JSON."""
    kindred_standalone.load()  # from here on `kindred_pack` can be imported from
    warnings.simplefilter("ignore")

    for name in kinds:
        kind = KINDS[name]()
        result = {"kind": name, "read": 0, "refused": 0, "wrong": [], "slowest": 0.0, "peak": 0, "before": _peak()}
        with tempfile.TemporaryDirectory() as place:
            kind.prepare(Path(place))
            print(f"{name} start", flush=True)
            for whole in kind.undamaged():
                kind.read(whole)
            for index in range(count):
                print(f"{name} {index}", flush=True)
                mutated = kind.mutate(random.Random(f"{seed} {name} {index}"))
                begun = time.monotonic()
                try:
                    kind.read(mutated)
                    result["read"] += 1
                except ValueError as error:
                    if any(known in str(error) for known in kind.names):
                        result["refused"] += 1
                    else:
                        result["wrong"].append(f"case {index}: a ValueError that does not name the file: {str(error)[:200]!r}")
                except BaseException as error:
                    result["wrong"].append(f"case {index}: {type(error).__name__}: {str(error)[:200]!r}")
                result["slowest"] = max(result["slowest"], time.monotonic() - begun)
                if result["wrong"] and result["wrong"][-1].startswith(f"case {index}:") and len(result["wrong"]) <= 20:
                    (keep / f"{name}-{index}").write_bytes(mutated)
                if _peak() > max(result["peak"], MEMORY):
                    result["wrong"].append(f"case {index}: the process has reached {_peak()} MB")
                    (keep / f"{name}-{index}").write_bytes(mutated)
                result["peak"] = max(result["peak"], _peak())
        print(json.dumps(result), flush=True)


def _peak() -> int:
    """Megabytes, the most that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10)


def watch(kinds: list[str], count: int, seed: int, keep: Path) -> list[dict]:
    """Run a worker, and end it where a case takes too long."""
    command = [sys.executable, __file__, "--worker", "--count", str(count), "--seed", str(seed), "--keep", str(keep), "--kind", *kinds]
    results, last, rest = [], "start", b""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert isinstance(process.stdout, io.BufferedReader)
        while True:
            if not select.select([process.stdout], [], [], 120 if last.endswith("start") else PATIENCE)[0]:
                process.kill()
                return [*results, {"kind": last.split()[0], "wrong": [f"case {last}: no answer in {PATIENCE} s"]}]
            data = process.stdout.read1(2**16)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in map(bytes.decode, lines):
                results += [json.loads(line)] if line.startswith("{") else []
                last = last if line.startswith("{") else line
    if process.returncode:
        results.append({"kind": last.split()[0], "wrong": [f"case {last}: the process ended with {process.returncode}"]})
    return results


def main() -> int:

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=Path, default=None, help="where files that fail are kept")
    options = parser.parse_args()
    if options.worker:
        worker(options.kind, options.count, options.seed, options.keep)
        return 0
    keep = options.keep or Path(tempfile.mkdtemp(prefix="kindred-fuzz-"))
    failed = 0
    print(f"{options.count} of each, seed {options.seed}; what fails is kept in {keep}")
    for kinds in [options.kind] if options.together else [[name] for name in options.kind]:
        for result in watch(kinds, options.count, options.seed, keep):
            failed += len(result["wrong"])
            figures = (
                f"{result['read']:6} read {result['refused']:6} refused   slowest {result['slowest']:.2f} s   peak {result['peak']} MB"
                if "read" in result
                else ""
            )
            print(f"{result['kind']:12} {figures}   {len(result['wrong'])} wrong", *result["wrong"][:10], sep="\n             ", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
