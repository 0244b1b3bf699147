/** A line as small as a word: how one number went over the run. */
import { path, svg } from "./dom.js";

const WIDTH = 96, HEIGHT = 14;

/** values over the whole run of `steps`; `top` is the value at the upper edge, 0 at the lower one. */
export function spark(curves, values, steps, top, className) {
  top = Math.max(top, 1e-30); // all may be zero
  const points = values.map((value, index) =>
    value === null ? null : [((curves.step(index) - 1) / Math.max(steps - 1, 1)) * WIDTH, HEIGHT - 1 - (Math.min(value, top) / top) * (HEIGHT - 2)],
  );
  const picture = svg("svg", { class: `kindred-spark ${className}`, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none" });
  picture.append(svg("line", { x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 }), svg("path", { d: path(points) }));
  return picture;
}
