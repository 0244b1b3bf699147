/**
 * What a run does to its class, a line each: how far each token has drifted from it (1 - cos of the two prompts' text features), and the leak, how
 * far the prediction for the class prompt has moved from the base model's.
 */
import { say } from "../words/words.js";
import { html } from "./dom.js";
import { figure } from "./scale.js";
import { spark } from "./spark.js";

const LEAK_SEEN = 0.02; // a smaller leak is drawn near the ground: nobody sees it in a picture

const percent = (value) => `${(100 * value).toFixed(value && value < 0.1 ? 1 : 0)} %`;

export class Drift {
  constructor() {
    this.element = html("div", "kindred-drift");
  }

  draw(run) {
    const rows = Object.entries(run?.curves.drift ?? {}).filter(([, values]) => values.some((value) => value !== null));
    const top = Math.max(1e-6, ...rows.flatMap(([, values]) => values));
    const drift = { what: say("drift"), title: say("drift meaning"), className: "drift", written: figure };
    const lines = rows.map(([token, values]) => this.#line(run, drift, token, values, top));
    const leak = run?.curves.columns.leak ?? [];
    if (leak.some((value) => value !== null)) {
      const of = { what: say("leak"), title: say("leak meaning"), className: "leak", written: percent };
      lines.push(this.#line(run, of, say("class prompt"), leak, Math.max(LEAK_SEEN, ...leak)));
    }
    this.element.replaceChildren(...lines);
    return lines.length;
  }

  #line(run, { what, title, className, written }, name, values, top) {
    const last = values.findLast((value) => value !== null);
    const picture = spark(run.curves, values, run.steps, top, className);
    const line = html("div", "row", html("span", "what", what), html("span", "token", name), picture, html("span", "value", written(last)));
    line.title = title;
    return line;
  }
}
