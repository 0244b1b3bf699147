/** How far each token has drifted from its class: 1 - cos of the two prompts' text features, a line a token. */
import { say } from "../words/words.js";
import { html } from "./dom.js";
import { figure } from "./scale.js";
import { spark } from "./spark.js";

export class Drift {
  constructor() {
    this.element = html("div", "kindred-drift");
    this.element.title = say("drift meaning");
  }

  draw(run) {
    const rows = Object.entries(run?.curves.drift ?? {}).filter(([, values]) => values.some((value) => value !== null));
    const top = Math.max(1e-6, ...rows.flatMap(([, values]) => values));
    this.element.replaceChildren(
      ...rows.map(([token, values]) => {
        const last = values.findLast((value) => value !== null);
        return html("div", "row", html("span", "what", say("drift")), html("span", "token", token), spark(run.curves, values, run.steps, top, "drift"), html("span", "value", figure(last)));
      }),
    );
    return rows.length;
  }
}
