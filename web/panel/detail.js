/** One step in full, over the panel: its pictures, what was measured, and the button that makes Save Concept take it. */
import { pictureUrl } from "../host.js";
import { say } from "../words/words.js";
import { html } from "./dom.js";
import { scoresOf } from "./timeline.js";

export class Detail {
  /** use: (step) -> what came of it, as a sentence; usable: (step) -> "" or why the step cannot be used; moved: is told the step that is shown, or null;
   *  home: (step) -> what has the focus when the step is closed. */
  constructor({ use, usable, moved, home }) {
    Object.assign(this, { use, usable, moved, home });
    this.element = html("div", "kindred-detail");
    this.element.hidden = true;
    this.element.setAttribute("role", "dialog");
    this.element.addEventListener("keydown", (event) => this.#key(event));
    this.step = null;
  }

  /** Show a step of the run. */
  open(run, step) {
    Object.assign(this, { run, step });
    const steps = this.#steps(), at = steps.indexOf(step);
    const mark = run.marks.find((one) => one.step === step), pictures = run.previews.filter((one) => one.step === step);
    const title = html("span", "title", say("at step", { step }), ...(step === run.best ? [html("b", "", ` ★ ${say("best")}`)] : []));
    const walk = (sign, words, to) => this.#button(sign, words, () => this.#go(to), steps[to] === undefined);
    const head = html("div", "head", walk("‹", say("previous step"), at - 1), title, walk("›", say("next step"), at + 1), this.#button("×", say("close"), () => this.close()));
    const shown = html("div", `pictures ${pictures.length > 1 ? "many" : ""}`, ...pictures.map((one) => this.#picture(one)));
    if (!pictures.length) shown.append(html("span", "nothing", say("no picture")));
    const foot = html("div", "foot", html("span", "scores", scoresOf(mark).join("   ")));
    const hindered = this.usable(step);
    this.answer = html("span", "answer", hindered);
    this.answer.setAttribute("role", "status");
    if (mark) foot.append(this.#button(say("use step"), say("use step"), () => (this.answer.textContent = this.use(step)), Boolean(hindered), "use"), this.answer);
    this.element.replaceChildren(head, shown, foot);
    this.element.setAttribute("aria-label", say("at step", { step }));
    this.element.hidden = false;
    (this.element.querySelector(".use:not(:disabled)") ?? this.element.querySelector(".head button:last-child")).focus({ preventScroll: true });
    this.moved(step);
  }

  close() {
    this.element.hidden = true;
    this.element.replaceChildren();
    this.home(this.step)?.focus({ preventScroll: true });
    this.step = null;
    this.moved(null);
  }

  #steps() {
    return [...new Set([...this.run.marks, ...this.run.previews].map((one) => one.step))].sort((one, other) => one - other);
  }

  #go(to) {
    const steps = this.#steps();
    if (steps[to] !== undefined) this.open(this.run, steps[to]);
  }

  #key(event) {
    event.stopPropagation(); // the canvas has keys of its own
    const at = this.#steps().indexOf(this.step);
    if (event.key === "Escape") this.close();
    else if (event.key === "ArrowLeft") this.#go(at - 1);
    else if (event.key === "ArrowRight") this.#go(at + 1);
  }

  #picture({ step, image, prompt }) {
    const picture = html("img");
    picture.alt = prompt || say("preview", { step });
    picture.onerror = () => picture.replaceWith(html("span", "nothing", say("no picture")));
    picture.src = pictureUrl(image);
    return html("figure", "", picture, ...(prompt ? [html("figcaption", "", prompt)] : []));
  }

  #button(content, title, act, disabled = false, className = "") {
    const button = html("button", className, content);
    Object.assign(button, { type: "button", title, disabled, onclick: act });
    button.setAttribute("aria-label", title);
    return button;
  }
}
