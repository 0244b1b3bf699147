"""What people read: tooltips, help pages and translations have a word for every node and input, and none for what is no more."""

import re

import pytest
from kindred_testing import ROOT, host_version, later_inputs, script

locales = script("dev/build/locales.py")


@pytest.fixture(scope="module")
def nodes(server):
    return locales.ours(server.get("/object_info", timeout=120))


def inputs(node: dict) -> dict[str, dict]:
    """Input name, without the choice or list it belongs to -> its options; a growing input by its own name alone."""
    found = {name.rpartition(".")[2]: options for name, options in locales.inputs_of(node["input"])}
    return {name: options for name, options in found.items() if not re.fullmatch(r"(concept|image)_\d+", name)}


@pytest.mark.hosts
def test_every_node_input_and_output_says_what_it_is(nodes):
    for name, node in nodes.items():
        assert node["description"] and node["display_name"] and node["category"] == "personalization", name
        assert not [key for key, options in inputs(node).items() if not options.get("tooltip")], name
        assert all(node["output_tooltips"] or []), name
        if "search_aliases" in node or host_version() >= (0, 24):
            assert len(node["search_aliases"]) >= 2, name


def test_every_node_has_its_page(nodes):
    pages = {path.stem: path.read_text("utf-8") for path in (ROOT / "web" / "docs").glob("*.md")}
    assert pages.keys() == nodes.keys()
    for name, page in pages.items():
        assert page.startswith(f"# {nodes[name]['display_name']}\n"), name
        headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
        assert {"When to use it", "Inputs", "Example"} <= set(headings), (name, headings)
        assert not [key for key in inputs(nodes[name]) if f"`{key}`" not in page], name
        listed = re.findall(r"^(?:\| |- )((?:`\w+`(?:, )?)+)", page.split("## Inputs\n")[1].split("\n## ")[0], re.MULTILINE)
        stale = set(re.findall(r"`(\w+)`", " ".join(listed))) - inputs(nodes[name]).keys() - later_inputs()
        assert not stale, (name, stale)
        if name not in ("KindredPhotos", "KindredSave", "KindredGrid"):
            assert re.search(r"^Papers?: ", page, re.MULTILINE), name


@pytest.mark.parametrize("language", locales.languages())
def test_every_language_has_every_word_and_no_stale_one(nodes, language):
    differences = locales.differences(locales.english(nodes), locales.read(language))
    assert [place for place in differences if place.rpartition(".")[2] not in later_inputs()] == []


def test_the_english_words_are_the_nodes_own(nodes):
    """`python dev/build/locales.py` writes them. Core's samplers say their inputs a little differently in each version."""
    assert set(locales.languages()) >= {"en", "zh", "ja", "fr"}
    if host_version() >= (0, 30):
        assert locales.english(nodes) == locales.read("en")
