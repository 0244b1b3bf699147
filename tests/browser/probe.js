/** What the browser tests ask of the page: nodes with every value changed, described before and after a save. */
window.probe = {
  /** A graph with one node of `type`, every widget set to another value than its default, every input connected. */
  async build(type, choice) {
    app.graph.clear();
    const node = this.add(type, 500, 100);
    if (choice) node.widgets.find((widget) => widget.name === choice[0]).value = choice[1];
    await this.settle();
    this.change(node);
    const unconnected = this.connect(node);
    await this.settle();
    return { id: node.id, unconnected, widgets: node.widgets.map((widget) => widget.name) };
  },

  add(type, x, y) {
    const node = LiteGraph.createNode(type);
    node.pos = [x, y];
    app.graph.add(node);
    return node;
  },

  settle: () => new Promise((done) => setTimeout(done, 250)),

  /** Other values than the defaults, each of them one that the artist could have given. */
  change(node) {
    for (const widget of node.widgets ?? []) {
      if (widget.serialize === false || widget.type === "button") continue;
      const { values, min = 0, max = 1, step2, precision } = widget.options ?? {};
      const list = typeof values === "function" ? values(widget, node) : values;
      if (node.constructor.nodeData.inputs?.[widget.name]?.type === "COMFY_DYNAMICCOMBO_V3") continue; // chosen by the test
      if (Array.isArray(list)) widget.value = list.at(-1);
      else if (typeof widget.value === "boolean") widget.value = !widget.value;
      else if (typeof widget.value === "number") widget.value = widget.value + (step2 ?? 1) <= max ? widget.value + (step2 ?? 1) : min;
      else if (typeof widget.value === "string") widget.value = `${widget.value} changed`;
    }
  },

  /** Connect every input that is no widget to a node that gives its type; the names of those that could not be. */
  connect(node) {
    const givers = { MODEL: "CheckpointLoaderSimple", CLIP: "CheckpointLoaderSimple", VAE: "CheckpointLoaderSimple", IMAGE: "EmptyImage", CONDITIONING: "CLIPTextEncode", LATENT: "EmptyLatentImage", MASK: "SolidMask" };
    const missing = [];
    for (let index = 0; index < node.inputs.length && index < 40; index++) { // autogrow adds inputs as they are connected
      const input = node.inputs[index];
      if (input.widget || input.link != null) continue;
      const wanted = String(input.type).split(",")[0];
      const type = givers[wanted] ?? Object.keys(LiteGraph.registered_node_types).find((name) => LiteGraph.registered_node_types[name].nodeData?.output?.includes(wanted));
      const giver = type && this.add(type, 40, 60 + 30 * index);
      const slot = giver?.outputs.findIndex((output) => output.type === wanted);
      if (!giver || !giver.connect(slot, node, index)) missing.push(`${input.name}: ${input.type}`);
      if (node.inputs.filter((other) => other.link != null).length > 12) break;
    }
    return missing;
  },

  /** All that a save must not lose: type, title, values by name, links by name. */
  describe() {
    return app.graph._nodes
      .map((node) => ({
        id: node.id,
        type: node.type,
        values: Object.fromEntries((node.widgets ?? []).filter((widget) => widget.serialize !== false).map((widget) => [widget.name, widget.value])),
        links: Object.fromEntries(
          (node.inputs ?? []).filter((input) => input.link != null).map((input) => {
            const link = app.graph.links.get ? app.graph.links.get(input.link) : app.graph.links[input.link];
            return [input.name, [link.origin_id, link.origin_slot]];
          }),
        ),
      }))
      .sort((one, other) => one.id - other.id);
  },

  /** Save as a file would hold it, clear, open again; what stood before and what stands after. */
  async roundTrip() {
    const before = this.describe();
    const file = JSON.stringify(app.graph.serialize());
    app.graph.clear();
    await app.loadGraphData(JSON.parse(file));
    await this.settle();
    return { before, after: this.describe(), again: JSON.stringify(app.graph.serialize().nodes.map((node) => node.widgets_values)), first: JSON.stringify(JSON.parse(file).nodes.map((node) => node.widgets_values)) };
  },

  /** What the renderer shows of a node: its elements in the page (Vue), or its place on the canvas. */
  mounted(id) {
    const node = app.graph.getNodeById(id);
    const element = document.querySelector(`[data-node-id="${id}"]`);
    return {
      size: [...node.size],
      element: element ? { height: element.offsetHeight, error: !!element.querySelector(".node-error"), rows: element.querySelectorAll('[data-testid="node-widget"]').length } : null,
      panel: (node.kindredPanel?.element.offsetHeight ?? 0) > 100,
      hint: !!document.querySelector(".kindred-hint"),
    };
  },

  /** Values by type of node and name of widget; what Train Concept lacks is set on its Training Options, which it gets then. */
  set(values) {
    for (const [type, named] of Object.entries(values))
      for (const node of app.graph._nodes.filter((candidate) => candidate.type === type))
        for (const [name, value] of Object.entries(named)) {
          const own = node.widgets.find((candidate) => candidate.name === name);
          const widget = own ?? this.options(node).widgets.find((candidate) => candidate.name === name);
          widget.value = value;
          widget.callback?.(value);
        }
  },

  /** The Training Options of a Train Concept; connected if it has none. */
  options(train) {
    const slot = train.inputs.findIndex((input) => input.name === "options"), given = train.getInputNode(slot);
    if (given) return given;
    const node = this.add("KindredTrainingOptions", train.pos[0], train.pos[1] + 800);
    node.connect(0, train, slot);
    return node;
  },

  /** A second Train Concept with the first one's inputs and other values, and a plot that asks for its loss. */
  twin(values) {
    const first = app.graph._nodes.find((node) => node.type === "KindredTrain");
    const twin = first.clone();
    twin.pos = [first.pos[0] + first.size[0] + 60, first.pos[1]];
    app.graph.add(twin);
    first.inputs.forEach((input, index) => {
      if (input.link == null) return;
      const link = app.graph.links.get(input.link);
      app.graph.getNodeById(link.origin_id).connect(link.origin_slot, twin, twin.inputs.findIndex((other) => other.name === input.name));
    });
    for (const [name, value] of Object.entries(values)) twin.widgets.find((widget) => widget.name === name).value = value;
    const plot = this.add("LossGraphNode", twin.pos[0] + twin.size[0] + 60, twin.pos[1]);
    twin.connect(twin.outputs.findIndex((output) => output.name === "loss"), plot, "loss");
  },

  /** WCAG's contrast of an element's text with what lies behind it. */
  contrast(selector) {
    const colour = (text) => {
      const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
      context.fillStyle = text;
      context.fillRect(0, 0, 1, 1);
      return [...context.getImageData(0, 0, 1, 1).data];
    };
    const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const element = document.querySelector(selector);
    let behind = element;
    while (behind.parentElement && colour(getComputedStyle(behind).backgroundColor)[3] < 200) behind = behind.parentElement;
    const [high, low] = [light(colour(getComputedStyle(element).color)), light(colour(getComputedStyle(behind).backgroundColor))].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  },

  /** What the panels say, one for each Train Concept in the order of their ids. */
  panels() {
    return app.graph._nodes
      .filter((node) => node.kindredPanel)
      .sort((one, other) => one.id - other.id)
      .map((node) => {
        const { element, run } = node.kindredPanel;
        return {
          visible: element.isConnected && element.offsetHeight > 0,
          state: element.dataset.state,
          run: run?.id ?? null,
          step: run?.step ?? 0,
          loss: element.querySelector("path.mean.loss")?.getAttribute("d") ?? "",
          spl: element.querySelector("path.mean.spl")?.getAttribute("d") ?? "",
          text: element.innerText,
          previews: [...element.querySelectorAll(".frame img")].map((picture) => picture.naturalWidth),
          saved: node.properties.kindred_run ?? null,
        };
      });
  },

  /** Bring nodes into sight. */
  look(types, scale = 1) {
    const nodes = app.graph._nodes.filter((node) => !types || types.includes(node.type));
    const left = Math.min(...nodes.map((node) => node.pos[0])), top = Math.min(...nodes.map((node) => node.pos[1]));
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [120 / scale - left, 120 / scale - top];
    app.canvas.setDirty(true, true);
  },
};
