/** The previews in a row, one of each step, the newest in sight; a click shows the step large. */
import { pictureUrl } from "../host.js";
import { say } from "../words/words.js";
import { html } from "./dom.js";

export class Filmstrip {
  constructor(choose) {
    this.element = html("div", "kindred-film");
    this.choose = choose;
    this.shown = "";
  }

  /** True when there is something to see. */
  draw(run, chosen = null) {
    const previews = run?.previews ?? [];
    const key = `${run?.id}:${previews.length}`;
    if (key !== this.shown) {
      this.shown = key; // pictures are not loaded again for each step
      const firsts = previews.filter(({ step }, index) => previews.findIndex((other) => other.step === step) === index);
      this.element.replaceChildren(...firsts.map((preview) => this.#frame(preview, previews.filter(({ step }) => step === preview.step).length)));
      this.element.scrollLeft = this.element.scrollWidth;
    }
    for (const frame of this.element.children) {
      const step = Number(frame.dataset.step);
      frame.classList.toggle("best", step === run?.best);
      frame.setAttribute("aria-pressed", String(step === chosen));
      frame.querySelector(".sign").textContent = step === run?.best ? `★ ${say("best")}` : "";
    }
    return previews.length > 0;
  }

  /** The frame of a step, or null. */
  frame(step) {
    return this.element.querySelector(`[data-step="${step}"]`);
  }

  #frame({ step, image }, count) {
    const picture = html("img");
    picture.alt = say("preview", { step });
    picture.onload = () => (this.element.scrollLeft = this.element.scrollWidth);
    const frame = html("button", "frame", picture, html("span", "", count > 1 ? `${step} · ${count}` : String(step)), html("span", "sign"));
    frame.type = "button";
    frame.dataset.step = step;
    frame.title = say("enlarge", { step });
    frame.onclick = () => this.choose(step);
    picture.onerror = () => frame.remove(); // the run's folder was deleted
    picture.src = pictureUrl(image);
    return frame;
  }
}
