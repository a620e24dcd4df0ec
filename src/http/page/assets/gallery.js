// All jobs as cards, newest first: those under way and those that ended, a page of them at a time.

import * as api from "./api.js";
import { Card } from "./card.js";
import { byId } from "./dom.js";
import { say } from "./live.js";
import { forgetPictures } from "./pictures.js";
import { refusal } from "./words.js";

const PAGE = 24;

export class Gallery {
  #cards = new Map();
  #cursor = null;
  #act;
  #labels;
  /** Jobs of this page, told aloud. */
  #own = new Set();

  constructor(act, labels) {
    this.#act = act;
    this.#labels = labels;
    byId("more").addEventListener("click", () => this.#more());
  }

  /** The first page. */
  async load() {
    await this.#page(null);
  }

  /** What came since, from whomever. What cannot be asked now is asked another time. */
  async refresh() {
    const { jobs } = await api.listJobs({ limit: PAGE }).catch(() => ({ jobs: [] }));
    jobs.forEach((job) => this.#act.found(job));
  }

  card(id) {
    return this.#cards.get(id);
  }

  /** Every picture there is, in the order shown: {card, index}. */
  pictures() {
    const cards = [...byId("cards").children].map((node) => this.#cards.get(node.dataset.job));
    return cards.flatMap((card) => [...card.images.keys()].sort((a, b) => a - b).map((index) => ({ card, index })));
  }

  /** The newest job there is. */
  newest() {
    const first = byId("cards").firstElementChild;
    return first ? this.#cards.get(first.dataset.job).job : null;
  }

  /** Its changes are said aloud. */
  own(id) {
    this.#own.add(id);
  }

  /** A job as the API told it: a new card, or its card brought up to date. */
  put(job, isStreamed = false) {
    const card = this.#cards.get(job.id);
    if (!card) {
      this.#insert(new Card(job, this.#act, this.#labels));
      return;
    }
    const before = card.job.status;
    // An answer that was under way while an event said more.
    if (!api.isUnderWay(card.job) && api.isUnderWay(job)) return;
    card.update(job, isStreamed);
    if (before !== job.status) this.#turned(card);
  }

  event(id, name, data) {
    const card = this.#cards.get(id);
    if (!card || !api.isUnderWay(card.job)) return;
    const before = card.job.status;
    card.event(name, data);
    if (before !== card.job.status) this.#turned(card);
  }

  /** Takes a card away; the focus, if it was there, goes to its neighbour. */
  drop(id) {
    const card = this.#cards.get(id);
    if (!card) return;
    const held = card.node.contains(document.activeElement) || document.activeElement === document.body;
    const neighbour = card.node.nextElementSibling ?? card.node.previousElementSibling;
    card.node.remove();
    this.#cards.delete(id);
    this.#own.delete(id);
    forgetPictures(id);
    if (held) (neighbour ?? byId("pictures")).focus();
    this.#settle();
  }

  #insert(card) {
    this.#cards.set(card.job.id, card);
    // Ids are UUIDv7: they sort by age.
    const older = [...byId("cards").children].find((node) => node.dataset.job < card.job.id);
    byId("cards").insertBefore(card.node, older ?? null);
    this.#settle();
  }

  /** After a card came, went or changed its state. */
  #settle() {
    byId("empty").hidden = this.#cards.size > 0 || this.#cursor !== null;
    const nodes = [...byId("cards").children];
    const featured = nodes.find((node) => node.dataset.status !== "queued");
    for (const node of nodes) node.classList.toggle("featured", node === featured);
  }

  /** It has another state than before. */
  #turned(card) {
    this.#settle();
    if (!this.#own.has(card.job.id)) return;
    const { status, request, error } = card.job;
    const many = request.num_images > 1;
    const words = {
      queued: "Back in the queue",
      running: "Drawing has begun",
      succeeded: many ? `${request.num_images} pictures are ready` : "The picture is ready",
      failed: `The job failed: ${error?.message ?? ""}`,
      cancelled: "The job was cancelled",
    };
    say(`${words[status]}: ${request.prompt}`);
  }

  async #more() {
    const last = byId("cards").lastElementChild;
    await this.#page(this.#cursor);
    // The button may be gone, and reading goes on with the first card that came.
    last?.nextElementSibling?.focus();
  }

  async #page(cursor) {
    const more = byId("more");
    more.setAttribute("aria-disabled", "true");
    try {
      const { jobs, next_cursor: next } = await api.listJobs({ cursor, limit: PAGE });
      this.#cursor = next;
      more.hidden = next === null;
      jobs.forEach((job) => this.#act.found(job));
      byId("notice").hidden = true;
    } catch (problem) {
      if (!(problem instanceof api.Problem)) throw problem;
      byId("notice").textContent = refusal(problem);
      byId("notice").hidden = false;
    } finally {
      more.removeAttribute("aria-disabled");
      this.#settle();
    }
  }
}
