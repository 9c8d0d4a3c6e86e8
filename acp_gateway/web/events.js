// The panel of events: what came and went, numbered by the cursor of its session.

import { el } from "./text.js";

const KEPT = 500;

export class EventList {
  constructor(root) {
    this.root = root;
    this.last = null;
  }

  /** A message that is no event of a session: a request, an answer, a notification. */
  message({ method, id, error }, sent) {
    const what = method ?? (error ? `error ${error.code}` : "answer");
    this.#line(sent ? "→" : "←", what, id === undefined ? "" : `#${id}`);
  }

  /** A batch of a session: the events behind `before`, up to and with `cursor`. */
  batch(messages, before, cursor) {
    // Fewer came than there are numbers when some were our own words; more when an old history,
    // which has no numbers any more, came first.
    let number = Math.max(before ?? 0, cursor - messages.length);
    const old = messages.length - (cursor - number);
    for (const [index, { params }] of messages.entries()) {
      if (index >= old) number++;
      const what = params.update?.sessionUpdate ?? params.kind ?? "event";
      const name = index >= old ? String(number) : "old";
      if (this.last?.what === what && (name === "old") === (this.last.from === "old")) {
        const { node, from } = this.last;
        node.firstChild.textContent = from === name ? from : `${from}–${name}`;
      } else {
        this.last = { what, from: name, node: this.#line(name, what, "") };
      }
    }
  }

  #line(mark, what, more) {
    const low = this.root.scrollHeight - this.root.scrollTop - this.root.clientHeight < 40;
    const node = el("li", {}, el("span", { class: "mark" }, mark), el("span", {}, what), el("span", { class: "quiet" }, more));
    this.last = null;
    this.root.append(node);
    if (this.root.childElementCount > KEPT) this.root.firstElementChild.remove();
    if (low) this.root.scrollTop = this.root.scrollHeight;
    return node;
  }
}
