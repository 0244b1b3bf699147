/**
 * The runs that this page knows, by the server's events while they come and by asking where they do not (a reloaded page, a second one).
 * Runs outlive the nodes on the screen: a workflow in another tab of the front end finds its run when it comes back.
 */
import { api, findNode, workflowId } from "./host.js";
import { Curves } from "./panel/curves.js";
import { readRun } from "./panel/run.js";
import { say } from "./words/words.js";

const runs = new Map();
const LIVE = new Set(["preparing", "running"]);
const SILENCE = 3000; // ms without a word of a live run until the server is asked
let asked = 0;

export const isLive = (run) => LIVE.has(run.state);

export function watchRuns() {
  api.addEventListener("kindred.run", ({ detail }) => receive(detail));
  api.addEventListener("kindred.training", ({ detail }) => {
    const run = runs.get(detail.id);
    if (!run) return ask();
    const { step, seconds_left, steps_per_second, note } = readRun(detail);
    Object.assign(run, { step, seconds_left, steps_per_second, state: "running", note, heard: Date.now() });
    run.curves.add(step, detail);
    deliver(run);
  });
  api.addEventListener("kindred.preview", ({ detail }) => {
    const run = runs.get(detail.id);
    if (!run) return ask();
    run.previews = [...run.previews, ...readRun({ id: detail.id, previews: [detail] }).previews];
    run.heard = Date.now();
    deliver(run);
  });
  api.addEventListener("kindred.mark", ({ detail }) => {
    const run = runs.get(detail.id);
    if (!run) return ask();
    const { marks, best, kept, watching } = readRun({ ...detail, marks: [...(run.marks ?? []), detail] });
    Object.assign(run, { marks, best, kept, watching, heard: Date.now() });
    deliver(run);
  });
  api.addEventListener("reconnected", ask);
  document.addEventListener("visibilitychange", () => document.hidden || ask());
  setInterval(() => {
    const silent = [...runs.values()].some((run) => isLive(run) && Date.now() - run.heard > SILENCE);
    if (silent && !document.hidden) ask();
  }, SILENCE);
}

/** Ask the server for the runs of the workflow on the screen; many calls at once ask once. */
export function ask() {
  clearTimeout(asked);
  asked = setTimeout(async () => {
    const workflow = workflowId();
    if (!workflow) return;
    let answer;
    try {
      answer = await (await api.fetchApi(`/kindred/runs?workflow=${encodeURIComponent(workflow)}`)).json();
    } catch {
      return; // the front end itself says that the server is away
    }
    if (!Array.isArray(answer?.runs)) return;
    const known = new Set(answer.runs.map((run) => run?.id));
    for (const run of runs.values())
      if (run.workflow === workflow && isLive(run) && !known.has(run.id)) receive({ id: run.id, state: "lost", note: say("server restarted") });
    answer.runs.forEach(receive);
  }, 50);
}

function receive(message) {
  const told = readRun(message);
  if (!told) return;
  const run = runs.get(told.id) ?? { previews: [], marks: [], best: null, kept: [], watching: null, curves: new Curves(), unsaved: true };
  const wasLive = isLive(run);
  Object.assign(run, told, { heard: Date.now() });
  run.whole = Boolean(told.curves) || told.state === "lost"; // with the server's curves: what is saved lacks no step
  if (!run.workflow) return;
  runs.set(run.id, run);
  if (wasLive && !isLive(run) && !told.curves) ask(); // once more, for the steps that no event told
  deliver(run);
}

function deliver(run) {
  if (run.workflow === workflowId()) findNode(run.node)?.kindredPanel?.offer(run);
}
