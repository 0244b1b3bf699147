/** The previews in a row, the newest in sight; a click shows one large. */
import { pictureUrl } from "../host.js";
import { say } from "../words/words.js";
import { html } from "./dom.js";

export class Filmstrip {
  constructor(enlarge) {
    this.element = html("div", "kindred-film");
    this.enlarge = enlarge;
    this.shown = "";
  }

  /** True when there is something to see. */
  draw(run) {
    const previews = run?.previews ?? [];
    const key = `${run?.id}:${previews.length}`;
    if (key === this.shown) return previews.length > 0; // pictures are not loaded again for each step
    this.shown = key;
    this.element.replaceChildren(...previews.map((preview) => this.#frame(preview)));
    this.element.scrollLeft = this.element.scrollWidth;
    return previews.length > 0;
  }

  #frame({ step, image }) {
    const picture = html("img");
    picture.alt = say("preview", { step });
    picture.onload = () => (this.element.scrollLeft = this.element.scrollWidth);
    const frame = html("button", "frame", picture, html("span", "", String(step)));
    frame.type = "button";
    frame.title = say("enlarge", { step });
    frame.onclick = () => this.enlarge(picture.src, say("at step", { step }));
    picture.onerror = () => frame.remove(); // the run's folder was deleted
    picture.src = pictureUrl(image);
    return frame;
  }
}
