/**
 * Kindred's part of the page: a live panel on Train Concept, pictures of what omega and alpha do, and what nodes report.
 * The front end imports every module below this folder; this is the only one that does something by being imported.
 */
import { app, beforePrompt, definition, foldAdvanced, mendValues, newId } from "./host.js";
import { addHints } from "./hints/hints.js";
import { modernizeFile, modernizePrompt, nameCopy } from "./old_files.js";
import { MENDERS } from "./old_values.js";
import { addTitles } from "./options/titles.js";
import { Panel } from "./panel/panel.js";
import { addReport } from "./report/report.js";
import { watchRuns } from "./runs.js";

for (const sheet of ["panel/panel.css", "hints/hints.css", "options/options.css", "report/report.css"]) {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL(sheet, import.meta.url).href;
  document.head.append(link);
}

app.registerExtension({
  name: "kindred.page",
  setup() {
    watchRuns();
    beforePrompt((prompt) => modernizePrompt(prompt, definition));
  },
  beforeConfigureGraph(file) {
    nameCopy(file, newId());
    modernizeFile(file, definition);
  },
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Kindred")) return;
    if (Object.hasOwn(MENDERS, node.comfyClass)) mendValues(node, MENDERS[node.comfyClass]);
    foldAdvanced(node);
    if (node.comfyClass === "KindredTrain") Panel.on(node);
    if (node.comfyClass === "KindredTrainingOptions") addTitles(node);
    addHints(node);
    addReport(node);
  },
});
