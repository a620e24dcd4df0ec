// The native API, /v1, and its refusals.

import { keyHeaders } from "./key.js";

/** A refusal: problem+json as the server wrote it, or what stands for it when nothing came back. */
export class Problem extends Error {
  constructor({ status = 0, code = "unreachable", detail, errors = [], retryAfter = null }) {
    super(detail);
    Object.assign(this, { status, code, detail, errors, retryAfter });
  }
}

// Seeds go up to 2^63 - 1, numbers here are exact up to 2^53: seeds are kept as their digits. Inside a JSON string the
// quotes would be escaped, so this finds keys only.
export const exact = (text) => JSON.parse(text.replace(/"seed":\s*(\d+)/g, '"seed":"$1"'));

async function ask(method, path, { body, headers = {} } = {}) {
  let response;
  try {
    response = await fetch(path, { method, body, headers: { accept: "application/json", ...keyHeaders(), ...headers } });
  } catch {
    throw new Problem({ detail: "The server cannot be reached. It may be restarting" });
  }
  const text = await response.text();
  if (response.ok) return text ? exact(text) : null;
  const retryAfter = Number(response.headers.get("retry-after")) || null;
  let told = {};
  try {
    told = JSON.parse(text);
  } catch {
    // Not ours: something between here and the server answered.
  }
  const detail = told.detail || `the server answered ${response.status} ${response.statusText}`.trim();
  throw new Problem({ status: response.status, code: told.code, detail, errors: told.errors ?? [], retryAfter });
}

/** It waits or runs. */
export const isUnderWay = ({ status }) => status === "queued" || status === "running";

const job = (id) => `/v1/jobs/${encodeURIComponent(id)}`;

export const models = async () => (await ask("GET", "/v1/models")).models;
export const samplers = () => ask("GET", "/v1/samplers");
export const getJob = (id) => ask("GET", job(id));
export const deleteJob = (id) => ask("DELETE", job(id));
export const eventsUrl = (id) => `${job(id)}/events`;

/** A page of jobs, newest first: {jobs, next_cursor}. */
export function listJobs({ status, cursor, limit }) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries({ status, cursor, limit })) if (value) query.set(name, value);
  return ask("GET", `/v1/jobs?${query}`);
}

/** Submits. `request.seed` is text: digits go out as the number they are, anything else for the server to refuse. */
export function submit(request, idempotencyKey) {
  const { seed, ...rest } = request;
  let body = JSON.stringify(rest);
  if (seed) {
    const written = /^-?(0|[1-9]\d*)$/.test(seed) ? seed : JSON.stringify(seed);
    body = `${body.slice(0, -1)}${body === "{}" ? "" : ","}"seed":${written}}`;
  }
  return ask("POST", "/v1/jobs", {
    body,
    headers: { "content-type": "application/json", "idempotency-key": idempotencyKey },
  });
}

/** A key nobody else draws. (`crypto.randomUUID` exists on https and localhost only.) */
export function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
