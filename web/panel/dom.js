/** Elements in a line. */
const SVG = "http://www.w3.org/2000/svg";

export function html(tag, className = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A path through [x, y] points; null lifts the pen. */
export function path(points) {
  let line = "", down = false;
  for (const point of points) {
    if (!point) down = false;
    else {
      line += `${down ? "L" : "M"}${point[0].toFixed(1)} ${point[1].toFixed(1)}`;
      down = true;
    }
  }
  return line;
}
