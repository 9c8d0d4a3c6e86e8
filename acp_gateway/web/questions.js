// What the agent asks before it acts: a card for each request, with a button for each option.

import { toolContent } from "./render.js";
import { el } from "./text.js";

/** decide(question, optionId) answers; `after` gets the focus when the last card goes. */
export function drawQuestions(root, questions, decide, after) {
  const key = questions.map((question) => question.key).join();
  if (root.dataset.key === key) return;
  const focused = root.contains(document.activeElement);
  root.dataset.key = key;
  root.replaceChildren(...questions.map((question) => card(question, decide)));
  if (focused) (root.firstChild ?? after).focus();
}

function card(question, decide) {
  const { toolCall = {}, options = [] } = question.params;
  const buttons = options.map((option, index) => {
    const kind = option.kind === "allow_once" ? "primary" : "plain";
    const onclick = () => decide(question, option.optionId);
    const number = el("kbd", { "aria-hidden": "true" }, String(index + 1));
    return el("button", { type: "button", class: kind, onclick }, number, ` ${option.name ?? option.optionId}`);
  });
  const title = String(toolCall.title ?? "a tool call");
  const contents = Array.isArray(toolCall.content) ? toolCall.content.map(toolContent) : [];
  const node = el(
    "div",
    { class: "question", role: "group", tabIndex: -1, "aria-label": `Allow: ${title}` },
    el("h2", {}, `Allow this? ${title}`),
    el("div", { class: "details" }, ...contents),
    el("div", { class: "tools" }, ...buttons),
  );
  node.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const at = buttons.indexOf(document.activeElement);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (buttons[event.key - 1]) buttons[event.key - 1].click();
    else if (step) buttons.at(at < 0 ? Math.min(step, 0) : (at + step) % buttons.length).focus();
    else return;
    event.preventDefault();
  });
  return node;
}
