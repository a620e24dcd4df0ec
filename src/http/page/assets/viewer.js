// Pictures large, one at a time, in a dialog; the arrow keys turn over.

import { fileName } from "./card.js";
import { byId, ICONS, icon, make } from "./dom.js";
import { pictureAt } from "./pictures.js";
import { moment, parameters } from "./words.js";

export class Viewer {
  #dialog = byId("viewer");
  #pictures = [];
  #at = 0;
  #act;
  #labels;

  /** `act`: pictures() -> [{card, index}], again(request, seed, count), start(job, image), keep(seed). */
  constructor(act, labels) {
    this.#act = act;
    this.#labels = labels;
    byId("viewer-before").append(icon("M15 5l-7 7 7 7"));
    byId("viewer-after").append(icon("M9 5l7 7-7 7"));
    byId("viewer-close").append(icon(ICONS.cancel));
    byId("viewer-close").addEventListener("click", () => this.#dialog.close());
    byId("viewer-before").addEventListener("click", () => this.#turn(-1));
    byId("viewer-after").addEventListener("click", () => this.#turn(1));
    this.#dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.#turn(-1);
      if (event.key === "ArrowRight") this.#turn(1);
    });
    // A click beside everything closes, as Escape does.
    this.#dialog.addEventListener("click", (event) => {
      if (event.target === this.#dialog) this.#dialog.close();
    });
  }

  open(card, index) {
    this.#pictures = this.#act.pictures();
    this.#at = this.#pictures.findIndex((each) => each.card === card && each.index === index);
    this.#show();
    this.#dialog.showModal();
  }

  #turn(by) {
    const next = this.#at + by;
    if (next < 0 || next >= this.#pictures.length) return;
    this.#at = next;
    this.#show();
  }

  #show() {
    const { card, index } = this.#pictures[this.#at];
    const [job, image] = [card.job, card.images.get(index)];
    const { request } = job;
    const picture = byId("viewer-image");
    Object.assign(picture, { alt: request.prompt, width: image.width, height: image.height });
    picture.style.setProperty("--ratio", image.width / image.height);
    byId("viewer-title").textContent = request.prompt.trim() || "(no prompt)";
    const negative = request.negative_prompt.trim();
    byId("viewer-negative").textContent = negative ? `without ${negative}` : "";
    byId("viewer-negative").hidden = !negative;
    const rows = parameters(request, image.seed, this.#labels);
    byId("viewer-parameters").replaceChildren(
      ...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
    );
    const of = request.num_images > 1 ? `Picture ${index + 1} of ${request.num_images}, ` : "";
    byId("viewer-when").textContent = `${of}${moment(job.created_at)}`;
    byId("viewer-before").setAttribute("aria-disabled", String(this.#at === 0));
    byId("viewer-after").setAttribute("aria-disabled", String(this.#at === this.#pictures.length - 1));
    const download = make("a", { download: fileName(image), class: "as-button" }, icon(ICONS.download), "Download");
    this.#showActions(job, image, download);
    const at = this.#at;
    pictureAt(image.url).then((here) => {
      download.href = here;
      if (at === this.#at) picture.src = here;
    }, () => {
      if (at === this.#at) picture.removeAttribute("src");
    });
  }

  #showActions(job, image, download) {
    const { request } = job;
    const leave = (then) => () => {
      this.#dialog.close();
      then();
    };
    const button = (label, path, onclick) =>
      make("button", { type: "button", onclick }, path ? icon(path) : null, label);
    byId("viewer-actions").replaceChildren(
      download,
      button("Use these again", ICONS.again, leave(() => this.#act.again(request, image.seed, 1))),
      button("Start from this", ICONS.start, leave(() => this.#act.start(job, image))),
      button("Keep this seed", null, leave(() => this.#act.keep(image.seed))),
    );
  }
}
