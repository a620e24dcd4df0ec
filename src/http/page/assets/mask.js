// A mask, painted with a pointer over a picture: opaque where it is drawn anew.

/** The longer side of a mask, in pixels: the server stretches it over the picture. */
const MOST = 1024;
/** What a stroke is painted with; only how opaque it is counts. */
const PAINT = "#ff5f4b";

export class Mask {
  /** Erases instead of painting. */
  erases = false;
  /** The brush's width, as a share of the shorter side. */
  brush = 0.1;
  /** The share of the picture that is masked. */
  share = 0;
  /** Somebody painted since it was emptied or loaded. */
  isPainted = false;
  #canvas;
  #context;
  #change;
  #last = null;

  /** `change()` is told after every stroke. */
  constructor(canvas, change) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d", { willReadFrequently: true });
    this.#change = change;
    canvas.addEventListener("pointerdown", (event) => this.#begin(event));
    canvas.addEventListener("pointermove", (event) => this.#go(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => this.#end());
  }

  /** Nothing masked, for a picture of that size. */
  reset(width, height) {
    const scale = Math.min(1, MOST / Math.max(width, height));
    this.#canvas.width = Math.max(1, Math.round(width * scale));
    this.#canvas.height = Math.max(1, Math.round(height * scale));
    this.isPainted = false;
    this.#count();
  }

  /** A picture of a mask: as much as it is white. */
  load(image) {
    const { width, height } = this.#canvas;
    const context = this.#context;
    context.globalCompositeOperation = "copy";
    context.drawImage(image, 0, 0, width, height);
    const pixels = context.getImageData(0, 0, width, height);
    const paint = [255, 95, 75];
    for (let at = 0; at < pixels.data.length; at += 4) {
      const [red, green, blue, alpha] = pixels.data.subarray(at, at + 4);
      const white = ((0.299 * red + 0.587 * green + 0.114 * blue) * alpha) / 255;
      pixels.data.set(paint, at);
      pixels.data[at + 3] = Math.round(white);
    }
    context.putImageData(pixels, 0, 0);
    this.isPainted = false;
    this.#count();
  }

  /** All of it, or nothing. */
  paintAll(isMasked) {
    const { width, height } = this.#canvas;
    this.#context.globalCompositeOperation = isMasked ? "source-over" : "copy";
    this.#context.fillStyle = isMasked ? PAINT : "transparent";
    this.#context.fillRect(0, 0, width, height);
    this.#done();
  }

  /** White on black, as the API takes it. */
  asDataUrl() {
    const { width, height } = this.#canvas;
    const sheet = document.createElement("canvas");
    Object.assign(sheet, { width, height });
    const context = sheet.getContext("2d");
    context.drawImage(this.#canvas, 0, 0);
    context.globalCompositeOperation = "source-in";
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, height);
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    return sheet.toDataURL("image/png");
  }

  #place(event) {
    const box = this.#canvas.getBoundingClientRect();
    const { width, height } = this.#canvas;
    return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  }

  #begin(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    this.#canvas.setPointerCapture(event.pointerId);
    this.#last = this.#place(event);
    this.#stroke(this.#last);
  }

  #go(event) {
    if (!this.#last) return;
    // A fast hand leaves several places between two events.
    const places = event.getCoalescedEvents?.() ?? [];
    for (const each of places.length > 0 ? places : [event]) this.#stroke(this.#place(each));
  }

  #stroke(to) {
    const context = this.#context;
    context.globalCompositeOperation = this.erases ? "destination-out" : "source-over";
    context.strokeStyle = PAINT;
    context.lineCap = "round";
    context.lineJoin = "round";
    context.lineWidth = Math.max(1, this.brush * Math.min(this.#canvas.width, this.#canvas.height));
    context.beginPath();
    context.moveTo(...this.#last);
    context.lineTo(...to);
    context.stroke();
    this.#last = to;
  }

  #end() {
    if (!this.#last) return;
    this.#last = null;
    this.#done();
  }

  #done() {
    this.isPainted = true;
    this.#count();
    this.#change();
  }

  #count() {
    const { data } = this.#context.getImageData(0, 0, this.#canvas.width, this.#canvas.height);
    let masked = 0;
    for (let at = 3; at < data.length; at += 4) if (data[at] >= 128) masked += 1;
    this.share = masked / (data.length / 4);
  }
}
