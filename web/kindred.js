/**
 * Kindred's part of the page: a live panel on Train Concept, and pictures of what omega and alpha do.
 * The front end imports every module below this folder; this is the only one that does something by being imported.
 */
import { app, foldAdvanced } from "./host.js";
import { addHints } from "./hints/hints.js";
import { Panel } from "./panel/panel.js";
import { watchRuns } from "./runs.js";

for (const sheet of ["panel/panel.css", "hints/hints.css"]) {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL(sheet, import.meta.url).href;
  document.head.append(link);
}

app.registerExtension({
  name: "kindred.page",
  setup: watchRuns,
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Kindred")) return;
    foldAdvanced(node);
    if (node.comfyClass === "KindredTrain") Panel.on(node);
    addHints(node);
  },
});
