// What one session has said so far, from its events. Knows neither the network nor the page.
//
// Entries are only added at the end; `changed` collects those that the page has to draw again.

const CHUNKS = {
  user_message_chunk: "user",
  agent_message_chunk: "agent",
  agent_thought_chunk: "thought",
};

export class Conversation {
  constructor(id, cwd) {
    this.id = id;
    this.cwd = cwd;
    this.title = null;
    this.cursor = null; // null: nothing of it was ever shown
    this.epoch = null;
    this.attached = false;
    this.lost = false; // to be opened again when the connection is back
    this.news = null; // to be said when the history has been told
    this.loading = false;
    this.running = false; // somebody's turn
    this.turnsSeen = 0;
    this.own = null; // the prompt that this tab waits for
    this.waiting = []; // prompts for later: {text, key}
    this.questions = []; // {id, params}
    this.draft = "";
    this.commands = [];
    this.modes = this.models = this.options = null;
    this.reset();
  }

  /** Everything will be told again. */
  reset() {
    this.entries = [];
    this.changed = new Set();
    this.generation = (this.generation ?? 0) + 1;
    this.usage = null;
    this.tools = new Map();
    this.plan = null;
    this.open = null; // the message that further chunks belong to
  }

  get busy() {
    return this.running || this.own !== null;
  }

  /** Takes over the answer to new, load or resume. */
  opened(result) {
    if (result.modes) this.modes = result.modes;
    if (result.models) this.models = result.models;
    if (result.configOptions) this.options = result.configOptions;
  }

  add(entry) {
    this.open = null;
    this.entries.push(entry);
    this.changed.add(entry);
    return entry;
  }

  say(text) {
    this.add({ type: "user", text, blocks: [] });
    this.plan = null;
  }

  note(text, { error = false, remedy = null } = {}) {
    const last = this.entries.at(-1);
    if (last?.type === "note" && last.text === text) return;
    this.add({ type: "note", text, error, remedy });
  }

  /** The text of the newest message of this kind, or "". */
  last(type) {
    return this.entries.findLast((entry) => entry.type === type)?.text ?? "";
  }

  saidLast(text) {
    return this.last("user").trim() === text.trim();
  }

  update(update) {
    const kind = update.sessionUpdate;
    if (kind in CHUNKS) {
      this.#chunk(CHUNKS[kind], update);
    } else if (kind === "tool_call" || kind === "tool_call_update") {
      this.#tool(update);
    } else if (kind === "plan") {
      if (!this.plan) this.plan = this.add({ type: "plan" });
      this.plan.steps = Array.isArray(update.entries) ? update.entries : [];
      this.changed.add(this.plan);
    } else if (kind === "available_commands_update") {
      this.commands = update.availableCommands ?? [];
    } else if (kind === "current_mode_update") {
      if (this.modes) this.modes = { ...this.modes, currentModeId: update.currentModeId };
    } else if (kind === "config_option_update") {
      this.options = update.configOptions ?? this.options;
    } else if (kind === "session_info_update") {
      if ("title" in update) this.title = update.title;
    } else if (kind === "usage_update") {
      this.usage = update;
    } // else: a kind of a later protocol; the event list shows it
  }

  #chunk(type, { content, messageId }) {
    let entry = this.open;
    const same = entry?.type === type && (!messageId || !entry.messageId || entry.messageId === messageId);
    if (!same) {
      entry = this.add({ type, text: "", blocks: [], messageId });
      this.open = entry;
      if (type === "user") {
        this.plan = null;
        if (!this.loading) this.running = true; // somebody else's turn: our own words do not come back
      }
    }
    if (content?.type === "text") entry.text += content.text;
    else if (content) entry.blocks.push(content);
    this.changed.add(entry);
  }

  #tool(update) {
    let entry = this.tools.get(update.toolCallId);
    if (!entry) {
      entry = this.add({ type: "tool", call: {} });
      this.tools.set(update.toolCallId, entry);
    }
    for (const [name, value] of Object.entries(update)) {
      if (value !== null && value !== undefined) entry.call[name] = value;
    }
    this.open = null;
    this.changed.add(entry);
  }

  /** A `_qwen/notify` of this session. True: it has to be loaded anew. */
  notice(kind, data) {
    if (kind === "turn_complete" || kind === "turn_error") {
      this.running = false;
      this.turnsSeen++;
      this.open = this.plan = null;
      if (kind === "turn_error") this.note(data.message ?? "The turn failed.", { error: true });
      else if (data.stopReason !== "end_turn") this.note(STOPS[data.stopReason] ?? `Ended: ${data.stopReason}`);
    } else if (kind === "permission_resolved") {
      const text = RESOLVED[data.reason];
      if (text) this.note(text);
    } else if (kind === "session_died" && data.reason !== "daemon_shutdown") {
      this.running = false;
      const remedy = data.recoverable ? "Send a message: the gateway starts it again." : null;
      this.note(data.message ?? `The agent ended (${data.reason}).`, { error: true, remedy });
    } else if (kind === "session_died" || kind === "session_closed") {
      this.running = this.attached = false;
      this.cursor = null;
      if (data.reason === "daemon_shutdown") {
        this.lost = true; // it comes back with the gateway
        this.news = "The gateway was started anew; what was under way has ended.";
      } else {
        const remedy = "Send a message or open it again from the list.";
        this.note(`The session was closed (${data.reason}).`, { remedy });
      }
    } else if (kind === "state_resync_required") {
      this.reset();
      return !this.loading;
    } else if (kind === "history_truncated") {
      this.note("The beginning of this conversation is no longer kept.");
    } else if (kind === "model_switched" && this.models) {
      this.models = { ...this.models, currentModelId: data.modelId };
    }
    return false;
  }
}

const STOPS = {
  cancelled: "Stopped.",
  max_tokens: "Ended: the answer reached the model's limit.",
  max_turn_requests: "Ended: the turn reached its limit of requests.",
  refusal: "The agent refused to go on.",
};

const RESOLVED = {
  timeout: "Nobody decided in time, so the request was refused.",
  withdrawn: "The agent took its request back.",
};
