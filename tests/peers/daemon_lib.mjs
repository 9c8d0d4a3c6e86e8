// What the steps of daemon_client.mjs stand on: clients of the Qwen daemon over each of its three
// transports, a feed of events that looks the same on all of them, and the runner of steps.
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { parseArgs } from "node:util";

const here = path.dirname(fileURLToPath(import.meta.url));
const modules = process.env.ACP_GATEWAY_PEERS || path.join(here, "node_modules");
const require = createRequire(path.join(modules, "_.js"));
const load = (name) => import(pathToFileURL(require.resolve(name)));
export const sdk = await load("@qwen-code/sdk/daemon");
const transports = await load("@qwen-code/sdk/daemon/transports");

const { values } = parseArgs({
  options: {
    base: { type: "string" },
    transport: { type: "string", default: "rest" },
    agent: { type: "string", default: "demo" },
    cwd: { type: "string" },
    token: { type: "string" },
    only: { type: "string", default: "" },
    prompts: { type: "string", default: "{}" },
    events: { type: "string", default: "300" },
    timeout: { type: "string", default: "30" },
    list: { type: "boolean", default: false },
  },
});
export const options = { ...values, base: (values.base ?? "").replace(/\/$/, "") };
export const { cwd } = options;
export const rest = options.transport === "rest";
const TIMEOUT = Number(options.timeout);
const READY = options.transport === "acp-ws" ? 0.2 : 1;

// The words that make an agent do what a step wants; those of qwen and goose are the fake model's.
const FAKE_MODEL = {
  text: "hello there",
  permission: "WRITE {cwd}/{file}",
  slow: "SLOW",
  chunks: "CHUNKS {n}",
};
const DEMO = {
  text: "/plan",
  permission: "/write {file} by the demo agent",
  slow: "/sleep 30",
  chunks: "/chunks {n} 40",
};
const prompts = {
  ...(options.agent === "demo" ? DEMO : FAKE_MODEL),
  ...JSON.parse(options.prompts),
};
export const words = (name, fields = {}) =>
  Object.entries({ cwd, ...fields }).reduce(
    (text, [key, value]) => text.replaceAll(`{${key}}`, String(value)),
    prompts[name],
  );
export const blocks = (text) => [{ type: "text", text }];

// ---- waiting and checking -----------------------------------------------------------------------

export class Skip extends Error {}

export function check(ok, what, seen) {
  if (ok) return;
  throw new Error(seen === undefined ? what : `${what}: ${short(seen)}`);
}

export function same(actual, expected, what) {
  const [a, b] = [JSON.stringify(actual), JSON.stringify(expected)];
  check(a === b, what, `${short(a)} is not ${short(b)}`);
}

export function short(value, limit = 400) {
  const text = typeof value === "string" ? value : (JSON.stringify(value) ?? String(value));
  return text.length > limit ? `${text.slice(0, limit)}… (${text.length})` : text;
}

export async function within(promise, what, seconds = TIMEOUT) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: nothing after ${seconds} s`)), seconds * 1e3);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

export const pause = (seconds) => new Promise((done) => setTimeout(done, seconds * 1e3));

// Asks again until the answer will do. For state that no event announces.
export async function poll(ask, what, seconds = TIMEOUT) {
  const end = performance.now() + seconds * 1e3;
  for (;;) {
    const answer = await ask();
    if (answer) return answer;
    check(performance.now() < end, `${what}: not so after ${seconds} s`);
    await pause(0.05);
  }
}

// The error that a call must end with; gives {status, code, body}.
export async function refused(promise, what) {
  try {
    const value = await within(promise, what);
    throw new Error(`${what} was not refused: ${short(value)}`);
  } catch (error) {
    if (error.status === undefined) throw error;
    noMapping(error);
    // Over ACP the SDK puts the JSON-RPC error's data one level down.
    const body = error.body ?? {};
    return { status: error.status, code: body.code ?? body.data?.code ?? body.data?.errorKind, body };
  }
}

// A call that the SDK itself does not send over ACP fails against every server.
function noMapping(error) {
  const text = String(error.body?.error ?? "");
  if (error.status === 404 && text.startsWith("No ACP mapping")) throw new Skip(`the SDK: ${text}`);
}

const featureNames = new Map();
export async function features(client) {
  if (!featureNames.has("all")) featureNames.set("all", (await client.capabilities()).features);
  return featureNames.get("all");
}
export async function needs(client, ...names) {
  const all = await features(client);
  const missing = names.filter((name) => !all.includes(name));
  if (missing.length) throw new Skip(`not advertised: ${missing.join(", ")}`);
}

export const headers = (more = {}) => ({
  ...(options.token ? { Authorization: `Bearer ${options.token}` } : {}),
  ...more,
});

export async function raw(method, route, { body, ...more } = {}) {
  const init = { method, headers: headers(more) };
  if (body !== undefined) {
    init.headers["Content-Type"] = "application/json";
    init.body = JSON.stringify(body);
  }
  const answer = await fetch(options.base + route, init);
  const text = await answer.text();
  let parsed = text;
  try {
    parsed = JSON.parse(text);
  } catch {}
  return { status: answer.status, headers: answer.headers, body: parsed };
}

// ---- events -------------------------------------------------------------------------------------

const UPDATES = new Set([
  "user_message_chunk",
  "agent_message_chunk",
  "agent_thought_chunk",
  "tool_call",
  "tool_call_update",
  "plan",
  "available_commands_update",
  "current_mode_update",
  "config_option_update",
  "session_info_update",
  "usage_update",
  "shell_output",
]);

// One shape for the events of all transports: over ACP the SDK makes the kind of an update the
// type of the event, and over WebSocket it calls a permission request by its method's last word.
export function view(event) {
  const { id, type, data = {} } = event;
  const seen = { id, kind: type, data, event, promptId: event.promptId ?? data.promptId };
  if (type === "session_update") {
    seen.update = data.update ?? data; // A page of the transcript has it bare.
    seen.kind = seen.update.sessionUpdate;
  } else if (UPDATES.has(type)) {
    seen.update = data;
  } else if (type === "request_permission") {
    seen.kind = "permission_request";
    seen.data = { ...data, requestId: data._meta?.qwen?.requestId };
  }
  if (seen.update?.content?.type === "text") seen.text = seen.update.content.text;
  return seen;
}

export const textOf = (events, kind = "agent_message_chunk") =>
  events.filter((e) => e.kind === kind && e.text).map((e) => e.text).join("");
export const ids = (events) => events.map((e) => e.id).filter((id) => id !== undefined);
export const kinds = (events) => events.map((e) => e.kind);
export const END = ["turn_complete", "turn_error"];

export function consecutive(numbers, first, what) {
  numbers.forEach((id, at) => check(id === first + at, what, `${id} where ${first + at} was due`));
}

// Reads events in the background. `source` is what a session client's events() gives.
export class Feed {
  constructor(source, stop) {
    this.events = [];
    this.ended = false;
    this.error = undefined;
    this._stop = stop;
    this._waiting = new Set();
    this.done = this._read(source);
  }

  async _read(source) {
    try {
      for await (const event of source) {
        this.events.push(view(event));
        this._wake();
      }
    } catch (error) {
      this.error = error;
    }
    this.ended = true;
    this._wake();
  }

  _wake() {
    for (const look of this._waiting) look();
  }

  // The first event, from number `from` on, for which `test` holds.
  async wait(test, what, { from = 0, seconds = TIMEOUT } = {}) {
    let at = from;
    let settle;
    const found = new Promise((resolve, reject) => {
      settle = () => {
        for (; at < this.events.length; at += 1) {
          if (test(this.events[at])) return resolve(this.events[at]);
        }
        if (this.ended) reject(new Error(`${what}: the stream ended (${this.error ?? "cleanly"})`));
      };
    });
    this._waiting.add(settle);
    settle();
    try {
      return await within(found, what, seconds);
    } catch (error) {
      throw new Error(`${error.message}; seen: ${short(kinds(this.events.slice(from)))}`);
    } finally {
      this._waiting.delete(settle);
    }
  }

  kind(kind, options) {
    return this.wait((e) => e.kind === kind, kind, options);
  }

  // Over REST the replay has an end that is told. Over ACP it is a step's own business whether.
  async ready() {
    if (rest) await this.kind("replay_complete");
    else await this.kind("replay_complete", { seconds: READY }).catch(() => {});
    return this;
  }

  async stop() {
    this._stop.abort();
    await within(this.done, "the end of a stopped stream");
  }
}

// ---- clients and sessions -----------------------------------------------------------------------

// The clients, sessions and streams of one step; `close` lets go of all of them.
export class World {
  constructor() {
    this.clients = [];
    this.feeds = [];
    this.sessions = new Set();
  }

  client(more = {}) {
    const { base: baseUrl, token, transport: type } = options;
    let transport;
    if (type === "acp-ws") {
      transport = new transports.AcpWsTransport(`${baseUrl.replace(/^http/, "ws")}/acp`, token);
    } else if (type === "acp-http") {
      transport = new transports.AcpHttpTransport(baseUrl, token, (...a) => fetch(...a));
    } else if (type !== "rest") {
      throw new Error(`no transport ${type}: rest, acp-ws or acp-http`);
    }
    const client = new sdk.DaemonClient({ baseUrl, token, transport, ...more });
    this.clients.push(client);
    return client;
  }

  async create(client = this.client(), more = {}) {
    const request = { workspaceCwd: cwd, sessionScope: "thread", ...more };
    const session = await within(
      sdk.DaemonSessionClient.createOrAttach(client, request),
      "the creation of a session",
    );
    this.sessions.add(session.sessionId);
    return session;
  }

  // A session client for a session that is there.
  async join(id, client = this.client(), how = "load") {
    const request = { workspaceCwd: cwd };
    if (rest) return within(sdk.DaemonSessionClient[how](client, id, request), how);
    // Not every daemon names the session in its answer over ACP, and without the name the session
    // client of the SDK is of no use.
    const { lastEventId, eventEpoch, state, ...found } = await within(
      client[`${how}Session`](id, request),
      how,
    );
    const session = { workspaceCwd: cwd, ...found, sessionId: id };
    return new sdk.DaemonSessionClient({ client, session, lastEventId: lastEventId ?? 0, eventEpoch });
  }

  feed(session, more = {}) {
    const stop = new AbortController();
    return this._feed(session.events({ ...more, signal: stop.signal }), stop);
  }

  // A stream beside the session client's own; `since` is the id to go on from.
  stream(session, since, more = {}) {
    const stop = new AbortController();
    const { sessionId, clientId, eventEpoch: epoch } = session;
    const wanted = { lastEventId: since, epoch, clientId, signal: stop.signal, ...more };
    return this._feed(session.client.subscribeEvents(sessionId, wanted), stop);
  }

  _feed(source, stop) {
    const feed = new Feed(source, stop);
    this.feeds.push(feed);
    return feed;
  }

  // A fresh session with a stream that has begun.
  async site(client, more) {
    const session = await this.create(client, more);
    const feed = await this.feed(session).ready();
    return { session, feed };
  }

  async close() {
    for (const feed of this.feeds) await feed.stop().catch(() => {});
    for (const id of this.sessions) {
      await within(this.clients[0].closeSession(id), "close", 10).catch(() => {});
    }
    for (const { transport } of this.clients) {
      transport.dispose();
      // Over HTTP the SDK leaves its connection behind.
      const headersOf = { "Acp-Connection-Id": transport.connectionId };
      if (transport.connectionId) await raw("DELETE", "/acp", headersOf).catch(() => {});
    }
  }
}

// Sends a prompt. `promptId` is known over REST, `accepted` is the 202; `done` gives the end of
// the turn: {stopReason} or {error}.
export async function send(session, feed, text, more = {}) {
  const request = { prompt: blocks(text), ...more };
  let turn;
  if (rest) {
    const accepted = await within(session.submitPrompt(request), "the 202 of a prompt");
    const { promptId } = accepted;
    const mine = (e) => END.includes(e.kind) && e.data.promptId === promptId;
    const done = feed
      .wait(mine, "the end of the turn", { seconds: 2 * TIMEOUT })
      .then((e) => (e.kind === "turn_error" ? { error: e.data } : { stopReason: e.data.stopReason }));
    turn = { accepted, promptId, done };
  } else {
    turn = { done: within(session.prompt(request), "the answer to a prompt", 2 * TIMEOUT) };
  }
  turn.done.catch(() => {});
  return turn;
}

export async function ask(session, feed, text, stopReason = "end_turn") {
  const turn = await send(session, feed, text);
  const end = await turn.done;
  check(end.stopReason === stopReason, `the turn must end with ${stopReason}`, end);
  return turn;
}

export async function question(feed, from = 0) {
  const { data } = await feed.kind("permission_request", { from });
  const option = (kind) => data.options.find((o) => o.kind === kind)?.optionId;
  return { id: data.requestId, data, allow: option("allow_once"), reject: option("reject_once") };
}

export const choice = (optionId) => ({ outcome: { outcome: "selected", optionId } });

// ---- steps --------------------------------------------------------------------------------------

const steps = [];

// `better: true` marks what the issue asks of us and the real daemon does not do; `on` names the
// transports on which the SDK can do it at all.
export function step(name, run, { better = false, on = ["rest", "acp-ws", "acp-http"], only } = {}) {
  steps.push({ name, run, better, on, explicit: only ?? false });
}

async function attempt({ name, run, better, on }) {
  const began = performance.now();
  const line = { step: name, ok: true, ...(better ? { better } : {}) };
  const world = new World();
  try {
    if (!on.includes(options.transport)) throw new Skip(`only over ${on.join(", ")}`);
    line.detail = short((await run(world)) ?? "", 300);
  } catch (error) {
    const skip = error instanceof Skip || unsupported(error);
    line.detail = short(error.message ?? String(error), 800);
    if (skip) line.skipped = true;
    else {
      line.ok = false;
      if (error.status) line.detail += ` [${error.status} ${short(error.body, 300)}]`;
      if (process.env.DEBUG) console.error(error.stack);
    }
  }
  try {
    await world.close();
  } catch (error) {
    line.detail += ` (letting go: ${error.message})`;
  }
  line.ms = Math.round(performance.now() - began);
  return line;
}

// An agent that lacks a feature is not a fault of the daemon when the daemon says so.
function unsupported(error) {
  try {
    noMapping(error);
  } catch (skip) {
    error.message = skip.message;
    return true;
  }
  const kind = error.body?.code ?? error.body?.data?.errorKind;
  return kind === "unsupported_by_agent";
}

export async function main() {
  if (options.list) {
    for (const { name } of steps) console.log(name);
    return;
  }
  const names = options.only.split(",").filter(Boolean);
  const unknown = names.filter((name) => !steps.some((s) => s.name === name));
  if (unknown.length || !options.base || !cwd) {
    console.error(unknown.length ? `no step ${unknown}` : "--base and --cwd are needed");
    process.exit(2);
  }
  let well = true;
  for (const one of steps) {
    if (names.length ? !names.includes(one.name) : one.explicit) continue;
    const line = await attempt(one);
    well &&= line.ok;
    console.log(JSON.stringify(line));
  }
  process.exit(well ? 0 : 1);
}
