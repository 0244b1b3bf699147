/**
 * What omega does: likeness to the subject holds from 0 to about 0.6 and falls toward 1, obedience to the prompt rises all the way.
 * The two lines are measured: DINO and CLIP-T of DreamBooth-LoRA on SD 1.5, Steering Guidance (2025), table 9, each on its own scale.
 */
import { path, svg } from "../panel/dom.js";
import { say } from "../words/words.js";
import { HEIGHT, strip, WIDTH } from "./strip.js";

const OMEGA = [0, 0.2, 0.4, 0.6, 0.8, 1];
const SUBJECT = [0.4985, 0.4991, 0.5011, 0.5024, 0.4979, 0.4701];
const PROMPT = [0.326, 0.3264, 0.3271, 0.3288, 0.332, 0.3345];

export function omegaPicture() {
  const subject = heights(SUBJECT), prompt = heights(PROMPT);
  const line = (values) => path(values.map((y, index) => [OMEGA[index] * WIDTH, y]));
  const shapes = [
    svg("path", { class: "area", d: `${line(subject)}L${WIDTH} ${HEIGHT}L0 ${HEIGHT}Z` }),
    svg("path", { class: "subject", d: line(subject) }),
    svg("path", { class: "prompt", d: line(prompt) }),
  ];
  return strip(say("omega low"), say("omega high"), say("omega meaning"), shapes, (omega) => [omega * WIDTH, at(subject, omega)]);
}

function heights(values) {
  const low = Math.min(...values), high = Math.max(...values);
  return values.map((value) => HEIGHT - 4 - ((value - low) / (high - low)) * (HEIGHT - 8));
}

function at(values, omega) {
  const index = Math.min(Math.floor(omega * 5), 4), part = omega * 5 - index;
  return values[index] + part * (values[index + 1] - values[index]);
}
