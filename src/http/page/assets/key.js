// The API key, where the server asks for one: kept for this tab, sent in a header, never in a URL.

import { byId } from "./dom.js";

const STORED = "darkroom.key";
let key = (() => {
  try {
    return sessionStorage.getItem(STORED);
  } catch {
    return null;
  }
})();

/** There is one. */
export const hasKey = () => key !== null;

/** What a request carries. */
export const keyHeaders = () => (key === null ? {} : { authorization: `Bearer ${key}` });

function keep(text) {
  key = text;
  try {
    if (text === null) sessionStorage.removeItem(STORED);
    else sessionStorage.setItem(STORED, text);
  } catch {
    // Storage is switched off: a reload asks again.
  }
  byId("forget-key").hidden = key === null;
}

/** Asks for a key, and says why. */
export function askForKey(why) {
  const [dialog, form, field] = [byId("key"), byId("key-form"), byId("key-field")];
  byId("key-why").textContent = why;
  return new Promise((resolve) => {
    const given = (event) => {
      event.preventDefault();
      const text = field.value.trim();
      if (!text) return;
      field.value = "";
      form.removeEventListener("submit", given);
      keep(text);
      dialog.onclose = null;
      dialog.close();
      resolve();
    };
    form.addEventListener("submit", given);
    // Nothing is there without a key.
    dialog.oncancel = (event) => event.preventDefault();
    // A browser may close it all the same, at the second Escape.
    dialog.onclose = () => dialog.showModal();
    if (!dialog.open) dialog.showModal();
  });
}

/** The button that forgets the key; the page begins anew without it. */
export function wireForgetting() {
  byId("forget-key").hidden = key === null;
  byId("forget-key").addEventListener("click", () => {
    keep(null);
    location.reload();
  });
}
