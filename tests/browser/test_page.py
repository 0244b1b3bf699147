"""The pack in the real front end, in both of its node renderers: nodes, and workflows dropped as files."""

import json

import pytest
from kindred_testing import ROOT, host_version, script
from kindred_testing.browser import missing

locales = script("dev/build/locales.py")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=missing() or "")]


def test_each_node_mounts_connects_and_is_saved_without_loss(page, server):
    """Every widget at another value than its default, every input connected, every choice of a dynamic combo; then saved and opened again."""
    info = {name: node for name, node in server.get("/object_info", timeout=120).items() if name.startswith("Kindred")}
    assert len(info) >= 15
    for name, node in info.items():
        inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        combos = [(key, [option["key"] for option in given[1]["options"]]) for key, given in inputs.items() if given[0] == "COMFY_DYNAMICCOMBO_V3"]
        choices = [(key, option) for key, options in combos for option in options] or [None]
        for choice in choices:
            where = f"{name} {choice or ''} in {page.renderer}"
            built = page.probe("build", name, choice)
            assert built["unconnected"] == [], where
            page.page.wait_for_function("([id, panel]) => probe.mounted(id).panel === panel", arg=[built["id"], name == "KindredTrain"])
            mounted = page.probe("mounted", built["id"])
            assert (mounted["element"] is not None) == (page.renderer == "vue"), where
            if mounted["element"]:
                assert not mounted["element"]["error"] and mounted["element"]["height"] > 40, where
            hinted = name not in ("KindredDrift", "KindredTrainingOptions") and bool({"omega", "alpha"} & set(built["widgets"]))
            assert mounted["hint"] == hinted, where  # Semantic Drift's alpha is advanced, Training Options' is another thing
            trip = page.probe("roundTrip")
            assert trip["before"] == trip["after"], where
            assert trip["first"] == trip["again"], where
            assert None not in json.loads(trip["first"])[0], f"{where}: {trip['first']}"


def test_tooltips_are_shown_whole(page, server):
    """The page shows them as messages of vue-i18n, where braces are places to fill in."""
    said = {
        f"nodeDefs.{name}.inputs.{key.replace('.', '_')}.tooltip": options["tooltip"]
        for name, node in locales.ours(server.get("/object_info", timeout=120)).items()
        for key, options in locales.inputs_of(node["input"])
    }
    assert any("{token}" in text for text in said.values())
    shown = page.page.evaluate("keys => keys.map(document.querySelector('#vue-app').__vue_app__.config.globalProperties.$t)", list(said))
    assert dict(zip(said, shown, strict=True)) == said


@pytest.mark.parametrize("file", sorted((ROOT / "workflows").glob("*.json")), ids=lambda file: file.stem)
def test_a_workflow_dropped_as_a_file_opens_whole(page, file):
    page.drop(file)
    wanted = json.loads(file.read_text("utf-8"))
    opened = page.page.evaluate("() => app.graph._nodes.map(node => [node.type, node.type in LiteGraph.registered_node_types])")
    assert sorted(kind for kind, _ in opened) == sorted(node["type"] for node in wanted["nodes"])
    assert all(known for _, known in opened), opened
    if host_version() >= (0, 30):  # older front ends scale nodes as they open a file
        for height, needed in page.page.evaluate("() => app.graph._nodes.filter(node => node.kindredPanel).map(node => [node.size[1], node.computeSize()[1]])"):
            assert abs(height - needed) < 60, "as high as what it shows"
            assert height < 720
    page.probe("look", None, 0.5)
    page.page.wait_for_timeout(400)
    page.screenshot(f"{file.stem}-{page.renderer}")


GUIDED = ("KindredKSampler", "KindredGuider")
SEARCHED = {  # what people type -> the nodes that answer it, and the place that one of them has at least
    "lora training": (("KindredTrain",), 1),
    "dreambooth": (("KindredTrain",), 1),
    "likeness": (("KindredTrain", *GUIDED), 3),
    "overfitting": (("KindredTextEncode", *GUIDED), 3),
    "prompt ignored": (("KindredTextEncode", "KindredConditioningSLERP"), 1),
    "product photo": (("KindredPhotos", "KindredTrain"), 1),
    # The search weighs names and how often people use a node, never aliases: core's nodes that are called so stand before.
    "character": (("KindredTrain", "KindredConcept"), 5),
    "style": (("KindredTrain",), 5),
}


@pytest.mark.parametrize("page", ["canvas"], indirect=True)
def test_the_search_finds_what_people_type(page):
    """The index of the page's node search itself, with the order that it shows."""
    found = page.page.evaluate(
        """words => {
            const { nodeSearchService } = document.querySelector("#vue-app").__vue_app__.config.globalProperties.$pinia._s.get("nodeDef");
            return Object.fromEntries(words.map((word) => [word, nodeSearchService.searchNode(word).map((node) => node.name)]));
        }""",
        list(SEARCHED),
    )
    for word, (wanted, place) in SEARCHED.items():
        assert set(wanted) & set(found[word][:place]), (word, found[word][:8])


def test_the_side_panel_has_no_blank_entries(page):
    """It lists a node's widgets; pictures, titles and the live panel are none."""
    for kind, shown in (("KindredTrain", 8), ("KindredTrainingOptions", 34), ("KindredKSampler", 7)):
        entries = page.page.evaluate(
            """async (kind) => {
                app.graph.clear();
                const node = probe.add(kind, 300, 100);
                await probe.settle();
                return node.widgets.filter(({ options }) => !(options?.canvasOnly || options?.hidden || options?.hideInPanel)).map(({ name, type, element }) => [name, type, !!element]);
            }""",
            kind,
        )
        assert not [entry for entry in entries if entry[2] and entry[1] != "customtext"], entries  # the front end draws a text of several lines itself
        assert len(entries) >= shown


@pytest.mark.parametrize("world", [[False], []], ids=["with miniature_world", "as saved now"])
def test_a_file_of_an_older_version_keeps_its_values(page, world):
    given = ["a <v1> cat", "<v1>", "cat", "none", "none", "none"]
    node = {"id": 1, "type": "KindredEvaluate", "pos": [0, 0], "size": [400, 300], "inputs": [], "outputs": [], "widgets_values": [*given, *world, "light"]}
    graph = {
        "id": f"saved-{len(world)}",
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [node],
        "links": [],
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }
    page.page.evaluate("graph => app.loadGraphData(graph)", graph)
    page.page.wait_for_timeout(250)
    names = ["prompts", "token", "class_word", "clip", "dino", "blip2", "theme"]
    later = {"pickscore": "none"}  # inputs that came after the file, at their defaults
    assert page.probe("describe")[0]["values"] == dict(zip(names, [*given, "light"], strict=True)) | later
    prompt = page.page.evaluate("async () => (await app.graphToPrompt()).output[1].inputs")
    assert {name: prompt[name] for name in names} == dict(zip(names, [*given, "light"], strict=True)), "what is queued"


def test_workflows_have_ids_of_their_own():
    """The front end keeps values by the workflow's id and the node's: two files of one id in one session would mix them up."""
    ids = [json.loads(file.read_text("utf-8")).get("id") for file in (ROOT / "workflows").glob("*.json")]
    assert len(set(ids)) == len(ids) and all(ids) and not any(set(each) <= set("0-") for each in ids), ids
