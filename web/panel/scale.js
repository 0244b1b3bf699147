/** Numbers for eyes: scales, ticks, smoothing, and how values are written. */
import { say } from "../words/words.js";

const MOST_DECADES = 12; // on one axis, whatever the numbers are

/** A logarithmic scale from [low, high] to pixels [bottom, top]. */
export function logScale(low, high, bottom, top) {
  const from = Math.log10(low), span = Math.log10(high) - from || 1;
  return (value) => bottom + ((Math.log10(Math.max(value, low)) - from) / span) * (top - bottom);
}

/** Round values between `low` and `high`: decades, with 2 and 5 between them where there is room. */
export function logTicks(low, high) {
  if (!(low > 0 && high > low && high < Infinity)) return [];
  const decades = Math.log10(high / low);
  const parts = decades > 2.2 ? [1] : decades > 1.1 ? [1, 3] : [1, 2, 5];
  const ticks = [];
  const first = Math.floor(Math.log10(low)), last = Math.min(Math.ceil(Math.log10(high)), first + MOST_DECADES);
  for (let exponent = first; exponent <= last; exponent++)
    for (const part of parts) {
      const value = part * 10 ** exponent;
      if (value >= low * 0.999 && value <= high * 1.001) ticks.push(value);
    }
  return ticks;
}

/** Where a logarithmic axis begins and ends for these values; at most four decades, so that a first zero does not press all else flat. */
export function logRange(values) {
  const known = values.filter((value) => value > 1e-30 && value < 1e30);
  if (!known.length) return [0.01, 1];
  const high = Math.max(...known) * 1.15;
  const low = Math.max(Math.min(...known) / 1.15, high / 1e4);
  return high / low < 3 ? [low / 1.6, high * 1.6] : [low, high];
}

/** Exponential mean without the bias of its start; nulls stay null. */
export function smooth(values) {
  const weight = 2 / (Math.min(Math.max(values.length / 10, 4), 32) + 1);
  let mean = 0, norm = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean += weight * (value - mean);
    norm += weight * (1 - norm);
    return mean / norm;
  });
}

/** Three figures: 0.0812, 2.00e-5. */
export function figure(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  return Math.abs(value) < 1e-3 || Math.abs(value) >= 1e4 ? value.toExponential(1).replace("e-", "e−") : value.toPrecision(3);
}

/** A tick's label: 0.1, 0.02, 1e-4. */
export const label = (value) => (value < 1e-3 ? value.toExponential(0).replace("e-", "e−") : String(Number(value.toPrecision(1))));

/** 48 s, 3:07 min, 1:20 h. */
export function clock(seconds) {
  const whole = Math.round(seconds), pad = (value) => String(value).padStart(2, "0");
  if (whole < 60) return say("seconds", { time: whole });
  if (whole < 3600) return say("minutes", { time: `${Math.floor(whole / 60)}:${pad(whole % 60)}` });
  return say("hours", { time: `${Math.floor(whole / 3600)}:${pad(Math.floor((whole % 3600) / 60))}` });
}

/** 4.1 steps/s, or 2.5 s/step where a step is long. */
export function pace(perSecond) {
  if (!perSecond) return "";
  return perSecond >= 1 ? say("steps a second", { number: perSecond.toFixed(perSecond < 10 ? 1 : 0) }) : say("seconds a step", { number: (1 / perSecond).toFixed(1) });
}
