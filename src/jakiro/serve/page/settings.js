// The settings of the next answer.

import { keep, key } from "./api.js";

const field = (id) => document.getElementById(id);

export function prepare() {
  field("key").value = key();
  field("key").addEventListener("change", () => keep(field("key").value.trim()));
  field("fields").addEventListener("submit", (event) => event.preventDefault());
}

// The fields of a request; null, with the wrong one shown, if they cannot be used. Where none is
// given a seed is drawn here, so that it can be told and used again.
export function sampling() {
  const form = field("fields");
  if (!form.checkValidity()) {
    field("settings").open = true;
    form.reportValidity();
    return null;
  }
  const given = field("seed").value;
  return {
    temperature: field("temperature").valueAsNumber,
    top_p: field("top-p").valueAsNumber,
    max_tokens: field("max-tokens").valueAsNumber,
    seed: given === "" ? crypto.getRandomValues(new Uint32Array(1))[0] : Number(given),
  };
}

export function askForKey() {
  field("settings").open = true;
  field("key").focus();
}
