// The text of one answer, a span per token, each coloured by who guessed it.

import { kindOf, look, told } from "./origins.js";

const TOO_FAR = 64; // characters that may wait for the token they belong to

export class Answer {
  constructor(element) {
    this.element = element;
    this.text = "";
    this.cycles = [];
    this.spans = [];
    this.shown = 0;
    this.queue = [];
    this.broken = null;
  }

  add(part) {
    this.text += part.text;
    this.queue.push(...this.sorted(part));
    this.settle(false);
  }

  finish() {
    this.settle(true);
    const rest = this.text.length - this.shown;
    if (rest) this.grow(this.broken ?? this.put("", { how: "bonus" }, -1), rest);
  }

  // Outline the tokens that a cycle brought.
  mark(cycle) {
    for (const { span, number } of this.spans) span.classList.toggle("shown", number === cycle);
  }

  // Tokens with the number of the cycle each came from; a cycle learns the text of its bonus.
  sorted({ tokens, cycles }) {
    const left = [...tokens];
    const found = [];
    if (left[0]?.how === "first") found.push({ token: left.shift(), number: -1 });
    for (const cycle of cycles) {
      const own = left.splice(0, cycle.path.length);
      for (const token of own) found.push({ token, number: this.cycles.length });
      const last = own.at(-1);
      this.cycles.push({ ...cycle, bonusText: last?.how === "bonus" ? last.text : null });
    }
    return found;
  }

  // Lay the tokens over the text. Some have no text: special ones, and parts of a character, whose
  // text is that before the next whole token.
  settle(isLast) {
    while (this.queue.length) {
      const { token, number } = this.queue[0];
      const rest = this.text.slice(this.shown);
      const isWhole = token.text && !token.text.includes("\ufffd");
      const at = isWhole ? rest.indexOf(token.text) : -1;
      if (at === 0 || (at > 0 && this.broken)) {
        if (at > 0) this.grow(this.broken, at);
        this.broken = null;
        this.put(token.text, token, number);
      } else if (isWhole && !isLast && rest.length < TOO_FAR) {
        return; // its text is on the way
      } else {
        this.broken = this.put("", token, number);
      }
      this.queue.shift();
    }
  }

  grow(span, size) {
    span.textContent += this.text.slice(this.shown, this.shown + size);
    this.shown += size;
  }

  put(text, token, number) {
    const span = document.createElement("span");
    span.className = `token ${look(kindOf(token))[0]}`;
    span.title = told(token);
    span.textContent = text;
    this.shown += text.length;
    this.spans.push({ span, number });
    this.element.append(span);
    return span;
  }
}
