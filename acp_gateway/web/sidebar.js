// The list of sessions, live and stored.

import { el } from "./text.js";

const own = (entry) => entry._meta?.acp_gateway ?? {};

/** open(id, cwd) is called when a person picks one. */
export function drawSessions(root, gateway, open) {
  const rows = gateway.list.map((entry) => {
    const known = gateway.conversations.get(entry.sessionId);
    const working = known?.attached ? known.busy : own(entry).running;
    return {
      id: entry.sessionId,
      cwd: entry.cwd,
      title: known?.title ?? entry.title ?? "New session",
      details: [age(entry.updatedAt), entry.cwd?.split("/").at(-1)].filter(Boolean).join(" · "),
      state: known?.questions.length ? "asks you" : working ? "at work" : own(entry).live ? "live" : "",
      current: known !== undefined && known === gateway.current,
    };
  });
  const key = JSON.stringify(rows);
  if (root.dataset.key === key) return; // a button that is being pressed must stay
  root.dataset.key = key;
  const focused = document.activeElement?.dataset?.session;
  const items = rows.map(({ id, cwd, title, details, state, current }) => {
    const onclick = () => open(id, cwd);
    const props = { class: "session", type: "button", "data-session": id, "aria-current": current || null, onclick };
    const name = el("span", { class: "name" }, title);
    const badge = state && el("span", { class: "badge", "data-state": state }, state);
    return el("li", {}, el("button", props, name, el("span", { class: "quiet" }, details), badge));
  });
  root.replaceChildren(...(items.length ? items : [el("li", { class: "quiet" }, "No sessions yet.")]));
  if (focused) root.querySelector(`[data-session="${CSS.escape(focused)}"]`)?.focus();
}

function age(time) {
  const seconds = (Date.now() - Date.parse(time)) / 1000;
  if (!Number.isFinite(seconds)) return "";
  if (seconds < 60) return "now";
  const [unit, size] = seconds < 3600 ? ["minute", 60] : seconds < 86400 ? ["hour", 3600] : ["day", 86400];
  return new Intl.RelativeTimeFormat("en", { numeric: "auto" }).format(-Math.floor(seconds / size), unit);
}
