// What an answer costs and brings, while it comes.

export class Gauges {
  constructor() {
    this.fields = Object.fromEntries(
      ["rate", "tau", "share", "share-bar", "depths"].map((id) => [id, document.getElementById(id)]),
    );
    this.begin();
  }

  begin() {
    Object.assign(this, { pace: new Pace(), emitted: 0, forwards: 0, draft: 0, verify: 0 });
    this.offered = [];
    this.kept = [];
  }

  add(part) {
    this.pace.add(part.count);
    // The first token of an answer comes from no cycle.
    this.emitted += part.tokens.filter((token) => token.how !== "first").length;
    for (const cycle of part.cycles) {
      const depths = [];
      cycle.parents.forEach((above) => depths.push(above < 0 ? 0 : depths[above] + 1));
      const deepest = Math.max(...depths);
      const accepted = cycle.path.length - 1;
      for (let depth = 0; depth < Math.min(accepted + 1, deepest); depth += 1) {
        this.offered[depth] = (this.offered[depth] ?? 0) + 1;
        this.kept[depth] = (this.kept[depth] ?? 0) + (depth < accepted);
      }
      this.forwards += 1;
      this.draft += cycle.draft_ms;
      this.verify += cycle.verify_ms;
    }
    this.draw();
  }

  draw() {
    const { rate, tau, share, depths } = this.fields;
    rate.textContent = shown(this.pace.rate, 0);
    tau.textContent = shown(this.forwards ? this.emitted / this.forwards : null, 2);
    if (!this.forwards) return;
    const part = this.draft / (this.draft + this.verify || 1);
    share.textContent = `${Math.round(100 * part)} : ${100 - Math.round(100 * part)} %`;
    this.fields["share-bar"].style.setProperty("--part", part);
    const rates = this.offered.map((offered, depth) => this.kept[depth] / offered);
    depths.setAttribute(
      "aria-label",
      rates.map((each, depth) => `depth ${depth + 1}: ${Math.round(100 * each)} %`).join(", ") || "no guesses",
    );
    depths.replaceChildren(
      ...rates.map((each, depth) => {
        const bar = document.createElement("i");
        bar.style.setProperty("--part", each);
        bar.title = `depth ${depth + 1}: ${Math.round(100 * each)} % of ${this.offered[depth]}`;
        return bar;
      }),
    );
  }
}

// Tokens per second after the first ones, whose time is that of the prompt.
export class Pace {
  constructor() {
    this.first = null;
    this.last = null;
  }

  add(count) {
    if (!count) return;
    this.last = { count, at: performance.now() };
    this.first ??= this.last;
  }

  get seconds() {
    return this.first ? (this.last.at - this.first.at) / 1000 : 0;
  }

  get rate() {
    return this.seconds > 0 ? (this.last.count - this.first.count) / this.seconds : null;
  }
}

export const shown = (value, digits) => (value === null ? "–" : value.toFixed(digits));
