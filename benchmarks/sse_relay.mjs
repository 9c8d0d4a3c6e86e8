// The least that an SSE gateway can be, on node:http: every line of the child goes to every
// subscriber as an event. One string is made for all ("shared"), or each gets its own JSON.stringify
// ("each"). No replay, no flow control. The first word of a path is a room with a child of its own.
// Routes as the daemon's: POST /session, GET /session/ID/events, POST /session/ID/prompt.
// Arguments: shared|each PORT COMMAND ARGS...
import { createServer } from "node:http";
import { openRoom, stopRooms } from "./rooms.mjs";

const [encoding, port, ...command] = process.argv.slice(2);
const asked = new Map();
let requests = 0;

function event(message, text) {
  const kind = message.method === "session/update" ? "session_update" : "turn_complete";
  return `event: ${kind}\ndata: ${text}\n\n`;
}

function deliver(line, subscribers) {
  const text = line.toString();
  const message = JSON.parse(text);
  const waiting = message.id === undefined ? undefined : asked.get(message.id);
  if (waiting) {
    asked.delete(message.id);
    waiting(message.result);
    return;
  }
  if (encoding === "each") {
    for (const subscriber of subscribers) subscriber.write(event(message, JSON.stringify(message)));
    return;
  }
  const shared = event(message, text);
  for (const subscriber of subscribers) subscriber.write(shared);
}

async function body(request) {
  let text = "";
  for await (const part of request.setEncoding("utf8")) text += part;
  return JSON.parse(text);
}

createServer(async (request, response) => {
  if (request.url === "/health") {
    response.end("ok");
    return;
  }
  const [name, , sessionId, action] = request.url.slice(1).split("/");
  const room = openRoom(name, command, deliver);
  const send = (method, params) => {
    const id = `${name}-${(requests += 1)}`;
    room.child.stdin.write(JSON.stringify({ jsonrpc: "2.0", id, method, params }) + "\n");
    return id;
  };
  const answer = (status, value) => {
    const text = JSON.stringify(value);
    response.writeHead(status, { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(text) });
    response.end(text);
  };
  if (action === "events") {
    response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-cache" });
    response.flushHeaders();
    room.clients.add(response);
    response.on("close", () => room.clients.delete(response));
  } else if (action === "prompt") {
    const { prompt } = await body(request);
    answer(202, { promptId: send("session/prompt", { sessionId, prompt }) });
  } else {
    const { cwd } = await body(request);
    asked.set(send("session/new", { cwd, mcpServers: [] }), (result) => answer(200, result));
  }
}).listen(Number(port), "127.0.0.1");
process.on("SIGTERM", stopRooms);
