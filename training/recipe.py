"""Recipes: a training in a TOML file, for the shell. The same training as the node's, from folders of photos to saved files. `recipe_help` shows one."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..formats import kept_steps, text_file
from .data.concept import Concept, make_concept
from .data.photos import read_photos
from .declare import Setting, declared
from .settings import KeepSettings, TrainSettings, WatchSettings

_TABLES = {"checkpoint", "name", "train", "concept", "preview", "save"}
_CONCEPT = {**dict.fromkeys(("photos", "prior_images", "token", "class_word", "instance_prompt", "class_prompt", "initializer"), str), "repeats": int}
_TRAIN = {one.name: one for one in declared(TrainSettings)}
_PREVIEW = {one.name.removeprefix("preview_"): one for one in declared(WatchSettings)}
_KEEP = {one.name: one for one in declared(KeepSettings)}
LARGEST = 2**16  # bytes of a recipe
MOST_DOTS = 200  # in a line; the parser's time grows with the square of the parts of a key (a.b.c = 1)
DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. `concepts()` reads the photos."""

    file: Path
    checkpoint: str
    name: str
    settings: TrainSettings
    tables: list[dict[str, Any]]
    watch: WatchSettings = field(default_factory=lambda: WatchSettings())
    save_every: int = _KEEP["save_every"].default
    keep_steps: int = _KEEP["keep_steps"].default
    which: str = kept_steps.LAST
    dtype: torch.dtype = torch.float16
    overwrite: bool = False

    def concepts(self) -> list[Concept]:
        """Read the photos and make the concepts. Raises ValueError that names this file and the wrong photo or entry."""
        with _named(self.file):
            return [self._concept(table) for table in self.tables]

    def _concept(self, table: dict[str, Any]) -> Concept:
        photos = read_photos(self.file.parent / table["photos"])
        prior = read_photos(self.file.parent / table["prior_images"]) if "prior_images" in table else []
        words = {key: table[key] for key in table if key not in ("photos", "prior_images")}
        alphas = [photo.alpha for photo in photos]
        masks = []
        if any(alpha is not None for alpha in alphas):
            masks = [
                torch.from_numpy(alpha)[None] if alpha is not None else torch.ones(1, *photo.pixels.shape[:2])
                for alpha, photo in zip(alphas, photos, strict=True)
            ]
        return make_concept(
            [torch.from_numpy(photo.pixels)[None] for photo in photos],
            **words,
            masks=masks,
            captions=[photo.caption for photo in photos],
            prior_images=[torch.from_numpy(photo.pixels)[None] for photo in prior],
        )


def read(path: Path) -> Recipe:
    """The recipe in the file `path`. Raises ValueError with the file's name, the entry, and what was expected."""
    try:
        import tomllib
    except ImportError:  # Python 3.10
        try:
            import tomli as tomllib  # pyright: ignore[reportMissingImports]  (an optional package)
        except ImportError:
            raise ValueError("Reading TOML files needs Python 3.11 or newer, or the Python package tomli (pip install tomli).") from None
    path = path.expanduser().resolve()
    try:
        text = text_file.read(path, LARGEST, "a recipe")
    except OSError as error:
        raise ValueError(f"{path.name!r} cannot be read: {error.strerror}. It was looked for here: {path}") from error
    if deep := next((number for number, line in enumerate(text.split("\n"), 1) if line.count(".") > MOST_DOTS), None):
        raise ValueError(f"{path.name!r} is not a recipe: line {deep} has more than {MOST_DOTS} dots.")
    try:
        content = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"{path.name!r} is not a recipe: its brackets nest too deep.") from None
    except ValueError as error:
        raise ValueError(f"{path.name!r} is not a TOML file: {error}.") from error
    with _named(path):
        return _checked(path, content)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the recipe's name in front of every error."""
    try:
        yield
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path.name}: {error}") from error


def _checked(path: Path, content: dict) -> Recipe:
    _known(content, _TABLES, "the file")
    if not isinstance(content.get("checkpoint"), str):
        raise ValueError('checkpoint is missing. Name the model file, for example checkpoint = "v1-5-pruned-emaonly.safetensors".')
    tables, preview, save = content.get("concept", []), content.get("preview", {}), content.get("save", {})
    if not isinstance(tables, list) or not tables:
        raise ValueError("there is no [[concept]]. Write one with photos, token and class_word for each subject.")
    for table in tables:
        _known(table, set(_CONCEPT), "[[concept]]")
        for key in ("photos", "token", "class_word"):
            if key not in table:
                raise ValueError(f"[[concept]] needs {key}, a text in quotes.")
        for key, value in table.items():
            _typed(f"[[concept]] {key}", value, _CONCEPT[key])
    _known(preview, set(_PREVIEW), "[preview]")
    preview = {_PREVIEW[key].name: _setting(_PREVIEW[key], f"[preview] {key}", value) for key, value in preview.items()}
    _known(save, {"every", "keep_steps", "which", "dtype", "overwrite"}, "[save]")
    train = content.get("train", {})
    _known(train, set(_TRAIN), "[train]")
    dtype = save.get("dtype", "float16")
    if dtype not in DTYPES:
        raise ValueError(f"[save] dtype is {dtype!r}; expected one of {', '.join(DTYPES)}.")
    return Recipe(
        path,
        content["checkpoint"],
        _typed("name", content.get("name", path.stem), str),
        TrainSettings(**{name: _setting(_TRAIN[name], name, value) for name, value in train.items()}),
        tables,
        WatchSettings(**preview),
        _kept(save, "every", "save_every"),
        _kept(save, "keep_steps", "keep_steps"),
        kept_steps.check_which(_typed("[save] which", save.get("which", kept_steps.LAST), str)),
        getattr(torch, dtype),
        _typed("[save] overwrite", save.get("overwrite", False), bool),
    )


def _kept(save: dict, key: str, name: str) -> int:
    value = _typed(f"[save] {key}", save.get(key, _KEEP[name].default), int)
    _KEEP[name].check(value)
    return value


def _known(table: dict, names: set[str], where: str) -> None:
    if not isinstance(table, dict):
        raise ValueError(f"{where} is {table!r}; expected a table with the entries {', '.join(sorted(names))}.")
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            raise ValueError(f"{where} has the unknown entry {key!r}{f'; did you mean {near[0]!r}?' if near else ''} Known are {', '.join(sorted(names))}.")


def _setting(one: Setting, name: str, value: Any) -> Any:
    return _typed(name, one.read(value), one.type)


def _typed(name: str, value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} is {value!r}; expected {_WORDS[kind]}.")
    return value


_WORDS = {int: "a whole number", float: "a number", str: "a text in quotes", bool: "true or false"}
