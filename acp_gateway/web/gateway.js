// The sessions of this tab: opens them, sends prompts, and brings them back after a lost connection
// without a gap and without showing anything twice.

import { Connection, Lost, RpcError, unique } from "./connection.js";
import { Conversation } from "./conversation.js";

const OWN = "acp_gateway";
const own = (result) => result?._meta?.[OWN] ?? {};
const REMEDY_AFTER_RESTART = "Look whether it was done, and send it again if not.";

export class Gateway {
  /**
   * page: redraw(), state(name, detail), giveBack(conversation, text), asked(conversation), told(kind, data),
   * traffic(message, sent), events(conversation, messages, before, cursor).
   */
  constructor(page) {
    this.page = page;
    this.conversations = new Map();
    this.current = null;
    this.list = [];
    this.nextCursor = null;
    this.workspaces = [];
    this.agent = "";
    this.clientKey = unique();
    this.back = Promise.withResolvers(); // settled once this connection is ready
    const url = new URL("acp", location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    url.hash = "";
    this.connection = new Connection(url.href, {
      greet: (call) => this.#greet(call),
      state: (name, detail) => this.#state(name, detail),
      events: (...args) => this.#events(...args),
      asked: (message) => this.#asked(message),
      told: (message) => this.#told(message),
      traffic: (message, sent) => page.traffic(message, sent),
    });
  }

  async #greet(call) {
    const result = await call("initialize", {
      protocolVersion: 1,
      clientInfo: { name: "acp-gateway-page", title: "acp-gateway", version: "1" },
      clientCapabilities: {},
      _meta: { [OWN]: { cursor: true, clientKey: this.clientKey } },
    });
    const meta = own(result.agentCapabilities);
    this.workspaces = meta.workspaces ?? [];
    this.agent = meta.agentInfo?.title ?? meta.agent ?? result.agentInfo?.name ?? "";
  }

  #state(name, detail) {
    if (name !== "ready") {
      for (const each of this.conversations.values()) {
        if (each.attached) each.lost = true;
        each.attached = false;
        each.questions = [];
      }
    }
    this.page.state(name, detail);
    if (name !== "ready") return;
    for (const each of this.conversations.values()) if (each.lost) this.attach(each);
    const { back } = this;
    this.back = Promise.withResolvers();
    back.resolve();
  }

  #request(method, params, meta) {
    return this.connection.call(method, meta ? { ...params, _meta: { [OWN]: meta } } : params);
  }

  /** Repeats what a lost connection cut short. */
  async #persist(attempt) {
    for (;;) {
      const { back } = this;
      try {
        return await attempt();
      } catch (error) {
        if (!(error instanceof Lost)) throw error;
        if (!this.connection.ready) await back.promise;
      }
    }
  }

  // ---- sessions

  async refresh(more = false) {
    const cursor = more ? this.nextCursor : null;
    const result = await this.#persist(() => this.#request("session/list", cursor ? { cursor } : {}));
    this.list = cursor ? [...this.list, ...result.sessions] : result.sessions;
    this.nextCursor = result.nextCursor ?? null;
    this.page.redraw();
  }

  async create(cwd) {
    const requestKey = unique();
    const result = await this.#persist(() =>
      this.#request("session/new", { cwd, mcpServers: [] }, { requestKey }),
    );
    const each = this.#conversation(result.sessionId, cwd);
    each.opened(result);
    each.epoch = own(result).epoch;
    each.cursor ??= 0; // its events come behind the answer
    each.attached = true;
    this.current = each;
    this.page.redraw();
    return this.refresh();
  }

  async open(id, cwd) {
    const each = this.#conversation(id, cwd);
    this.current = each;
    this.page.redraw();
    if (!each.attached && !each.loading) await this.attach(each);
  }

  #conversation(id, cwd) {
    if (!this.conversations.has(id)) this.conversations.set(id, new Conversation(id, cwd));
    return this.conversations.get(id);
  }

  /** Follows the session from where we were. False: it could not be opened, and the page shows why. */
  attach(each) {
    each.attaching ??= this.#attach(each).finally(() => (each.attaching = null));
    return each.attaching;
  }

  async #attach(each) {
    each.loading = true;
    this.page.redraw();
    try {
      const result = await this.#persist(() => {
        const known = each.cursor !== null;
        if (!known) each.reset();
        const place = known ? { lastEventId: each.cursor, epoch: each.epoch } : {};
        const params = { sessionId: each.id, cwd: each.cwd, mcpServers: [] };
        return this.#request("session/load", params, place);
      });
      each.opened(result);
      each.epoch = own(result).epoch;
      each.cursor = own(result).lastEventId;
      each.attached = true;
      if (each.news) each.note(each.news);
      each.news = null;
    } catch (error) {
      this.#failed(each, error);
      return false;
    } finally {
      each.loading = each.lost = false;
      this.page.redraw();
    }
    // Whether somebody's turn is running only the list tells; an end that came meanwhile is newer.
    const turns = each.turnsSeen;
    await this.refresh().catch(() => {});
    if (turns === each.turnsSeen && each.attached) {
      const listed = this.list.find((entry) => entry.sessionId === each.id);
      if (listed) each.running = own(listed).running === true;
    }
    this.#next(each);
    this.page.redraw();
    return true;
  }

  #failed(each, error) {
    if (error instanceof RpcError) {
      each.note(error.message, { error: true, remedy: error.data.remedy });
    } else if (!(error instanceof Lost)) {
      console.error(error);
      each.note("The page failed inside.", { error: true, remedy: "Reload the page." });
    }
    this.page.redraw();
  }

  // ---- prompts

  /** One prompt at a time goes to the gateway; further ones wait here, where they can be taken back. */
  async prompt(each, text) {
    each.waiting.push({ text, key: unique(), epoch: null });
    this.page.redraw();
    if (!each.attached && this.connection.ready && !(await this.attach(each))) return this.#giveBack(each);
    this.#next(each);
  }

  #giveBack(each) {
    this.page.giveBack(each, each.waiting.splice(0).map((prompt) => prompt.text).join("\n"));
    this.page.redraw();
  }

  #next(each) {
    if (each.busy || each.loading || !each.attached || !each.waiting.length) return;
    each.own = each.waiting.shift();
    each.say(each.own.text);
    this.page.redraw();
    this.#run(each, each.own);
  }

  async #run(each, prompt) {
    const params = { sessionId: each.id, prompt: [{ type: "text", text: prompt.text }] };
    try {
      await this.#persist(async () => {
        if (!each.attached && !(await this.attach(each))) throw new RpcError({ message: "It was not sent." });
        prompt.epoch ??= each.epoch;
        if (prompt.epoch !== each.epoch) return this.#restarted(each, prompt);
        if (!each.saidLast(prompt.text)) each.say(prompt.text); // the history was told anew
        return this.#request("session/prompt", params, { promptKey: prompt.key });
      });
    } catch (error) {
      this.#failed(each, error);
      if (error.data?.errorKind?.startsWith("session_")) each.attached = false;
    }
    // What the turn's end still tells comes right behind the answer, and before the next message.
    setTimeout(() => {
      each.own = null;
      this.#next(each);
      this.page.redraw();
    }, 50);
  }

  /** The agent is another one than the prompt was sent to: it is not run twice. */
  #restarted(each, prompt) {
    if (!each.saidLast(prompt.text)) {
      each.waiting.unshift(prompt);
      this.#giveBack(each);
      each.note("Your last message was not kept; it is in the message field again.", { error: true });
    } else {
      const text = "The agent was started anew while it worked on your message.";
      each.note(text, { error: true, remedy: REMEDY_AFTER_RESTART });
    }
  }

  unqueue(each, prompt) {
    each.waiting = each.waiting.filter((other) => other !== prompt);
    this.page.redraw();
  }

  stop(each) {
    this.connection.notify("session/cancel", { sessionId: each.id });
  }

  decide(each, question, optionId) {
    each.questions = each.questions.filter((other) => other !== question);
    this.connection.answer(question.id, { outcome: { outcome: "selected", optionId } });
    this.page.redraw();
  }

  async set(each, method, params) {
    try {
      const result = await this.#request(method, { sessionId: each.id, ...params });
      each.opened(result ?? {});
    } catch (error) {
      this.#failed(each, error);
    }
    this.page.redraw();
  }

  // ---- what comes in

  #events(id, messages, cursor) {
    const each = this.conversations.get(id);
    if (!each) return;
    let reload = false;
    for (const { method, params } of messages) {
      if (method === "session/update") each.update(params.update ?? {});
      else if (method === "_qwen/notify") reload = each.notice(params.kind, params.data) || reload;
    }
    this.page.events(each, messages, each.cursor, cursor);
    each.cursor = reload || each.cursor === null ? each.cursor : cursor;
    if (reload) {
      each.cursor = null;
      this.attach(each);
    }
    if (messages.length) this.#next(each);
    this.page.redraw();
  }

  #asked(message) {
    const each = this.conversations.get(message.params?.sessionId);
    if (message.method !== "session/request_permission" || !each) {
      this.connection.answer(message.id, null, { code: -32601, message: "Method not found" });
      return;
    }
    each.questions.push({ id: message.id, key: unique(), params: message.params });
    this.page.asked(each);
    this.page.redraw();
  }

  #told({ method, params }) {
    if (method === "$/cancel_request") {
      for (const each of this.conversations.values()) {
        each.questions = each.questions.filter((question) => question.id !== params?.requestId);
      }
      this.page.redraw();
    } else if (method === "_qwen/notify") {
      this.page.told(params?.kind, params?.data ?? {});
    }
  }
}
