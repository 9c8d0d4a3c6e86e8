// Draws the entries of a conversation; only those that changed.

import { diffLines, el, link, prose } from "./text.js";

const LONG = 20_000; // characters from which a message is shown as it came
const STATES = { pending: "waiting", in_progress: "at work", completed: "done", failed: "failed" };
const STEPS = { pending: "○", in_progress: "◐", completed: "●" };

export class Transcript {
  #nodes = new Map();
  #shown = null;

  constructor(root) {
    this.root = root;
  }

  draw(conversation) {
    const shown = conversation && `${conversation.id} ${conversation.generation}`;
    if (this.#shown !== shown) {
      this.#shown = shown;
      this.#nodes.clear();
      this.root.replaceChildren();
      conversation?.entries.forEach((entry) => conversation.changed.add(entry));
    }
    for (const entry of conversation?.changed ?? []) {
      let node = this.#nodes.get(entry);
      if (!node) {
        node = el(entry.type === "thought" || entry.type === "tool" ? "details" : "article", { class: `entry ${entry.type}` });
        this.#nodes.set(entry, node);
        this.root.append(node);
      }
      DRAW[entry.type](node, entry);
    }
    conversation?.changed.clear();
  }
}

const DRAW = {
  user(node, entry) {
    node.setAttribute("aria-label", "You");
    node.replaceChildren(el("p", {}, entry.text), ...entry.blocks.map(block)); // just as it was written
  },
  agent(node, entry) {
    node.setAttribute("aria-label", "Agent");
    words(node, entry);
  },
  thought(node, entry) {
    if (!node.firstChild) node.append(el("summary", {}, "Thought"), el("div"));
    words(node.lastChild, entry);
  },
  tool(node, { call }) {
    const status = STATES[call.status] ? call.status : "pending";
    node.dataset.status = status;
    const contents = (Array.isArray(call.content) ? call.content : []).map(toolContent);
    const raw = [["Input", call.rawInput], ["Output", call.rawOutput]].filter(([, value]) => value !== undefined);
    if (!contents.length || status === "failed") for (const [name, value] of raw) contents.push(rawBlock(name, value));
    if (!contents.length) contents.push(el("p", { class: "quiet" }, places(call) || "No details."));
    if (!node.dataset.diff && contents.some((each) => each.matches(".diff"))) node.dataset.diff = node.open = true;
    node.replaceChildren(
      el(
        "summary",
        {},
        el("span", { class: "state", "aria-hidden": "true" }),
        el("span", { class: "name" }, String(call.title ?? call.kind ?? "Tool call")),
        el("span", { class: "quiet" }, STATES[status]),
      ),
      ...contents,
    );
  },
  plan(node, { steps }) {
    const items = steps.map((step) =>
      el(
        "li",
        { "data-status": step.status ?? "pending" },
        el("span", { "aria-hidden": "true" }, STEPS[step.status] ?? "○"),
        el("span", {}, String(step.content ?? "")),
        el("span", { class: "unseen" }, ` (${String(step.status ?? "").replace("_", " ")})`),
      ),
    );
    node.replaceChildren(el("h3", {}, "Plan"), el("ol", {}, ...items));
  },
  note(node, { text, error, remedy }) {
    node.classList.toggle("error", error);
    node.replaceChildren(el("p", {}, text), ...(remedy ? [el("p", { class: "quiet" }, remedy)] : []));
  },
};

const places = (call) => (call.locations ?? []).map((place) => place?.path).join(", ");

function words(node, { text, blocks }) {
  if (text.length > LONG) {
    // Drawn chunk by chunk: a long stream must not cost quadratic time.
    if (!node.firstChild?.classList?.contains("long")) node.replaceChildren(el("div", { class: "long" }, ""));
    const shown = node.firstChild.firstChild ?? node.firstChild.appendChild(new Text());
    shown.appendData(text.slice(shown.length));
    return;
  }
  node.replaceChildren(...prose(text), ...blocks.map(block));
}

/** A content block that is not text. */
function block(content) {
  const { type, mimeType = "", data } = content;
  if (type === "text") return el("div", {}, ...prose(content.text ?? ""));
  if (type === "image" && data && /^image\/[a-z0-9.+-]+$/i.test(mimeType)) {
    return el("img", { src: `data:${mimeType};base64,${data}`, alt: "Image of the agent" });
  }
  if (type === "resource_link") return el("p", {}, link(content.uri ?? "", content.title ?? content.name ?? content.uri));
  if (type === "resource" && typeof content.resource?.text === "string") {
    return el("details", {}, el("summary", {}, content.resource.uri ?? "Resource"), el("pre", {}, content.resource.text));
  }
  return el("p", { class: "quiet" }, `[${type ?? "unknown content"} ${mimeType}]`);
}

export function toolContent(content) {
  if (content?.type === "content") return block(content.content ?? {});
  if (content?.type === "diff") return diff(content);
  if (content?.type === "terminal") return el("p", { class: "quiet" }, "[output of a terminal]");
  return rawBlock(content?.type ?? "Content", content);
}

function diff({ path, oldText, newText }) {
  const lines = diffLines(oldText ?? "", newText ?? "").map(([sign, text]) =>
    el("span", { class: { "+": "added", "-": "removed", "@": "gap" }[sign] ?? "same" }, `${sign === "@" ? " " : sign} ${text}\n`),
  );
  const change = el("pre", { tabIndex: 0, "aria-label": `Change of ${path}` }, ...lines);
  return el("figure", { class: "diff" }, el("figcaption", {}, path ?? ""), change);
}

function rawBlock(name, value) {
  const text = typeof value === "string" ? value : JSON.stringify(value, null, 2);
  const shown = text.length > LONG ? `${text.slice(0, LONG)}… (${text.length} characters)` : text;
  return el("figure", {}, el("figcaption", {}, name), el("pre", { tabIndex: 0, "aria-label": name }, shown));
}
