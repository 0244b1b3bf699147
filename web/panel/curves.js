/**
 * The curves of a run in bounded room; the page's half of formats/curves.py, which says what the JSON form means.
 * Past ROOM entries, neighbours are averaged and each entry stands for twice as many steps.
 */
export const ROOM = 256;
const COLUMNS = ["loss", "spl", "learning_rate", "leak"];
const LAST = 1e9; // the highest step that anybody trains to
const TOKENS = 16;

export class Curves {
  /** saved: the JSON form, from a file or from the server. Whatever it is, what stands here is numbers, and of one length. */
  constructor(saved) {
    const { from, every, loss, drift } = Object(saved);
    const length = Array.isArray(loss) ? Math.min(loss.length, ROOM) : 0;
    this.first = isStep(from) ? from : length ? 1 : null;
    this.every = isStep(every) && every > 0 ? every : 1;
    this.columns = Object.fromEntries(COLUMNS.map((name) => [name, column(saved?.[name], length)]));
    const tokens = Array.isArray(drift) ? [] : Object.entries(Object(drift)).slice(0, TOKENS);
    this.drift = Object.fromEntries(tokens.map(([token, values]) => [token.slice(0, 80), column(values, length)]));
    this.last = length ? this.every : 0; // steps in the last entry
  }

  get length() {
    return this.columns.loss.length;
  }

  /** The middle of entry `index`, in steps. */
  step(index) {
    return this.first + index * this.every + (this.every - 1) / 2;
  }

  add(step, measured) {
    if (!isStep(step)) return;
    this.first ??= step;
    if (step < this.first) return;
    let index = Math.floor((step - this.first) / this.every);
    while (index >= ROOM) {
      this.#each((values) => values.splice(0, values.length, ...halved(values)));
      this.every *= 2;
      this.last = this.every;
      index = Math.floor((step - this.first) / this.every);
    }
    for (const token of Object.keys(measured.drift ?? {})) this.drift[token] ??= Array(this.length).fill(null);
    const fresh = index >= this.length;
    this.last = fresh ? 1 : this.last + 1;
    this.#each((values, name, owner) => {
      const value = number((owner === this.drift ? measured.drift : measured)?.[name]), at = values.length - 1;
      if (fresh) values.push(value);
      else if (value !== null) values[at] = values[at] === null ? value : values[at] + (value - values[at]) / this.last;
    });
  }

  toJSON() {
    const rate = this.columns.learning_rate;
    const steady = rate.length && rate.every((value) => value === rate[0]);
    return { from: this.first ?? 1, every: this.every, ...this.columns, learning_rate: steady ? rate[0] : rate, drift: this.drift };
  }

  #each(change) {
    for (const owner of [this.columns, this.drift]) for (const [name, values] of Object.entries(owner)) change(values, name, owner);
  }
}

const isStep = (value) => Number.isInteger(value) && value >= 0 && value <= LAST;

/** JSON's 1e999 is read as infinity, and no chart has room for what is near it. */
const number = (value) => (typeof value === "number" && Math.abs(value) < 1e30 ? value : null);

/** `length` numbers or nulls; a single number stands for all of them. */
const column = (values, length) => Array.from({ length }, (_, index) => number(Array.isArray(values) ? values[index] : values));

function halved(values) {
  const result = [];
  for (let index = 0; index < values.length; index += 2) {
    const pair = values.slice(index, index + 2).filter((value) => value !== null);
    result.push(pair.length ? pair.reduce((sum, value) => sum + value, 0) / pair.length : null);
  }
  return result;
}
