/** The panel on Train Concept. It is offered runs (see runs.js), draws at most a few times a second, and leaves the last run in the workflow. */
import { addElement, after, fit, fixHeight, noteChange, setWidget, takers } from "../host.js";
import { ask, isLive } from "../runs.js";
import { say } from "../words/words.js";
import { Chart, legend, newest } from "./chart.js";
import { Detail } from "./detail.js";
import { html } from "./dom.js";
import { Drift } from "./drift.js";
import { Figures } from "./figures.js";
import { Filmstrip } from "./filmstrip.js";
import { isLater, readRun, readSaved } from "./run.js";
import { spark } from "./spark.js";
import { Timeline } from "./timeline.js";

const PROPERTY = "kindred_run"; // of the node: the last run, saved with the workflow
const KEPT = ["id", "started", "order", "state", "note", "step", "steps", "seconds", "curves", "previews", "marks", "best", "kept", "watching"];
const PAUSE = 250; // ms between two drawings
const HEIGHT = 252, MARGIN = 8, ROW = 18, FILM = 66, TIME = 95, NOTE = 32, GAP = 6, CHART = 118, REST = 58;

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
    const show = (step) => this.detail.open(this.run, step);
    this.time = new Timeline(show);
    this.film = new Filmstrip(show);
    this.detail = new Detail({ use: (step) => this.#use(step), usable: (step) => this.#usable(step), moved: () => this.drawSoon(), home: (step) => this.time.stop(step) ?? this.film.frame(step) });
    this.note = html("div", "kindred-note");
    const parts = [this.figures, { element: this.legend }, this.chart, this.drift, this.time, this.film, { element: this.note }, this.detail];
    this.element = html("div", "kindred-panel", ...parts.map((part) => part.element));
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
    const { step } = this.detail;
    const tokens = this.drift.draw(run), time = this.time.draw(run, step), film = this.film.draw(run, step);
    this.note.textContent = run?.note ?? "";
    this.note.title = run?.note ?? "";
    this.#legend(null);
    this.chart.draw(run);
    const rest = REST + tokens * ROW + (time ? TIME : 0) + (film ? FILM : 0) + (run?.note ? Math.max(NOTE, this.note.offsetHeight + GAP) : 0);
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

  #savers() {
    return takers(this.node, "lora", "KindredSave");
  }

  /** Why Save Concept cannot take the step; "" if it can. */
  #usable(step) {
    if (!this.run.kept.includes(step)) return say("not kept");
    return this.#savers().length ? "" : say("no saver");
  }

  #use(step) {
    const set = this.#savers().filter((node) => setWidget(node, "which", String(step)));
    return set.length ? say("using", { step }) : say("no saver");
  }
}
