/** The ground of a hint: a strip with a word at either end, a picture between, and a mark at the value. Its x runs from 0 to 100. */
import { html, svg } from "../panel/dom.js";

export const WIDTH = 100, HEIGHT = 26;

export function strip(low, high, title, shapes, mark) {
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none" }, ...shapes);
  const dot = html("i", "dot");
  const element = html("div", "kindred-hint", html("span", "low", low), html("div", "picture", picture, dot), html("span", "high", high));
  element.title = title;
  return {
    element,
    show(value) {
      dot.hidden = value === null || Number.isNaN(value);
      if (dot.hidden) return;
      const [x, y] = mark(Math.min(Math.max(value, 0), 1));
      dot.style.left = `${x}%`;
      dot.style.top = `${(100 * y) / HEIGHT}%`;
    },
  };
}
