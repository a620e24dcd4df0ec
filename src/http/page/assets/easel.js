// The picture to start from, and what of it is masked: chosen, dropped or pasted files, or pictures of earlier jobs.

import { byId } from "./dom.js";
import { Mask } from "./mask.js";
import { originOf, pictureAt } from "./pictures.js";

/** Where a picture that a job drew is. */
const DRAWN = /\/v1\/jobs\/([\w-]+)\/images\/(\d+)$/;

/** A file as a data URL, which the API takes. */
const asDataUrl = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });

const loaded = async (url) => {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
};

export class Easel {
  #mask = new Mask(byId("mask"), () => this.#turned());
  /** What goes out: a data URL, or the name of a stored picture. */
  #picture = null;
  /** A mask as it came, as long as nobody paints on it. */
  #maskAsCame = null;
  #size = { width: 0, height: 0 };
  #change;
  #objectUrl = null;

  /** `change({isNew})` is told of every change; `isNew`: another picture. */
  constructor(change) {
    this.#change = change;
    const [file, maskFile] = [byId("init_image"), byId("mask_image")];
    file.addEventListener("change", () => file.files[0] && this.choose(file.files[0]));
    maskFile.addEventListener("change", () => maskFile.files[0] && this.#chooseMask(maskFile.files[0]));
    byId("init-remove").addEventListener("click", () => {
      this.clear();
      file.focus();
    });
    for (const tool of ["brush", "eraser"]) {
      byId(`tool-${tool}`).addEventListener("change", () => {
        this.#mask.erases = tool === "eraser";
      });
    }
    byId("brush-size").addEventListener("input", () => this.#sizeBrush());
    byId("mask-clear").addEventListener("click", () => this.#paintAll(false));
    byId("mask-fill").addEventListener("click", () => this.#paintAll(true));
    this.#sizeBrush();
    this.#takeDrops();
  }

  /** A picture is there to start from. */
  get isFilled() {
    return this.#picture !== null;
  }

  get isMasked() {
    return this.isFilled && this.#mask.share > 0;
  }

  /** In pixels. */
  get size() {
    return this.#size;
  }

  /** What the request says of pictures. */
  read() {
    if (!this.isFilled) return {};
    const mask = this.#maskAsCame ?? (this.isMasked ? this.#mask.asDataUrl() : null);
    return mask ? { init_image: this.#picture, mask_image: mask } : { init_image: this.#picture };
  }

  /** A file that a person chose, dropped or pasted. */
  async choose(file) {
    const url = URL.createObjectURL(file);
    try {
      const image = await loaded(url);
      this.#show(image, await asDataUrl(file));
      this.#objectUrl = url;
      this.#tell(`${file.name || "The picture"}, ${image.naturalWidth} by ${image.naturalHeight} pixels`);
    } catch {
      URL.revokeObjectURL(url);
      this.#tell(`${file.name || "This file"} is no picture that this browser can show; PNG, JPEG and WebP are taken`);
    }
  }

  /** A stored picture by its URL; `name` is what the API calls it. */
  async use(url, name, mask = null) {
    try {
      this.#show(await loaded(await pictureAt(url)), name);
      if (mask) {
        this.#mask.load(await loaded(await pictureAt(mask.url)));
        this.#maskAsCame = mask.name;
        this.#turned();
      }
      this.#tell("The picture to start from is in the form");
    } catch {
      this.clear();
      this.#tell("The picture is no longer on the server");
    }
  }

  clear() {
    this.#release();
    this.#picture = null;
    this.#maskAsCame = null;
    this.#size = { width: 0, height: 0 };
    byId("init-preview").removeAttribute("src");
    byId("init_image").value = "";
    byId("mask_image").value = "";
    byId("easel").hidden = true;
    this.#mask.reset(1, 1);
    this.#tell("");
    this.#change({ isNew: true });
  }

  #show(image, picture) {
    this.#release();
    const { naturalWidth: width, naturalHeight: height } = image;
    this.#picture = picture;
    this.#maskAsCame = null;
    this.#size = { width, height };
    const preview = byId("init-preview");
    preview.src = image.src;
    byId("mask_image").value = "";
    byId("easel-stage").style.setProperty("--ratio", width / height);
    byId("easel").hidden = false;
    this.#mask.reset(width, height);
    byId("start").open = true;
    this.#change({ isNew: true });
  }

  #release() {
    if (this.#objectUrl) URL.revokeObjectURL(this.#objectUrl);
    this.#objectUrl = null;
  }

  async #chooseMask(file) {
    const url = URL.createObjectURL(file);
    try {
      this.#mask.load(await loaded(url));
      this.#maskAsCame = await asDataUrl(file);
      this.#turned();
    } catch {
      this.#tell(`${file.name} is no picture that this browser can show; PNG, JPEG and WebP are taken`);
    } finally {
      URL.revokeObjectURL(url);
    }
  }

  #paintAll(isMasked) {
    this.#mask.paintAll(isMasked);
    byId("mask_image").value = "";
  }

  #sizeBrush() {
    const percent = Number(byId("brush-size").value);
    this.#mask.brush = percent / 100;
    byId("brush-size").setAttribute("aria-valuetext", `${percent} % of the shorter side`);
  }

  /** The mask was painted on. */
  #turned() {
    if (this.#mask.isPainted) this.#maskAsCame = null;
    const percent = Math.round(this.#mask.share * 100);
    byId("mask-state").textContent = this.#mask.share === 0
      ? "Nothing is masked: all of it is drawn anew"
      : `${Math.max(percent, 1)} % is masked: that is drawn anew, the rest is kept`;
    this.#change({ isNew: false });
  }

  #tell(text) {
    byId("init-state").textContent = text;
  }

  /** Files, and pictures of the gallery, dropped anywhere; files pasted. */
  #takeDrops() {
    const carries = (event) => ["Files", "text/uri-list"].some((kind) => event.dataTransfer.types.includes(kind));
    const over = (isOver) => byId("start").classList.toggle("over", isOver);
    document.addEventListener("dragover", (event) => {
      if (!carries(event)) return;
      event.preventDefault();
      over(true);
    });
    document.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) over(false);
    });
    document.addEventListener("drop", (event) => {
      over(false);
      if (!carries(event)) return;
      event.preventDefault();
      const [file] = event.dataTransfer.files;
      const text = originOf(event.dataTransfer.getData("text/uri-list").split(/\r?\n/)[0]);
      const url = URL.canParse(text, location) ? new URL(text, location) : null;
      const found = url?.origin === location.origin ? DRAWN.exec(url.pathname) : null;
      if (found) this.use(found[0], { job: found[1], image: Number(found[2]) });
      else if (file) this.choose(file);
    });
    document.addEventListener("paste", (event) => {
      const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
      if (!file) return;
      event.preventDefault();
      this.choose(file);
    });
  }
}
