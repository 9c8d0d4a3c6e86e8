// An ACP agent without a model, for benchmarks: as fast as Node writes to a pipe. No dependencies.
//
// Prompts, each answered at the end of what it asks for:
//   "stream N SIZE"       N message chunks of SIZE characters, joined into big writes
//   "stream N SIZE RATE"  that many chunks a second, one write each
//   "lines N SIZE"        one write each, as fast as they go: what most agents do
//   "tool N SIZE"         N updates of one tool call, with SIZE characters of output each
// Every text ends with MARK, so that a reader can count chunks without parsing.
const MARK = "<end-of-chunk>";
const BLOCK = 64 * 1024;

const cancelled = new Set();
let sessions = 0;

const send = (message) => process.stdout.write(JSON.stringify({ jsonrpc: "2.0", ...message }) + "\n");
const turnOfLoop = () => new Promise((resolve) => setImmediate(resolve));

let encoded = { key: "", line: null };

// The last one is kept: making a line of many MiB takes longer than writing it.
function encode(sessionId, size, tool) {
  const key = `${sessionId} ${size} ${tool}`;
  if (encoded.key !== key) encoded = { key, line: encodeAnew(sessionId, size, tool) };
  return encoded.line;
}

function encodeAnew(sessionId, size, tool) {
  const content = { type: "text", text: "x".repeat(Math.max(0, size - MARK.length)) + MARK };
  const update = tool
    ? { sessionUpdate: "tool_call_update", toolCallId: "call-1", content: [{ type: "content", content }] }
    : { sessionUpdate: "agent_message_chunk", content };
  const params = { sessionId, update };
  return Buffer.from(JSON.stringify({ jsonrpc: "2.0", method: "session/update", params }) + "\n");
}

async function stream(sessionId, count, line) {
  const perBlock = Math.max(1, Math.floor(BLOCK / line.length));
  const block = Buffer.concat(Array(Math.min(perBlock, count)).fill(line));
  for (let left = count; left > 0; left -= perBlock) {
    if (cancelled.has(sessionId)) return;
    const part = left >= perBlock ? block : block.subarray(0, left * line.length);
    // A flooded agent still reads its input between two writes.
    await (process.stdout.write(part) ? turnOfLoop() : new Promise((r) => process.stdout.once("drain", r)));
  }
}

async function writeEach(sessionId, count, line) {
  for (let sent = 0; sent < count; sent += 1) {
    const flushed = process.stdout.write(line);
    if (!flushed) await new Promise((r) => process.stdout.once("drain", r));
    if (sent % 64 === 63) await turnOfLoop();
    if (cancelled.has(sessionId)) return;
  }
}

function writePaced(sessionId, count, line, rate) {
  const began = performance.now();
  let sent = 0;
  return new Promise((resolve) => {
    const timer = setInterval(() => {
      const due = Math.min(count, Math.floor(((performance.now() - began) * rate) / 1000));
      for (; sent < due; sent += 1) process.stdout.write(line);
      if (sent === count || cancelled.has(sessionId)) {
        clearInterval(timer);
        resolve();
      }
    }, 1);
  });
}

async function prompt({ sessionId, prompt: blocks }) {
  const text = blocks.map((block) => block.text ?? "").join("\n");
  const found = [...text.matchAll(/(stream|lines|tool) (\d+) (\d+)(?: (\d+))?/g)].at(-1);
  const [count, size, rate] = found ? found.slice(2).map((n) => Number(n ?? 0)) : [1, 20, 0];
  const line = encode(sessionId, size, found?.[1] === "tool");
  cancelled.delete(sessionId);
  if (rate) await writePaced(sessionId, count, line, rate);
  else await (found?.[1] === "lines" ? writeEach : stream)(sessionId, count, line);
  return { stopReason: cancelled.has(sessionId) ? "cancelled" : "end_turn" };
}

const MODES = {
  currentModeId: "default",
  availableModes: [
    { id: "default", name: "Default" },
    { id: "bypassPermissions", name: "Bypass permissions" },
  ],
};

const METHODS = {
  initialize: () => ({
    protocolVersion: 1,
    agentInfo: { name: "stub", title: "Stub", version: "1.0.0" },
    agentCapabilities: { loadSession: true, promptCapabilities: {} },
    authMethods: [],
    // qwen serve refuses a child that does not say this.
    _meta: { "qwen-code/external-tool-guard-ready": "required-v1" },
  }),
  "session/new": () => ({ sessionId: `stub-${process.pid}-${(sessions += 1)}`, modes: MODES }),
  "session/load": () => ({ modes: MODES }),
  "session/set_config_option": () => ({ configOptions: [] }),
  "session/prompt": prompt,
};

async function receive(message) {
  const { id, method, params } = message;
  if (method === "session/cancel") cancelled.add(params.sessionId);
  if (id === undefined || method === undefined) return;
  // What a server asks besides gets an empty answer: each has extensions of its own.
  send({ id, result: (await METHODS[method]?.(params)) ?? {} });
}

let rest = "";
process.stdin.setEncoding("utf8");
process.stdin.on("data", (data) => {
  const lines = (rest + data).split("\n");
  rest = lines.pop();
  for (const line of lines) if (line) receive(JSON.parse(line));
});
process.stdin.on("end", () => process.exit(0));
