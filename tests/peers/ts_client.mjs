// Drives an ACP endpoint with the TypeScript SDK and prints one JSON report line on stdout.
//
//   node ts_client.mjs --transport ws|http --url URL --cwd DIR --scenario NAME
//                      [--token T] [--prompts JSON] [--timeout SECONDS]
//
// py_client.py runs the same scenarios with the Python SDK. A report is
// {client, transport, scenario, ok, seconds, checks: [{name, ok, detail}], error?, wire?}.
import { existsSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { parseArgs } from "node:util";

const here = path.dirname(fileURLToPath(import.meta.url));
const modules = process.env.ACP_GATEWAY_PEERS || path.join(here, "node_modules");
const require = createRequire(path.join(modules, "_.js"));
const load = (name) => import(pathToFileURL(require.resolve(name)));
const acp = await load("@agentclientprotocol/sdk");
const { createWebSocketStream } = await load("@agentclientprotocol/sdk/experimental/ws-client");
const { createHttpStream } = await load("@agentclientprotocol/sdk/experimental/http-client");
// Node's own WebSocket cannot send headers, so a token needs this one.
const { default: WebSocket } = await load("ws");

const { values: options } = parseArgs({
  options: {
    transport: { type: "string", default: "ws" },
    url: { type: "string" },
    token: { type: "string" },
    cwd: { type: "string" },
    scenario: { type: "string", default: "basic" },
    prompts: { type: "string", default: "{}" },
    timeout: { type: "string", default: "60" },
  },
});

// The words for the demo agent; `--prompts` replaces them for other agents.
const prompts = {
  text: "please write the file",
  permission: "please write the file",
  file: "acp-demo.txt",
  slow: "/sleep 30",
  chunks: "/chunks {n} 200",
  big: "/size {n}",
  big_echo: "\\((\\d+) characters\\)",
  burst: [1, 10, 100, 1000, 5000],
  ...JSON.parse(options.prompts),
};
const words = (template, n) => template.replace("{cwd}", options.cwd).replace("{n}", String(n));

const started = performance.now();
const report = {
  client: "ts",
  transport: options.transport,
  scenario: options.scenario,
  ok: false,
  seconds: 0,
  checks: [],
};
const wires = [];

function check(name, ok, detail = "") {
  report.checks.push({ name, ok: Boolean(ok), detail: String(detail).slice(0, 500) });
  return Boolean(ok);
}

async function within(promise, seconds, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: nothing after ${seconds} s`)), seconds * 1000);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

async function until(condition, seconds) {
  const end = performance.now() + seconds * 1000;
  while (!condition() && performance.now() < end) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return Boolean(condition());
}

const kindOf = (update) => update.sessionUpdate;
const textOf = (updates, kind = "agent_message_chunk") =>
  updates
    .filter((u) => kindOf(u) === kind && u.content?.type === "text")
    .map((u) => u.content.text)
    .join("");
const numbersIn = (text) => [...text.matchAll(/(?<!\d)(\d{6}) /g)].map((m) => Number(m[1]));
const isRange = (numbers, n) => numbers.length === n && numbers.every((value, i) => value === i);
const rangeDetail = (numbers) => `${numbers.length} numbers, first ${numbers.slice(0, 5)}`;

/** One connection, with everything that came over it. */
class Peer {
  static async open(policy = "allow") {
    const peer = new Peer(policy);
    await peer.connect();
    return peer;
  }

  constructor(policy) {
    this.policy = policy;
    this.wire = [];
    this.bySession = new Map(); // session id -> updates as they came over the wire
    this.handled = new Map(); // session id -> how many of them the SDK gave to its handler
    this.permissions = [];
    this.sent = new Set();
    this.strays = []; // responses that nobody asked for
    wires.push(this.wire);
  }

  seen(message) {
    this.wire.push(["<", message]);
    if (message.method === "session/update") {
      const { sessionId, update } = message.params;
      this.updates(sessionId).push(update);
    } else if (message.method === undefined && !this.sent.delete(message.id)) {
      this.strays.push(message);
    }
  }

  updates(sessionId) {
    if (!this.bySession.has(sessionId)) this.bySession.set(sessionId, []);
    return this.bySession.get(sessionId);
  }

  tap(stream) {
    const writer = stream.writable.getWriter();
    return {
      readable: stream.readable.pipeThrough(
        new TransformStream({
          transform: (message, controller) => {
            this.seen(message);
            controller.enqueue(message);
          },
        }),
      ),
      writable: new WritableStream({
        write: (message) => {
          this.wire.push([">", message]);
          if (message.method !== undefined && message.id !== undefined) this.sent.add(message.id);
          return writer.write(message);
        },
        close: () => writer.close(),
        abort: (reason) => writer.abort(reason),
      }),
    };
  }

  async connect() {
    const headers = options.token ? { Authorization: `Bearer ${options.token}` } : {};
    const stream =
      options.transport === "ws"
        ? createWebSocketStream(options.url, { WebSocket, headers })
        : createHttpStream(options.url, { headers, fetch: (...call) => this.fetch(...call) });
    this.connection = acp
      .client({ name: "ts-client" })
      .onRequest("session/request_permission", ({ params }) => {
        this.permissions.push(params);
        const wanted = this.policy === "reject" ? "reject" : "allow";
        const option =
          params.options.find((o) => o.kind === `${wanted}_once`) ??
          params.options.find((o) => o.kind.startsWith(wanted));
        return { outcome: { outcome: "selected", optionId: option.optionId } };
      })
      .onNotification("session/update", ({ params }) => {
        this.handled.set(params.sessionId, (this.handled.get(params.sessionId) ?? 0) + 1);
      })
      .connect(this.tap(stream));
    this.initialized = await within(
      this.request("initialize", {
        protocolVersion: 1,
        clientCapabilities: {},
        clientInfo: { name: "ts-client", version: "1" },
      }),
      30,
      "initialize",
    );
  }

  async fetch(url, init) {
    const response = await fetch(url, init);
    if (init?.method === "DELETE") this.deleted = response.status;
    return response;
  }

  request(method, params) {
    return this.connection.agent.request(method, params);
  }

  async newSession() {
    const params = { cwd: options.cwd, mcpServers: [] };
    return await within(this.request("session/new", params), 60, "session/new");
  }

  /** Prompts and waits; `updates` are those that were there when the answer came. */
  async prompt(sessionId, text) {
    const before = this.updates(sessionId).length;
    const asked = this.request("session/prompt", { sessionId, prompt: [{ type: "text", text }] });
    const answer = await within(asked, Number(options.timeout), "session/prompt");
    return { answer, updates: this.updates(sessionId).slice(before) };
  }

  /** Whether the SDK took every update of the session that came over the wire. */
  allHandled(sessionId) {
    return until(() => this.handled.get(sessionId) === this.updates(sessionId).length, 5);
  }

  async close() {
    this.connection.close();
    await within(this.connection.closed, 10, "closing the connection");
    if (options.transport === "http") {
      // The SDK does not wait for its DELETE, and this process must not end before it is out.
      await until(() => this.deleted !== undefined, 5);
      check("connection deleted", this.deleted >= 200 && this.deleted < 300, this.deleted);
    }
  }
}

async function permission(policy, stopReasons) {
  const file = path.join(options.cwd, prompts.file);
  rmSync(file, { force: true });
  const peer = await Peer.open(policy);
  const { sessionId } = await peer.newSession();
  const { answer } = await peer.prompt(sessionId, words(prompts.permission));
  check("asked once", peer.permissions.length === 1, `${peer.permissions.length} requests`);
  const request = peer.permissions[0];
  check("asked for this session", request?.sessionId === sessionId, request?.sessionId);
  check("names a tool call", request?.toolCall?.toolCallId, JSON.stringify(request?.toolCall));
  check("stop reason", stopReasons.includes(answer.stopReason), answer.stopReason);
  const exists = existsSync(file);
  check("file", exists === (policy === "allow"), `${file} exists: ${exists}`);
  check("updates handled", await peer.allHandled(sessionId));
  await peer.close();
}

const scenarios = {
  async basic() {
    const peer = await Peer.open();
    const init = peer.initialized;
    check("protocol version", init.protocolVersion === 1, init.protocolVersion);
    check("agentInfo", init.agentInfo?.name, JSON.stringify(init.agentInfo));
    check("loadSession", init.agentCapabilities?.loadSession === true);
    const session = await peer.newSession();
    check("session id", session.sessionId, session.sessionId);
    const modes = session.modes?.availableModes ?? [];
    check("modes have names", modes.every((m) => m.id && m.name), JSON.stringify(modes));
    const { answer, updates } = await peer.prompt(session.sessionId, words(prompts.text));
    check("stop reason", answer.stopReason === "end_turn", answer.stopReason);
    check("answer text", textOf(updates).length > 0, textOf(updates).slice(0, 200));
    const ids = [...peer.bySession.keys()];
    check("updates of this session only", ids.every((id) => id === session.sessionId), ids);
    const handled = await peer.allHandled(session.sessionId);
    check("updates handled", handled, `${updates.length} in the turn`);
    check("no stray responses", peer.strays.length === 0, JSON.stringify(peer.strays));
    await peer.close();
    check("closed", peer.connection.signal.aborted);
  },

  "permission-allow": () => permission("allow", ["end_turn"]),
  "permission-reject": () => permission("reject", ["end_turn", "cancelled"]),

  async cancel() {
    const peer = await Peer.open();
    const { sessionId } = await peer.newSession();
    const before = peer.updates(sessionId).length;
    const turn = peer.prompt(sessionId, words(prompts.slow));
    // Cancel inside the turn: once it has said something, else after a while.
    await until(() => textOf(peer.updates(sessionId).slice(before)) !== "", 5);
    const asked = performance.now();
    await peer.connection.agent.notify("session/cancel", { sessionId });
    const { answer } = await within(turn, 15, "the cancelled turn");
    const took = Math.round(performance.now() - asked);
    check("stop reason", answer.stopReason === "cancelled", answer.stopReason);
    check("prompt end", took < 12000, `${took} ms`);
    const next = await peer.prompt(sessionId, words(prompts.chunks, 3));
    check("next turn", next.answer.stopReason === "end_turn", next.answer.stopReason);
    const numbers = numbersIn(textOf(next.updates));
    check("next turn is whole", isRange(numbers, 3), rangeDetail(numbers));
    await peer.close();
  },

  async interleave() {
    const peer = await Peer.open();
    const sizes = [200, 300];
    const ids = [];
    for (const _ of sizes) ids.push((await peer.newSession()).sessionId);
    check("two sessions", ids[0] !== ids[1], ids);
    const turns = await Promise.all(ids.map((id, i) => peer.prompt(id, words(prompts.chunks, sizes[i]))));
    turns.forEach(({ answer, updates }, i) => {
      const numbers = numbersIn(textOf(updates));
      check(`session ${i} ended`, answer.stopReason === "end_turn", answer.stopReason);
      check(`session ${i} is whole`, isRange(numbers, sizes[i]), rangeDetail(numbers));
    });
    const known = [...peer.bySession.keys()].every((id) => ids.includes(id));
    check("no foreign session", known, [...peer.bySession.keys()]);
    await peer.close();
  },

  async big() {
    const size = 3_000_000;
    const peer = await Peer.open();
    let { sessionId } = await peer.newSession();
    const text = `${words(prompts.text)}\n${"lorem ipsum dolor sit amet. ".repeat(size / 28 + 1)}`;
    const out = await peer.prompt(sessionId, text);
    check("3 MB out", out.answer.stopReason === "end_turn", out.answer.stopReason);
    if (prompts.big_echo) {
      const echoed = Number(textOf(out.updates).match(new RegExp(prompts.big_echo))?.[1]);
      check("arrived whole", echoed >= size, `${echoed} of ${text.length}`);
    }
    ({ sessionId } = await peer.newSession());
    const back = await peer.prompt(sessionId, words(prompts.big, size));
    const got = textOf(back.updates).length;
    check("3 MB in", got >= size && got < size + 2000, `${got} characters`);
    check("answer", back.answer.stopReason === "end_turn", back.answer.stopReason);
    check("updates handled", await peer.allHandled(sessionId));
    await peer.close();
  },

  async reload() {
    let peer = await Peer.open();
    const { sessionId } = await peer.newSession();
    const text = words(prompts.chunks, 5);
    const first = await peer.prompt(sessionId, text);
    check("first turn", first.answer.stopReason === "end_turn", first.answer.stopReason);
    await peer.close();

    peer = await Peer.open();
    const loading = peer.request("session/load", { sessionId, cwd: options.cwd, mcpServers: [] });
    await within(loading, 60, "session/load");
    const inHistory = (updates) => ({
      prompt: textOf(updates, "user_message_chunk").includes(text),
      answer: isRange(numbersIn(textOf(updates)), 5),
    });
    if (options.transport === "http") {
      // Answer and history come on two streams, so only their arrival can be asked for.
      await until(() => inHistory(peer.updates(sessionId)).answer, 10);
    }
    const history = [...peer.updates(sessionId)];
    const kinds = history.map(kindOf).join(" ");
    check("history has the prompt", inHistory(history).prompt, kinds);
    check("history has the answer", inHistory(history).answer, rangeDetail(numbersIn(textOf(history))));
    const order = history.findIndex((u) => kindOf(u) === "user_message_chunk");
    const answered = history.findIndex((u) => kindOf(u) === "agent_message_chunk");
    check("prompt before answer", order >= 0 && order < answered, kinds);
    const again = await peer.prompt(sessionId, words(prompts.chunks, 7));
    const numbers = numbersIn(textOf(again.updates));
    check("next turn", again.answer.stopReason === "end_turn", again.answer.stopReason);
    check("next turn is whole", isRange(numbers, 7), rangeDetail(numbers));
    check("updates handled", await peer.allHandled(sessionId));
    await peer.close();
  },

  async close() {
    const peer = await Peer.open();
    const { sessionId } = await peer.newSession();
    await peer.prompt(sessionId, words(prompts.chunks, 3));
    await within(peer.request("session/close", { sessionId }), 20, "session/close");
    check("closed", true);
    try {
      const late = await peer.prompt(sessionId, words(prompts.chunks, 3));
      check("later prompt fails", false, JSON.stringify(late.answer));
    } catch (error) {
      check("later prompt fails", typeof error.code === "number", `${error.code} ${error.message}`);
    }
    const other = await peer.newSession();
    check("connection lives on", other.sessionId && other.sessionId !== sessionId, other.sessionId);
    await peer.close();
  },

  async burst() {
    const peer = await Peer.open();
    const { sessionId } = await peer.newSession();
    for (const n of prompts.burst) {
      const { answer, updates } = await peer.prompt(sessionId, words(prompts.chunks, n));
      const numbers = numbersIn(textOf(updates));
      check(`${n} ended`, answer.stopReason === "end_turn", answer.stopReason);
      check(`${n} before the answer`, isRange(numbers, n), rangeDetail(numbers));
    }
    check("updates handled", await peer.allHandled(sessionId));
    await peer.close();
  },

  async list() {
    const peer = await Peer.open();
    const { sessionId } = await peer.newSession();
    await peer.prompt(sessionId, words(prompts.chunks, 3));
    const listed = [];
    let cursor;
    do {
      const params = cursor ? { cwd: options.cwd, cursor } : { cwd: options.cwd };
      const page = await within(peer.request("session/list", params), 20, "session/list");
      listed.push(...page.sessions);
      cursor = page.nextCursor;
    } while (cursor);
    const mine = listed.filter((s) => s.sessionId === sessionId);
    check("listed once", mine.length === 1, `${mine.length} of ${listed.length}`);
    check("right cwd", mine[0]?.cwd === options.cwd, mine[0]?.cwd);
    check("only this cwd", listed.every((s) => s.cwd === options.cwd));
    await peer.close();
  },
};

function lastFrames() {
  const cut = ([direction, message]) => direction + JSON.stringify(message).slice(0, 400);
  return wires.map((wire) => wire.slice(-25).map(cut));
}

try {
  const scenario = scenarios[options.scenario];
  if (!scenario) throw new Error(`no scenario ${options.scenario}`);
  await within(scenario(), Number(options.timeout) * 2, `scenario ${options.scenario}`);
} catch (error) {
  const data = error?.data === undefined ? "" : ` ${JSON.stringify(error.data)}`;
  report.error = `${error?.code ?? ""} ${error?.message ?? error}${data}`.trim();
}
report.ok = !report.error && report.checks.length > 0 && report.checks.every((c) => c.ok);
report.seconds = Math.round(performance.now() - started) / 1000;
if (!report.ok) report.wire = lastFrames();
process.stdout.write(`${JSON.stringify(report)}\n`, () => process.exit(report.ok ? 0 : 1));
