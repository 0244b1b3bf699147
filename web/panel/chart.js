/** Loss and SPL over the steps on a logarithmic axis: each step faint, the smoothed curve above it. */
import { say } from "../words/words.js";
import { path, svg } from "./dom.js";
import { figure, label, logRange, logScale, logTicks, smooth } from "./scale.js";

const SERIES = [["loss", () => say("loss")], ["spl", () => say("SPL")]];
const MARGIN = { left: 34, right: 8, top: 8, bottom: 16 };

export class Chart {
  constructor(pointed) {
    this.element = svg("svg", { class: "kindred-chart" });
    this.pointed = pointed; // is told the step under the pointer, and what was measured there; null when it leaves
    this.element.addEventListener("pointermove", (event) => this.#point(event));
    this.element.addEventListener("pointerleave", () => this.#leave());
  }

  draw(run) {
    const width = this.element.clientWidth, height = this.element.clientHeight;
    if (width < 60 || height < 40) return;
    this.element.replaceChildren();
    const bottom = height - MARGIN.bottom, right = width - MARGIN.right;
    if (!run?.curves.length) return this.#empty(width, bottom, right);
    const { curves } = run;
    const shown = SERIES.map(([name]) => ({ name, raw: curves.columns[name], mean: smooth(curves.columns[name]) })).filter(({ raw }) => raw.some((value) => value > 0));
    const [low, high] = logRange(shown.flatMap(({ raw }) => raw));
    const y = logScale(low, high, bottom, MARGIN.top);
    const steps = Math.max(run.steps, 2);
    const x = (step) => MARGIN.left + ((step - 1) / (steps - 1)) * (right - MARGIN.left);
    this.view = { run, shown, x, y, bottom, right };
    for (const value of logTicks(low, high)) {
      this.element.append(svg("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(value), y2: y(value) }));
      this.element.append(text("tick", MARGIN.left - 5, y(value) + 3, label(value), "end"));
    }
    for (const step of [1, Math.round(steps / 2), steps]) this.element.append(text("tick", x(step), height - 4, step, step === 1 ? "start" : step === steps ? "end" : "middle"));
    for (const { step } of run.previews ?? []) this.element.append(svg("line", { class: "mark", x1: x(step), x2: x(step), y1: bottom, y2: bottom + 4 }));
    for (const { name, raw, mean } of shown) {
      const points = (values) => values.map((value, index) => (value > 0 ? [x(curves.step(index)), y(value)] : null));
      if (curves.length > 2) this.element.append(svg("path", { class: `raw ${name}`, d: path(points(raw)) }));
      const line = points(mean);
      this.element.append(svg("path", { class: `mean ${name}`, d: path(line) }));
      const tip = line.at(-1);
      if (tip) this.element.append(svg("circle", { class: `tip ${name}`, cx: tip[0], cy: tip[1], r: 2.6 }));
    }
    this.cross = svg("g", { class: "cross" });
    this.element.append(this.cross);
  }

  /** Before the first run: where the curves will be. */
  #empty(width, bottom, right) {
    this.view = null;
    for (const part of [0, 1]) {
      const y = MARGIN.top + part * (bottom - MARGIN.top);
      this.element.append(svg("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y, y2: y }));
    }
    const curve = (from, to) => Array.from({ length: 40 }, (_, index) => {
      const part = index / 39;
      return [MARGIN.left + part * (right - MARGIN.left), MARGIN.top + (bottom - MARGIN.top) * (to + (from - to) * Math.exp(-4 * part))];
    });
    this.element.append(svg("path", { class: "ghost", d: path(curve(0.12, 0.42)) }), svg("path", { class: "ghost", d: path(curve(0.5, 0.82)) }));
    this.element.append(text("hint", (MARGIN.left + right) / 2, (MARGIN.top + bottom) / 2 - 2, say("empty first"), "middle"));
    this.element.append(text("hint", (MARGIN.left + right) / 2, (MARGIN.top + bottom) / 2 + 13, say("empty second"), "middle"));
  }

  #point(event) {
    if (!this.view) return;
    const { run, shown, x, y, bottom } = this.view, { curves } = run;
    const box = this.element.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * this.element.clientWidth; // the canvas may be zoomed
    const span = x(curves.step(1)) - x(curves.step(0)) || 1;
    const index = Math.min(Math.max(Math.round((at - x(curves.step(0))) / span), 0), curves.length - 1);
    const step = curves.step(index);
    this.cross.replaceChildren(svg("line", { x1: x(step), x2: x(step), y1: MARGIN.top, y2: bottom }));
    for (const { name, mean } of shown) if (mean[index] > 0) this.cross.append(svg("circle", { class: `tip ${name}`, cx: x(step), cy: y(mean[index]), r: 3 }));
    this.pointed(Math.round(step), Object.fromEntries(shown.map(({ name, mean }) => [name, mean[index]])));
  }

  #leave() {
    this.cross?.replaceChildren();
    this.pointed(null);
  }
}

/** "loss 0.0812  SPL 0.0031" with the curves' colours; the legend of the chart. */
export function legend(values) {
  return SERIES.filter(([name]) => values[name] > 0).map(([name, title]) => ({ name, title: title(), value: figure(values[name]) }));
}

/** The newest smoothed values. */
export const newest = (curves) => Object.fromEntries(SERIES.map(([name]) => [name, smooth(curves.columns[name]).at(-1) ?? null]));

function text(className, x, y, content, anchor) {
  return svg("text", { class: className, x, y, "text-anchor": anchor }, String(content));
}
