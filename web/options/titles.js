/** Titles between the groups of Training Options. The server says which group an input belongs to. */
import { addElement, definition, fixHeight } from "../host.js";
import { html } from "../panel/dom.js";
import { say } from "../words/words.js";

const TITLES = {
  data: () => say("group photos"),
  optimizer: () => say("group optimizer"),
  losses: () => say("group losses"),
  watching: () => say("group watching"),
  keeping: () => say("group keeping"),
  reach: () => say("group reach"),
  token: () => say("group token"),
  adapter: () => say("group adapter"),
};
const HEIGHT = 26;

export function addTitles(node) {
  const inputs = definition(node.comfyClass);
  let before = null;
  for (const widget of [...node.widgets]) {
    const group = (inputs.required?.[widget.name] ?? inputs.optional?.[widget.name])?.[1]?.group;
    if (!group || group === before) continue;
    before = group;
    const title = addElement(node, `title_${group}`, html("div", "kindred-title", TITLES[group]?.() ?? group), node.widgets.indexOf(widget), { margin: 3 });
    fixHeight(title, () => HEIGHT);
  }
  node.setSize([Math.max(node.size[0], 340), node.computeSize()[1]]);
}
