// Who guessed a token: names, classes of style, and the legend.

const KNOWN = {
  own: ["k-own", "the target itself"],
  experts: ["k-experts", "experts, mixed"],
  "expert 0": ["k-e0", "expert 0"],
  "expert 1": ["k-e1", "expert 1"],
  contrast: ["k-contrast", "contrast, without a forward"],
};
const SPARE = ["k-x0", "k-x1", "k-x2"];
const others = new Map();

export const kindOf = (token) => (token.how === "drafted" ? token.origin : "own");

// [class, label] of a kind; drafters without experts get a colour each as they appear.
export function look(kind) {
  if (kind in KNOWN) return KNOWN[kind];
  if (!others.has(kind)) {
    others.set(kind, [SPARE[others.size % SPARE.length], kind.replaceAll("_", " ")]);
  }
  return others.get(kind);
}

export function told(token) {
  if (token.how === "first") return "the target itself, from the prompt alone";
  if (token.how === "bonus") return "the target itself, after what was kept";
  return `guessed at depth ${token.depth}: ${look(token.origin)[1]}`;
}

// What share of an answer each kind has; before there is one, who there may be.
export class Legend {
  constructor(list) {
    this.list = list;
    this.clear();
  }

  clear() {
    this.counts = new Map([["experts", 0], ["contrast", 0], ["own", 0]]);
    this.draw();
  }

  add(tokens) {
    if (tokens.some((token) => /^expert \d/.test(token.origin ?? ""))) this.forget("experts");
    for (const token of tokens) {
      const kind = kindOf(token);
      if (!["own", "experts", "contrast"].includes(kind)) this.forget("experts", "contrast");
      this.counts.set(kind, (this.counts.get(kind) ?? 0) + 1);
    }
    this.draw();
  }

  // Entries that only said who there might be.
  forget(...kinds) {
    for (const kind of kinds) if (this.counts.get(kind) === 0) this.counts.delete(kind);
  }

  draw() {
    const total = [...this.counts.values()].reduce((sum, count) => sum + count, 0);
    const rows = [...this.counts].map(([kind, count]) => {
      const [style, label] = look(kind);
      const row = document.createElement("li");
      const mark = document.createElement("span");
      mark.className = `token ${style}`;
      mark.textContent = label;
      row.append(mark);
      if (total) row.append(` ${Math.round((100 * count) / total)} %`);
      return row;
    });
    this.list.replaceChildren(...rows);
  }
}
