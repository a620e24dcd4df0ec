// What is said aloud by screen readers, politely, one thing after another.

import { byId } from "./dom.js";

const PAUSE_MS = 400;
const waiting = [];
let timer = null;

function next() {
  const text = waiting.shift();
  timer = text === undefined ? null : setTimeout(next, PAUSE_MS);
  if (text !== undefined) byId("live").textContent = text;
}

/** Says it after what is being said. */
export function say(text) {
  waiting.push(text);
  if (timer === null) next();
}
