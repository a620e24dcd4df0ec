// One job as a card, the same from waiting to done: nothing jumps, and the focus stays where it was.

import { isUnderWay } from "./api.js";
import { ICONS, icon, make } from "./dom.js";
import { pictureAt } from "./pictures.js";
import { atField, drawing, outputSize, parameters, pictureOf, waiting } from "./words.js";

export class Card {
  #slots = [];
  #state;
  #actions;
  #notes;
  #act;
  #steps = [];

  /** `act`: open(card, index), again(request, seed, count), start(job, image), remove(card), cancel(card); `labels`: of samplers. */
  constructor(job, act, labels) {
    this.#act = act;
    this.job = job;
    this.images = new Map();
    const { request } = job;
    const prompt = request.prompt.trim() || "(no prompt)";
    const [width, height] = outputSize(request);
    const [count, aspect] = [request.num_images, width / height];
    const columns = Math.min(count, 4, Math.max(1, Math.ceil(Math.sqrt(count / aspect))));
    const sheet = make("div", { class: "sheet" });
    sheet.style.setProperty("--columns", columns);
    sheet.style.setProperty("--aspect", (columns * aspect) / Math.ceil(count / columns));
    sheet.style.setProperty("--ratio", aspect);
    for (let index = 0; index < count; index += 1) {
      this.#slots.push(new Slot(this, index, prompt));
      sheet.append(this.#slots[index].node);
    }
    const titleId = `card-${job.id}`;
    this.#state = make("p", { class: "state" });
    this.#notes = make("div", { class: "notes" });
    this.#actions = make("div", { class: "actions" });
    const list = make("dl", { class: "parameters" });
    for (const [name, value] of parameters(request, request.seed, labels)) {
      list.append(make("div", {}, make("dt", {}, name), make("dd", {}, value)));
    }
    const negative = request.negative_prompt.trim();
    const title = make("h3", { id: titleId, class: "prompt", title: prompt }, prompt);
    const about = make(
      "div",
      { class: "about" },
      title,
      negative ? make("p", { class: "negative" }, `without ${negative}`) : null,
      this.#state,
      list,
      this.#notes,
      this.#actions,
    );
    this.node = make(
      "article",
      { class: "card", "aria-labelledby": titleId, tabindex: "-1", "data-job": job.id },
      make("div", { class: "mat" }, sheet),
      about,
    );
    this.update(job);
  }

  /** The job as the API told it last. `isStreamed`: its events know its steps better. */
  update(job, isStreamed = false) {
    const wasUnderWay = this.node.dataset.status === undefined || isUnderWay(this.job);
    const isRestarted = job.attempts > this.job.attempts && job.attempts > 1;
    this.job = job;
    if (isRestarted) this.#steps = [];
    for (const image of job.images) this.images.set(image.index, image);
    if (!isStreamed || this.#steps.length === 0) {
      for (const { image, step } of job.progress.images) this.#steps[image] = Math.max(step, this.#steps[image] ?? 0);
    }
    this.node.dataset.status = job.status;
    this.#draw();
    if (wasUnderWay) this.#drawActions();
    this.#notes.replaceChildren(
      ...job.warnings.map((text) => make("p", { class: "warning" }, atField(text))),
      ...(job.error ? [make("p", { class: "fault" }, atField(job.error.message))] : []),
    );
  }

  /** One of its events. */
  event(name, data) {
    if (name === "started" && this.job.status === "queued") {
      this.job = { ...this.job, status: "running", queue_position: null };
      this.node.dataset.status = "running";
    } else if (name === "queued" && this.job.status === "running") {
      this.job = { ...this.job, status: "queued" };
      this.node.dataset.status = "queued";
      this.#steps = [];
    } else if (name === "progress") {
      this.#steps[data.image] = data.step;
    } else if (name === "preview") {
      this.#slots[data.image]?.preview(data.url);
    } else if (name === "image") {
      this.images.set(data.image.index, data.image);
    }
    this.#draw();
  }

  focus() {
    this.node.focus();
  }

  #draw() {
    const { request } = this.job;
    const done = this.#slots.reduce((sum, _, index) => sum + (this.#steps[index] ?? 0), 0);
    // A picture to start from leaves steps out, a second pass adds some.
    const all = this.job.progress.steps;
    this.#slots.forEach((slot, index) => {
      slot.draw(this.images.get(index), this.#steps[index] ?? 0, all / request.num_images, isUnderWay(this.job));
    });
    const words = {
      queued: () => waiting(this.job),
      running: () => drawing(done, all, this.job.eta_ms),
      succeeded: () => "",
      failed: () => "Failed",
      cancelled: () => "Cancelled",
    };
    const text = this.job.cancel_requested && isUnderWay(this.job) ? "Leaving at the next step" : words[this.job.status]();
    if (this.#state.textContent !== text) this.#state.textContent = text;
    this.#state.hidden = text === "";
  }

  #drawActions() {
    const held = this.#actions.contains(document.activeElement);
    const button = (label, path, onclick) => make("button", { type: "button", onclick }, icon(path), label);
    const { request } = this.job;
    if (isUnderWay(this.job)) {
      if (!this.#actions.firstChild) {
        const cancel = button("Cancel", ICONS.cancel, () => {
          cancel.setAttribute("aria-disabled", "true");
          this.#act.cancel(this, () => cancel.removeAttribute("aria-disabled"));
        });
        this.#actions.append(cancel);
      }
      return;
    }
    const [image] = request.num_images === 1 ? this.images.values() : [];
    this.#actions.replaceChildren(
      button("Use these again", ICONS.again, () => this.#act.again(request, request.seed, request.num_images)),
      ...(image ? [button("Start from this", ICONS.start, () => this.#act.start(this.job, image))] : []),
      button("Remove", ICONS.remove, () => this.#act.remove(this)),
    );
    // Its Cancel button is gone: the card takes the focus, else it would fall back to the page's top.
    if (held) this.focus();
  }

  open(index) {
    this.#act.open(this, index);
  }
}

/** Where one picture comes to be. */
class Slot {
  #image;
  #progress;
  #opener;
  #download;
  #url = null;

  constructor(card, index, prompt) {
    const name = pictureOf(index, card.job.request.num_images);
    this.#image = make("img", { alt: "", hidden: true, decoding: "async" });
    this.prompt = prompt;
    this.#opener = make(
      "button",
      { type: "button", class: "open", disabled: true, "aria-label": `${name}, open large`, onclick: () => card.open(index) },
      this.#image,
    );
    this.#progress = make("progress", { "aria-label": name, max: card.job.progress.steps / card.job.request.num_images, value: 0 });
    this.#download = make(
      "a",
      { class: "download", hidden: true, "aria-label": `Download ${name.charAt(0).toLowerCase()}${name.slice(1)}`, title: "Download" },
      icon(ICONS.download),
    );
    this.node = make("div", { class: "slot" }, this.#opener, this.#progress, this.#download);
  }

  preview(url) {
    if (this.#url) return;
    this.#image.src = url;
    this.#image.alt = "How it looks so far";
    this.#image.hidden = false;
    this.node.classList.add("developing");
  }

  draw(image, step, steps, underWay) {
    this.#progress.hidden = Boolean(image) || !underWay;
    this.#progress.max = steps;
    this.#progress.value = step;
    this.node.classList.toggle("lost", !image && !underWay);
    if (!image && !underWay && !this.#url) this.#image.hidden = true;
    if (image && this.#url !== image.url) this.#show(image);
  }

  async #show(image) {
    this.#url = image.url;
    let here;
    try {
      here = await pictureAt(image.url);
    } catch {
      // The next word of the job tries again.
      this.#url = null;
      return;
    }
    this.#image.src = here;
    this.#image.alt = this.prompt;
    this.#image.width = image.width;
    this.#image.height = image.height;
    this.#image.hidden = false;
    this.#opener.disabled = false;
    this.#download.href = here;
    this.#download.setAttribute("download", fileName(image));
    this.#download.hidden = false;
    this.node.classList.remove("developing");
    this.node.classList.add("done");
  }
}

/** What a picture is called when it is saved. */
export const fileName = (image) => `darkroom-${image.seed}.${image.content_type.split("/")[1]}`;
