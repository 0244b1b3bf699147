"""The pack in the languages of the front end: node, tooltip, category, panel, hint and help page."""

import json
import uuid

import pytest
from kindred_testing import ROOT, script
from kindred_testing.browser import missing

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=missing() or "")]
locales = script("dev/build/locales.py")

SAID = """async () => {
    const [train, sampler] = ["KindredTrain", "KindredKSampler"].map((type) => app.graph._nodes.find((node) => node.type === type));
    const place = (await (await fetch("/extensions")).json()).find((path) => path.endsWith("/kindred.js")).replace("/kindred.js", "");
    const language = app.extensionManager.setting.get("Comfy.Locale");
    const help = await fetch(`${place}/docs/KindredTrain/${language}.md`);
    const [low, , high] = sampler.widgets.find((widget) => widget.name === "omega_hint").element.children;
    return {
        language,
        title: LiteGraph.registered_node_types.KindredTrain.title,
        input: train.inputs.find((input) => input.name === "vae").localized_name,
        tooltip: document.querySelector("#vue-app").__vue_app__.config.globalProperties.$t("nodeDefs.KindredTrain.inputs.spl_weight.tooltip"),
        category: document.querySelector("#vue-app").__vue_app__.config.globalProperties.$t("nodeCategories.personalization"),
        panel: train.kindredPanel.element.textContent,
        hint: [low.textContent, high.textContent],
        help: help.ok && (await help.text()).split("\\n")[0],
    };
}"""


@pytest.fixture
def speak(page, tmp_path):
    """A function that sets the front end's language, loads the page again and opens a training and a guided sampler."""

    def speak(language: str) -> None:
        page.page.evaluate("language => app.extensionManager.setting.set('Comfy.Locale', language)", language)
        page.reload()
        workflow = json.loads((ROOT / "workflows" / "train_a_concept.json").read_text("utf-8")) | {"id": str(uuid.uuid4())}
        file = tmp_path / f"speak-{language}.json"
        file.write_text(json.dumps(workflow), "utf-8")
        page.drop(file)
        page.page.evaluate("() => app.graph.add(LiteGraph.createNode('KindredKSampler'))")
        page.page.wait_for_timeout(800)
        page.probe("look", ["KindredTrain"], 1.2)
        page.page.wait_for_timeout(400)
        page.screenshot(f"language-{language}-{page.renderer}")

    yield speak
    page.page.evaluate("() => app.extensionManager.setting.set('Comfy.Locale', 'en')")
    page.reload()


@pytest.mark.parametrize("page", ["canvas"], indirect=True)
def test_the_page_speaks_the_language_of_the_front_end(page, speak):
    for language in (each for each in locales.languages() if each != "en"):
        speak(language)
        said, node, messages = page.page.evaluate(SAID), locales.read(language)["KindredTrain"], locales.messages(language)
        assert said["language"] == language
        assert said["title"] == node["display_name"] and said["help"] == f"# {node['display_name']}"
        assert said["input"] == node["inputs"]["vae"]["name"]
        assert said["tooltip"] == node["inputs"]["spl_weight"]["tooltip"]
        assert said["category"] == locales.read(language, "main")["nodeCategories"]["personalization"]
        assert messages["empty first"] in said["panel"] and messages["empty second"] in said["panel"]
        assert said["hint"] == [messages["omega low"], messages["omega high"]]
    speak("ko")  # a language of the front end that the pack does not have
    assert locales.messages("en")["empty first"] in page.probe("panels")[0]["text"]
