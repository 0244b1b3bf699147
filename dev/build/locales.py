"""Writes `locales/en/nodeDefs.json` from what a running server says of the pack's nodes, and names what the other languages lack, have too much,
or have to translate again: in `locales/`, in the help pages `web/docs`, and in the page's messages `web/words`.

For developers, after a change of a node's texts:  python dev/build/locales.py http://127.0.0.1:8188
The front end asks for these files by itself; a dot in an input's name is an underscore in theirs, and a text is a message of vue-i18n, in
which braces and some other signs mean something unless they are quoted.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCALES, PAGES, WORDS = ROOT / "locales", ROOT / "web" / "docs", ROOT / "web" / "words"


def ours(object_info: dict) -> dict:
    """The pack's nodes in the server's `object_info`."""
    return {name: info for name, info in object_info.items() if name.startswith("Kindred")}


def english(object_info: dict) -> dict:
    """The content of `en/nodeDefs.json`: display name, description, names and tooltips of every node's inputs and outputs."""
    nodes = {}
    for name, info in ours(object_info).items():
        inputs = {}
        for key, options in inputs_of(info["input"]):
            inputs.setdefault(key.replace(".", "_"), _entry(key.rpartition(".")[2], options.get("tooltip")))
        tooltips = info.get("output_tooltips") or [None] * len(info["output_name"])
        outputs = {str(index): _entry(output, tooltip) for index, (output, tooltip) in enumerate(zip(info["output_name"], tooltips, strict=True))}
        nodes[name] = {"display_name": message(info["display_name"]), "description": message(info["description"]), "inputs": inputs}
        nodes[name] |= {"outputs": outputs} if outputs else {}
    return nodes


def differences(wanted: dict, found: dict) -> list[str]:
    """Places (`Node.inputs.name.tooltip`) that `found` lacks or has beyond `wanted`; nested tables of texts, such as nodeDefs or messages."""

    def places(table: dict, path: str = "") -> set[str]:
        return {
            place
            for key, value in table.items()
            for place in (places(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}"} if value and value.strip() else ())
        }

    return [f"missing {place}" for place in sorted(places(wanted) - places(found))] + [f"stale {place}" for place in sorted(places(found) - places(wanted))]


def changed(before: dict, after: dict, path: str = "") -> list[str]:
    """Places whose text is another one now; a translation of the old text is still there."""
    both = [(f"{path}{key}", before[key], value) for key, value in after.items() if key in before]
    deeper = [place for place, old, new in both if isinstance(new, dict) for place in changed(old, new, f"{place}.")]
    return deeper + [place for place, old, new in both if not isinstance(new, dict) and old != new]


def read(language: str, name: str = "nodeDefs") -> dict:
    return json.loads((LOCALES / language / f"{name}.json").read_text("utf-8"))


def pages(language: str) -> dict[str, str]:
    """Node -> its help page. The front end asks for `NODE/LANGUAGE.md`, then for `NODE.md`, which is the English one."""
    if language == "en":
        return {path.stem: path.read_text("utf-8") for path in PAGES.glob("*.md")}
    return {path.parent.name: path.read_text("utf-8") for path in PAGES.glob(f"*/{language}.md")}


def messages(language: str) -> dict[str, str]:
    """What the page itself says: a module that holds one JSON object, which Python reads too."""
    return json.loads((WORDS / f"{language}.js").read_text("utf-8").removeprefix("export default ").rstrip().removesuffix(";"))


def languages() -> list[str]:
    return sorted(path.parent.name for path in LOCALES.glob("*/nodeDefs.json"))


def inputs_of(groups: dict, prefix: str = ""):
    """(name, options) of every input, those inside a choice and each place of a growing one included."""
    for kind in ("required", "optional"):
        for name, (what, *rest) in (groups.get(kind) or {}).items():
            options = rest[0] if rest else {}
            yield prefix + name, options
            if what == "COMFY_DYNAMICCOMBO_V3":
                for option in options["options"]:
                    yield from inputs_of(option["inputs"], f"{prefix}{name}.")
            elif what == "COMFY_AUTOGROW_V3":
                template = options["template"]
                (_, inner), *_ = next(iter(template["input"].values())).values()
                for index in range(template["max"]):
                    yield f"{prefix}{name}.{template['prefix']}{index}", inner


def message(text: str) -> str:
    """The vue-i18n message that shows `text` as it stands: https://vue-i18n.intlify.dev/guide/essentials/syntax.html#special-characters"""
    return re.sub(r"[{}@|$]", lambda sign: f"{{'{sign[0]}'}}", text)


def _entry(name: str, tooltip: str | None) -> dict:
    return {"name": message(name)} | ({"tooltip": message(tooltip)} if tooltip else {})


def main(address: str) -> None:
    try:
        with urllib.request.urlopen(f"{address}/object_info") as answer:
            wanted = english(json.load(answer))
    except urllib.error.URLError as error:
        sys.exit(f"No server answers at {address}. Start one with `python kindred.py serve --port 8188`, then run this again. ({error.reason})")
    if again := changed(read("en"), wanted):
        print("changed; translate these again in every language:", *again, sep="\n  ")
    (LOCALES / "en").mkdir(exist_ok=True)
    (LOCALES / "en" / "nodeDefs.json").write_text(json.dumps(wanted, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for language in languages():
        lacks = [
            *differences(wanted, read(language)),
            *differences(dict.fromkeys(wanted, "web/docs"), pages(language)),
            *differences(messages("en"), messages(language)),
        ]
        print(language, *lacks, sep="\n  ")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8188")
