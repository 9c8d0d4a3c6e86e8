// The least that a WebSocket gateway can be, on Node's `ws`: every line of the child goes to every
// client as one pre-encoded text, every message of a client goes to the child. No sessions, no
// replay, no flow control. Arguments: MODULES_DIR PORT COMMAND ARGS...
import { spawn } from "node:child_process";
import { createServer } from "node:http";
import { createRequire } from "node:module";

const [modules, port, command, ...args] = process.argv.slice(2);
const { WebSocketServer } = createRequire(`${modules}/`)("ws");
const child = spawn(command, args, { stdio: ["pipe", "pipe", "inherit"] });
const http = createServer((_, response) => response.end("ok"));
const server = new WebSocketServer({ server: http, perMessageDeflate: false });
server.on("connection", (socket) => {
  socket.on("message", (data) => child.stdin.write(`${data}\n`));
});
let rest = [];
child.stdout.on("data", (data) => {
  let start = 0;
  for (let end; (end = data.indexOf(10, start)) >= 0; start = end + 1) {
    const line = Buffer.concat([...rest, data.subarray(start, end)]);
    rest = [];
    for (const client of server.clients) client.send(line, { binary: false });
  }
  if (start < data.length) rest.push(data.subarray(start));
});
http.listen(Number(port), "127.0.0.1");
process.on("SIGTERM", () => {
  child.kill();
  process.exit(0);
});
