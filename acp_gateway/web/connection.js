// One WebSocket to the gateway: JSON-RPC 2.0, reconnecting by itself with growing pauses.
//
// Events of a session are held until the cursor behind their batch has come, and handed over
// together: of a batch that was cut short nothing is shown, for all of it comes again.

const PAUSES = [0.5, 1, 2, 4, 8, 15]; // seconds
const STABLE = 10_000; // milliseconds after which the pauses start over

export class RpcError extends Error {
  constructor({ code, message, data }) {
    super(message);
    this.code = code;
    this.data = data ?? {};
  }
}

/** The connection ended before the answer came. */
export class Lost extends Error {}

/** A name that nobody else has. (crypto.randomUUID is missing on plain http from another host.) */
export function unique() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const base64url = (text) =>
  btoa(String.fromCharCode(...new TextEncoder().encode(text)))
    .replaceAll("+", "-")
    .replaceAll("/", "_")
    .replaceAll("=", "");

export class Connection {
  #socket = null;
  #calls = new Map();
  #held = new Map();
  #nextId = 1;
  #failures = 0;
  #timer = 0;

  /**
   * listener: greet(call) -> promise, run on each new socket; state(name, detail);
   * events(sessionId, messages, cursor); asked(message); told(message); traffic(message, sent).
   * States: connecting, ready, waiting (detail: {seconds, reason}), token (detail: was one given?).
   */
  constructor(url, listener) {
    this.url = url;
    this.listener = listener;
    this.token = null;
    this.ready = false;
    addEventListener("online", () => this.retry());
  }

  retry() {
    clearTimeout(this.#timer);
    const old = this.#socket;
    this.#socket = null;
    old?.close();
    this.#drop();
    this.#open();
  }

  call(method, params) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return Promise.reject(new Lost());
    const id = this.#nextId++;
    this.#send({ id, method, params });
    return new Promise((resolve, reject) => this.#calls.set(id, { resolve, reject }));
  }

  notify(method, params) {
    this.#send({ method, params });
  }

  answer(id, result, error) {
    this.#send(error ? { id, error } : { id, result });
  }

  #send(message) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    this.#socket.send(JSON.stringify({ jsonrpc: "2.0", ...message }));
    this.listener.traffic(message, true);
  }

  #open() {
    this.listener.state("connecting");
    const offered = ["acp", ...(this.token ? [`qwen-bearer.${base64url(this.token)}`] : [])];
    const socket = (this.#socket = new WebSocket(this.url, offered));
    let opened = 0;
    socket.onopen = async () => {
      opened = Date.now();
      try {
        await this.listener.greet((method, params) => this.call(method, params));
        if (this.#socket !== socket) return;
        this.ready = true;
        this.listener.state("ready");
      } catch (error) {
        if (!(error instanceof Lost)) console.warn("initialize was refused:", error.message);
        socket.close();
      }
    };
    socket.onmessage = (event) => this.#socket === socket && this.#receive(event.data);
    socket.onclose = (event) => this.#socket === socket && this.#closed(opened, event);
  }

  async #closed(opened, event) {
    this.#drop();
    let reason = event.reason || "The connection to the gateway was lost.";
    if (!opened) {
      // A browser does not say why a WebSocket was refused; a plain request does.
      const headers = this.token ? { authorization: `Bearer ${this.token}` } : {};
      const probe = await fetch("status", { headers, cache: "no-store" }).catch(() => null);
      if (probe?.status === 401) return this.listener.state("token", Boolean(this.token));
      if (probe?.status === 403) reason = "The gateway does not accept this page's address.";
      else reason = probe ? "The gateway accepts no connection now." : "The gateway does not answer.";
    }
    if (opened && Date.now() - opened > STABLE) this.#failures = 0;
    const pause = PAUSES[Math.min(this.#failures++, PAUSES.length - 1)];
    const seconds = pause * (0.8 + Math.random() * 0.4);
    this.#timer = setTimeout(() => this.#open(), seconds * 1000);
    this.listener.state("waiting", { seconds, reason });
  }

  #drop() {
    this.ready = false;
    this.#held.clear();
    const calls = [...this.#calls.values()];
    this.#calls.clear();
    for (const { reject } of calls) reject(new Lost("the connection was lost"));
  }

  #receive(text) {
    const message = JSON.parse(text);
    const { id, method, params } = message;
    if (method === "_acp_gateway/cursor") {
      const events = this.#held.get(params.sessionId) ?? [];
      this.#held.delete(params.sessionId);
      this.listener.events(params.sessionId, events, params.lastEventId);
      return;
    }
    const session = params?.sessionId ?? params?.data?.sessionId;
    if (method && session && id === undefined) {
      if (!this.#held.has(session)) this.#held.set(session, []);
      this.#held.get(session).push(message);
      return;
    }
    this.listener.traffic(message, false);
    if (method && id !== undefined) {
      this.listener.asked(message);
    } else if (method) {
      this.listener.told(message);
    } else {
      const call = this.#calls.get(id);
      this.#calls.delete(id);
      if (message.error) call?.reject(new RpcError(message.error));
      else call?.resolve(message.result);
    }
  }
}
