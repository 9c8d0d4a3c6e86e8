// Puts the client of the Qwen daemon (`@qwen-code/sdk`, DaemonClient) through what a daemon must do
// and prints one JSON line a step: {step, ok, detail, ms, skipped?, better?}.
//
//   node daemon_client.mjs --base URL --transport rest|acp-ws|acp-http --agent qwen|goose|demo
//                          --cwd DIR [--token T] [--only STEP,...] [--prompts JSON] [--events N]
//
// Exit status 0 when every step is well or skipped with a reason. `better` marks what the real
// `qwen serve` does not do. `--list` names the steps; those of a daemon with special settings run
// only when they are named: ring-gap (a ring of 100 events).
import { existsSync } from "node:fs";
import path from "node:path";
import {
  END,
  Skip,
  ask,
  blocks,
  check,
  choice,
  consecutive,
  cwd,
  features,
  ids,
  kinds,
  main,
  needs,
  options,
  pause,
  poll,
  question,
  raw,
  refused,
  rest,
  same,
  sdk,
  send,
  short,
  step,
  textOf,
  view,
  within,
  words,
} from "./daemon_lib.mjs";

const EVENTS = Number(options.events);
const REST = { on: ["rest"] };
const REPLAY = { on: ["rest", "acp-http"] };
const BETTER = { better: true };
const ACP_BETTER = { better: !rest };
const WS_BETTER = { better: options.transport === "acp-ws" };
let files = 0;
const file = () => `daemon-${options.transport}-${process.pid}-${(files += 1)}.txt`;
const numbersIn = (text) => (text.match(/\d{6}/g) ?? []).map(Number);
const upTo = (n) => Array.from({ length: n }, (_, i) => i);
const anyId = () => crypto.randomUUID();

// A turn that asks to write a file, up to the question.
async function asking(session, feed) {
  const name = file();
  const from = feed.events.length;
  const turn = await send(session, feed, words("permission", { file: name }));
  const asked = await question(feed, from);
  return { turn, asked, from, written: () => existsSync(path.join(cwd, name)) };
}

// Whether a vote counts. A late one is a 404 over REST, which the SDK makes false; over ACP a daemon
// may also say 409, which it throws.
async function vote(session, id, optionId) {
  try {
    return await session.respondToSessionPermission(id, choice(optionId));
  } catch (error) {
    if (rest || error.status !== 409) throw error;
    return false;
  }
}

// ---- the daemon ---------------------------------------------------------------------------------

step("health", async (w) => {
  const answer = await w.client().health();
  same(answer.status, "ok", "status");
}, ACP_BETTER);

step("capabilities", async (w) => {
  const found = await w.client().capabilities();
  check(Array.isArray(found.features), "features is a list", found);
  for (const tag of ["health", "capabilities", "session_create", "session_prompt", "session_events"]) {
    check(found.features.includes(tag), `features has ${tag}`);
  }
  same(found.v, 1, "v");
  check(found.protocolVersions?.supported?.length > 0, "protocolVersions.supported", found);
  check(found.limits?.maxPendingPromptsPerSession >= 0, "limits.maxPendingPromptsPerSession");
  check(typeof found.policy?.permission === "string", "policy.permission");
  return `${found.features.length} features, transports ${found.transports}`;
});

step("transports", async (w) => {
  const { transports } = await w.client().capabilities();
  check(transports.includes(options.transport), `${options.transport} is advertised`, transports);
}, ACP_BETTER);

step("daemon-status", async (w) => {
  const report = await w.client().daemonStatus("summary");
  check(["ok", "warning", "error"].includes(report.status), "status", report.status);
  check(report.limits.eventRingSize > 0, "limits.eventRingSize", report.limits);
}, REST);

step("daemon-status-full", async (w) => {
  const { session, feed } = await w.site();
  await ask(session, feed, words("text"));
  const report = await w.client().daemonStatus("full");
  for (const issue of report.issues) {
    check(issue.code && issue.message && ["warning", "error"].includes(issue.severity), "an issue", issue);
  }
  const row = report.full.sessions.find((each) => each.sessionId === session.sessionId);
  check(row?.clientCount > 0 && row.lastEventId > 0, "the session", report.full.sessions);
  check(report.runtime.sessions.active > 0 && report.runtime.channel.live, "runtime", report.runtime);
  check(typeof report.runtime.rateLimit.enabled === "boolean", "rateLimit", report.runtime.rateLimit);
  for (const name of ["preflight", "env"]) {
    const section = report.full.workspace[name];
    check(["ok", "warning", "error"].includes(section?.status), `workspace.${name}`, section);
  }
  return report.issues.map((each) => each.code).join(" ");
}, REST);

const STATES = ["ok", "warning", "error", "disabled", "not_started", "unknown"];

step("preflight", async (w) => {
  const { session, feed } = await w.site();
  await ask(session, feed, words("text"));
  const report = await w.client().workspacePreflight();
  same([report.v, report.initialized, report.acpChannelLive], [1, true, true], "the head");
  for (const cell of report.cells) {
    check(STATES.includes(cell.status) && ["daemon", "acp"].includes(cell.locality), "a cell", cell);
  }
  const found = new Set(report.cells.map((each) => each.kind));
  for (const kind of ["cli_entry", "workspace_dir", "git", "auth", "skills", "tool_registry"]) {
    check(found.has(kind), kind, [...found]);
  }
  return report.cells.map((each) => `${each.kind}=${each.status}`).join(" ");
}, REST);

step("env", async (w) => {
  const report = await w.client().workspaceEnv();
  same([report.v, report.initialized], [1, true], "the head");
  for (const cell of report.cells) {
    check(cell.name && STATES.includes(cell.status), "a cell", cell);
    check(cell.kind !== "env_var" || cell.value === undefined, "no value of a variable", cell);
  }
  return `${report.cells.length} cells`;
}, REST);

// ---- sessions -----------------------------------------------------------------------------------

step("create", async (w) => {
  const session = await w.create();
  check(session.sessionId, "an id", session.session);
  if (!rest) return short(Object.keys(session.session));
  same(session.attached, false, "attached");
  same(session.workspaceCwd, cwd, "workspaceCwd");
  check(/^client_[\w-]+$/.test(session.clientId), "clientId", session.clientId);
  check(!Number.isNaN(Date.parse(session.session.createdAt)), "createdAt", session.session);
});

step("create-names-client", async (w) => {
  const { session } = await w.create();
  check(/^client_[\w-]+$/.test(session.clientId ?? ""), "clientId", Object.keys(session));
  same(session.workspaceCwd, cwd, "workspaceCwd");
}, ACP_BETTER);

step("create-single", async (w) => {
  const four = await Promise.all(
    [0, 1, 2, 3].map(() => w.create(undefined, { sessionScope: "single" })),
  );
  same(new Set(four.map((s) => s.sessionId)).size, 1, "one session for four calls");
  same(new Set(four.map((s) => s.clientId)).size, 4, "four client ids");
  check(four.filter((s) => !s.attached).length <= 1, "at most one is not attached");
  const other = await w.create();
  check(other.sessionId !== four[0].sessionId, "a thread session is another one");
}, REST);

step("create-own-id", async (w) => {
  const client = w.client();
  await needs(client, "session_id_override");
  const id = anyId();
  const session = await w.create(client, { sessionId: id.toUpperCase() });
  same(session.sessionId, id, "sessionId");
  const twice = await refused(client.createOrAttachSession({ workspaceCwd: cwd, sessionId: id }), "again");
  same([twice.status, twice.code], [409, "session_id_conflict"], "the second one");
});

step("create-elsewhere", async (w) => {
  const { status, code } = await refused(
    w.client().createOrAttachSession({ workspaceCwd: "/proc" }),
    "a session outside the workspace",
  );
  if (rest) same([status, code], [400, "workspace_mismatch"], "the refusal");
  else same(status, 400, "the refusal");
});

step("attach", async (w) => {
  const session = await w.create();
  const second = await w.join(session.sessionId);
  if (!rest) return;
  same(second.attached, true, "attached");
  check(second.clientId && second.clientId !== session.clientId, "a client id of its own");
  check(second.replaySnapshotComplete, "both replay arrays");
});

step("load-names-session", async (w) => {
  const session = await w.create();
  const found = await w.client().loadSession(session.sessionId, { workspaceCwd: cwd });
  same(found.sessionId, session.sessionId, "sessionId");
}, ACP_BETTER);

step("subscribe", async (w) => {
  const { feed } = await w.site();
  await feed.kind("replay_complete");
  const end = feed.events.findIndex((e) => e.kind === "replay_complete");
  const numbers = ids(feed.events.slice(0, end));
  consecutive(numbers, 1, "ids of the replay");
  const done = feed.events[end];
  same(done.data.replayedCount, numbers.length, "replayedCount");
}, REPLAY);

step("subscribe-no-history", async (w) => {
  const { session, feed } = await w.site();
  const live = w.stream(session, undefined);
  await pause(0.3);
  const { accepted } = await ask(session, feed, words("text"));
  const end = await live.kind("turn_complete");
  check(!kinds(live.events).includes("replay_complete"), "no replay_complete", kinds(live.events));
  const since = (id) => id > accepted.lastEventId && id <= end.id;
  same(ids(live.events).filter(since), ids(feed.events).filter(since), "the live ids");
}, REST);

// ---- turns --------------------------------------------------------------------------------------

step("text-turn", async (w) => {
  const { session, feed } = await w.site();
  const from = feed.events.length;
  const turn = await ask(session, feed, words("text"));
  await feed.kind("turn_complete", { from });
  const seen = feed.events.slice(from);
  check(textOf(seen), "the agent's text", kinds(seen));
  if (!rest) return kinds(seen).join(" ");
  const { promptId, lastEventId, eventEpoch } = turn.accepted;
  same(textOf(seen, "user_message_chunk"), words("text"), "the echo");
  const mine = seen.filter((e) => e.id > lastEventId && e.promptId === promptId);
  check(mine[0].kind === "user_message_chunk", "the echo is the turn's first event", kinds(mine));
  const end = mine.find((e) => e.kind === "turn_complete");
  same(end.data.stopReason, "end_turn", "stopReason");
  same(end.data.promptId, promptId, "the promptId of turn_complete");
  check(lastEventId < mine[0].id, "lastEventId is from before the turn");
  same(eventEpoch, session.eventEpoch, "the epoch of the 202 is the stream's");
  consecutive(ids(feed.events), 1, "ids");
  for (const e of mine) same(e.event.originatorClientId, session.clientId, `${e.kind}: originator`);
  return kinds(seen).join(" ");
});

step("echo-to-others", async (w) => {
  const { session, feed } = await w.site();
  const other = await w.join(session.sessionId);
  const theirs = w.feed(other);
  await theirs.ready();
  await ask(session, feed, words("text"));
  await theirs.kind("turn_complete");
  same(textOf(theirs.events, "user_message_chunk"), words("text"), "the echo");
  same(textOf(theirs.events), textOf(feed.events), "the agent's text");
}, WS_BETTER);

step("prompt-unsubscribed", async (w) => {
  const session = await w.create();
  const end = await within(session.prompt({ prompt: blocks(words("text")) }), "a prompt");
  same(end.stopReason, "end_turn", "stopReason");
  const again = await within(session.client.prompt(session.sessionId, {
    prompt: blocks(words("text")),
  }, undefined, session.clientId), "a prompt of the bare client");
  same(again.stopReason, "end_turn", "stopReason");
});

step("prompt-subscribed", async (w) => {
  const { session } = await w.site();
  const end = await within(session.prompt({ prompt: blocks(words("text")) }), "a prompt");
  same(end.stopReason, "end_turn", "stopReason");
});

step("prompt-invalid", async (w) => {
  const session = await w.create();
  const send400 = async (request, what) => {
    const { status } = await refused(
      session.client.promptNonBlocking(session.sessionId, request, undefined, session.clientId), what);
    same(status, 400, what);
  };
  await send400({ prompt: [] }, "an empty prompt");
  await send400({ prompt: "text" }, "a prompt that is text");
  if (rest) await send400({ prompt: blocks("x"), deadlineMs: -1 }, "a deadline below zero");
});

step("chunks", async (w) => {
  const { session, feed } = await w.site();
  await ask(session, feed, words("chunks", { n: EVENTS }));
  await feed.kind("turn_complete");
  same(numbersIn(textOf(feed.events)), upTo(EVENTS), "the numbers");
  if (rest) consecutive(ids(feed.events), 1, "ids");
});

// ---- permissions --------------------------------------------------------------------------------

step("permission-allow", async (w) => {
  const { session, feed } = await w.site();
  const { turn, asked, from, written } = await asking(session, feed);
  check(asked.allow && asked.reject, "an option to allow and one to reject", asked.data.options);
  same(await vote(session, asked.id, asked.allow), true, "the vote");
  same((await turn.done).stopReason, "end_turn", "stopReason");
  await feed.kind("turn_complete", { from });
  const seen = feed.events.slice(from);
  check(written(), "the file is there");
  const settled = seen.find((e) => e.kind === "permission_resolved");
  same(settled?.data.outcome, choice(asked.allow).outcome, "the outcome of permission_resolved");
  const tool = seen.filter((e) => e.kind.startsWith("tool_call"));
  same(tool.at(-1).update.status, "completed", "the status of the tool call");
  if (!rest) return kinds(seen).join(" ");
  same(settled.data.voterClientId, session.clientId, "voterClientId");
  same(settled.event.originatorClientId, session.clientId, "originatorClientId");
  check(settled.id > seen.find((e) => e.kind === "permission_request").id, "resolved after asked");
  check(sdk.asKnownDaemonEvent(settled.event), "the SDK knows permission_resolved");
  return kinds(seen).join(" ");
});

step("permission-reject", async (w) => {
  const { session, feed } = await w.site();
  const { turn, asked, written } = await asking(session, feed);
  same(await vote(session, asked.id, asked.reject), true, "the vote");
  await turn.done;
  check(!written(), "no file");
});

step("permission-cancelled", async (w) => {
  const { session, feed } = await w.site();
  const { turn, asked, written } = await asking(session, feed);
  const outcome = { outcome: { outcome: "cancelled" } };
  same(await session.respondToSessionPermission(asked.id, outcome), true, "the vote");
  await turn.done;
  check(!written(), "no file");
});

step("vote-legacy-route", async (w) => {
  const { session, feed } = await w.site();
  const { turn, asked, written } = await asking(session, feed);
  same(await session.respondToPermission(asked.id, choice(asked.allow)), true, "the vote");
  await turn.done;
  check(written(), "the file is there");
  same(await session.respondToPermission(asked.id, choice(asked.allow)), false, "a late vote");
});

step("late-vote", async (w) => {
  const { session, feed } = await w.site();
  const second = await w.join(session.sessionId);
  const { turn, asked, from } = await asking(session, feed);
  same(await vote(session, asked.id, asked.allow), true, "the first");
  same(await vote(second, asked.id, asked.allow), false, "the second");
  await turn.done;
  if (!rest) return;
  const late = await feed.kind("permission_already_resolved", { from });
  same(late.data.requestId, asked.id, "requestId");
  same(late.data.outcome, choice(asked.allow).outcome, "outcome");
});

step("vote-not-offered", async (w) => {
  const { session, feed } = await w.site();
  const { turn, asked } = await asking(session, feed);
  const { status, code } = await refused(
    session.respondToSessionPermission(asked.id, choice("bogus")), "an option that is not offered");
  same(status, 400, "status");
  if (rest) same(code, "invalid_option_id", "code");
  const bad = await refused(session.respondToSessionPermission(asked.id, {}), "a vote without outcome");
  same(bad.status, 400, "status");
  await vote(session, asked.id, asked.allow);
  await turn.done;
});

step("vote-unknown", async (w) => {
  const session = await w.create();
  same(await session.respondToSessionPermission(anyId(), choice("x")), false, "the vote");
});

step("vote-race", async (w) => {
  const { session, feed } = await w.site();
  const others = await Promise.all([0, 1].map(() => w.join(session.sessionId)));
  for (let round = 0; round < 3; round += 1) {
    const { turn, asked, from } = await asking(session, feed);
    const votes = await Promise.all(
      [session, ...others].map((s) => vote(s, asked.id, asked.allow)),
    );
    same(votes.filter(Boolean).length, 1, `one vote of ${votes} is the one that counts`);
    await turn.done;
    await feed.kind("turn_complete", { from });
    const settled = feed.events.slice(from).filter((e) => e.kind === "permission_resolved");
    same(settled.length, 1, "permission_resolved events");
  }
});

step("second-client", async (w) => {
  const { session, feed } = await w.site();
  const second = await w.join(session.sessionId);
  const theirs = w.feed(second);
  await theirs.ready();
  const start = Math.max(0, ...ids(theirs.events), ids(feed.events).at(-1) ?? 0);
  const { turn, asked, written } = await asking(session, feed);
  const shown = await question(theirs);
  same(shown.id, asked.id, "the question of the second client");
  same(await vote(second, asked.id, asked.allow), true, "its vote");
  await turn.done;
  check(written(), "the file is there");
  await feed.kind("turn_complete");
  await theirs.kind("turn_complete");
  const story = (f) =>
    f.events
      .filter((e) => (rest ? e.id > start : END.includes(e.kind) || e.text || e.kind === "tool_call"))
      .filter((e) => rest || e.kind !== "user_message_chunk")
      .map((e) => (rest ? e.event : [e.kind, e.text]));
  const length = Math.min(story(feed).length, story(theirs).length);
  check(length > 2, "a story", kinds(theirs.events));
  same(story(theirs).slice(0, length), story(feed).slice(0, length), "the two stories");
}, WS_BETTER);

step("permission-cancel-turn", async (w) => {
  const { session, feed } = await w.site();
  const { turn, asked, from, written } = await asking(session, feed);
  await within(session.cancel(), "cancel");
  same((await turn.done).stopReason, "cancelled", "stopReason");
  const settled = await feed.kind("permission_resolved", { from });
  same(settled.data.outcome.outcome, "cancelled", "the outcome of the open question");
  same(await vote(session, asked.id, asked.allow), false, "a late vote");
  check(!written(), "no file");
});

// ---- queue and cancel ---------------------------------------------------------------------------

step("cancel-running", async (w) => {
  const { session, feed } = await w.site();
  const turn = await send(session, feed, words("slow"));
  const from = feed.events.length;
  await feed.wait((e) => e.text && e.kind === "agent_message_chunk", "the first words");
  await within(session.cancel(), "cancel");
  same((await turn.done).stopReason, "cancelled", "stopReason");
  const end = await feed.kind("turn_complete", { from });
  same(end.data.stopReason, "cancelled", "the stopReason of turn_complete");
  check(kinds(feed.events.slice(from)).includes("prompt_cancelled"), "prompt_cancelled is seen");
  if (!rest) return;
  const cancelled = feed.events.find((e) => e.kind === "prompt_cancelled");
  check(cancelled.id < end.id, "prompt_cancelled comes first");
  consecutive(ids(feed.events), 1, "ids");
  await ask(session, feed, words("text"));
});

step("cancel-idle", async (w) => {
  const { session, feed } = await w.site();
  const from = feed.events.length;
  await within(session.cancel(), "cancel");
  if (rest) {
    const event = await feed.kind("prompt_cancelled", { from });
    check(!event.promptId, "no promptId", event.event);
  }
  await ask(session, feed, words("text"));
});

step("abort-signal", async (w) => {
  const { session, feed } = await w.site();
  const stop = new AbortController();
  const turn = session.prompt({ prompt: blocks(words("slow")) }, stop.signal);
  turn.catch(() => {});
  await feed.wait((e) => e.text && e.kind === "agent_message_chunk", "the first words");
  stop.abort();
  const error = await within(turn.then(() => undefined, (e) => e), "the aborted prompt");
  same(error?.name, "AbortError", "the error");
  const end = await feed.kind("turn_complete");
  same(end.data.stopReason, "cancelled", "stopReason");
}, { on: ["rest", "acp-ws"] });

step("queue", async (w) => {
  const { session, feed } = await w.site();
  const second = await w.join(session.sessionId);
  const theirs = w.feed(second);
  await theirs.ready();
  const slow = await send(session, feed, words("slow"));
  await feed.wait((e) => e.text && e.kind === "agent_message_chunk", "the first words");
  const from = feed.events.length;
  const queued = await send(second, theirs, words("text"));
  const added = await feed.kind("pending_prompt_added", { from });
  same(added.data.text, words("text"), "the text of the queued prompt");
  if (rest) same(added.data.promptId, queued.promptId, "its promptId");
  const { promptId } = added.data;
  await within(session.cancel(), "cancel");
  same((await slow.done).stopReason, "cancelled", "the slow turn");
  same((await queued.done).stopReason, "end_turn", "the queued turn");
  await feed.kind("pending_prompt_completed", { from });
  const story = feed.events
    .slice(from)
    .filter((e) => e.kind.startsWith("pending_prompt") || END.includes(e.kind))
    .map((e) => `${e.kind}${e.data.promptId === promptId ? "*" : ""}`);
  same(story, [
    "pending_prompt_added*",
    "turn_complete",
    "pending_prompt_started*",
    "turn_complete*",
    "pending_prompt_completed*",
  ], "the order");
  same(
    feed.events.findLast((e) => e.kind === "pending_prompt_completed").data.state,
    "completed",
    "state",
  );
});

step("queue-list-remove", async (w) => {
  const { session, feed } = await w.site();
  same((await session.getPendingPrompts()).pendingPrompts, [], "nothing is pending");
  const slow = await send(session, feed, words("slow"));
  await feed.wait((e) => e.text && e.kind === "agent_message_chunk", "the first words");
  const queued = await send(session, feed, words("text"));
  const { pendingPrompts } = await session.getPendingPrompts();
  const brief = pendingPrompts.map((p) => [p.promptId, p.state, p.text, p.originatorClientId]);
  same(brief, [
    [slow.promptId, "running", words("slow"), session.clientId],
    [queued.promptId, "queued", words("text"), session.clientId],
  ], "pending prompts");
  check(pendingPrompts.every((p) => p.queuedAt > 0), "queuedAt", pendingPrompts);
  same((await session.removePendingPrompt(anyId())).removed, false, "an unknown one");
  same((await session.removePendingPrompt(queued.promptId)).removed, true, "the queued one");
  const gone = await feed.kind("pending_prompt_completed");
  same([gone.data.promptId, gone.data.state], [queued.promptId, "removed"], "the event");
  same((await queued.done).stopReason, "cancelled", "its end");
  same((await session.getPendingPrompts()).pendingPrompts.length, 1, "what is left");
  await session.cancel();
  await slow.done;
});

step("queue-cap", async (w) => {
  const client = w.client({ maxPendingPromptsPerSession: null });
  const limit = (await client.capabilities()).limits.maxPendingPromptsPerSession;
  if (!(limit > 0)) throw new Skip(`the limit is ${limit}`);
  const { session, feed } = await w.site(client);
  const turns = [await send(session, feed, words("slow"))];
  for (let n = 1; n < limit; n += 1) turns.push(await send(session, feed, words("text")));
  const error = await within(
    session.submitPrompt({ prompt: blocks(words("text")) }).then(() => undefined, (e) => e),
    "one prompt too many",
  );
  check(error instanceof sdk.DaemonPendingPromptLimitError, "the SDK's own error", String(error));
  same([error.limit, error.pendingCount, error.sessionId], [limit, limit, session.sessionId], "error");
  const answer = await raw("POST", `/session/${session.sessionId}/prompt`, {
    body: { prompt: blocks("x") },
  });
  same([answer.status, answer.body.code], [503, "prompt_queue_full"], "the answer");
  check(Number(answer.headers.get("retry-after")) > 0, "Retry-After");
  for (const turn of turns.slice(1)) await session.removePendingPrompt(turn.promptId);
  await session.cancel();
  await turns[0].done;
}, REST);

step("mid-turn-message", async (w) => {
  const client = w.client();
  await needs(client, "session_mid_turn_message_mutation", "session_mid_turn_message_query");
  const { session, feed } = await w.site(client);
  const idle = await session.enqueueMidTurnMessage("when idle");
  same([idle.accepted, idle.reason], [false, "session_idle"], "when idle");
  const turn = await send(session, feed, words("slow"));
  await feed.wait((e) => e.text && e.kind === "agent_message_chunk", "the first words");
  const messageId = anyId();
  const first = await session.enqueueMidTurnMessage("in the turn", { messageId });
  same([first.accepted, first.messageId], [true, messageId], "in the turn");
  const again = await session.enqueueMidTurnMessage("in the turn", { messageId });
  same([again.accepted, again.messageId], [true, messageId], "a retry with the same id");
  const state = await session.getMidTurnMessages();
  same(state.messages.map((m) => m.messageId), [messageId], "the queue");
  same((await session.removeMidTurnMessage(messageId)).removed, true, "its removal");
  same((await session.getMidTurnMessages()).messages, [], "the queue then");
  await session.cancel();
  await turn.done;
  return short(state);
});

step("deadline", async (w) => {
  const client = w.client();
  const { session, feed } = await w.site(client);
  const began = performance.now();
  const turn = await send(session, feed, words("slow"), { deadlineMs: 700 });
  if ((await features(client)).includes("prompt_absolute_deadline")) {
    const end = await turn.done;
    same(end.error?.code, "prompt_deadline_exceeded", "the end");
    return;
  }
  const ended = await Promise.race([turn.done, pause(1.5)]);
  check(!ended, "without a deadline of the daemon's own a prompt's is ignored", ended);
  check(performance.now() - began > 1400, "it ran on");
  await session.cancel();
  await turn.done;
}, REST);

step("idempotency", async (w) => {
  const { session, feed } = await w.site();
  const key = anyId();
  const post = (text = words("text")) =>
    raw("POST", `/session/${session.sessionId}/prompt`, {
      body: { prompt: blocks(text) },
      "X-Qwen-Client-Id": session.clientId,
      "Idempotency-Key": key,
    });
  const [one, two] = await Promise.all([post(), post()]);
  same([one.status, two.status], [202, 202], "status");
  same(two.body, one.body, "the answers");
  await feed.wait((e) => e.kind === "turn_complete" && e.data.promptId === one.body.promptId, "end");
  same((await post()).body, one.body, "a retry after the end");
  await ask(session, feed, words("text"));
  same(feed.events.filter((e) => e.kind === "turn_complete").length, 2, "turns");
}, { ...REST, ...BETTER });

// ---- replay -------------------------------------------------------------------------------------

// Reads from `since` on, lets go after `count` events and comes back, until `last` was seen.
async function byPieces(w, session, since, last, count) {
  const got = [];
  let at = since;
  for (let rounds = 0; at < last; rounds += 1) {
    check(rounds < 10_000, "an end of the rounds");
    const stream = w.stream(session, at);
    const enough = (e) => e.id !== undefined && (e.id >= at + count || e.id >= last);
    await stream.wait(enough, `events after ${at}`);
    await stream.stop();
    const lost = stream.events.find((e) => e.kind === "state_resync_required");
    check(!lost, "no resync", lost?.data);
    const fresh = stream.events.filter((e) => e.id !== undefined && e.id <= last);
    got.push(...fresh);
    at = fresh.at(-1).id;
  }
  return got;
}

step("reconnect-mid-turn", async (w) => {
  const { session, feed } = await w.site();
  const other = await w.join(session.sessionId);
  const since = ids(feed.events).at(-1) ?? 0;
  const turn = await send(session, feed, words("slow"));
  const readers = [1, 2, 3, 7].map(async (count) => {
    const own = count === 1 ? other : await w.join(session.sessionId);
    const seen = await byPieces(w, own, since, since + 20, count);
    return { count, seen };
  });
  await feed.wait((e) => e.id > since + 20, "twenty events");
  const done = await Promise.all(readers);
  await session.cancel();
  await turn.done;
  const expected = feed.events.filter((e) => e.id > since && e.id <= since + 20);
  for (const { count, seen } of done) {
    if (rest) consecutive(ids(seen), since + 1, `ids with a break after every ${count}`);
    // Over ACP a client need not hear its own words.
    const heard = (e) => rest || e.kind !== "user_message_chunk";
    const told = (list) => list.filter(heard).map((e) => [e.id, e.kind, e.text]);
    same(told(seen), told(expected), `the events with a break after every ${count}`);
  }
}, REPLAY);

step("replay-prefixes", async (w) => {
  const { session, feed } = await w.site();
  await ask(session, feed, words("chunks", { n: EVENTS }));
  await feed.kind("turn_complete");
  await pause(0.3); // An agent may tell more after the end of a turn.
  const last = ids(feed.events).at(-1);
  const whole = w.stream(session, 0);
  await whole.kind("replay_complete");
  const all = ids(whole.events).filter((id) => id <= last);
  check(all.length >= EVENTS, "the events", all.length);
  same(numbersIn(textOf(whole.events)), upTo(EVENTS), "the numbers of the whole replay");
  if (rest) same(all, ids(feed.events), "the replay of all is what was live");
  const wanted = new Set([0, 1, 2, last - 1, last]);
  for (let n = 1; n < 12; n += 1) wanted.add(Math.floor((last * n) / 12));
  for (const k of wanted) {
    const stream = w.stream(session, k);
    const done = await stream.kind("replay_complete");
    await stream.stop();
    const suffix = all.filter((id) => id > k);
    same(ids(stream.events).filter((id) => id <= last), suffix, `the suffix after ${k}`);
    // Over ACP an event may be none for this client (its own words), so there it may say more.
    const { replayedCount: count } = done.data;
    check(rest ? count === suffix.length : count >= suffix.length, `replayedCount after ${k}`, count);
  }
  return `${last} events, ${wanted.size} prefixes`;
}, REPLAY);

step("subscribers", async (w) => {
  const { session, feed } = await w.site();
  const since = ids(feed.events).at(-1) ?? 0;
  const turn = await send(session, feed, words("slow"));
  const last = since + 15;
  await feed.wait((e) => e.id > since + 5, "the first events");
  const all = upTo(50).map(async (n) => {
    await pause((n % 10) / 10);
    const seen = await byPieces(w, session, since + (n % 5), last, 1 + (n % 7));
    consecutive(ids(seen), since + (n % 5) + 1, `ids of subscriber ${n}`);
    return seen.length;
  });
  const counts = await Promise.all(all);
  await session.cancel();
  await turn.done;
  return `${counts.reduce((a, b) => a + b)} events to ${counts.length} subscribers`;
}, REST);

step("epoch", async (w) => {
  const { session, feed } = await w.site();
  await ask(session, feed, words("text"));
  await feed.kind("turn_complete");
  const last = ids(feed.events).at(-1);
  const stream = w.stream(session, last, { epoch: "deadbeef" });
  const lost = await stream.kind("state_resync_required");
  same(lost.data.reason, "epoch_reset", "reason");
  same(lost.data.lastDeliveredId, last, "lastDeliveredId");
  await stream.kind("replay_complete");
  same(ids(stream.events)[0], 1, "the whole ring follows");
  const ahead = w.stream(session, last + 1000);
  same((await ahead.kind("state_resync_required")).data.reason, "epoch_reset", "an id of the future");
}, REPLAY);

step("stream-refusals", async (w) => {
  const { session } = await w.site();
  const bad = w.stream(session, undefined, { maxQueued: 1 });
  await within(bad.done, "a refused stream");
  same([bad.error?.status, bad.error?.body?.code], [400, "invalid_max_queued"], "maxQueued 1");
  const id = anyId();
  const none = w.stream({ client: session.client, sessionId: id }, undefined);
  await within(none.done, "a stream of no session");
  same([none.error?.status, none.error?.body?.code], [404, "session_not_found"], "no session");
}, REST);

step("ring-gap", async (w) => {
  const client = w.client();
  const { limits } = await client.daemonStatus("summary");
  const ring = limits.eventRingSize;
  check(ring <= 1000, "this step is for a daemon with a ring of 100", limits);
  const { session, feed } = await w.site(client);
  const n = 4 * ring;
  await ask(session, feed, words("chunks", { n }));
  await feed.kind("turn_complete");
  same(numbersIn(textOf(feed.events)), upTo(n), "the live text");
  const stream = w.stream(session, 1);
  const lost = await stream.kind("state_resync_required");
  same([lost.data.reason, lost.data.lastDeliveredId], ["ring_evicted", 1], "the gap");
  await stream.kind("replay_complete");
  const kept = ids(stream.events);
  same(kept[0], lost.data.earliestAvailableId, "earliestAvailableId");
  consecutive(kept, kept[0], "what the ring keeps");
  const second = await w.join(session.sessionId);
  const { compactedReplay, liveJournal } = second.replaySnapshot;
  const history = [...compactedReplay, ...liveJournal].map(view);
  same(numbersIn(textOf(history)), upTo(n), "the text of the load");
  const after = await w.feed(second).ready();
  check(!kinds(after.events).includes("state_resync_required"), "no resync from the watermark");
}, { ...REST, only: true });

// ---- load ---------------------------------------------------------------------------------------

// A second client's view of what was: over REST the answer of load, else the events around it.
async function history(w, id) {
  if (rest) {
    const session = await w.join(id);
    check(session.replaySnapshotComplete, "both replay arrays");
    const { compactedReplay, liveJournal } = session.replaySnapshot;
    const past = [...compactedReplay, ...liveJournal].map(view);
    return { session, past, feed: w.feed(session) };
  }
  const client = w.client();
  if (options.transport === "acp-http") {
    const session = await w.join(id, client);
    const feed = w.feed(session);
    await pause(0.7);
    return { session, past: [...feed.events], feed };
  }
  // Over WebSocket the history comes before the answer: listen first.
  await client.capabilities();
  const feed = w.stream({ client, sessionId: id }, undefined);
  const session = await w.join(id, client);
  await pause(0.3);
  return { session, past: [...feed.events], feed };
}

step("load-history", async (w) => {
  const { session, feed } = await w.site();
  await ask(session, feed, words("chunks", { n: 40 }));
  const { turn, asked, from: toolTurn } = await asking(session, feed);
  await vote(session, asked.id, asked.allow);
  await turn.done;
  await feed.kind("turn_complete", { from: toolTurn });
  await pause(0.3);
  const seen = [...feed.events];
  const { session: second, past, feed: theirs } = await history(w, session.sessionId);
  same(textOf(past), textOf(seen), "the agent's text");
  const asks = textOf(past, "user_message_chunk");
  check(asks.includes(words("chunks", { n: 40 })), "the user's text", asks);
  const tool = past.filter((e) => e.kind.startsWith("tool_call"));
  check(tool.length > 0, "the tool call", kinds(past));
  same(tool.at(-1).update.status, "completed", "its status");
  if (rest) {
    const last = ids(seen).at(-1);
    check(second.lastEventId >= last, "the watermark", [second.lastEventId, last]);
    check(second.eventEpoch, "the epoch");
    const known = ids(past);
    // A tool call stands where it began and has the id of its last update.
    same(new Set(known).size, known.length, "no id twice");
    check(known.every((id) => id <= second.lastEventId), "no id above the watermark", known);
    await theirs.ready();
    same(ids(theirs.events), [], "nothing is told twice");
  }
  const from = theirs.events.length;
  await ask(session, feed, words("text"));
  await theirs.kind("turn_complete", { from });
  check(textOf(theirs.events.slice(from)), "the next turn", kinds(theirs.events.slice(from)));
  return kinds(past).join(" ");
}, ACP_BETTER);

step("load-mid-turn", async (w) => {
  const { session, feed } = await w.site();
  const turn = await send(session, feed, words("slow"));
  await feed.wait((e) => e.id > 6 && textOf(feed.events).length > 20, "some words");
  const { session: second, past, feed: theirs } = await history(w, session.sessionId);
  if (rest) same(second.hasActivePrompt, true, "hasActivePrompt");
  await feed.wait((e) => e.text && e.kind === "agent_message_chunk", "more", {
    from: feed.events.length + 3,
  });
  await session.cancel();
  await turn.done;
  await theirs.kind("turn_complete");
  const told = rest ? textOf([...past, ...theirs.events]) : textOf(theirs.events);
  same(told, textOf(feed.events), "history and stream together");
  return kinds(past).join(" ");
}, ACP_BETTER);

step("load-open-question", async (w) => {
  const { session, feed } = await w.site();
  const { turn, asked, written } = await asking(session, feed);
  const { session: second, past, feed: theirs } = await history(w, session.sessionId);
  const shown = rest
    ? past.find((e) => e.kind === "permission_request")
    : await theirs.kind("permission_request");
  same(shown?.data.requestId, asked.id, "the open question");
  same(await vote(second, asked.id, asked.allow), true, "its vote");
  await turn.done;
  check(written(), "the file is there");
  await theirs.kind("turn_complete");
  if (!rest) return;
  const later = await w.join(session.sessionId);
  const open = later.replaySnapshot.liveJournal.map(view);
  const stale = open.filter((e) => e.kind === "permission_request").length;
  const settled = open.filter((e) => e.kind === "permission_resolved").length;
  check(stale === 0 || settled > 0, "no settled question is asked again", kinds(open));
}, WS_BETTER);

step("resume", async (w) => {
  const { session, feed } = await w.site();
  await ask(session, feed, words("text"));
  await feed.kind("turn_complete");
  const second = await w.join(session.sessionId, w.client(), "resume");
  if (rest) {
    same(second.attached, true, "attached");
    check(second.lastEventId > 0, "the watermark", second.lastEventId);
    same(second.replaySnapshot.compactedReplay, [], "no history");
  }
  const theirs = w.feed(second);
  await theirs.ready();
  await ask(second, theirs, words("text"));
});

// ---- model and mode -----------------------------------------------------------------------------

async function models(session) {
  const { state } = await session.context();
  const available = state?.models?.availableModels ?? [];
  if (!available.length) throw new Skip("the agent names no models");
  return { current: state.models.currentModelId, available };
}

step("model-change", async (w) => {
  const { session, feed } = await w.site();
  const { current, available } = await models(session);
  const other = available.find((m) => m.modelId !== current) ?? available[0];
  const from = feed.events.length;
  await within(session.setModel(other.modelId), "setModel");
  if (rest) {
    const event = await feed.kind("model_switched", { from });
    same(event.data.modelId, other.modelId, "the model of the event");
  }
  return `${current} -> ${other.modelId}`;
});

step("model-bad", async (w) => {
  const { session, feed } = await w.site();
  await models(session);
  const from = feed.events.length;
  if (options.agent === "goose") throw new Skip("goose takes any id for a model");
  const { status } = await refused(session.setModel("no-such-model"), "a model that is not there");
  if (!rest) return status;
  const event = await feed.kind("model_switch_failed", { from });
  same(event.data.requestedModelId, "no-such-model", "requestedModelId");
  check(event.data.error, "error", event.data);
  return status;
});

step("mode-change", async (w) => {
  const { session, feed } = await w.site();
  const { state } = await session.context();
  const { currentModeId, availableModes = [] } = state?.modes ?? {};
  const other = availableModes.find((m) => m.id !== currentModeId);
  if (!other) throw new Skip("the agent names no other mode");
  const from = feed.events.length;
  const answer = await session.client.setSessionApprovalMode(session.sessionId, other.id, {
    clientId: session.clientId,
  });
  same([answer.mode, answer.previous], [other.id, currentModeId], "the answer");
  const event = await feed.kind("approval_mode_changed", { from });
  const { previous, next, persisted } = event.data;
  same([previous, next, persisted], [currentModeId, other.id, false], "the event");
  const now = (await session.context()).state.modes.currentModeId;
  same(now, other.id, "the mode of the context");
  const bad = await refused(
    session.client.setSessionApprovalMode(session.sessionId, "no-such-mode"), "a bad mode");
  same([bad.status, bad.code], [400, "invalid_approval_mode"], "a bad mode");
  return `${currentModeId} -> ${other.id}`;
});

// ---- what a session tells -----------------------------------------------------------------------

function named(answer, session, ...keys) {
  same(answer.sessionId, session.sessionId, "sessionId");
  for (const key of keys) check(key in answer, key, Object.keys(answer));
  return short(answer);
}

const told = async (w) => {
  const { session, feed } = await w.site();
  await ask(session, feed, words("text"));
  return session;
};

step("context", async (w) => {
  const session = await told(w);
  const answer = await session.context();
  same(answer.workspaceCwd, cwd, "workspaceCwd");
  return named(answer, session, "v", "state");
});

step("supported-commands", async (w) => {
  const session = await told(w);
  const answer = await session.supportedCommands();
  check(Array.isArray(answer.availableCommands), "availableCommands", answer);
  return named(answer, session, "v");
});

step("tasks", async (w) => {
  const session = await told(w);
  const answer = await session.tasks();
  check(Array.isArray(answer.tasks), "tasks", answer);
  return named(answer, session, "v");
});

// What a command of the user wrote, as the events tell it, and how it ended.
async function ofShell(feed, from) {
  const end = await feed.kind("user_shell_result", { from });
  const at = feed.events.indexOf(end);
  const mine = feed.events.slice(from, at + 1).filter((e) => /shell/.test(e.kind));
  const output = mine.filter((e) => e.kind === "shell_output").map((e) => e.update.output);
  return { mine, output: output.join(""), end: end.data };
}

step("shell", async (w) => {
  const { session, feed } = await w.site();
  await needs(session.client, "session_shell_command");
  const from = feed.events.length;
  const answer = await session.shellCommand("echo out; echo err >&2; exit 3");
  same([answer.exitCode, answer.output, answer.aborted], [3, "out\nerr\n", false], "the answer");
  const { mine, output, end } = await ofShell(feed, from);
  same([mine[0].kind, mine[0].data.cwd], ["user_shell_command", cwd], "the first event");
  check(mine[0].data.command.startsWith("echo out"), "command", mine[0].data);
  same(output, answer.output, "the output in events");
  same([end.exitCode, end.signal, end.aborted], [3, null, false], "the result");
  const killed = await session.shellCommand("kill -9 $$");
  same([killed.exitCode, killed.aborted], [null, false], "one that was killed");
  const { status, code } = await refused(session.shellCommand(" "), "no command");
  check(status === 400 || !rest, "status", { status, code });
});

step("shell-abort", async (w) => {
  const { session, feed } = await w.site();
  await needs(session.client, "session_shell_command");
  const from = feed.events.length;
  const stop = new AbortController();
  const running = session.shellCommand("sleep 60", stop.signal);
  running.catch(() => {});
  await feed.kind("user_shell_command", { from });
  stop.abort();
  same((await within(running.catch((e) => e), "the aborted call"))?.name, "AbortError", "the error");
  const { end } = await ofShell(feed, from);
  same([end.exitCode, end.aborted], [null, true], "the result");
}, REST);

step("shell-anonymous", async (w) => {
  const { session } = await w.site();
  await needs(session.client, "session_shell_command");
  const { sessionId } = session;
  const found = await refused(session.client.shellCommand(sessionId, "true"), "without an id");
  same([found.status, found.code], [403, "client_id_required"], "the refusal");
}, REST);

step("stats", async (w) => {
  const session = await told(w);
  return named(await session.stats(), session);
});

step("context-usage", async (w) => {
  const session = await told(w);
  const answer = await session.contextUsage({ detail: true });
  check(answer.usage && typeof answer.usage === "object", "usage", answer);
  return named(answer, session, "v");
});

step("status", async (w) => {
  const { session, feed } = await w.site();
  const idle = await session.status();
  same([idle.hasActivePrompt, idle.isWaitingForPermission], [false, false], "when idle");
  same(idle.pendingInteractions, [], "pendingInteractions when idle");
  const { turn, asked } = await asking(session, feed);
  const busy = await session.status();
  same([busy.hasActivePrompt, busy.isWaitingForPermission], [true, true], "while it asks");
  same([busy.pendingInteractionCount, busy.pendingInteractions[0].requestId], [1, asked.id], "what");
  const [first] = busy.pendingInteractions;
  same(first.kind, "permission", "kind");
  same(first.options.map((o) => o.optionId), asked.data.options.map((o) => o.optionId), "options");
  check(first.options.every((o) => typeof o.label === "string"), "labels", first.options);
  await vote(session, asked.id, asked.allow);
  await turn.done;
  return named(busy, session);
});

step("transcript", async (w) => {
  const session = await told(w);
  const page = await session.getTranscriptPage();
  check(Array.isArray(page.events), "events", page);
  const past = page.events.map(view);
  check(textOf(past) && textOf(past, "user_message_chunk"), "both sides", short(page.events));
  return short(page);
});

step("rewind-snapshots", async (w) => {
  const session = await told(w);
  const { snapshots } = await session.getRewindSnapshots();
  check(Array.isArray(snapshots), "snapshots", snapshots);
  return short(snapshots);
});

step("rewind-refusals", async (w) => {
  const session = await told(w);
  await needs(session.client, "session_rewind");
  const { status, code } = await refused(session.rewind("nothing like it"), "a bad rewind");
  same([status, code], [400, "invalid_rewind_target"], "the refusal");
});

step("heartbeat", async (w) => {
  const session = await w.create();
  const answer = await session.heartbeat();
  check(answer.lastSeenAt > 1e12, "lastSeenAt", answer);
  if (rest) same(answer.clientId, session.clientId, "clientId");
  return named(answer, session);
});

// Over HTTP the SDK learns of a call only after it has read the 202: a reply that comes on the stream
// before that is lost to it, and the call never ends.
step("quick-calls", async (w) => {
  const session = await w.create(w.client({ fetchTimeoutMs: 2000 }));
  let lost = 0;
  for (let n = 0; n < 100; n += 1) {
    await session.heartbeat().catch((error) => {
      check(error.name === "TimeoutError", "only lost replies", error);
      lost += 1;
    });
  }
  same(lost, 0, "lost replies");
}, { better: options.transport === "acp-http" });

step("metadata", async (w) => {
  const { session, feed } = await w.site();
  const answer = await session.updateMetadata({ displayName: "A name" });
  if (rest) same(answer.displayName, "A name", "the name of the answer");
  const event = await feed.kind("session_metadata_updated");
  same(event.data.displayName, "A name", "the name of the event");
  if (!rest) return;
  same((await session.status()).displayName, "A name", "the name of the status");
  const long = await session.updateMetadata({ displayName: "x".repeat(300) });
  same(long.displayName.length, 256, "a long name is cut");
  const bad = await refused(session.updateMetadata({ displayName: " " }), "a blank name");
  same([bad.status, bad.code], [400, "invalid_metadata"], "a blank name");
}, ACP_BETTER);

step("list", async (w) => {
  const client = w.client();
  const wanted = [];
  for (let n = 0; n < 3; n += 1) wanted.push((await w.create(client)).sessionId);
  const found = [];
  let cursor;
  do {
    const page = await client.listWorkspaceSessionsPage(cwd, { pageSize: 1, cursor });
    found.push(...page.sessions);
    cursor = page.nextCursor;
    check(found.length < 500, "an end of the list");
  } while (cursor);
  const all = found.map((s) => s.sessionId);
  same(new Set(all).size, all.length, "no session twice");
  for (const id of wanted) check(all.includes(id), `${id} is listed`, all);
  const live = found.find((s) => s.sessionId === wanted[0]);
  same([live.hasActivePrompt, live.workspaceCwd], [false, cwd], "a live one");
  const whole = await client.listWorkspaceSessions(cwd, { pageSize: 500 });
  for (const id of wanted) check(whole.some((s) => s.sessionId === id), `${id} in one page`);
  return short(live);
});

step("list-page-size", async (w) => {
  const client = w.client();
  for (let n = 0; n < 3; n += 1) await w.create(client);
  const page = await client.listWorkspaceSessionsPage(cwd, { pageSize: 1 });
  same(page.sessions.length, 1, "a page of one");
  check(page.nextCursor, "nextCursor", page);
}, BETTER);

// ---- client ids ---------------------------------------------------------------------------------

step("foreign-client-id", async (w) => {
  const session = await w.create();
  const other = await w.create();
  for (const id of ["client_stranger", other.clientId]) {
    const { status, code, body } = await refused(
      session.client.heartbeat(session.sessionId, id), `a heartbeat as ${id}`);
    same([status, code], [400, "invalid_client_id"], id);
    same([body.sessionId, body.clientId], [session.sessionId, id], "the body");
  }
  const long = await refused(session.client.heartbeat(session.sessionId, "x".repeat(129)), "long");
  same([long.status, long.code], [400, "invalid_client_id"], "an id that is too long");
}, REST);

step("self-heal", async (w) => {
  const { session, feed } = await w.site();
  session.session.clientId = "client_of_a_former_life";
  const turn = await send(session, feed, words("text"));
  same((await turn.done).stopReason, "end_turn", "stopReason");
  check(/^client_[\w-]+$/.test(session.clientId), "clientId", session.clientId);
  check(session.clientId !== "client_of_a_former_life", "a fresh id");
}, REST);

// ---- ends ---------------------------------------------------------------------------------------

step("branch", async (w) => {
  const { session, feed } = await w.site();
  await ask(session, feed, words("text"));
  const fork = await session.client.branchSession(session.sessionId, { name: "mine" }, session.clientId);
  w.sessions.add(fork.sessionId);
  check(fork.sessionId && fork.sessionId !== session.sessionId, "another session", fork.sessionId);
  if (rest) {
    same(fork.forkedFrom.sessionId, session.sessionId, "forkedFrom");
    check(/^client_/.test(fork.clientId), "clientId", fork.clientId);
    const past = [...fork.compactedReplay, ...fork.liveJournal].map(view);
    check(textOf(past, "user_message_chunk").includes(words("text")), "the history", kinds(past));
  }
  const both = new sdk.DaemonSessionClient({
    client: session.client,
    session: { ...fork, workspaceCwd: cwd },
    lastEventId: fork.lastEventId ?? 0,
    eventEpoch: fork.eventEpoch,
  });
  const theirs = w.feed(both);
  await theirs.ready();
  await ask(both, theirs, words("text"));
  return short(Object.keys(fork));
});

step("branch-busy", async (w) => {
  const { session, feed } = await w.site();
  await ask(session, feed, words("text"));
  const turn = await send(session, feed, words("slow"));
  await feed.wait((e) => e.promptId === turn.promptId && e.kind === "agent_message_chunk", "words");
  const { status, code } = await refused(
    session.client.branchSession(session.sessionId, {}, session.clientId), "a branch in a turn");
  same([status, code], [409, "branch_while_prompt_active"], "the refusal");
  await session.cancel();
  await turn.done;
}, REST);

const gone = async (session) => {
  try {
    await session.client.sessionStatus(session.sessionId);
    return false;
  } catch (error) {
    same(error.status, 404, "status of the session");
    return true;
  }
};

step("detach", async (w) => {
  const session = await w.create();
  const second = await w.join(session.sessionId);
  // Over ACP the SDK takes the 200 that it makes of every JSON-RPC result for an error here.
  await second.detach().catch((error) => check(!rest && error.status === 200, "detach", error));
  if (!rest) {
    await session.heartbeat();
    return;
  }
  check(!(await gone(session)), "it stays while a client is there");
  await session.detach();
  await poll(() => gone(session), "the end of a session that all have left");
});

step("detach-streaming", async (w) => {
  const { session, feed } = await w.site();
  await session.detach();
  check(!(await gone(session)), "an open stream keeps it");
  check(!feed.ended, "the stream goes on");
}, REST);

step("close", async (w) => {
  const { session, feed } = await w.site();
  const second = await w.join(session.sessionId);
  const theirs = w.feed(second);
  await theirs.ready();
  await session.close();
  for (const f of [feed, theirs]) {
    await within(f.done, "the end of the streams");
    check(!f.error, "a clean end", String(f.error));
    const last = f.events.at(-1);
    same([last.kind, last.data.reason], ["session_closed", "client_close"], "the last frame");
    same(last.data.closedBy, session.clientId, "closedBy");
  }
  await session.close();
  check(await gone(session), "it is gone");
}, REST);

// The SDK takes the 200 that it makes of every JSON-RPC result for an error here.
step("close-over-acp", async (w) => {
  const { session } = await w.site();
  const error = await within(session.close().then(() => undefined, (e) => e), "close");
  same(error?.status, 200, "what the SDK makes of it");
  const then = await refused(session.heartbeat(), "a heartbeat after it");
  check([400, 404].includes(then.status), "the session is gone", then);
}, { on: ["acp-ws", "acp-http"] });

step("load-after-close", async (w) => {
  const { session, feed } = await w.site();
  await ask(session, feed, words("text"));
  await feed.kind("turn_complete");
  const before = textOf(feed.events);
  await session.close().catch(() => {});
  await feed.stop();
  const { session: again, past, feed: theirs } = await history(w, session.sessionId);
  check(textOf(past).includes(before), "the agent's text", kinds(past));
  check(textOf(past, "user_message_chunk").includes(words("text")), "the user's text");
  if (rest) {
    same(again.attached, false, "attached");
    check(again.eventEpoch !== session.eventEpoch, "a new epoch");
    await theirs.ready();
  }
  await ask(again, theirs, words("text"));
  return kinds(past).join(" ");
}, ACP_BETTER);

step("delete", async (w) => {
  const { session, feed } = await w.site();
  await ask(session, feed, words("text"));
  await feed.stop();
  await session.close().catch(() => {});
  const none = anyId();
  const answer = await session.client.deleteSessionsData([session.sessionId, none]);
  same([answer.removed, answer.notFound], [[session.sessionId], [none]], "the answer");
  same(answer.errors, [], "errors");
  const { status } = await refused(session.client.loadSession(session.sessionId, { workspaceCwd: cwd }), "load");
  check(status === 404 || (!rest && status === 400), "it cannot be loaded", status);
});

step("unknown-session", async (w) => {
  const client = w.client();
  const id = anyId();
  const calls = {
    load: () => client.loadSession(id, { workspaceCwd: cwd }),
    prompt: () => client.promptNonBlocking(id, { prompt: blocks("x") }),
    heartbeat: () => client.heartbeat(id),
    context: () => client.sessionContext(id),
    model: () => client.setSessionModel(id, "x"),
  };
  if (rest) {
    Object.assign(calls, {
      resume: () => client.resumeSession(id, { workspaceCwd: cwd }),
      cancel: () => client.cancel(id),
      status: () => client.sessionStatus(id),
      stats: () => client.sessionStats(id),
      tasks: () => client.sessionTasks(id),
      mode: () => client.setSessionApprovalMode(id, "default"),
      pending: () => client.getPendingPrompts(id),
      branch: () => client.branchSession(id),
    });
  }
  for (const [name, call] of Object.entries(calls)) {
    if (options.transport === "acp-http" && ["prompt", "model"].includes(name)) {
      // The SDK reads the answer from a stream of the session, so it only says that there is none.
      const error = await within(call().then(() => undefined, (e) => e), name);
      check(error, `${name} is refused`);
      continue;
    }
    const { status, code } = await refused(call(), name);
    if (rest) same([name, status, code], [name, 404, "session_not_found"], name);
    else check([400, 404].includes(status), name, [status, code]);
  }
  await client.closeSession(id).catch((error) => check(!rest, "closing it is no error", error.message));
  await client.detachSession(id, "client_x").catch((error) => check(!rest, "detach", error.message));
});

await main();
