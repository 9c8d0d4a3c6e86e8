// A plain Express server with the busiest routes of the gateway, answering JSON of the same size:
// what the framework itself costs. No sessions, checks or limits. Its WebSocket answers initialize.
// Arguments: MODULES_DIR PORT.
import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { createRequire } from "node:module";

const [modules, port] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const express = require("express");
const { WebSocketServer } = require("ws");

const began = new Date().toISOString();
const cwd = process.cwd();
const epoch = randomUUID();
const app = express();
app.use(express.json());

app.get("/health", (_, response) => response.json({ status: "ok", version: "1.0.0" }));
app.post("/session", (_, response) => {
  response.json({ sessionId: "stub-12345-1", workspaceCwd: cwd, clientId: `client_${randomUUID()}` });
});
app.get("/session/:id/status", ({ params }, response) => {
  response.json({
    sessionId: params.id,
    workspaceCwd: cwd,
    cwd,
    agent: "stub",
    createdAt: began,
    updatedAt: began,
    clientCount: 1,
    hasActivePrompt: false,
    isArchived: false,
    activeWorkState: "idle",
    hasRunningBackgroundTasks: false,
    isWaitingForPermission: false,
    isWaitingForUserQuestion: false,
    pendingInteractionCount: 0,
    hasTurnError: false,
    pendingInteractions: [],
  });
});
app.post("/session/:id/prompt", (_, response) => {
  response.status(202).json({ promptId: randomUUID(), lastEventId: 0, eventEpoch: epoch });
});
app.post("/session/:id/heartbeat", (request, response) => {
  const clientId = request.get("X-Qwen-Client-Id");
  response.json({ sessionId: request.params.id, clientId, lastSeenAt: Date.now() });
});
app.post("/session/:id/permission/:request", ({ params }, response) => {
  response.status(404).json({
    error: "No pending permission request for session",
    code: "permission_not_found",
    sessionId: params.id,
    requestId: params.request,
  });
});
app.get("/session/:id/events", (_, response) => {
  response.set({
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
    "X-Qwen-Event-Epoch": epoch,
  });
  response.write("retry: 3000\n\n");
});

const server = createServer(app);
new WebSocketServer({ server, path: "/acp", perMessageDeflate: false }).on("connection", (socket) => {
  socket.on("message", (data) => {
    const { id } = JSON.parse(data);
    const result = { protocolVersion: 1, agentCapabilities: { loadSession: true }, authMethods: [] };
    socket.send(JSON.stringify({ jsonrpc: "2.0", id, result }));
  });
});
server.listen(Number(port), "127.0.0.1");
process.on("SIGTERM", () => process.exit(0));
