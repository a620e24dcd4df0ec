// Numbers and states in words.

const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

/** A span of time, roughly: nobody counts on an estimate's last digit. */
export function span(ms) {
  const seconds = Math.ceil(ms / 1000);
  if (seconds <= 1) return "a second";
  if (seconds < 60) return `${seconds} seconds`;
  if (seconds < 3600) return plural(Math.round(seconds / 60), "minute");
  return plural(Math.round(seconds / 3600), "hour");
}

/** "Next in line, about 8 seconds". */
export function waiting(job) {
  const before = job.queue_position;
  const place =
    before === null || before === undefined
      ? "Waiting"
      : before === 0
        ? "Next in line"
        : `Waiting, ${plural(before, "job")} before it`;
  return job.eta_ms ? `${place}, about ${span(job.eta_ms)}` : place;
}

/** "Drawing, step 3 of 20, about 4 seconds left". */
export function drawing(step, steps, etaMs) {
  if (steps > 0 && step >= steps) return "Developing the last bit";
  return etaMs ? `Drawing, about ${span(etaMs)} left` : step > 0 ? "Drawing" : "Beginning to draw";
}

/** "today 14:03", "3 Mar, 09:12". */
export function moment(iso) {
  const at = new Date(iso);
  const time = at.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });
  if (at.toDateString() === new Date().toDateString()) return `today ${time}`;
  return `${at.toLocaleDateString(undefined, { day: "numeric", month: "short", year: "numeric" })}, ${time}`;
}

/** "7.5", "7.5, rescale 0.7, from 20 % to 80 %". */
function guidance(request) {
  const { guidance_scale: scale, guidance_rescale: rescale, guidance_start: start, guidance_end: end } = request;
  const percent = (share) => `${Math.round(share * 1000) / 10} %`;
  return [
    String(scale),
    rescale > 0 ? `rescale ${rescale}` : null,
    start > 0 || end < 1 ? `from ${percent(start)} to ${percent(end)}` : null,
  ].filter(Boolean).join(", ");
}

/** [width, height] of a request's pictures, in pixels; a second pass enlarges both. */
export function outputSize({ width, height, only_masked_padding: padding, init_image: picture }) {
  return picture && padding !== undefined ? [picture.width, picture.height] : [width, height];
}

/** "picture, strength 0.6, masked". */
function start({ init_image: picture, strength, mask_image: mask, inpaint_area: area }) {
  if (!picture) return null;
  const part = area === "only_masked" ? "around the mask" : mask ? "masked" : null;
  return ["Start", ["picture", `strength ${strength}`, part].filter(Boolean).join(", ")];
}

/** A picture's parameters: [name, value] pairs, in reading order. `labels` names samplers as people do. */
export function parameters(request, seed, labels) {
  const schedule = request.sigma_schedule === "default" ? null : request.sigma_schedule;
  const quality = request.output.format === "png" ? "" : `, quality ${request.output.quality}`;
  return [
    ["Size", outputSize(request).join(" × ")],
    start(request),
    request.hires ? ["Second pass", `${request.hires.scale} times larger, strength ${request.hires.strength}`] : null,
    ["Steps", String(request.steps)],
    ["Sampler", [labels.get(request.sampler) ?? request.sampler, schedule].filter(Boolean).join(", ")],
    ["Guidance", guidance(request)],
    ["ddim", "tcd"].includes(request.sampler) && request.eta > 0 ? ["Eta", String(request.eta)] : null,
    ["Seed", String(seed)],
    request.prompt_syntax === "plain" ? null : ["Prompt syntax", request.prompt_syntax],
    request.clip_skip > 0 ? ["Clip skip", String(request.clip_skip)] : null,
    request.noise === "torch-cpu" ? null : ["Noise", request.noise],
    ["Format", `${request.output.format.toUpperCase()}${quality}`],
    ["Model", request.model],
  ].filter(Boolean);
}

/** What went wrong, with when to try again where the server said so. */
export function refusal(problem) {
  const wait = problem.retryAfter === null ? "" : ` Try again in ${span(problem.retryAfter * 1000)}.`;
  const sentence = problem.detail.charAt(0).toUpperCase() + problem.detail.slice(1);
  return `${/[.!?]$/.test(sentence) ? sentence : `${sentence}.`}${wait}`;
}

/** "`width` must be ..." as it stands at the field itself: "Must be ...". */
export function atField(message) {
  const plain = message.replaceAll("`", "");
  return plain.charAt(0).toUpperCase() + plain.slice(1);
}

/** "Picture 2 of 3". */
export const pictureOf = (index, count) => (count === 1 ? "The picture" : `Picture ${index + 1} of ${count}`);
