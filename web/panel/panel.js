/** The panel on Train Concept. It is offered runs (see runs.js), draws at most a few times a second, and leaves the last run in the workflow. */
import { addElement, after, fit, fixHeight, noteChange } from "../host.js";
import { ask, isLive } from "../runs.js";
import { say } from "../words/words.js";
import { Chart, legend, newest } from "./chart.js";
import { html } from "./dom.js";
import { Drift } from "./drift.js";
import { Figures } from "./figures.js";
import { Filmstrip } from "./filmstrip.js";
import { isLater, readRun, readSaved } from "./run.js";
import { spark } from "./spark.js";

const PROPERTY = "kindred_run"; // of the node: the last run, saved with the workflow
const KEPT = ["id", "started", "order", "state", "note", "step", "steps", "seconds", "curves", "previews"];
const PAUSE = 250; // ms between two drawings
const HEIGHT = 252, MARGIN = 8, ROW = 18, FILM = 66, NOTE = 32, GAP = 6, CHART = 118, REST = 58;

export class Panel {
  static on(node) {
    node.kindredPanel = new Panel(node);
  }

  constructor(node) {
    this.node = node;
    this.run = null;
    this.figures = new Figures();
    this.legend = html("div", "kindred-legend");
    this.chart = new Chart((step, values) => this.#legend(step, values));
    this.drift = new Drift();
    this.film = new Filmstrip((source, title) => this.#enlarge(source, title));
    this.note = html("div", "kindred-note");
    this.element = html("div", "kindred-panel", this.figures.element, this.legend, this.chart.element, this.drift.element, this.film.element, this.note);
    this.height = HEIGHT;
    this.element.style.minHeight = `${HEIGHT}px`;
    const widget = addElement(node, "kindred_panel", this.element, 0, { margin: MARGIN });
    fixHeight(widget, () => this.height + 2 * MARGIN);
    new ResizeObserver(() => this.#draw()).observe(this.element);
    after(node, "onConfigure", () => this.#restore());
    after(node, "onAdded", ask);
    this.#restore();
  }

  /** A run of this node, from the server: shown unless the workflow holds a later one. What runs now is the latest, whatever the file says. */
  offer(run) {
    const others = [readRun(this.node.properties?.[PROPERTY]), this.run];
    if (!isLive(run) && others.some((other) => other && other.id !== run.id && isLater(other, run))) return;
    this.run = run;
    if (!isLive(run) && run.unsaved && run.whole) {
      run.unsaved = false; // once: an artist who undoes it means it
      this.node.properties[PROPERTY] = JSON.parse(JSON.stringify(Object.fromEntries(KEPT.map((key) => [key, run[key]]))));
      noteChange();
    }
    this.drawSoon();
  }

  #restore() {
    this.run = readSaved(this.node.properties?.[PROPERTY]) ?? this.run;
    this.drawSoon();
    ask();
  }

  drawSoon() {
    this.waiting ??= setTimeout(() => {
      this.waiting = null;
      requestAnimationFrame(() => this.#draw());
    }, PAUSE);
  }

  #draw() {
    const { run } = this;
    this.element.dataset.state = run?.state ?? "empty";
    this.figures.draw(run);
    const tokens = this.drift.draw(run), film = this.film.draw(run);
    this.note.textContent = run?.note ?? "";
    this.note.title = run?.note ?? "";
    this.#legend(null);
    this.chart.draw(run);
    const rest = REST + tokens * ROW + (film ? FILM : 0) + (run?.note ? Math.max(NOTE, this.note.offsetHeight + GAP) : 0);
    const chart = Math.min(Math.max(CHART, 0.3 * this.node.size[0]), 320); // a wider node has a higher chart
    this.#grow(Math.round(Math.max(HEIGHT, rest + chart)));
  }

  #grow(height) {
    if (height === this.height) return;
    this.height = height;
    this.element.style.minHeight = `${height}px`;
    fit(this.node);
  }

  /** Below the pointer, or of now. */
  #legend(step, values) {
    const { run } = this;
    this.legend.replaceChildren();
    if (!run?.curves.length) return;
    for (const { name, title, value } of legend(values ?? newest(run.curves))) this.legend.append(html("span", `entry ${name}`, html("i"), `${title} `, html("b", "", value)));
    const rates = run.curves.columns.learning_rate, steady = rates.every((rate) => rate === rates[0]);
    const rate = html("span", "entry rate", step === null ? `${say("lr")} ` : say("at step", { step }));
    if (step === null) {
      if (!steady) rate.append(spark(run.curves, rates, run.steps, Math.max(...rates), "rate"));
      rate.append(html("b", "", rates.at(-1)?.toExponential(1).replace("e-", "e−") ?? "–"));
    }
    this.legend.append(rate);
  }

  #enlarge(source, title) {
    const picture = html("img");
    picture.src = source;
    const large = html("button", "kindred-large", picture, html("span", "", title));
    large.type = "button";
    large.title = say("close");
    large.onclick = () => large.remove();
    this.element.append(large);
  }
}
