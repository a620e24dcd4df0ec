// Where an <img> or a download finds a picture: at the API's own URL or, where a key is asked for, which neither can send,
// at a URL of this page for bytes that were fetched with it.

import { hasKey, keyHeaders } from "./key.js";

/** By the API's URL. */
const fetched = new Map();
/** The API's URL by that of this page. */
const origins = new Map();

async function load(url) {
  const response = await fetch(url, { headers: keyHeaders() });
  if (!response.ok) throw new Error(`the server answered ${response.status}`);
  const here = URL.createObjectURL(await response.blob());
  origins.set(here, url);
  return here;
}

/** Where this page finds the picture that the API has at `url`. */
export async function pictureAt(url) {
  if (!hasKey()) return url;
  if (!fetched.has(url)) {
    const loading = load(url);
    fetched.set(url, loading);
    loading.catch(() => fetched.delete(url));
  }
  return fetched.get(url);
}

/** The API's URL of a picture that this page shows from `here`. */
export const originOf = (here) => origins.get(here) ?? here;

/** Lets a job's pictures go. */
export async function forgetPictures(job) {
  for (const [url, loading] of fetched) {
    if (!url.startsWith(`/v1/jobs/${job}/`)) continue;
    fetched.delete(url);
    const here = await loading.catch(() => null);
    if (here === null) continue;
    origins.delete(here);
    URL.revokeObjectURL(here);
  }
}
