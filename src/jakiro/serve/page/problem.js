// What went wrong, where it cannot be missed, and how to go on.

import { askForKey } from "./settings.js";

const box = document.getElementById("problem");
const retry = document.getElementById("retry");
let timer = null;
let again = null;

document.getElementById("dismiss").addEventListener("click", () => clear());
retry.addEventListener("click", () => {
  const task = again;
  clear();
  task();
});

export function clear() {
  clearInterval(timer);
  box.hidden = true;
}

// Show `problem`; `task` is what trying again means.
export function show(problem, task) {
  clear();
  again = task;
  box.querySelector("p").textContent = sentence(problem);
  box.hidden = false;
  retry.hidden = false;
  count(problem.retryAfterS ?? 0);
  if (problem.status === 401) askForKey();
}

// Trying again opens after the seconds the server asked for.
function count(seconds) {
  const until = performance.now() + 1000 * seconds;
  const tick = () => {
    const left = Math.ceil((until - performance.now()) / 1000);
    retry.disabled = left > 0;
    retry.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left <= 0) clearInterval(timer);
  };
  timer = setInterval(tick, 250);
  tick();
}

function sentence({ status, message }) {
  if (status === 401) return "This server wants an API key: put it under Settings, then try again.";
  if (status === 429) return `The server is busy (429): ${message}`;
  return status > 200 ? `${message} (${status})` : message;
}
