// Elements out of plain objects; text is only ever text.
function made(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "text") element.textContent = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const element = (tag, properties = {}, ...children) => made(document.createElement(tag), properties, children);
export const drawn = (tag, properties = {}, ...children) =>
  made(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
export const get = (id) => document.getElementById(id);

const MINUS = "\u2212";

// Three digits, with a true minus.
export function three(value) {
  if (value === null || value === undefined) return "n/a";
  const size = Math.abs(value);
  const text = size >= 1000 ? Math.round(size).toLocaleString("en-US") : Number.isInteger(value) ? String(size) : size.toPrecision(3);
  return (value < 0 ? MINUS : "") + text;
}

export const signed = (value) => (value === null || value === undefined ? "n/a" : (value > 0 ? "+" : "") + three(value));
export const count = (number) => number.toLocaleString("en-US");

export function share(value) {
  if (value === null || value === undefined) return "n/a";
  return value > 0 && value < 0.005 ? "<1%" : `${Math.round(100 * value)}%`;
}

// A line of a description list.
export function fact(name, value, kind) {
  return element("div", { class: kind }, element("dt", { text: name }), element("dd", { text: value, dir: "auto" }));
}

// Calls only the last of several in quick succession.
export function calmly(action, pause) {
  let timer;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...given), pause);
  };
}
