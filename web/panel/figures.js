/** The line of figures above the chart, and the bar: where the run stands, how fast, how long still. */
import { say } from "../words/words.js";
import { html } from "./dom.js";
import { clock, pace } from "./scale.js";

export class Figures {
  constructor() {
    this.step = html("span", "step");
    this.pace = html("span", "pace");
    this.left = html("span", "left");
    this.filled = html("i");
    this.element = html("div", "kindred-figures", html("div", "line", this.step, this.pace, this.left), html("div", "bar", this.filled));
  }

  draw(run) {
    this.element.hidden = !run;
    if (!run) return;
    this.step.replaceChildren(`${say("step")} `, html("b", "", String(run.step)), ` / ${run.steps}`);
    this.pace.textContent = run.state === "running" ? pace(run.steps_per_second) : run.state === "preparing" ? "" : say("time taken", { time: clock(run.seconds) });
    this.left.textContent = run.state === "running" ? (run.seconds_left == null ? "" : say("time left", { time: clock(run.seconds_left) })) : say(run.state);
    this.filled.style.width = `${Math.min(100, (100 * run.step) / Math.max(run.steps, 1))}%`;
  }
}
