// Making and finding elements. Text goes in as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** The element with this id, which index.html has. */
export const byId = (id) => document.getElementById(id);

/** `make("a", {class: "link", href: url, onclick: go}, "text", child)`; `null`, `undefined` and `false` are left out. */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** An icon of 24 x 24, drawn by one path; what it means is said in words beside it. */
export function icon(path) {
  const svg = document.createElementNS(SVG, "svg");
  const line = document.createElementNS(SVG, "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "icon");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

/** A rectangle of that shape, at most `most` pixels a side. */
export function shape(width, height, most) {
  const scale = most / Math.max(width, height);
  const [w, h] = [Math.max(4, Math.round(width * scale)), Math.max(4, Math.round(height * scale))];
  const svg = document.createElementNS(SVG, "svg");
  const rect = document.createElementNS(SVG, "rect");
  for (const [name, value] of Object.entries({ width: most, height: most, viewBox: `0 0 ${most} ${most}` })) {
    svg.setAttribute(name, value);
  }
  svg.setAttribute("aria-hidden", "true");
  const place = { x: (most - w) / 2 + 1, y: (most - h) / 2 + 1, width: w - 2, height: h - 2, rx: 1.5 };
  for (const [name, value] of Object.entries(place)) rect.setAttribute(name, value);
  svg.append(rect);
  return svg;
}

export const ICONS = {
  again: "M4 12a8 8 0 1 0 2.5-5.8M4 4v4.5h4.5",
  download: "M12 4v11m-4.5-4.5L12 15l4.5-4.5M5 20h14",
  start: "M4 18.5V6a1 1 0 0 1 1-1h14a1 1 0 0 1 1 1v7M4 16l4.5-5 4 4.5L15 13M16 18h6M19 15v6",
  remove: "M5 7h14M10 4h4M7 7l1 13h8l1-13M10.5 11v5M13.5 11v5",
  cancel: "M6 6l12 12M18 6L6 18",
};
