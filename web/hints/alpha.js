/**
 * What alpha does: the concept is turned along the arc from where training left it (0) to its class (1).
 * The shaded part is what the paper uses, 0.1 to 0.3 (Test-time Embedding Adjustment, 2025).
 */
import { path, svg } from "../panel/dom.js";
import { say } from "../words/words.js";
import { HEIGHT, strip, WIDTH } from "./strip.js";

const arc = (alpha) => [alpha * WIDTH, HEIGHT - 4 - (HEIGHT - 9) * Math.sin(Math.PI * alpha)];
const between = (from, to) => Array.from({ length: 25 }, (_, index) => arc(from + ((to - from) * index) / 24));

export function alphaPicture() {
  const usual = between(0.1, 0.3);
  const shapes = [
    svg("path", { class: "area usual", d: `${path(usual)}L30 ${HEIGHT}L10 ${HEIGHT}Z` }),
    svg("path", { class: "rest", d: path(between(0, 1)) }),
    svg("path", { class: "subject", d: path(usual) }),
  ];
  return strip(say("alpha low"), say("alpha high"), say("alpha meaning"), shapes, arc);
}
