// Headless Chromium for a test: reads commands as JSON lines, answers each with one line.
//
// {"op": ..., "page": name, ...} -> {"ok": value} or {"error": text}. Pages are tabs of one browser.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { join } from "node:path";

const require = createRequire(join(process.env.ACP_GATEWAY_PEERS, "playwright-core", "index.js"));
const { chromium } = require("playwright-core");

const [executablePath] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--no-proxy-server", "--disable-gpu", "--disable-dev-shm-usage"],
});
const pages = new Map();

async function newPage({ page, width, height, dark }) {
  const context = await browser.newContext({
    viewport: { width, height },
    colorScheme: dark ? "dark" : "light",
    reducedMotion: "reduce",
  });
  await context.addInitScript(() => {
    const sockets = [];
    const Real = WebSocket;
    globalThis.WebSocket = class extends Real {
      constructor(...given) {
        super(...given);
        sockets.push(this);
      }
    };
    globalThis.dropSockets = () => sockets.splice(0).forEach((socket) => socket.close());
  });
  const tab = await context.newPage();
  tab.noise = [];
  tab.requests = [];
  tab.sockets = 0;
  tab.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) {
      tab.noise.push(`${message.type()}: ${message.text()} ${message.location().url}`);
    }
  });
  tab.on("pageerror", (error) => tab.noise.push(`exception: ${error.stack}`));
  tab.on("response", (response) => {
    const request = response.request();
    tab.requests.push({ method: request.method(), url: request.url(), status: response.status() });
  });
  tab.on("websocket", () => tab.sockets++);
  pages.set(page, tab);
}

// While a page goes on to the next one, nothing can be asked of either.
const asked = (tab, script) =>
  tab.evaluate(script).catch((error) => {
    if (!error.message.includes("Execution context was destroyed")) throw error;
  });

// waitForFunction would need eval inside the page, which a good policy forbids.
async function until(tab, { script, timeout }) {
  const end = Date.now() + timeout;
  while (!(await asked(tab, script))) {
    if (Date.now() > end) throw new Error(`not within ${timeout} ms`);
    await new Promise((resolve) => setTimeout(resolve, 30));
  }
}

const OPS = {
  goto: (tab, { url }) => tab.goto(url).then((response) => response?.status() ?? 200),
  reload: (tab) => tab.reload().then(() => null),
  click: (tab, { selector, timeout }) => tab.locator(selector).first().click({ timeout }),
  fill: (tab, { selector, text, timeout }) => tab.locator(selector).first().fill(text, { timeout }),
  press: (tab, { keys }) => tab.keyboard.press(keys),
  type: (tab, { text }) => tab.keyboard.type(text),
  select: (tab, { selector, value, timeout }) => tab.locator(selector).first().selectOption(value, { timeout }),
  wait: (tab, { selector, state, timeout }) =>
    tab.locator(selector).first().waitFor({ state, timeout }),
  until,
  text: (tab, { selector }) => tab.locator(selector).allInnerTexts(),
  evaluate: (tab, { script }) => tab.evaluate(script),
  screenshot: (tab, { path }) => tab.screenshot({ path }).then(() => null),
  drop: (tab) => tab.evaluate("dropSockets()"),
  seen: (tab) => ({ noise: tab.noise, requests: tab.requests, sockets: tab.sockets }),
  forget: (tab) => ((tab.noise.length = tab.requests.length = 0), null),
};

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  let answer;
  try {
    if (command.op === "open") await newPage(command);
    else answer = await OPS[command.op](pages.get(command.page), command);
    answer = { ok: answer ?? null };
  } catch (error) {
    answer = { error: String(error.message) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
