"""States of a training: what is damaged is refused, whatever the damage, and what is read is what was written."""

import hashlib
import json
import os
import random
import struct

import pytest
import torch
from kindred_testing import MUTATIONS, pack
from safetensors.torch import load

IDENTITY = {"seed": "3", "the photos of <v1>": "3 (abc)"}


def a_state(seed: int) -> dict:
    draw = torch.Generator().manual_seed(seed)
    weights = {f"network/{name}": torch.randn(3, 4, generator=draw) for name in "ab"}
    moments = {index: {"step": torch.tensor(2.0), "exp_avg": torch.randn(3, 4, generator=draw).bfloat16()} for index in range(2)}
    return {
        "parameters": weights,
        "average": [torch.randn(2, generator=draw)],
        "history": torch.randn(2, 8, generator=draw, dtype=torch.float64),
        "finished": False,
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-4 / 3, "betas": (0.9, 0.999), "params": [0, 1], "fused": None}]},
        "scaler": {"scale": float("inf")},
    }


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def flip(data: bytearray, chance: random.Random) -> bytes:
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        place = chance.randrange(len(data))
        data[place] ^= 1 << chance.randrange(8)
    return bytes(data)


def cut(data: bytearray, chance: random.Random) -> bytes:
    return bytes(data[: chance.randrange(len(data))])


def moved(data: bytearray, chance: random.Random) -> bytes:
    start, length = chance.randrange(len(data)), chance.randrange(1, 64)
    return bytes(data[:start]) + (b"" if chance.random() < 0.5 else os.urandom(length)) + bytes(data[start + length :])


def header(data: bytes, change) -> bytes:
    """The file with its header changed by `change(header as a dictionary)`, everything else as it should be."""
    (length,) = struct.unpack("<Q", data[:8])
    text = change(json.loads(data[8 : 8 + length]))
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def edited(data: bytearray, chance: random.Random) -> bytes:
    """Another value somewhere in the header: another type, a huge number, something deep."""
    values = [None, True, -1, 2**63, 1e300, "", "x", [], {}, [[]], "9" * 5000, float("nan"), [2**40, 2**40], "F64", [0, 2**62], "[" * 3000, {"a": {"a": {}}}]

    def change(content):
        holder = content
        while True:
            key = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
            if isinstance(holder[key], (dict, list)) and len(holder[key]) and chance.random() < 0.8:
                holder = holder[key]
                continue
            if isinstance(holder, dict) and chance.random() < 0.2:
                del holder[key]
            else:
                holder[key] = chance.choice(values)
            return content

    return header(bytes(data), change)


def inner(data: bytearray, chance: random.Random) -> bytes:
    """A forged state: the structure changed inside its text, and the checksum made to fit. Nothing is left but to look at each part."""

    def change(content):
        about = content["__metadata__"]
        key = chance.choice(("structure", "structure", "structure", "identity", "step", "finished"))
        text = about[key]
        if chance.random() < 0.2:
            text = chance.choice(
                ("[" * 200_000, '{"dict":[["a",' * 5000, "null", "[]", "1", '{"dict":[[[],1]]}', '{"tuple":7}', '{"tensor":"no"}', "-5", "9" * 6000, "{")
            )
        else:
            place = chance.randrange(len(text))
            text = text[:place] + chance.choice('{}[],:"0123456789-einfltrudc') + text[place + chance.randrange(2) :]
        return {**content, "__metadata__": {**about, key: text}}

    return forged(header(bytes(data), change))


def forged(data: bytes) -> bytes:
    """`data` with the checksum of its content, computed as the module does."""
    states = pack("formats.state_file")
    (length,) = struct.unpack("<Q", data[:8])
    about = json.loads(data[8 : 8 + length])["__metadata__"]
    about.pop("checksum", None)
    return header(data, lambda content: {**content, "__metadata__": {**about, "checksum": states._checksum(load(data), about)}})


@pytest.mark.slow
def test_mutations(tmp_path, caplog):
    """Case 51. Each gives the bits of the newest state, those of the one before, or a refusal in a sentence; never another exception."""
    states, resume = pack("formats.state_file"), pack("training.resume")
    run, newest, older = tmp_path / "dog", a_state(2), a_state(1)
    run.mkdir()
    states.write(run / "state-00000001.safetensors", 1, IDENTITY, older)
    path = states.write(run / "state-00000002.safetensors", 2, IDENTITY, newest)
    good, chance = path.read_bytes(), random.Random(1)
    fallback = hashlib.sha256((run / "state-00000001.safetensors").read_bytes()).hexdigest()
    ways = (flip, flip, cut, moved, edited, inner)
    caplog.set_level("ERROR")
    seen = {"newest": 0, "older": 0, "forged": 0}
    for index in range(MUTATIONS):
        way = ways[index % len(ways)]
        path.write_bytes(way(bytearray(good), chance))
        found = resume.find(tmp_path, "dog", IDENTITY)
        found.folder.release()
        if found.step == 1:
            assert equal(found.state, older)
            assert way is inner or "state-00000002" in found.notes[0]
            seen["older"] += 1
        elif way is inner:  # whoever can forge a checksum may write a state; it must only be one
            assert isinstance(found.state, dict) and found.state["finished"] in (True, False)
            seen["forged"] += 1
        else:
            assert equal(found.state, newest), way.__name__
            seen["newest"] += 1
    assert seen["older"] > 0.8 * MUTATIONS and hashlib.sha256((run / "state-00000001.safetensors").read_bytes()).hexdigest() == fallback


@pytest.mark.parametrize("version, words", [("3", "has version '3'"), ("1", "has version '1'"), (None, "has version '1'")])
def test_a_state_of_another_version_is_named_so(tmp_path, version, words):
    states = pack("formats.state_file")
    path = states.write(tmp_path / "state-00000002.safetensors", 2, IDENTITY, a_state(2))

    def change(content):
        content["__metadata__"].pop("version")
        return {**content, "__metadata__": content["__metadata__"] | ({"version": version} if version else {})}

    path.write_bytes(header(path.read_bytes(), change))
    with pytest.raises(ValueError, match=words):
        states.read(path)


def test_every_bit_of_a_state_comes_back_and_one_that_flips_is_noticed(tmp_path):
    states = pack("formats.state_file")
    path = states.write(tmp_path / "state-00000002.safetensors", 2, IDENTITY, a_state(2))
    header, state = states.read(path)
    assert header == states.StateHeader(2, IDENTITY, False) == states.header(path) and equal(state, a_state(2))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # the last bit of a weight
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        states.read(path)
