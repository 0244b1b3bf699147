/** What a node reports after a run, as text on the node: the name that Save Concept used, what Load Concept found, the numbers of the measures. */
import { addElement, after, fit, fixHeight, lastOutput } from "../host.js";
import { html } from "../panel/dom.js";

const REPORTING = { KindredSave: "", KindredLoad: "", KindredDrift: "table", KindredEvaluate: "table" };
const LINE = 15, PADDING = 24, MOST = 260; // pixels

export function addReport(node) {
  const look = REPORTING[node.comfyClass];
  if (look === undefined) return;
  let element = null, height = 0;
  const show = (output) => {
    const text = output?.text?.join?.("\n") ?? "";
    if (!element) {
      if (!text) return;
      element = html("div", `kindred-report ${look}`);
      const widget = addElement(node, "kindred_report", element, node.widgets?.length ?? 0, { margin: 6 });
      fixHeight(widget, () => height);
    }
    const [first, ...rest] = text.split("\n");
    element.replaceChildren(...(look ? [text] : [html("b", "", first), ...rest.map((line) => html("span", "", line))]));
    element.title = text;
    height = Math.min(PADDING + LINE * lines(text, look ? Infinity : node.size[0]), MOST);
    element.style.minHeight = `${height - 12}px`;
    fit(node);
  };
  after(node, "onExecuted", show);
  // Another workflow was looked at: the front end hands out the outputs again after it has made the nodes.
  after(node, "onConfigure", () => setTimeout(() => node.graph && lastOutput(node)?.text && show(lastOutput(node)), 500));
}

/** Lines of the text in a node of this width, at about six pixels a letter. */
function lines(text, width) {
  return text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil((6 * line.length) / (width - 32))), 0);
}
