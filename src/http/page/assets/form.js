// The form: filled from what the models can do, read into a request, told its faults.

import { byId, make, shape } from "./dom.js";
import { Easel } from "./easel.js";
import { atField, refusal } from "./words.js";

const DRAFT = "darkroom.draft";
const RATIOS = [[2, 3], [3, 4], [1, 1], [4, 3], [3, 2]];
/** Fields whose text goes out as a number. */
const NUMBERS = ["width", "height", "steps", "guidance_scale", "guidance_rescale", "guidance_start", "guidance_end", "eta", "clip_skip", "num_images", "output.quality", "strength", "mask_blur", "only_masked_padding", "hires.scale", "hires.strength", "hires.steps"];
/** Fields whose text goes out as true. */
const FLAGS = ["preserve_unmasked", "invert_mask"];
/** The API's defaults of `strength`: without a mask, and with one. */
const STRENGTHS = ["0.8", "1"];
/** Fields a model has a default for. */
const DEFAULTED = ["width", "height", "steps", "guidance_scale", "guidance_rescale", "sampler", "sigma_schedule", "noise", "prompt_syntax", "clip_skip"];

export class RequestForm {
  #form = byId("form");
  #models = [];
  #labels = new Map();
  #model = null;
  #lastSeed = null;
  #easel = new Easel(({ isNew }) => this.#repicture(isNew));
  #isStrengthChosen = false;

  /** `send(request)` submits what was read; it may throw a Problem. */
  constructor(send) {
    const submit = async (event) => {
      event?.preventDefault();
      if (this.#busy) return;
      this.#busy = true;
      this.clearFaults();
      try {
        await send(this.read());
      } catch (problem) {
        if (!Array.isArray(problem.errors)) throw problem;
        this.showProblem(problem);
      } finally {
        this.#busy = false;
      }
    };
    this.#form.addEventListener("submit", submit);
    this.#form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
    });
    for (const name of ["input", "change"]) this.#form.addEventListener(name, () => this.#changed());
    this.#field("model").addEventListener("change", () => this.#chooseModel());
    this.#field("strength").addEventListener("input", () => {
      this.#isStrengthChosen = true;
    });
    byId("keep-seed").addEventListener("click", () => {
      this.seed = this.seed ? "" : this.#lastSeed;
      this.#field("seed").focus();
    });
  }

  get #busy() {
    return byId("generate").getAttribute("aria-disabled") === "true";
  }

  // Not `disabled`: the focus would be lost.
  set #busy(busy) {
    byId("generate").setAttribute("aria-disabled", String(busy));
  }

  get seed() {
    return this.#field("seed").value.trim();
  }

  set seed(seed) {
    this.#field("seed").value = seed;
    this.#changed();
  }

  /** The seed that "Keep last" keeps. */
  set lastSeed(seed) {
    if (seed === this.#lastSeed) return;
    this.#lastSeed = seed;
    this.#changed();
  }

  get manyModels() {
    return this.#models.length > 1;
  }

  #field(name) {
    return this.#form.elements.namedItem(name);
  }

  /** What can be asked for: /v1/models and the samplers' labels by name. */
  offer(models, labels) {
    this.#models = models;
    this.#labels = labels;
    this.#field("model").replaceChildren(...models.map((model) => make("option", { value: model.id }, model.id)));
    byId("model-field").hidden = models.length < 2;
    this.#field("model").value = (models.find((model) => model.default) ?? models[0]).id;
    this.#chooseModel();
    this.#restoreDraft();
  }

  #chooseModel() {
    const before = this.#model?.defaults;
    const model = this.#models.find((each) => each.id === this.#field("model").value);
    this.#model = model;
    // What still stands at the model's default, or was never touched, follows the new model.
    const untouched = DEFAULTED.filter((name) => !before || this.#field(name).value === String(before[name]));
    const option = (value, label) => make("option", { value }, label);
    const [sampler, schedule] = [this.#field("sampler"), this.#field("sigma_schedule")];
    const kept = { sampler: sampler.value, sigma_schedule: schedule.value };
    sampler.replaceChildren(...model.samplers.map((name) => option(name, this.#labels.get(name) ?? name)));
    schedule.replaceChildren(
      ...model.sigma_schedules.map((name) => option(name, name.charAt(0).toUpperCase() + name.slice(1))),
    );
    for (const [name, value] of Object.entries(kept)) if (value) this.#field(name).value = value;
    for (const name of DEFAULTED) {
      if (untouched.includes(name) || !this.#field(name).value) this.#field(name).value = model.defaults[name];
    }
    this.#limit("width", model.min_side, model.max_side, model.size_multiple);
    this.#limit("height", model.min_side, model.max_side, model.size_multiple);
    this.#limit("steps", 1, model.limits.max_steps, 1);
    this.#limit("clip_skip", 0, model.max_clip_skip, 1);
    this.#limit("num_images", 1, model.limits.max_num_images, 1);
    if (!this.#field("num_images").value) this.#field("num_images").value = 1;
    byId("model-about").textContent = model.description;
    byId("size-hint").textContent =
      `Multiples of ${model.size_multiple} from ${model.min_side} to ${model.max_side} pixels`;
    this.#offerPresets(model);
    this.#changed();
  }

  #limit(name, min, max, step) {
    Object.assign(this.#field(name), { min, max, step });
  }

  /** Shapes with about as many pixels as the model's own size. */
  #offerPresets(model) {
    const { width, height } = model.defaults;
    const side = (length) => {
      const near = Math.round(length / model.size_multiple) * model.size_multiple;
      return Math.min(Math.max(near, model.min_side), model.max_side);
    };
    const sizes = RATIOS.map(([w, h]) => [side(Math.sqrt((width * height * w) / h)), side(Math.sqrt((width * height * h) / w))]);
    if (width !== height) sizes.unshift([width, height]);
    const distinct = [...new Map(sizes.map((size) => [size.join("x"), size]))];
    const chip = ([value, [w, h]]) => {
      const choose = () => {
        this.#field("width").value = w;
        this.#field("height").value = h;
        this.#changed();
      };
      const input = make("input", { type: "radio", name: "preset", value, onchange: choose });
      return make("label", { class: "preset" }, input, shape(w, h, 26), make("span", {}, `${w}×${h}`));
    };
    byId("presets").replaceChildren(...distinct.map(chip));
  }

  /** The picture to start from, or its mask, is another. */
  #repicture(isNew) {
    if (isNew) {
      this.#isStrengthChosen = false;
      this.#clearFault(this.#field("init_image"));
    }
    if (!this.#isStrengthChosen) this.#field("strength").value = STRENGTHS[Number(this.#easel.isMasked)];
    if (isNew && this.#easel.isFilled) this.#fit(this.#easel.size);
    this.#changed();
  }

  /** Width and height in a picture's proportions: its own where the model draws such, else about as many pixels as it is used to. */
  #fit({ width, height }) {
    const { defaults, size_multiple: multiple, min_side: min, max_side: max } = this.#model;
    const usual = defaults.width * defaults.height;
    const scale = width * height > usual ? Math.sqrt(usual / (width * height)) : Math.max(1, min / Math.min(width, height));
    const side = (length) => Math.min(Math.max(Math.round((length * scale) / multiple) * multiple, min), max);
    this.#field("width").value = side(width);
    this.#field("height").value = side(height);
  }

  /** Starts from a picture that a job drew; its prompt is taken where none stands here. */
  startFrom(job, image) {
    const prompt = this.#field("prompt");
    if (!prompt.value.trim()) prompt.value = job.request.prompt;
    byId("start").open = true;
    byId("init_image").focus();
    return this.#easel.use(image.url, { job: job.id, image: image.index });
  }

  /** After any change: what depends on another field, and the draft. */
  #changed() {
    const size = `${this.#field("width").value}x${this.#field("height").value}`;
    for (const input of byId("presets").querySelectorAll("input")) input.checked = input.value === size;
    byId("eta-field").hidden = !["ddim", "tcd"].includes(this.#field("sampler").value);
    byId("quality-field").hidden = this.#field("output.format").value === "png";
    const chosen = (name) => this.#field(name).selectedOptions[0]?.textContent ?? "";
    byId("craft-now").textContent = [
      `${this.#field("steps").value} steps`, chosen("sampler"), `guidance ${this.#field("guidance_scale").value}`,
      chosen("output.format"),
    ].join(" · ");
    this.#changedPasses();
    const keep = byId("keep-seed");
    keep.textContent = this.seed ? "Clear" : "Keep last";
    keep.setAttribute("aria-label", this.seed ? "Clear the seed" : "Keep the last seed");
    keep.hidden = !this.seed && !this.#lastSeed;
    this.#keepDraft();
  }

  /** What depends on the picture to start from, its mask, and the second pass. */
  #changedPasses() {
    const { isFilled, isMasked } = this.#easel;
    const isPart = this.#field("inpaint_area").value === "only_masked";
    const strength = `${Math.round(Number(this.#field("strength").value) * 100)} %`;
    byId("strength-now").textContent = strength;
    byId("mask-fields").hidden = !isMasked;
    byId("padding-field").hidden = !isPart;
    byId("preserve-field").hidden = isPart;
    byId("start-now").textContent = isFilled ? `from a picture, strength ${strength}${isMasked ? ", masked" : ""}` : "";
    const on = byId("hires-on");
    on.disabled = isMasked;
    byId("hires-hint").hidden = !isMasked;
    byId("hires-fields").hidden = !this.#hasHires;
    byId("hires-now").textContent = this.#hasHires ? `${this.#field("hires.scale").value || 2} times larger` : "";
  }

  get #hasHires() {
    return byId("hires-on").checked && !this.#easel.isMasked;
  }

  /** The request as the API takes it; what was left empty is not said. Seeds stay text. */
  read() {
    const request = { ...this.#easel.read(), ...(this.#hasHires ? { hires: {} } : {}) };
    const put = (name, value) => {
      const [outer, inner] = name.split(".");
      if (inner === undefined) request[name] = value;
      else request[outer] = { ...request[outer], [inner]: value };
    };
    for (const [name, field] of this.#fields()) {
      if (field.closest("[hidden]") && name !== "model") continue;
      // A number that the browser could not read is still something that was said: the server refuses it.
      const text = field.validity.badInput ? "?" : field.value.trim();
      const isNumber = NUMBERS.includes(name) && !field.validity.badInput;
      if (text) put(name, isNumber ? Number(text) : FLAGS.includes(name) ? text === "true" : text);
    }
    return request;
  }

  /** All that has a value of its own. */
  #fields() {
    return this.#named().filter(([, field]) => field.type !== "file");
  }

  /** All that a fault may be told of. */
  #named() {
    const named = [...this.#form.elements].filter((field) => field.name && !["preset", "tool"].includes(field.name));
    return named.map((field) => [field.name, field]);
  }

  /** Puts a job's resolved request back, with that seed and so many pictures. */
  async fill(request, seed, count) {
    const { hires, init_image: picture, mask_image: mask } = request;
    const stored = (name) => name && { name, url: `/v1/jobs/${encodeURIComponent(name.job)}/inputs/${name.input}` };
    if (picture) await this.#easel.use(stored(picture).url, picture, stored(mask));
    else if (this.#easel.isFilled) this.#easel.clear();
    byId("hires-on").checked = Boolean(hires);
    const values = {
      ...request, seed, num_images: count, eta: request.eta || "",
      "output.format": request.output.format, "output.quality": request.output.quality ?? "",
      inpaint_area: request.inpaint_area ?? "whole", strength: request.strength ?? STRENGTHS[0],
      preserve_unmasked: request.preserve_unmasked || "", invert_mask: request.invert_mask || "", mask_blur: request.mask_blur || "",
      "hires.scale": hires?.scale ?? 2, "hires.strength": hires?.strength, "hires.steps": hires?.steps,
      "hires.upscaler": hires?.upscaler ?? "latent",
    };
    this.#isStrengthChosen = true;
    if (this.#models.some((model) => model.id === request.model)) {
      this.#field("model").value = request.model;
      this.#chooseModel();
    }
    for (const [name, field] of this.#fields()) if (name !== "model") field.value = values[name] ?? "";
    this.clearFaults();
    this.#changed();
    this.#field("prompt").focus();
  }

  clearFaults() {
    byId("refusal").hidden = true;
    this.#named().forEach(([, field]) => this.#clearFault(field));
  }

  #clearFault(field) {
    document.getElementById(`fault-${field.id}`)?.remove();
    field.removeAttribute("aria-invalid");
    const others = (field.getAttribute("aria-describedby") ?? "").split(" ").filter((id) => !id.startsWith("fault-"));
    field.setAttribute("aria-describedby", others.join(" "));
  }

  /** Every fault at its field, the rest above the form; the focus goes to the first. */
  showProblem(problem) {
    const fields = new Map(this.#named());
    const elsewhere = problem.errors.filter((fault) => !fields.has(fault.field));
    for (const fault of problem.errors.filter((each) => fields.has(each.field))) {
      const field = fields.get(fault.field);
      const id = `fault-${field.id}`;
      const told = document.getElementById(id);
      const text = atField(fault.message);
      if (told) told.textContent += `. ${text}`;
      else field.closest(".field").append(make("p", { id, class: "fault" }, text));
      field.setAttribute("aria-invalid", "true");
      const describedBy = (field.getAttribute("aria-describedby") ?? "").split(" ").filter((each) => each && each !== id);
      field.setAttribute("aria-describedby", [...describedBy, id].join(" "));
      field.closest("details")?.setAttribute("open", "");
    }
    const first = this.#form.querySelector('[aria-invalid="true"]');
    if (!first || elsewhere.length) {
      const text = elsewhere.length
        ? elsewhere.map((fault) => `${fault.field} ${fault.message}`).join("; ")
        : refusal(problem);
      byId("refusal").textContent = text;
      byId("refusal").hidden = false;
    }
    (first ?? byId("refusal")).focus();
  }

  #keepDraft() {
    const values = Object.fromEntries(this.#fields().map(([name, field]) => [name, field.value]));
    try {
      sessionStorage.setItem(DRAFT, JSON.stringify(values));
    } catch {
      // Storage is switched off: a reload begins anew.
    }
  }

  /** What stood in the form before a reload, where the models still offer it. */
  #restoreDraft() {
    let values = null;
    try {
      values = JSON.parse(this.#draftBeforeOffer ?? "null");
    } catch {
      // Not ours.
    }
    if (!values || !this.#models.some((model) => model.id === values.model)) return;
    this.#field("model").value = values.model;
    this.#chooseModel();
    for (const [name, field] of this.#fields()) {
      const offered = field.tagName !== "SELECT" || [...field.options].some((option) => option.value === values[name]);
      if (name !== "model" && offered && typeof values[name] === "string") field.value = values[name];
    }
    this.#changed();
  }

  // Read when the page begins: `offer` writes a draft of its own.
  #draftBeforeOffer = (() => {
    try {
      return sessionStorage.getItem(DRAFT);
    } catch {
      return null;
    }
  })();
}
