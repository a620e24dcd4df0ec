// The page's parts, put together.

import * as api from "./api.js";
import { byId } from "./dom.js";
import { RequestForm } from "./form.js";
import { Gallery } from "./gallery.js";
import { askForKey, wireForgetting } from "./key.js";
import { say } from "./live.js";
import { Viewer } from "./viewer.js";
import { Watch } from "./watch.js";
import { refusal, waiting } from "./words.js";

const NARROW = matchMedia("(max-width: 899px)");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const scroll = (node) => node.scrollIntoView({ behavior: calm.matches ? "auto" : "smooth", block: "start" });

function wireTheme() {
  const [root, button] = [document.documentElement, byId("theme")];
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const label = () => {
    button.textContent = isDark() ? "Lights on" : "Lights off";
    button.title = `Switch to the ${isDark() ? "light" : "dark"} theme`;
  };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    label();
    try {
      localStorage.setItem("darkroom.theme", root.dataset.theme);
    } catch {
      // Storage is switched off: chosen for this visit only.
    }
  });
  system.addEventListener("change", label);
  label();
}

/** Asks before what cannot be undone. */
function confirmed(text) {
  const dialog = byId("confirm");
  byId("confirm-text").textContent = text;
  return new Promise((resolve) => {
    let answer = false;
    const yes = () => {
      answer = true;
      dialog.close();
    };
    const no = () => dialog.close();
    byId("confirm-yes").addEventListener("click", yes);
    byId("confirm-no").addEventListener("click", no);
    dialog.addEventListener(
      "close",
      () => {
        byId("confirm-yes").removeEventListener("click", yes);
        byId("confirm-no").removeEventListener("click", no);
        resolve(answer);
      },
      { once: true },
    );
    dialog.showModal();
  });
}

function notice(problem) {
  if (!(problem instanceof api.Problem)) throw problem;
  byId("notice").textContent = refusal(problem);
  byId("notice").hidden = false;
}

/** The same request again after silence carries the same key: the server draws it once. */
let unanswered = { body: null, key: null };

async function submit(request, { gallery, found }) {
  const body = JSON.stringify(request);
  if (unanswered.body !== body) unanswered = { body, key: api.newKey() };
  let job;
  try {
    job = await api.submit(request, unanswered.key);
  } catch (problem) {
    if (problem.status !== 0) unanswered = { body: null, key: null };
    throw problem;
  }
  unanswered = { body: null, key: null };
  gallery.own(job.id);
  found(job);
  say(`Accepted. ${waiting(job)}`);
  if (NARROW.matches) scroll(gallery.card(job.id).node);
}

async function begin() {
  const [models, { samplers }] = await Promise.all([api.models(), api.samplers()]);
  const labels = new Map(samplers.map(({ name, label }) => [name, label]));
  let gallery, watch;

  const found = (job) => {
    gallery.put(job, watch.isStreamed(job.id));
    watch.follow(job);
    settle();
  };
  const settle = () => {
    form.lastSeed = gallery.newest()?.request.seed ?? null;
    document.title = watch.count > 0 ? `(${watch.count}) Darkroom` : "Darkroom";
  };
  const form = new RequestForm((request) => submit(request, { gallery, found }));
  const again = async (request, seed, count) => {
    if (NARROW.matches) scroll(byId("form"));
    await form.fill(request, seed, count);
    say(`The form holds these parameters again, with seed ${seed}.`);
  };
  const start = (job, image) => {
    if (NARROW.matches) scroll(byId("form"));
    return form.startFrom(job, image);
  };
  const viewer = new Viewer(
    {
      pictures: () => gallery.pictures(),
      again,
      start,
      keep: (seed) => {
        form.seed = seed;
        byId("seed").focus();
        say(`Seed ${seed} is kept.`);
      },
    },
    labels,
  );
  const gone = (id) => {
    watch.forget(id);
    gallery.drop(id);
    settle();
  };
  const cancel = async (card, failed) => {
    try {
      const job = await api.deleteJob(card.job.id);
      // No content: it had ended before, and is removed with its pictures.
      if (job === null) gone(card.job.id);
      else found(job);
      if (job !== null && job.status !== "cancelled") say("It leaves at its next step.");
    } catch (problem) {
      failed();
      notice(problem);
    }
  };
  const remove = async (card) => {
    const count = card.images.size;
    const what = count > 1 ? `All ${count} pictures of this job` : count === 1 ? "This picture" : "This job";
    const prompt = card.job.request.prompt;
    const named = prompt.length > 90 ? `${prompt.slice(0, 90)}…` : prompt;
    if (!(await confirmed(`${what} will be removed from the server: ${named}`))) return;
    try {
      await api.deleteJob(card.job.id);
      gone(card.job.id);
      say("Removed.");
    } catch (problem) {
      if (problem.status === 404) gone(card.job.id);
      else notice(problem);
    }
  };
  gallery = new Gallery({ open: (card, index) => viewer.open(card, index), again, start, remove, cancel, found }, labels);
  watch = new Watch({
    onJob: found,
    onGone: gone,
    onEvent: (id, name, data) => gallery.event(id, name, data),
    onConnection: (isThere) => {
      const text = isThere ? "" : "The server cannot be reached; trying again";
      if (byId("connection").textContent !== text) byId("connection").textContent = text;
    },
  });
  form.offer(models, labels);
  await gallery.load();
  // Jobs under way may be older than the first page.
  await watch.pulse();
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) gallery.refresh();
  });
}

wireTheme();
// Where all of the form fits on the screen, all of it is shown.
byId("craft").open = matchMedia("(min-width: 900px) and (min-height: 1020px)").matches;
wireForgetting();

// Without the key that the server asks for, nothing has begun yet: once there is one, all of it begins.
async function beginWithKey() {
  for (;;) {
    try {
      return await begin();
    } catch (problem) {
      if (problem.status !== 401) throw problem;
      await askForKey(refusal(problem));
    }
  }
}

beginWithKey().catch(notice);
