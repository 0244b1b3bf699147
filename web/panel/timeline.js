/** The measured steps of a run: curves of what the previews scored, each on its own scale, and a button for each step behind them. */
import { say } from "../words/words.js";
import { html, path, svg } from "./dom.js";
import { figure } from "./scale.js";

const HEIGHT = 74, MARGIN = { left: 34, right: 8, top: 16, bottom: 8 }; // left and right as the chart's: a step is at one place in both
const SHAPES = { likeness: (x, y) => circle(x, y), prompt: (x, y) => diamond(x, y), heldout: (x, y) => square(x, y) };
const TITLES = { likeness: () => say("likeness"), prompt: () => say("prompt"), heldout: () => say("held-out loss") };

const circle = (cx, cy) => svg("circle", { cx, cy, r: 3.2 });
const diamond = (x, y) => svg("path", { d: `M${x} ${y - 4.4}L${x + 4.4} ${y}L${x} ${y + 4.4}L${x - 4.4} ${y}Z` });
const square = (x, y) => svg("rect", { x: x - 3, y: y - 3, width: 6, height: 6 });

/** The measures of a run that are drawn: likeness and prompt; the held-out loss where one of these is missing. */
export function measured(run) {
  const has = (name) => run.marks.some((mark) => mark[name] !== null);
  const scores = ["likeness", "prompt"].filter(has);
  return scores.length === 2 || !has("heldout") ? scores : [...scores, "heldout"];
}

/** "likeness 0.612, prompt 0.290": what is known of a step. */
export const scoresOf = (mark) => Object.keys(TITLES).filter((name) => mark?.[name] != null).map((name) => `${TITLES[name]()} ${figure(mark[name])}`);

export class Timeline {
  /** choose is told the step that the artist picks. */
  constructor(choose) {
    this.choose = choose;
    this.legend = html("div", "legend");
    this.curves = svg("svg", { "aria-hidden": "true" });
    this.stops = html("div", "stops");
    this.stops.setAttribute("role", "group");
    this.stops.addEventListener("keydown", (event) => this.#walk(event));
    this.element = html("div", "kindred-timeline", this.legend, html("div", "field", this.curves, this.stops));
    this.drawn = "";
  }

  /** True when there is something to see. */
  draw(run, chosen) {
    const marks = run?.marks ?? [];
    this.element.hidden = !marks.length;
    if (!marks.length) return false;
    const width = this.curves.clientWidth;
    const key = JSON.stringify([run.id, marks.length, run.best, run.steps, run.watching, chosen, width]);
    if (key === this.drawn || width < 60) return true; // an element that is not laid out yet is drawn the next time
    this.drawn = key;
    const x = (step) => MARGIN.left + ((step - 1) / Math.max(run.steps - 1, 1)) * (width - MARGIN.left - MARGIN.right);
    this.#curves(run, marks, x, width, chosen);
    this.#stops(run, marks, x, width, chosen);
    this.#legend(run, marks.find((mark) => mark.step === chosen) ?? marks.at(-1));
    return true;
  }

  /** The button of a step, or null. */
  stop(step) {
    return this.stops.querySelector(`[data-step="${step}"]`);
  }

  #curves(run, marks, x, width, chosen) {
    this.curves.replaceChildren();
    const bottom = HEIGHT - MARGIN.bottom;
    for (const y of [MARGIN.top, bottom]) this.curves.append(svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }));
    if (chosen !== null) this.curves.append(svg("line", { class: "chosen", x1: x(chosen), x2: x(chosen), y1: MARGIN.top - 4, y2: bottom }));
    let top = bottom;
    for (const name of measured(run)) {
      const known = marks.filter((mark) => mark[name] !== null), values = known.map((mark) => mark[name]);
      const low = Math.min(...values), span = Math.max(...values) - low;
      const y = (value) => (span ? bottom - ((value - low) / span) * (bottom - MARGIN.top) : (bottom + MARGIN.top) / 2);
      const group = svg("g", { class: name }, svg("path", { class: "line", d: path(known.map((mark) => [x(mark.step), y(mark[name])])) }));
      group.append(...known.map((mark) => SHAPES[name](x(mark.step), y(mark[name]))));
      this.curves.append(group);
      const best = known.find((mark) => mark.step === run.best);
      if (best) top = Math.min(top, y(best[name]));
    }
    if (run.best !== null) this.curves.append(svg("text", { class: "star", x: x(run.best), y: Math.max(top - 5, 11), "text-anchor": "middle" }, "★"));
  }

  /** A button from half way to the step before to half way to the one behind. */
  #stops(run, marks, x, width, chosen) {
    const had = document.activeElement?.closest?.(".kindred-timeline") === this.element ? Number(document.activeElement.dataset.step) : null;
    this.stops.setAttribute("aria-label", say("measured steps"));
    const entry = marks.some((mark) => mark.step === chosen) ? chosen : marks.some((mark) => mark.step === run.best) ? run.best : marks.at(-1).step;
    const edge = (index) => (index < 0 ? MARGIN.left / 2 : index >= marks.length - 1 ? width : (x(marks[index].step) + x(marks[index + 1].step)) / 2);
    this.stops.replaceChildren(...marks.map((mark, index) => {
      const stop = html("button", "stop");
      const said = [say("at step", { step: mark.step }), ...(mark.step === run.best ? [say("best")] : []), ...scoresOf(mark)].join(", ");
      Object.assign(stop, { type: "button", title: said, tabIndex: mark.step === entry ? 0 : -1, onclick: () => this.choose(mark.step) });
      stop.setAttribute("aria-label", said);
      stop.dataset.step = mark.step;
      stop.style.left = `${edge(index - 1)}px`;
      stop.style.width = `${Math.max(edge(index) - edge(index - 1), 2)}px`;
      return stop;
    }));
    if (had !== null) this.stop(had)?.focus({ preventScroll: true });
  }

  #legend(run, mark) {
    const entry = (name) => {
      const sign = svg("svg", { class: `sign ${name}`, viewBox: "0 0 22 10", "aria-hidden": "true" }, svg("path", { class: "line", d: "M0 5H22" }), SHAPES[name](11, 5));
      return html("span", "entry", sign, `${TITLES[name]()} `, html("b", "", figure(mark[name])));
    };
    this.legend.replaceChildren(...measured(run).map(entry));
    if (run.best !== null) this.legend.append(html("span", "entry best", "★ ", html("b", "", say("best step", { step: run.best }))));
    if (run.watching === null) return;
    const share = html("span", "entry share", say("watching", { share: (100 * run.watching).toFixed(run.watching < 0.1 ? 1 : 0) }));
    share.title = say("watching meaning");
    this.legend.append(share);
  }

  /** Arrow keys go from step to step, Home and End to the first and the last. */
  #walk(event) {
    const all = [...this.stops.children], at = all.indexOf(document.activeElement);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1 }[event.key];
    event.stopPropagation(); // the canvas has keys of its own
    if (to === undefined || !all[to]) return;
    event.preventDefault();
    all[at].tabIndex = -1;
    all[to].tabIndex = 0;
    all[to].focus();
  }
}
