/**
 * The curves of a run in bounded room; the page's half of formats/curves.py, which says what the JSON form means.
 * Past ROOM entries, neighbours are averaged and each entry stands for twice as many steps.
 */
export const ROOM = 256;
const COLUMNS = ["loss", "spl", "learning_rate"];

export class Curves {
  constructor(saved = {}) {
    this.first = saved.from ?? null;
    this.every = saved.every ?? 1;
    const length = saved.loss?.length ?? 0;
    this.columns = Object.fromEntries(COLUMNS.map((name) => [name, spread(saved[name] ?? [], length)]));
    this.drift = Object.fromEntries(Object.entries(saved.drift ?? {}).map(([token, values]) => [token, [...values]]));
    this.last = 0; // steps in the last entry
    if (length) this.last = this.every;
  }

  get length() {
    return this.columns.loss.length;
  }

  /** The middle of entry `index`, in steps. */
  step(index) {
    return this.first + index * this.every + (this.every - 1) / 2;
  }

  add(step, measured) {
    this.first ??= step;
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
      const value = (owner === this.drift ? measured.drift : measured)?.[name] ?? null, at = values.length - 1;
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

const spread = (values, length) => (Array.isArray(values) ? [...values] : Array(length).fill(values));

function halved(values) {
  const result = [];
  for (let index = 0; index < values.length; index += 2) {
    const pair = values.slice(index, index + 2).filter((value) => value !== null);
    result.push(pair.length ? pair.reduce((sum, value) => sum + value, 0) / pair.length : null);
  }
  return result;
}
