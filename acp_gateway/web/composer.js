// The message field: its height, the list of slash commands, and the session's settings beside it.

import { el } from "./text.js";

export class Composer {
  #picked = -1;
  #seen = null;

  /** send(text), stop(): what a person asks for. `commands` gives the agent's list. */
  constructor(form, { send, stop, commands }) {
    this.field = form.querySelector("textarea");
    this.list = form.querySelector("[role=listbox]");
    this.known = commands;
    this.send = send;
    this.stop = stop;
    form.onsubmit = (event) => {
      event.preventDefault();
      const text = this.field.value.trim();
      if (text && send(text)) this.set("");
    };
    this.field.oninput = () => this.#changed();
    this.field.onkeydown = (event) => {
      if (!event.isComposing && this.#key(event)) event.preventDefault();
    };
  }

  set(text) {
    this.field.value = text;
    this.#changed();
  }

  /** The agent may have told its commands meanwhile. */
  refresh() {
    if (this.#seen !== this.known()) this.#changed();
  }

  #changed() {
    this.#seen = this.known();
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight + 2, innerHeight / 3)}px`;
    const word = /^\/(\S*)$/.exec(this.field.value)?.[1];
    const found = word === undefined ? [] : this.#seen.filter((each) => each.name?.startsWith(word));
    this.#offer(found);
  }

  #offer(found) {
    const items = found.map((each, index) => {
      const more = [each.input?.hint, each.description].filter(Boolean).join(" — ");
      const onmousedown = (event) => (event.preventDefault(), this.#complete(index));
      const props = { role: "option", id: `command-${index}`, "data-name": each.name, onmousedown };
      return el("li", props, el("strong", {}, `/${each.name}`), el("span", { class: "quiet" }, more));
    });
    this.list.replaceChildren(...items);
    this.list.hidden = !found.length;
    this.#pick(found.length ? 0 : -1);
  }

  #pick(index) {
    this.#picked = index;
    [...this.list.children].forEach((each, at) => each.setAttribute("aria-selected", at === index));
    this.list.children[index]?.scrollIntoView({ block: "nearest" });
    this.field.setAttribute("aria-activedescendant", index < 0 ? "" : `command-${index}`);
  }

  #complete(index) {
    this.set(`/${this.list.children[index].dataset.name} `);
    this.field.focus();
  }

  /** True: the key was for us. */
  #key({ key, shiftKey }) {
    const count = this.list.childElementCount;
    const whole = count && this.field.value === `/${this.list.children[this.#picked].dataset.name}`;
    if (count && (key === "ArrowDown" || key === "ArrowUp")) {
      this.#pick((this.#picked + (key === "ArrowDown" ? 1 : count - 1)) % count);
    } else if (count && !shiftKey && (key === "Tab" || (key === "Enter" && !whole))) {
      this.#complete(this.#picked);
    } else if (key === "Enter" && !shiftKey) {
      this.field.form.requestSubmit();
    } else if (key === "Escape") {
      return count ? (this.#offer([]), true) : this.stop();
    } else {
      return false;
    }
    return true;
  }
}

/** Mode, model and other settings of the agent, in whichever way it offers them. */
export function drawSettings(root, conversation, set) {
  const choices = conversation ? settingsOf(conversation) : [];
  const key = JSON.stringify([conversation?.id, choices]);
  if (root.dataset.key === key) return;
  root.dataset.key = key;
  const focused = document.activeElement?.dataset?.setting;
  const fields = choices.map(({ name, value, values, method, params, member }) => {
    const options = values.map((each) =>
      el("option", { value: each.value, title: each.title, selected: each.value === value }, each.name),
    );
    const onchange = (event) => set(method, { ...params, [member]: event.target.value });
    const select = el("select", { title: name, "data-setting": name, onchange }, ...options);
    return el("label", {}, el("span", { class: "unseen" }, name), select);
  });
  root.replaceChildren(...fields);
  if (focused) root.querySelector(`[data-setting="${CSS.escape(focused)}"]`)?.focus();
}

function settingsOf({ options, modes, models }) {
  const values = (items, id) =>
    (items ?? []).map((each) => ({ value: each[id], name: each.name ?? each[id], title: each.description }));
  const method = "session/set_config_option";
  const settings = (options ?? []).map((each) => ({
    name: each.name ?? each.id,
    kind: each.category ?? each.id,
    value: each.currentValue,
    values: values((each.options ?? []).flatMap((one) => one.options ?? [one]), "value"),
    method,
    params: { configId: each.id },
    member: "value",
  }));
  const add = (kind, name, value, items, id) => {
    if (settings.some((each) => each.kind === kind)) return;
    settings.push({ name, kind, value, values: values(items, id), method: `session/set_${kind}`, member: `${kind}Id` });
  };
  add("mode", "Mode", modes?.currentModeId, modes?.availableModes, "id");
  add("model", "Model", models?.currentModelId, models?.availableModels, "modelId");
  return settings.filter((each) => each.values.length);
}
