// One prompt twice: without drafts and with them. The texts have to be equal.

import { answer } from "./api.js";
import { shown } from "./gauges.js";
import { sampling } from "./settings.js";
import * as problem from "./problem.js";
import * as work from "./work.js";

const $ = (id) => document.getElementById(id);

class Lane {
  constructor(id, isDrafted) {
    this.element = $(id);
    this.isDrafted = isDrafted;
    this.clear();
  }

  clear() {
    this.said = "";
    this.tau = null;
    this.began = null;
    this.marks = []; // what was there when; the clock starts with the first tokens
    this.draw({ count: 0, seconds: 0, size: 0 });
  }

  get last() {
    return this.marks.at(-1) ?? { count: 0, seconds: 0, size: 0 };
  }

  // Tokens per second after the first ones, whose time is that of the prompt.
  get rate() {
    const { count, seconds } = this.last;
    return seconds > 0 ? (count - this.marks[0].count) / seconds : null;
  }

  async run(prompt, fields, signal) {
    this.element.classList.add("running");
    try {
      const asked = { ...fields, jakiro: { draft: this.isDrafted } };
      for await (const part of answer([{ role: "user", content: prompt }], asked, signal)) {
        this.said += part.text;
        this.tau = part.drafting?.tau ?? null;
        if (part.count) this.note(part.count);
        this.draw(this.last, fields.max_tokens);
      }
      this.draw(this.last);
    } finally {
      this.element.classList.remove("running");
    }
  }

  note(count) {
    const now = performance.now();
    this.began ??= now;
    this.marks.push({ count, seconds: (now - this.began) / 1000, size: this.said.length });
  }

  // As it was `seconds` after its first tokens; whether there is more to come.
  replay(seconds) {
    this.draw(this.marks.findLast((mark) => mark.seconds <= seconds));
    return this.last.seconds > seconds;
  }

  draw({ count, seconds, size }, most = this.last.count) {
    const [figures, track, text] = ["b", ".track i", ".text"].map((part) => this.element.querySelector(part));
    const facts = [`${count} tokens`, `${shown(seconds, 2)} s`];
    if (this.tau && count === this.last.count) {
      facts.push(`${shown(this.rate, 0)} per second`, `τ ${shown(this.tau, 2)}`);
    }
    figures.textContent = count ? facts.join(" · ") : "–";
    track.style.setProperty("--part", count ? Math.min(1, count / most) : 0);
    text.textContent = this.said.slice(0, size);
  }
}

const plain = new Lane("lane-plain", false);
const drafted = new Lane("lane-drafted", true);

export function prepare() {
  $("racing").addEventListener("submit", (event) => {
    event.preventDefault();
    race();
  });
}

async function race() {
  const prompt = $("race-prompt").value.trim();
  const fields = sampling();
  if (!prompt || !fields || work.isBusy()) return;
  problem.clear();
  [plain, drafted].forEach((lane) => lane.clear());
  say("Plain decoding runs …");
  try {
    const isWhole = await work.run(async (signal) => {
      await plain.run(prompt, fields, signal);
      say("Now with drafts …");
      await drafted.run(prompt, fields, signal);
    });
    if (isWhole) judge();
    else say("Stopped.");
  } catch (error) {
    say("");
    problem.show(error, race);
  }
}

function judge() {
  const size = Math.max(plain.said.length, drafted.said.length);
  let same = 0;
  while (same < size && plain.said[same] === drafted.said[same]) same += 1;
  const times = plain.rate && drafted.rate ? drafted.rate / plain.rate : null;
  const speed = times ? `, ${shown(times, 2)} times as fast` : "";
  if (same === size) say(`Equal text${speed}.`, "equal");
  else say(`The texts part after ${same} characters${speed}.`, "parted");
  const again = document.createElement("button");
  Object.assign(again, { type: "button", textContent: "Replay side by side" });
  again.addEventListener("click", replay);
  $("verdict").append(again);
}

// Both at once, as fast as they were.
function replay() {
  work.run(
    (signal) =>
      new Promise((done) => {
        const began = performance.now();
        const frame = () => {
          const seconds = signal.aborted ? Infinity : (performance.now() - began) / 1000;
          const isGoing = [plain, drafted].map((lane) => lane.replay(seconds)).includes(true);
          if (isGoing) requestAnimationFrame(frame);
          else done();
        };
        frame();
      }),
  );
}

function say(text, state = "") {
  $("verdict").textContent = text;
  $("verdict").className = state;
}
