// The official TypeScript SDK's own server (WebSocket and Streamable HTTP at /acp), used as a
// gateway: each connection has an agent process of its own, and whole messages pass between the two
// streams as the SDK gives them. Arguments: MODULES_DIR PORT COMMAND ARGS...
import { spawn } from "node:child_process";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { Readable, Writable } from "node:stream";
import { pathToFileURL } from "node:url";

const [modules, port, command, ...args] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const load = (name) => import(pathToFileURL(require.resolve(name)));
const { ndJsonStream } = await load("@agentclientprotocol/sdk");
const { AcpServer } = await load("@agentclientprotocol/sdk/experimental/server");
const { createNodeHttpHandler, createNodeWebSocketUpgradeHandler } = await load(
  "@agentclientprotocol/sdk/experimental/node",
);
const { WebSocketServer } = require("ws");

const children = new Set();
const agent = {
  connect(stream) {
    const child = spawn(command, args, { stdio: ["pipe", "pipe", "inherit"] });
    children.add(child);
    child.stdin.on("error", () => {});
    const closed = new Promise((resolve) => child.on("close", resolve));
    closed.then(() => children.delete(child));
    const pipe = ndJsonStream(Writable.toWeb(child.stdin), Readable.toWeb(child.stdout), {
      maxMessageBytes: 128 * 1024 * 1024,
    });
    stream.readable.pipeTo(pipe.writable).catch(() => {}).finally(() => child.kill());
    pipe.readable.pipeTo(stream.writable).catch(() => {}).finally(() => child.kill());
    return { closed };
  },
};
const server = new AcpServer({ agent });
const acp = createNodeHttpHandler(server);
const http = createServer((request, response) => {
  if (request.url.startsWith("/acp")) acp(request, response);
  else response.end("ok");
});
const sockets = new WebSocketServer({ noServer: true, perMessageDeflate: false });
http.on("upgrade", createNodeWebSocketUpgradeHandler(server, sockets));
http.listen(Number(port), "127.0.0.1");
process.on("SIGTERM", () => {
  for (const child of children) child.kill();
  process.exit(0);
});
