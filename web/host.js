/** All that touches the front end's internals; the other modules know the DOM and numbers only. */
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

export { api, app };

const rootGraph = () => (app.isGraphReady === false ? null : (app.rootGraph ?? app.graph));

/** The locale of the front end, such as "en" or "zh"; of the moment, since the setting can change. */
export const language = () => app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";

/** The workflow on the screen, as the server's runs name it. */
export const workflowId = () => rootGraph()?.id ?? null;

/** An id for a workflow. */
export const newId = () => LiteGraph.uuidv4();

/** The node of an execution id ("4", or "7:4" inside a subgraph) in the workflow on the screen. */
export function findNode(executionId) {
  let graph = rootGraph(), node = null;
  for (const part of String(executionId).split(":")) {
    node = graph?.getNodeById(part);
    graph = node?.subgraph;
  }
  return node ?? null;
}

/** The outputs that the front end still holds of the node's last run in this workflow, or undefined. */
export const lastOutput = (node) => app.nodeOutputs?.[node.id];

/** Tell the front end that the workflow is another than before, so that its own draft keeps the change. */
export function noteChange() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}

/** The nodes of `type` that take the output called `output` of `node`, also behind reroutes. */
export function takers(node, output, type) {
  const slot = node.outputs?.find((one) => one.name === output);
  return (slot?.links ?? []).flatMap((id) => {
    const link = node.graph.links.get?.(id) ?? node.graph.links[id], taker = link && node.graph.getNodeById(link.target_id);
    if (taker?.type === "Reroute") return takers(taker, taker.outputs[0]?.name, type);
    return taker?.type === type ? [taker] : [];
  });
}

/** Set a widget's value as the artist would; false where the node has none, or a link gives the value. */
export function setWidget(node, name, value) {
  const widget = node.widgets?.find((one) => one.name === name);
  if (!widget || node.inputs?.some((input) => input.widget?.name === name && input.link != null)) return false;
  widget.value = value;
  widget.callback?.(value);
  node.graph.setDirtyCanvas(true, true);
  noteChange();
  return true;
}

/** The address of a picture that the server has kept, small enough for a strip. */
export const pictureUrl = ({ filename, subfolder, type }) =>
  api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type, preview: "webp;85" })}`);

/**
 * Run `changed` after `node[hook]`, whatever else hangs on it.
 */
export function after(node, hook, changed) {
  const before = node[hook];
  node[hook] = function (...given) {
    const result = before?.apply(this, given);
    changed(...given);
    return result;
  };
}

/** Pass a saved node's widget values through `mend` before the node takes them; the saved data stays as it is. */
export function mendValues(node, mend) {
  const { configure } = node;
  node.configure = function (saved) {
    const values = saved.widgets_values;
    return configure.call(this, Array.isArray(values) ? { ...saved, widgets_values: mend(values) } : saved);
  };
}

/** The inputs of a node's class as the server defines them: {required, optional}. */
export const definition = (type) => LiteGraph.registered_node_types[type]?.nodeData?.input ?? {};

/** Let `change` bring a file in API form up to date before the front end makes nodes of it. */
export function beforePrompt(change) {
  const { loadApiJson } = app;
  app.loadApiJson = function (prompt, ...rest) {
    const copied = structuredClone(prompt);
    change(copied);
    return loadApiJson.call(this, copied, ...rest);
  };
}

/** Let the node be as high as its widgets need, and never lower than the artist made it. */
export function fit(node) {
  if (!node.graph) return;
  const height = node.computeSize()[1];
  if (node.size[1] < height) node.setSize([node.size[0], height]);
  node.graph.setDirtyCanvas(true, true);
}

/**
 * Nodes 2.0 folds advanced inputs away, but makes room for all of them when it opens a workflow: let a folded node be as high as what it shows.
 */
export function foldAdvanced(node) {
  const whole = node.computeSize;
  node.computeSize = function (...given) {
    const size = whole.apply(this, given);
    if (LiteGraph.vueNodesMode && !this.showAdvanced) size[1] -= heightOfAdvanced(this);
    return size;
  };
}

/** How much of a node's height, in the canvas's units, its advanced inputs take. */
export const heightOfAdvanced = (node) =>
  (node.widgets ?? []).filter((widget) => widget.options?.advanced && !widget.hidden).length * (LiteGraph.NODE_WIDGET_HEIGHT + 4);

const GAP = Symbol("a widget without a saved value");
const closeGaps = (node) => (saved) => {
  if (saved.widgets_values) saved.widgets_values = saved.widgets_values.filter((_, place) => node.widgets[place]?.serialize !== false);
};

/**
 * A DOM element as a widget at place `index`; it is no input, nothing of it is saved or sent, and the side panel has no entry for it.
 * The front end saves values by position and reads them without gaps, so the gap that such a widget leaves is closed.
 */
export function addElement(node, name, element, index, options) {
  const widget = node.addDOMWidget(name, name, element, { serialize: false, hideOnZoom: false, hideInPanel: true, ...options });
  widget.serialize = false;
  node.widgets.splice(node.widgets.indexOf(widget), 1);
  node.widgets.splice(index, 0, widget);
  if (!node.widgets.some((other) => other !== widget && other[GAP])) after(node, "onSerialize", closeGaps(node)); // once for all of them
  widget[GAP] = true;
  const mount = () => setTimeout(() => takePlace(node, element), 500);
  after(node, "onAdded", mount);
  after(node, "onConfigure", mount);
  return widget;
}

/** Older front ends' Nodes 2.0 leave the element of a node that had this one's id in its place. */
function takePlace(node, element) {
  if (!element.isConnected && node.graph) document.querySelector(`[data-node-id="${node.id}"] .${element.classList[0]}`)?.replaceWith(element);
}

/** Let a widget be as high as `height()` says in both renderers, whatever room the node has. */
export function fixHeight(widget, height) {
  widget.computeLayoutSize = undefined;
  widget.computeSize = (width) => [width, height()];
}
