// Jobs under way: their events, and their places in the queue.
//
// A browser opens six connections to one server over HTTP/1.1, all its tabs together, and an event stream holds one. So
// only STREAMS jobs are streamed (those that run, then those that run next), none while the page is hidden; the others,
// and every job's place and estimate, come from asking the two lists every PULSE_MS.

import * as api from "./api.js";
import { EventStream } from "./event-stream.js";

const STREAMS = 2;
const PULSE_MS = 2000;
/** Jobs that left the lists, looked up in one pulse. */
const LOOK_UPS = 8;
/** A refused stream (too many are open) is not asked for again so soon. */
const REFUSED_MS = 15000;

export class Watch {
  #jobs = new Map();
  #streams = new Map();
  #refusedAt = new Map();
  #timer = null;
  #pulsing = false;
  #tell;

  /** `tell`: onJob(job), onGone(id), onEvent(id, name, data), onConnection(isThere). */
  constructor(tell) {
    this.#tell = tell;
    document.addEventListener("visibilitychange", () => {
      this.#restream();
      if (!document.hidden) this.pulse();
    });
  }

  get count() {
    return this.#jobs.size;
  }

  /** A job as the API told it: followed while it is under way. */
  follow(job) {
    if (api.isUnderWay(job)) this.#jobs.set(job.id, job);
    else this.forget(job.id);
    this.#restream();
    this.#wind();
  }

  forget(id) {
    this.#jobs.delete(id);
    this.#refusedAt.delete(id);
    this.#close(id);
  }

  isStreamed(id) {
    return this.#streams.has(id);
  }

  /** Asks at once how a job stands. */
  async look(id) {
    try {
      this.#tell.onJob(await api.getJob(id));
      this.#tell.onConnection(true);
    } catch (problem) {
      if (problem.status === 404) {
        this.forget(id);
        this.#tell.onGone(id);
      } else if (problem.status === 0) {
        this.#tell.onConnection(false);
      }
    }
  }

  /** Asks how all jobs under way stand, those of others too. */
  async pulse() {
    if (this.#pulsing) return;
    this.#pulsing = true;
    try {
      const lists = await Promise.all(["running", "queued"].map((status) => api.listJobs({ status, limit: 200 })));
      const seen = new Set();
      for (const job of lists.flatMap((list) => list.jobs)) {
        seen.add(job.id);
        this.#tell.onJob(job);
      }
      this.#tell.onConnection(true);
      const left = [...this.#jobs.keys()].filter((id) => !seen.has(id)).slice(0, LOOK_UPS);
      for (const id of left) await this.look(id);
    } catch (problem) {
      // Refusals of any kind: the next pulse asks again.
      this.#tell.onConnection(problem.status !== 0);
    } finally {
      this.#pulsing = false;
      this.#wind();
    }
  }

  #wind() {
    if (this.#timer !== null || document.hidden || this.#jobs.size === 0) return;
    this.#timer = setTimeout(() => {
      this.#timer = null;
      if (!document.hidden) this.pulse();
    }, PULSE_MS);
  }

  #restream() {
    const rank = (job) => [job.status === "running" ? 0 : 1, job.queue_position ?? 0, job.id];
    const before = (a, b) => {
      const [x, y] = [rank(a), rank(b)];
      const at = x.findIndex((value, k) => value !== y[k]);
      return at < 0 ? 0 : x[at] < y[at] ? -1 : 1;
    };
    const mayStream = (job) => !document.hidden && Date.now() - (this.#refusedAt.get(job.id) ?? -Infinity) > REFUSED_MS;
    const first = [...this.#jobs.values()].filter(mayStream).sort(before).slice(0, STREAMS);
    const wanted = new Set(first.map((job) => job.id));
    for (const id of [...this.#streams.keys()]) if (!wanted.has(id)) this.#close(id);
    for (const id of wanted) if (!this.#streams.has(id)) this.#open(id);
  }

  #open(id) {
    const onEvent = (name, data) => {
      if (["succeeded", "failed", "cancelled"].includes(name)) {
        this.#close(id);
        this.look(id);
        return;
      }
      this.#tell.onConnection(true);
      this.#tell.onEvent(id, name, api.exact(data));
    };
    // It comes back by itself with the last event's id, unless it was refused: then the pulse carries on.
    const onRefused = () => {
      this.#refusedAt.set(id, Date.now());
      this.#close(id);
      this.look(id);
    };
    this.#streams.set(id, new EventStream(api.eventsUrl(id), { onEvent, onRefused }));
  }

  #close(id) {
    this.#streams.get(id)?.close();
    this.#streams.delete(id);
  }
}
