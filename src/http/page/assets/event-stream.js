// Server-sent events by `fetch`, which can send the key in a header; the browser's EventSource cannot.

import { keyHeaders } from "./key.js";

/** A connection that broke is tried again so much later. */
const RETRY_MS = 3000;

export class EventStream {
  #abort = new AbortController();
  #lastId = null;
  #tell;

  /** `tell`: onEvent(name, data) with the data as text; onRefused() once, when the server will not have it. */
  constructor(url, tell) {
    this.#tell = tell;
    this.#follow(url);
  }

  close() {
    this.#abort.abort();
  }

  get #isClosed() {
    return this.#abort.signal.aborted;
  }

  async #follow(url) {
    while (!this.#isClosed) {
      let response = null;
      try {
        const headers = { accept: "text/event-stream", ...keyHeaders() };
        if (this.#lastId !== null) headers["last-event-id"] = this.#lastId;
        response = await fetch(url, { headers, cache: "no-store", signal: this.#abort.signal });
        if (response.ok) await this.#read(response.body);
      } catch {
        // It broke, or was closed.
      }
      if (this.#isClosed) return;
      if (response !== null && !response.ok) {
        this.close();
        this.#tell.onRefused();
        return;
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  async #read(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done || this.#isClosed) return;
      const blocks = (text + value).split("\n\n");
      text = blocks.pop();
      for (const block of blocks) if (!this.#isClosed) this.#event(block);
    }
  }

  #event(block) {
    // A line without a name before its colon is a comment.
    const fields = new Map();
    for (const line of block.split("\n")) {
      const at = line.indexOf(":");
      if (at > 0) fields.set(line.slice(0, at), line.slice(at + 1).replace(/^ /, ""));
    }
    if (fields.has("id")) this.#lastId = fields.get("id");
    if (fields.has("event")) this.#tell.onEvent(fields.get("event"), fields.get("data") ?? "");
  }
}
