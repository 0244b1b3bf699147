/**
 * Workflows and prompts of earlier versions, in which Train Concept had all settings. What differs from the defaults moves to a Training
 * Options node beside it, with the links and promoted widgets it had; so the file runs with the settings that it was saved with.
 * Files of this version keep their values under the widgets' names, whatever inputs came or went in between.
 */
import { layout, named, valuesOf } from "./layout.js";

const TRAIN = "KindredTrain", OPTIONS = "KindredTrainingOptions", SOCKET = "KINDRED_OPTIONS";
const MOVED = "batch_size"; // an input that only the old node has
const ADAPTER = ["rank", "targets", "alpha", "adapter", "train_text_encoder", "text_learning_rate"];
const TOKEN = ["token_learning_rate", "vectors", "direction_only"];
const OLD_METHODS = { "kv + token": TOKEN, "lora + token": [...ADAPTER, ...TOKEN], lora: ADAPTER, token: TOKEN };
const OLD = [
  ...["spl_weight", "prior_weight", "steps", "batch_size", "learning_rate", "resolution", "seed", "preview_every", "resume", "augment", "flip"],
  ...["weight_decay", "clip_norm", "precision", "accumulation", "gradient_checkpointing", "optimizer", "schedule", "warmup_steps", "ema_decay"],
  ...["preservation_weight", "loss", "huber_delta", "min_snr_gamma", "noise", "crop", "caption_dropout"],
  ...["preview_prompt", "preview_omega", "preview_cfg", "run_name", "save_every", "rows"],
];

/**
 * A template is opened as a workflow of its own: runs are told apart by the workflow's id, and a second copy would show those of the first.
 * What the page saves or keeps as a draft has the new id and no mark.
 */
export function nameCopy(file, id) {
  if (!file?.extra?.kindred_template) return;
  delete file.extra.kindred_template;
  file.id = id;
}

/** Bring a workflow file up to date, in place. `definitions`: the server's inputs of a node by its class. */
export function modernizeFile(file, definitions) {
  const graphs = [file, ...subgraphsOf(file)].filter((graph) => Array.isArray(graph?.nodes));
  const ids = counters(file, graphs);
  for (const graph of graphs)
    for (const node of [...graph.nodes]) {
      if (node?.type === TRAIN) split(graph, node, definitions, ids, graphs);
      else if (node?.type === OPTIONS && valuesOf(node)) arrange(node, layout(definitions(OPTIONS)), valuesOf(node));
    }
}

/** The same for a prompt in API form. */
export function modernizePrompt(prompt, definitions) {
  const widgets = layout(definitions(OPTIONS));
  for (const node of Object.values(prompt).filter((each) => each?.class_type === TRAIN)) {
    const inputs = node.inputs ?? {}, moved = {};
    for (const key of Object.keys(inputs)) {
      const name = bare(key);
      if (widgets.some((widget) => widget.name === name)) {
        moved[name] = inputs[key];
        delete inputs[key];
      }
    }
    for (const widget of layout(definitions(TRAIN), (name) => inputs[name])) if (widget.name in inputs) inputs[widget.name] = written(widget, inputs[widget.name]);
    if (!Object.keys(moved).length || inputs.options) continue;
    const id = String(1 + Math.max(0, ...Object.keys(prompt).map(Number).filter(Number.isFinite)));
    for (const widget of widgets) if (widget.name in moved) moved[widget.name] = written(widget, moved[widget.name]);
    prompt[id] = { class_type: OPTIONS, inputs: moved, _meta: { title: "Training Options" } };
    inputs.options = [id, 0];
  }
}

const bare = (name) => name.replace(/^method\./, "");
const isNumber = (value) => typeof value === "number";

/** An old value as the widget takes it: a rate that was a number is a text now, and its 0 is "auto". */
function written(widget, value) {
  if (!isNumber(value) || !widget.type.startsWith("STRING,")) return value;
  return value === 0 ? "auto" : String(value);
}

function split(graph, node, definitions, ids, graphs) {
  const saved = valuesOf(node) ?? byPosition(node.widgets_values);
  if (!saved) return;
  const widgets = layout(definitions(TRAIN), (name) => saved[name]);
  const here = new Set(widgets.map((widget) => widget.name));
  const gone = (node.inputs ?? []).filter((input) => input.widget && !here.has(input.name));
  node.inputs = (node.inputs ?? []).filter((input) => !gone.includes(input));
  arrange(node, widgets, saved);
  if (!(MOVED in saved)) return;

  const values = Object.fromEntries(Object.entries(saved).map(([name, value]) => [bare(name), value]));
  const rest = layout(definitions(OPTIONS));
  const linked = gone.filter((input) => input.link != null && rest.some((widget) => widget.name === bare(input.name)));
  const promoted = promotions(graph, graphs, node, rest);
  const changed = rest.filter(({ name, ...widget }) => name in values && written(widget, values[name]) !== widget.value);
  if (node.size) node.size = [node.size[0], Math.min(node.size[1], 640)];
  if (!changed.length && !linked.length && !promoted.length) return;

  const options = { id: ++ids.node, type: OPTIONS, pos: below(node), size: [360, 200], flags: {}, order: 0, mode: 0, properties: {} };
  options.inputs = rest.map((widget) => ({ name: widget.name, type: widget.type, widget: { name: widget.name }, link: null }));
  arrange(options, rest, values);
  for (const input of linked) {
    const slot = options.inputs.findIndex((other) => other.name === bare(input.name));
    options.inputs[slot].link = input.link;
    retarget(graph, input.link, options.id, slot);
  }
  for (const widget of promoted) [widget[0], widget[1]] = [String(options.id), bare(widget[1])];
  const link = ++ids.link;
  options.outputs = [{ name: "options", type: SOCKET, links: [link], slot_index: 0 }];
  node.inputs.push({ name: "options", type: SOCKET, shape: 7, link });
  graph.nodes.push(options);
  graph.links = [...(graph.links ?? []), newLink(graph, graphs, link, options.id, node)];
  ids.write();
}

/** Give the node the widgets' values in their order, the default where nothing was saved. */
function arrange(node, widgets, saved) {
  node.widgets_values = widgets.map((widget) => (widget.name in saved ? written(widget, saved[widget.name]) : widget.value));
}

/** The values of a file that does not name its widgets. */
function byPosition(values) {
  const own = Array.isArray(values) && values.length > 12 && OLD_METHODS[values[0]];
  return own ? named(["method", ...own.map((name) => `method.${name}`), ...OLD], values) : null;
}

function below(node) {
  const [x, y] = Array.from(node.pos ?? [0, 0]), height = node.size?.[1] ?? 640;
  return [x, y + height + 60];
}

function subgraphsOf(file) {
  return (file?.definitions?.subgraphs ?? []).flatMap((graph) => [graph, ...subgraphsOf(graph)]);
}

/** Numbers for new nodes and links, which are unique in the whole file. */
function counters(file, graphs) {
  const highest = (values) => Math.max(0, ...values.map(Number).filter(Number.isFinite));
  const links = graphs.flatMap((graph) => (graph.links ?? []).map((link) => (Array.isArray(link) ? link[0] : link?.id)));
  const nodes = graphs.flatMap((graph) => graph.nodes.map((node) => node?.id));
  const ids = {
    node: highest([...nodes, ...graphs.flatMap((graph) => [graph.last_node_id, graph.state?.lastNodeId])]),
    link: highest([...links, ...graphs.flatMap((graph) => [graph.last_link_id, graph.state?.lastLinkId])]),
    write() {
      for (const graph of graphs) {
        if ("last_node_id" in graph) [graph.last_node_id, graph.last_link_id] = [ids.node, ids.link];
        if (graph.state) [graph.state.lastNodeId, graph.state.lastLinkId] = [ids.node, ids.link];
      }
    },
  };
  return ids;
}

/** The entries [node, widget] by which subgraph nodes show widgets of `node` that have moved. */
function promotions(graph, graphs, node, rest) {
  const shown = graphs.flatMap((other) => other.nodes).filter((other) => other?.type === graph.id && Array.isArray(other.properties?.proxyWidgets));
  return shown.flatMap((other) => other.properties.proxyWidgets).filter(([id, name]) => String(id) === String(node.id) && rest.some((widget) => widget.name === bare(name)));
}

function retarget(graph, id, node, slot) {
  const link = graph.links.find((each) => (Array.isArray(each) ? each[0] : each.id) === id);
  if (Array.isArray(link)) [link[3], link[4]] = [node, slot];
  else if (link) [link.target_id, link.target_slot] = [node, slot];
}

/** A workflow of format 0.4 has its links as lists; a subgraph, and later formats, as objects. */
function newLink(graph, graphs, id, origin, node) {
  const lists = graph.links?.length ? Array.isArray(graph.links[0]) : graph === graphs[0] && graph.version !== 1;
  const slot = node.inputs.length - 1;
  return lists ? [id, origin, 0, node.id, slot, SOCKET] : { id, origin_id: origin, origin_slot: 0, target_id: node.id, target_slot: slot, type: SOCKET };
}
