// The page: joins what a person does to the gateway, and draws what became of it.

import { Composer, drawSettings } from "./composer.js";
import { EventList } from "./events.js";
import { Gateway } from "./gateway.js";
import { drawQuestions } from "./questions.js";
import { Transcript } from "./render.js";
import { drawSessions } from "./sidebar.js";
import { el } from "./text.js";

const $ = (id) => document.getElementById(id);
const kept = sessionStorage;
const TOKEN = "acp-gateway.token";
const OPEN = "acp-gateway.session";
const NONE = [];
const AT_END = 48; // pixels from the end of the conversation that still count as its end

const log = $("log");
const wide = matchMedia("(min-width: 760px)");
const transcript = new Transcript($("entries"));
const events = new EventList($("event-list"));
let frame = 0;
let drawn = null; // the conversation that the page shows
let follow = true; // the log stays at its end
let answering = null; // its answer is spoken when it is whole
let countdown = 0;

const speak = (text) => ($("spoken").textContent = text);
const redraw = () => (frame ||= requestAnimationFrame(draw));

const gateway = new Gateway({
  redraw,
  state: showState,
  giveBack(each, text) {
    const draft = each === drawn ? composer.field.value : each.draft;
    each.draft = [text, draft].filter(Boolean).join("\n");
    if (each === drawn) composer.set(each.draft);
  },
  traffic: (message, sent) => events.message(message, sent),
  events: (each, ...batch) => each === gateway.current && events.batch(...batch),
  told(kind, data) {
    if (kind === "slow_client_warning") speak(`This page took nothing for ${data.blockedMs} ms.`);
  },
  asked(each) {
    const { title } = each.questions.at(-1).params.toolCall ?? {};
    speak(`Your decision is needed: ${title ?? "a tool call"}`);
    if (each !== gateway.current || composer.field.value) return;
    requestAnimationFrame(() => requestAnimationFrame(() => $("questions").firstChild?.focus()));
  },
});

const composer = new Composer($("composer"), {
  commands: () => gateway.current?.commands ?? NONE,
  send(text) {
    follow = true;
    gateway.prompt(gateway.current, text);
    return true;
  },
  stop: () => Boolean(gateway.current?.busy) && (gateway.stop(gateway.current), true),
});

// ---- drawing

function draw() {
  frame = 0;
  const shown = gateway.current;
  if (shown !== drawn) turnTo(shown);
  const info = gateway.list.find((entry) => entry.sessionId === shown?.id);
  const title = shown ? (shown.title ?? info?.title ?? "New session") : "acp-gateway";
  const { used, size } = shown?.usage ?? {};
  const filled = size ? `${Math.round((100 * used) / size)} % of the context used` : "";
  $("title").textContent = title;
  $("subtitle").textContent = [gateway.agent, shown?.cwd, filled].filter(Boolean).join(" · ");
  document.title = shown ? `${title} · acp-gateway` : title;

  transcript.draw(shown);
  drawWaiting(shown);
  const empty = !shown?.entries.length && !shown?.waiting.length;
  $("welcome").textContent = empty ? welcome(shown) : "";
  $("start").hidden = Boolean(shown);
  if (follow) log.scrollTop = log.scrollHeight;

  const busy = Boolean(shown?.busy);
  log.setAttribute("aria-busy", busy);
  $("composer").hidden = !shown;
  $("stop").hidden = !busy;
  $("send").textContent = busy ? "Queue" : "Send";
  const decide = (question, option) => gateway.decide(shown, question, option);
  drawQuestions($("questions"), shown?.questions ?? [], decide, composer.field);
  composer.refresh();
  drawSettings($("options"), shown, (method, params) => gateway.set(shown, method, params));
  drawSessions($("list"), gateway, openSession);
  $("more").hidden = !gateway.nextCursor;

  if (answering && answering === shown && !busy) speak(shown.last("agent").slice(0, 2000));
  answering = busy ? shown : null;
}

function turnTo(shown) {
  if (drawn) drawn.draft = composer.field.value;
  drawn = shown;
  follow = true;
  kept.setItem(OPEN, JSON.stringify({ id: shown.id, cwd: shown.cwd }));
  history.replaceState(null, "", `#session=${encodeURIComponent(shown.id)}`);
  composer.set(shown.draft);
  $("composer").hidden = false;
  if (wide.matches) composer.field.focus();
}

function welcome(shown) {
  if (!shown) return "Open a session, or start a new one.";
  return shown.loading ? "Opening the session…" : "Write the first message.";
}

function drawWaiting(shown) {
  const root = $("waiting");
  const waiting = shown?.waiting ?? [];
  const key = waiting.map((prompt) => prompt.key).join();
  if (root.dataset.key === key) return;
  root.dataset.key = key;
  const cards = waiting.map((prompt) => {
    const onclick = () => gateway.unqueue(shown, prompt);
    const button = el("button", { class: "plain", type: "button", onclick }, "Remove");
    const text = el("p", { class: "quiet" }, "Is sent when the turn has ended.");
    return el("article", { class: "entry user" }, el("p", {}, prompt.text), text, button);
  });
  root.replaceChildren(...cards);
}

// ---- the connection

function showState(name, detail) {
  clearInterval(countdown);
  if (name === "ready") ready();
  if (name === "token") askToken(detail);
  if (name === "waiting") {
    const until = Date.now() + detail.seconds * 1000;
    const left = () => Math.max(1, Math.ceil((until - Date.now()) / 1000));
    banner(detail.reason.replace(/\.?$/, "."), "Try now", () => gateway.connection.retry());
    const tell = () => ($("banner-more").textContent = `Trying again in ${left()} s.`);
    countdown = setInterval(tell, 1000);
    tell();
  }
  document.body.dataset.connection = name;
  redraw();
}

function banner(text, button, action) {
  $("banner").hidden = !text;
  if ($("banner-text").textContent !== text) $("banner-text").textContent = text; // spoken once
  $("banner-more").textContent = "";
  $("banner-button").textContent = button;
  $("banner-button").onclick = action;
}

function ready() {
  if (!$("banner").hidden) speak("Connected again.");
  banner("");
  $("folder").replaceChildren(...gateway.workspaces.map((path) => el("option", { value: path }, path)));
  $("folder-label").hidden = gateway.workspaces.length < 2;
  attempt(async () => {
    await gateway.refresh();
    if (!gateway.current) await openNamed();
  });
}

/** Opens the session that the address names. */
async function openNamed() {
  const id = decodeURIComponent(/^#session=(.+)$/.exec(location.hash)?.[1] ?? "");
  if (!id) return;
  const listed = gateway.list.find((entry) => entry.sessionId === id);
  const last = JSON.parse(kept.getItem(OPEN) ?? "{}");
  await openSession(id, listed?.cwd ?? (last.id === id ? last.cwd : gateway.workspaces[0]));
}

async function attempt(action) {
  try {
    await action();
  } catch (error) {
    if (!error.data) console.error(error);
    const text = [error.message, error.data?.remedy].filter(Boolean).join(": ");
    banner(text, "Close", () => banner(""));
  }
}

function askToken(wrong) {
  banner("");
  $("token-title").textContent = wrong ? "The gateway did not accept this token" : "This gateway asks for a token";
  if (!$("token-dialog").open) $("token-dialog").showModal();
}

function connect() {
  gateway.connection.token = kept.getItem(TOKEN);
  gateway.connection.retry();
}

$("token-dialog").oncancel = (event) => event.preventDefault();
$("token-form").onsubmit = (event) => {
  event.preventDefault();
  kept.setItem(TOKEN, $("token").value);
  $("token-dialog").close();
  connect();
};

// ---- what a person does

async function openSession(id, cwd) {
  drawer(false);
  await attempt(() => gateway.open(id, cwd));
}

$("new").onclick = $("start").onclick = async () => {
  $("new").disabled = $("start").disabled = true;
  await attempt(() => gateway.create($("folder").value));
  $("new").disabled = $("start").disabled = false;
  drawer(false);
};
$("refresh").onclick = () => attempt(() => gateway.refresh());
$("more").onclick = () => attempt(() => gateway.refresh(true));
$("stop").onclick = () => {
  gateway.stop(gateway.current);
  composer.field.focus();
};
$("latest").onclick = () => (log.scrollTop = log.scrollHeight);
log.onscroll = () => {
  follow = log.scrollHeight - log.scrollTop - log.clientHeight < AT_END;
  $("latest").hidden = follow;
};
new ResizeObserver(() => follow && (log.scrollTop = log.scrollHeight)).observe(log);

function drawer(open) {
  if (!open && !wide.matches && $("sessions").contains(document.activeElement)) $("show-sessions").focus();
  document.body.classList.toggle("drawer", open);
  $("show-sessions").setAttribute("aria-expanded", open);
  $("sessions").inert = !open && !wide.matches;
  if (open) $("new").focus();
}

function panel(open) {
  $("events").hidden = !open;
  $("show-events").setAttribute("aria-expanded", open);
  (open ? $("hide-events") : $("show-events")).focus();
}

$("show-sessions").onclick = () => drawer(true);
$("shade").onclick = () => drawer(false);
$("show-events").onclick = () => panel($("events").hidden);
$("hide-events").onclick = () => panel(false);
wide.onchange = () => drawer(false);
onhashchange = () => openNamed();
document.onkeydown = (event) => {
  if (event.key !== "Escape" || event.defaultPrevented) return;
  if (document.body.classList.contains("drawer")) drawer(false);
  else if (!$("events").hidden) panel(false);
};

const given = /^#token=(.+)$/.exec(location.hash)?.[1];
if (given) {
  kept.setItem(TOKEN, decodeURIComponent(given));
  history.replaceState(null, "", location.pathname);
}
drawer(false);
connect();
draw();
