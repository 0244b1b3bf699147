"""A process that saves concepts on command, for tests with several real processes and real kills: `python saver.py PACK/host/standalone`.

It reads lines of JSON: {"folder", "name", "value", "tokens", "overwrite"} and
    "at"      save at this time (time.time()), then answer with the saved name
    "repeat"  answer with a process that saves again and again, with values that count up, until it is killed
    "killed"  answer with the exit code of a process that kills itself before its n-th call that changes files, while it saves
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

sys.path.append(sys.argv[1])
import kindred_standalone

concept_file, token = kindred_standalone.load("formats.concept_file"), kindred_standalone.load("formats.token")

CHANGES = {"os.link", "os.rename", "os.remove", "os.chmod", "os.mkdir"}


def save(folder: str, name: str, value: float, tokens: list[str], overwrite: bool) -> str:
    """A concept in which every number is `value`."""
    learned = [token.LearnedToken(text, "dog", {"clip_l": torch.full((2, 8), float(value))}) for text in tokens]
    lora = {f"layer{index}.diff": torch.full((64, 64), float(value)) for index in range(8)}
    return concept_file.save(lora, learned, name, Path(folder, "loras"), Path(folder, "embeddings"), dtype=torch.float32, overwrite=overwrite).name


def die_at(number: int) -> None:
    """Let the system kill this process before its `number`-th change of the disk."""
    left = [number]

    def count(event: str, given: tuple) -> None:
        if event in CHANGES or (event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def main() -> None:
    parent = os.getpid()
    print("ready", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        about = {key: command[key] for key in ("folder", "name", "value", "tokens", "overwrite")}
        if "at" in command:
            while time.time() < command["at"]:
                pass
            print(save(**about), flush=True)
            continue
        child = os.fork()
        if not child:
            if "killed" in command:
                die_at(command["killed"])
                save(**about)
                os._exit(0)
            while os.getppid() == parent:
                save(**about)
                about["value"] += 1
            os._exit(0)
        if "repeat" in command:
            print(child, flush=True)
        status = os.waitpid(child, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)


main()
