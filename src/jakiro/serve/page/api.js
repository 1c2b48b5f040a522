// The server's API: errors as Problem, answers as parts of one shape.

export class Problem extends Error {
  constructor(status, message, code = null, retryAfterS = null) {
    super(message);
    Object.assign(this, { status, code, retryAfterS });
  }
}

const KEY = "jakiro-key";
let model = null;
let hasTemplate = true;

export const key = () => sessionStorage.getItem(KEY) ?? "";

export function keep(given) {
  if (given) sessionStorage.setItem(KEY, given);
  else sessionStorage.removeItem(KEY);
}

// The name of the model that is served.
export async function connect() {
  const found = await (await ask("/v1/models")).json();
  model = found.data[0].id;
  return model;
}

// Parts of the answer to a conversation: text, tokens and cycles (if traced), count so far, and at
// the end what the server says of the drafting and why the answer ended.
export async function* answer(messages, fields, signal) {
  if (model === null) await connect();
  const usage = { include_usage: true, continuous_usage_stats: true };
  const body = { model, stream: true, stream_options: usage, ...fields };
  if (hasTemplate) {
    try {
      yield* parts("/v1/chat/completions", { ...body, messages }, signal);
      return;
    } catch (problem) {
      if (problem.code !== "no_chat_template") throw problem;
      hasTemplate = false; // a model that only goes on with a text
    }
  }
  const prompt = messages.map((turn) => turn.content).join("\n");
  yield* parts("/v1/completions", { ...body, prompt }, signal);
}

async function* parts(path, body, signal) {
  const response = await ask(path, body, signal);
  for await (const event of events(response.body)) {
    if (event.error) throw new Problem(200, event.error.message, event.error.code);
    const [choice] = event.choices;
    if (!choice) continue;
    yield {
      text: choice.delta ? (choice.delta.content ?? "") : choice.text,
      tokens: choice.jakiro?.trace?.tokens ?? [],
      cycles: choice.jakiro?.trace?.cycles ?? [],
      count: event.usage?.completion_tokens ?? 0,
      drafting: choice.finish_reason ? choice.jakiro : null,
      finish: choice.finish_reason,
    };
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Problem(0, "The answer broke off; the server may have ended.");
    const found = (left + value).split("\n\n");
    left = found.pop();
    for (const event of found) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function ask(path, body = null, signal = null) {
  const headers = key() ? { Authorization: `Bearer ${key()}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const request = { method: body ? "POST" : "GET", headers, signal };
  if (body) request.body = JSON.stringify(body);
  let response;
  try {
    response = await fetch(path, request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The server cannot be reached.");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  const wait = Number(response.headers.get("Retry-After")) || null;
  const { message, code } = told.error ?? { message: response.statusText };
  throw new Problem(response.status, message, code, wait);
}
