// The conversation, and who guessed what of its answers.

import { answer } from "./api.js";
import { Answer } from "./answer.js";
import { Gauges, shown } from "./gauges.js";
import { Legend } from "./origins.js";
import { sampling } from "./settings.js";
import { drawing } from "./tree.js";
import * as problem from "./problem.js";
import * as work from "./work.js";

const $ = (id) => document.getElementById(id);
const ENDS = { length: "cut at the most tokens" };

const gauges = new Gauges();
const legend = new Legend($("legend"));
let turns = [];
let current = null;
let cycle = 0;
let isDue = false;

export function prepare() {
  const prompt = $("prompt");
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  prompt.addEventListener("input", () => fit(prompt));
  $("examples").addEventListener("click", (event) => {
    if (event.target.localName !== "button") return;
    prompt.value = event.target.textContent;
    send();
  });
  $("anew").addEventListener("click", anew);
  $("before").addEventListener("click", () => show(cycle - 1));
  $("after").addEventListener("click", () => show(cycle + 1));
  prompt.focus();
}

// A field as high as its text.
export function fit(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

function send() {
  const text = $("prompt").value.trim();
  const fields = sampling();
  if (!text || !fields || work.isBusy()) return;
  if (turns.at(-1)?.role === "user") {
    turns.pop(); // one that was never answered
    [...document.querySelectorAll(".bubble.user")].at(-1).remove();
  }
  turns.push({ role: "user", content: text });
  $("welcome").hidden = true;
  bubble("user").textContent = text;
  $("prompt").value = "";
  fit($("prompt"));
  // Where there is no keyboard on the screen to open.
  if (!matchMedia("(pointer: coarse)").matches) $("prompt").focus();
  respond(fields);
}

async function respond(fields) {
  problem.clear();
  const place = bubble("assistant");
  place.classList.add("writing");
  const text = document.createElement("p");
  place.append(text);
  const own = (current = new Answer(text));
  gauges.begin();
  legend.clear();
  let last = null;
  try {
    const isWhole = await work.run(async (signal) => {
      $("status").textContent = "Answering";
      for await (const part of answer(turns, { ...fields, jakiro: { trace: true } }, signal)) {
        last = take(own, part);
      }
    });
    if (isWhole) end(own, place, last, fields);
    else if (own.text) end(own, place, { finish: "stopped", drafting: null }, fields);
    else forget(place, "Stopped");
  } catch (error) {
    if (own.text) end(own, place, { finish: "broken off", drafting: null }, fields);
    else forget(place, "");
    problem.show(error, () => retry(own));
  }
}

function forget(place, status) {
  place.remove();
  $("status").textContent = status;
}

// The same question again; what came of it before is dropped.
function retry(own) {
  const fields = sampling();
  if (!fields || work.isBusy()) return;
  if (turns.at(-1)?.role === "assistant") turns.pop();
  own.element.closest(".bubble")?.remove();
  respond(fields);
}

// Change the conversation; whoever reads its end goes on to see it.
function following(change) {
  const bottom = Math.min($("log").getBoundingClientRect().bottom, innerHeight);
  const isRead = $("end").getBoundingClientRect().top < bottom + 60;
  change();
  if (isRead) $("end").scrollIntoView({ block: "nearest" });
}

function take(own, part) {
  following(() => own.add(part));
  gauges.add(part);
  legend.add(part.tokens);
  if (part.cycles.length && !isDue) {
    isDue = true; // one drawing per frame is enough
    requestAnimationFrame(() => {
      isDue = false;
      if (current.cycles.length) show(current.cycles.length - 1);
    });
  }
  return part;
}

function end(own, place, { finish, drafting }, fields) {
  own.finish();
  place.classList.remove("writing");
  turns.push({ role: "assistant", content: own.text });
  const { pace } = gauges;
  const facts = [`${pace.last?.count ?? 0} tokens`];
  if (pace.rate) facts.push(`${shown(pace.rate, 0)} per second`);
  if (drafting) facts.push(`τ ${shown(drafting.tau, 2)}`);
  if (fields.temperature > 0) facts.push(`seed ${fields.seed}`);
  if (finish !== "stop") facts.push(ENDS[finish] ?? finish);
  const note = document.createElement("p");
  note.className = "facts quiet";
  note.textContent = facts.join(" · ");
  const trees = document.createElement("button");
  Object.assign(trees, { type: "button", className: "plain", textContent: "show its trees" });
  trees.addEventListener("click", () => review(own));
  if (own.cycles.length) note.append(" ", trees);
  following(() => place.append(note));
  own.element.addEventListener("click", (event) => {
    const found = own.spans.find(({ span }) => span === event.target);
    if (found?.number >= 0) review(own, found.number);
  });
  $("status").textContent = `${finish === "stop" ? "Answered" : "Ended"}: ${own.text} (${facts.join(", ")})`;
}

function review(own, number = own.cycles.length - 1) {
  if (work.isBusy()) return;
  current?.mark(-1);
  current = own;
  show(number);
}

// The tree of cycle `number` of the current answer.
function show(number) {
  const cycles = current.cycles;
  cycle = Math.min(Math.max(number, 0), cycles.length - 1);
  const { path, tokens } = cycles[cycle];
  $("canvas").replaceChildren(drawing(cycles[cycle]));
  $("cycle").textContent =
    `cycle ${cycle + 1} of ${cycles.length}: ${path.length - 1} of ${tokens.length - 1} kept`;
  $("before").disabled = cycle === 0;
  $("after").disabled = cycle === cycles.length - 1;
  current.mark(cycle);
}

function anew() {
  if (work.isBusy()) return;
  turns = [];
  problem.clear();
  for (const each of $("log").querySelectorAll(".bubble")) each.remove();
  $("welcome").hidden = false;
  $("status").textContent = "New conversation";
  $("prompt").focus();
}

function bubble(role) {
  const place = document.createElement("article");
  place.className = `bubble ${role}`;
  place.setAttribute("aria-label", role === "user" ? "You" : "Answer");
  $("end").before(place);
  $("end").scrollIntoView({ block: "nearest" });
  return place;
}
