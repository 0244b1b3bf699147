/**
 * A run as a file or the server tells of it, checked once, here: what comes out has the types and sizes that the panel draws.
 * Keys that are not there stay away, so that a message about a part of a run can be laid over what is known.
 */
import { Curves } from "./curves.js";

const ENDED = ["done", "stopped", "failed", "lost"];
const STATES = ["preparing", "running", ...ENDED];
const MOST_STEPS = 1e9, MOST_RUNS = 1e6, MOST_PREVIEWS = 200, MOST_MARKS = 400;

const text = (most) => (value) => (typeof value === "string" ? value.slice(0, most) : "");
const name = (value) => (typeof value === "string" && value ? value.slice(0, 200) : null);
const amount = (value) => (typeof value === "number" && value >= 0 && value < 1e12 ? value : null);
const measure = (value) => (typeof value === "number" && Math.abs(value) < 1e30 ? value : null);
const isStep = (value) => Number.isInteger(value) && value > 0 && value <= MOST_STEPS;
const whole = (most) => (value) => (Number.isInteger(value) && value >= 0 && value <= most ? value : 0);

const READ = {
  id: name,
  workflow: name,
  node: name,
  prompt_id: name,
  started: (value) => amount(value) ?? 0,
  order: whole(MOST_RUNS),
  state: (value) => (STATES.includes(value) ? value : "done"),
  note: text(2000),
  hint: text(2000),
  step: whole(MOST_STEPS),
  steps: (value) => whole(MOST_STEPS)(value) || 1,
  seconds: (value) => amount(value) ?? 0,
  seconds_left: amount,
  steps_per_second: amount,
  tokens: (value) => (Array.isArray(value) ? value.filter((token) => typeof token === "string") : []),
  curves: (value) => new Curves(value),
  previews: (value) => (Array.isArray(value) ? value.map(preview).filter(Boolean).slice(-MOST_PREVIEWS) : []),
  marks: (value) => (Array.isArray(value) ? ordered(value.filter((told) => isStep(told?.step)).map(mark)).slice(-MOST_MARKS) : []),
  best: (value) => (isStep(value) ? value : null),
  kept: (value) => (Array.isArray(value) ? value.filter(isStep).slice(-MOST_MARKS) : []),
  watching: (value) => (typeof value === "number" && value >= 0 && value <= 1 ? value : null),
};

/** The run, or null where nothing of the kind stands. */
export function readRun(told) {
  if (!name(told?.id)) return null;
  return Object.fromEntries(Object.entries(READ).filter(([key]) => told[key] !== undefined).map(([key, read]) => [key, read(told[key])]));
}

/** A run that a file has kept, whole whatever is missing there; null where it has no curves. */
export function readSaved(kept) {
  const run = readRun(kept);
  if (!run?.curves) return null;
  const whole = Object.fromEntries(Object.entries(READ).map(([key, read]) => [key, run[key] ?? read(undefined)]));
  return ENDED.includes(whole.state) ? whole : { ...whole, state: "lost" };
}

/** Did `one` begin after `other`? By their numbers in the workflow; clocks, which may be wrong, where these are equal. */
export function isLater(one, other) {
  const [mine, its] = [one.order ?? 0, other.order ?? 0];
  return mine === its ? (one.started ?? 0) > (other.started ?? 0) : mine > its;
}

/** What was measured after a step; null = not. */
const mark = ({ step, likeness, prompt, heldout }) => ({ step, likeness: measure(likeness), prompt: measure(prompt), heldout: measure(heldout) });

/** By step, each step once, as it was told last. */
const ordered = (marks) => [...new Map(marks.map((one) => [one.step, one])).values()].sort((one, other) => one.step - other.step);

/** A picture that the server may have kept: a file name, below its output or temp folder. */
function preview(told) {
  const { filename, subfolder, type } = Object(told?.image);
  const plain = typeof filename === "string" && typeof subfolder === "string" && /^[^<>/\\]{1,200}$/.test(filename) && !/(^|[/\\])\.\.([/\\]|$)/.test(subfolder);
  return plain && ["output", "temp", "input"].includes(type) ? { step: whole(MOST_STEPS)(told.step), prompt: text(300)(told.prompt), image: { filename, subfolder, type } } : null;
}
