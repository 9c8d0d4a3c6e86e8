// The least that a WebSocket gateway can be, on Node's `ws`: every line of the child goes to every
// client as one pre-encoded text, every message of a client goes to the child. No sessions, no
// replay, no flow control. Each path is a room with a child of its own.
// Arguments: MODULES_DIR PORT COMMAND ARGS...
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { openRoom, stopRooms } from "./rooms.mjs";

const [modules, port, ...command] = process.argv.slice(2);
const { WebSocketServer } = createRequire(`${modules}/`)("ws");
const http = createServer((_, response) => response.end("ok"));
const server = new WebSocketServer({ server: http, perMessageDeflate: false });
server.on("connection", (socket, request) => {
  const room = openRoom(request.url, command, (line, clients) => {
    for (const client of clients) client.send(line, { binary: false });
  });
  room.clients.add(socket);
  socket.on("close", () => room.clients.delete(socket));
  socket.on("message", (data) => room.child.stdin.write(`${data}\n`));
});
http.listen(Number(port), "127.0.0.1");
process.on("SIGTERM", stopRooms);
