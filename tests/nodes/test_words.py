"""What people read: tooltips, help pages and translations have a word for every node and input, and none for what is no more."""

import re

import pytest
from kindred_testing import ROOT, host_version, later_inputs, pack, script

locales = script("dev/build/locales.py")

SHAPE = (r"^##", r"^\|", r"^- ")  # headings, rows of tables, items of lists
ONE_OUTPUT = (
    "KindredConditioningSLERP",
    "KindredGuider",
    "KindredKSampler",
    "KindredKSamplerAdvanced",
    "KindredPersonalizationGuidance",
    "KindredNegativePrompt",
    "KindredDrift",
)
STATES = ("preparing", "done", "stopped", "failed", "lost")  # of a run, which the panel says by their own names


@pytest.fixture(scope="module")
def nodes(server):
    return locales.ours(server.get("/object_info", timeout=120))


def inputs(node: dict) -> dict[str, dict]:
    """Input name, without the choice or list it belongs to -> its options; a growing input by its own name alone."""
    found = {name.rpartition(".")[2]: options for name, options in locales.inputs_of(node["input"])}
    return {name: options for name, options in found.items() if not re.fullmatch(r"(concept|image)_\d+", name)}


def sections(page: str) -> list[str]:
    return re.split(r"^## .+\n", page, flags=re.MULTILINE)


def position(heading: str, page: str) -> int:
    return re.findall(r"^## (.+)$", page, re.MULTILINE).index(heading) + 1


def sentences(node: dict) -> dict[str, str]:
    """What is said of a node and its parts; names may be alike in two languages."""
    parts = {f"{kind}.{key}": entry.get("tooltip", "") for kind in ("inputs", "outputs") for key, entry in node.get(kind, {}).items()}
    return {"description": node["description"], **{key: tip for key, tip in parts.items() if tip}}


def code(page: str) -> set[str]:
    """What must be typed or found as it stands, in any language."""
    return set(re.findall(r"`([^`\n]+)`", page))


@pytest.mark.hosts
def test_every_node_input_and_output_says_what_it_is(nodes):
    for name, node in nodes.items():
        assert node["description"] and node["display_name"] and node["category"] == "personalization", name
        assert not [key for key, options in inputs(node).items() if not options.get("tooltip")], name
        assert all(node["output_tooltips"] or []), name
        if "search_aliases" in node or host_version() >= (0, 24):
            assert len(node["search_aliases"]) >= 2, name


@pytest.mark.parametrize("language", locales.languages())
def test_every_node_has_its_page_in_every_language(nodes, language):
    pages, english = locales.pages(language), locales.pages("en")
    assert pages.keys() == nodes.keys()
    names = locales.read(language)
    for name, page in pages.items():
        assert page.startswith(f"# {names[name]['display_name']}\n"), name
        wanted = inputs(nodes[name]).keys()
        listed = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", sections(page)[position("Inputs", english[name])], re.MULTILINE)
        found = re.findall(r"`(\w+)`", " ".join(listed))
        assert sorted(set(found) - later_inputs()) == sorted(wanted - later_inputs()), name
        assert len(found) == len(set(found)), f"{name}: an input twice"
        assert code(page) == code(english[name]), name
        assert [len(re.findall(mark, page, re.MULTILINE)) for mark in SHAPE] == [len(re.findall(mark, english[name], re.MULTILINE)) for mark in SHAPE], name
        unclosed = [bold[0] for bold in re.finditer(r"\*\*([^*\n]+)\*\*(?=(\w)?)", page) if bold[2] and not re.match(r"\w", bold[1][-1])]
        assert not unclosed, f"{name}: Markdown shows the asterisks of {unclosed}; a space belongs behind them"


@pytest.mark.parametrize("language", locales.languages())
def test_every_guidance_mode_is_explained_in_every_language(language):
    """In the tooltip of `mode` and as an item of the help page: a translation that knows the older modes only is not missing, but stale."""
    tooltip, page = locales.read(language)["KindredGuider"]["inputs"]["mode"]["tooltip"], locales.pages(language)["KindredGuider"]
    modes = list(pack("guidance.modes").MODES)
    assert [mode for mode in modes if mode not in tooltip] == [], f"locales/{language}/nodeDefs.json"
    assert re.findall(r"^- \*\*([\w+ -]+)\*\*", page, re.MULTILINE) == modes, f"KindredGuider's help page, {language}"


def test_english_pages_have_the_sections_that_people_look_for(nodes):
    for name, page in locales.pages("en").items():
        headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
        assert {"When to use it", "Inputs", "Example"} <= set(headings), (name, headings)
        assert re.search(r"^Outputs?: ", page, re.MULTILINE) or name in ONE_OUTPUT, name
        if name not in ("KindredPhotos", "KindredSave", "KindredGrid"):
            assert re.search(r"^Papers?: ", page, re.MULTILINE), name


@pytest.mark.parametrize("language", locales.languages())
def test_every_language_has_every_word_and_no_stale_one(nodes, language):
    differences = locales.differences(locales.english(nodes), locales.read(language))
    assert [place for place in differences if not later_inputs() & set(place.split("."))] == []
    if language != "en":
        english, here = locales.read("en"), locales.read(language)
        assert not [(name, key) for name in english for key, tip in sentences(english[name]).items() if tip == sentences(here[name])[key]], "still English"
    categories = {part: part for node in nodes.values() for part in node["category"].split("/")}
    assert locales.differences({"nodeCategories": categories}, locales.read(language, "main")) == []


@pytest.mark.parametrize("language", locales.languages())
def test_the_page_says_every_message_in_every_language(language):
    english, messages = locales.messages("en"), locales.messages(language)
    assert locales.differences(english, messages) == []
    scripts = "".join(path.read_text("utf-8") for path in (ROOT / "web").rglob("*.js") if path.parent != locales.WORDS)
    said = set(re.findall(r'say\("([^"]+)"', scripts)) | set(STATES)
    assert said == english.keys()
    for key, message in messages.items():
        assert set(re.findall(r"\{\w+\}", message)) == set(re.findall(r"\{\w+\}", english[key])), key
    assert f'import {language} from "./{language}.js"' in (locales.WORDS / "words.js").read_text("utf-8")


def test_the_english_words_are_the_nodes_own(nodes):
    """`python dev/build/locales.py` writes them. Core's samplers say their inputs a little differently in each version."""
    assert set(locales.languages()) >= {"en", "zh", "ja", "fr"}
    if host_version() >= (0, 30):
        assert locales.english(nodes) == locales.read("en"), "run dev/build/locales.py, as CONTRIBUTING.md says under Words and languages"
