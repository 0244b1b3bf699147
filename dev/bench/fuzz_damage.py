"""How dev/bench/fuzz.py damages files."""

from __future__ import annotations

import random
from pathlib import Path

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**40, 2**63 - 1, 2**64 - 1)


def damage(data: bytes, chance: random.Random) -> bytes:
    """Bits, bytes, numbers and pieces of `data` changed, a few at a time."""
    result = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        if not result:
            return bytes(result)
        place, size = chance.randrange(len(result)), chance.choice((1, 2, 4, 8))
        way = chance.randrange(9)
        if way == 0:
            result[place] ^= 1 << chance.randrange(8)
        elif way == 1:
            result[place] = chance.randrange(256)
        elif way in (2, 3):
            number = chance.choice(NUMBERS) % 256**size
            result[place : place + size] = number.to_bytes(size, chance.choice(("little", "big")))
        elif way == 4:
            del result[place : place + chance.choice((1, 4, 64, 1024))]
        elif way == 5:
            piece = result[place : place + chance.choice((1, 4, 64, 1024))]
            result[place:place] = piece * chance.choice((1, 2, 50))
        elif way == 6:
            result[place:place] = chance.randbytes(chance.choice((1, 4, 64)))
        elif way == 7 and chance.random() < 0.3:
            del result[place:]
        else:
            other = chance.randrange(len(result))
            result[place : place + 16] = result[other : other + 16]
    return bytes(result)


def damage_text(text: str, words: tuple[str, ...], chance: random.Random) -> bytes:
    """Words put in, and bytes damaged."""
    for _ in range(chance.choice((0, 1, 1, 2, 4))):
        place = chance.randrange(len(text) + 1)
        word = chance.choice(words) * chance.choice((1, 1, 1, 2, 500, 6000))
        text = text[:place] + word[:200_000] + text[place + chance.choice((0, 0, 1, 5, 20)) :]
    data = text.encode("utf-8", "surrogatepass")
    return damage(data, chance) if chance.random() < 0.5 else data


class Kind:
    """A kind of file. `name` is the damaged file's; an error must say it, or one of `names` where another may be meant.

    good        files, or what they are made from
    undamaged   files that must be read
    mutate      the bytes of one damaged file
    load        what the pack reads from it
    """

    name = "damaged"
    names: tuple[str, ...] = ("damaged",)

    def prepare(self, place: Path) -> None:
        self.place, self.path = place, place / self.name
        self.seeds = self.good()

    def good(self) -> list:
        raise NotImplementedError

    def undamaged(self) -> list[bytes]:
        return self.seeds

    def mutate(self, chance: random.Random) -> bytes:
        return damage(chance.choice(self.seeds), chance)

    def read(self, data: bytes):
        self.path.write_bytes(data)
        return self.load()

    def load(self):
        raise NotImplementedError
