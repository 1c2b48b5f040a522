// Connects the parts of the page with each other and with the keyboard.

import { connect } from "./api.js";
import * as chat from "./chat.js";
import * as problem from "./problem.js";
import * as race from "./race.js";
import * as settings from "./settings.js";
import * as work from "./work.js";

const tabs = [...document.querySelectorAll("[role=tab]")];

function open(tab) {
  for (const each of tabs) {
    const isOpen = each === tab;
    each.setAttribute("aria-selected", isOpen);
    each.tabIndex = isOpen ? 0 : -1;
    document.getElementById(each.getAttribute("aria-controls")).hidden = !isOpen;
  }
  document.body.dataset.view = tab.getAttribute("aria-controls");
}

for (const tab of tabs) {
  tab.addEventListener("click", () => open(tab));
  tab.addEventListener("keydown", ({ key }) => {
    if (key !== "ArrowLeft" && key !== "ArrowRight") return;
    const next = tabs[(tabs.indexOf(tab) + 1) % tabs.length];
    open(next);
    next.focus();
  });
}

for (const field of document.querySelectorAll("textarea")) {
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    field.form.requestSubmit();
  });
}

for (const button of document.querySelectorAll(".stop")) button.addEventListener("click", work.stop);
document.addEventListener("keydown", ({ key }) => {
  if (key === "Escape") work.stop();
});

// A key that was asked for is tried at once.
document.getElementById("key").addEventListener("keydown", ({ key, target }) => {
  const retry = document.getElementById("retry");
  if (key !== "Enter" || retry.offsetParent === null) return;
  target.blur(); // which keeps it
  retry.click();
});

async function hello() {
  const place = document.getElementById("model");
  try {
    place.textContent = await connect();
    if (document.activeElement === document.body) document.getElementById("prompt").focus();
  } catch (error) {
    place.textContent = "not connected";
    problem.show(error, hello);
  }
}

document.body.dataset.view = "chat";
settings.prepare();
chat.prepare();
race.prepare();
hello();
