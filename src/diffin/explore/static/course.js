// The course of one sample: what each checkpoint adds, and the sum so far.
import { count, drawn, element, signed } from "./dom.js";

const WIDTH = 360, HIGH = 92, LOW = 44, LEFT = 44, GAP = 18;

export function course(row, about) {
  const terms = (row.terms ?? []).map((term) => (term === null ? null : term * about.factor));
  if (!terms.length || terms.includes(null)) return null;
  const sums = [];
  terms.reduce((sum, term, i) => (sums[i] = sum + term), 0);
  const slot = (WIDTH - LEFT) / terms.length;
  const middle = (i) => LEFT + (i + 0.5) * slot;
  const parts = [];
  const scale = (values, top, height) => {
    const low = Math.min(0, ...values), high = Math.max(0, ...values), span = high - low || 1;
    const y = (value) => top + (high - value) / span * height;
    parts.push(drawn("line", { class: "axis", x1: LEFT, x2: WIDTH, y1: y(0), y2: y(0) }));
    const ends = [...new Set([high, low])].filter((value) => value !== 0);
    for (const value of ends) parts.push(drawn("text", { x: LEFT - 5, y: y(value) + (value === high ? 8 : 0), class: "tick end", text: signed(value) }));
    return y;
  };
  if (about.course) {
    const y = scale(sums, 4, HIGH);
    parts.push(drawn("path", { class: "so-far", d: "M" + sums.map((sum, i) => `${middle(i).toFixed(1)} ${y(sum).toFixed(1)}`).join("L") }));
    if (sums.length <= 40) sums.forEach((sum, i) => parts.push(drawn("circle", { class: "dot", cx: middle(i), cy: y(sum), r: 2.4 })));
  }
  const top = about.course ? HIGH + GAP : 4;
  const y = scale(terms, top, LOW);
  terms.forEach((term, i) => {
    const from = Math.min(y(term), y(0)), height = Math.max(0.6, Math.abs(y(term) - y(0)));
    parts.push(drawn("rect", { class: term > 0 ? "harm" : "help", x: LEFT + (i + 0.16) * slot, y: from, width: 0.68 * slot, height },
      drawn("title", { text: `${about.part} ${count(about.steps[i])}: ${signed(term)} ${about.unit}` })));
  });
  const bottom = top + LOW + 14;
  parts.push(drawn("text", { x: LEFT, y: bottom, class: "tick", text: `${about.course ? "step " : ""}${count(about.steps[0])}` }));
  if (terms.length > 1) parts.push(drawn("text", { x: WIDTH, y: bottom, class: "tick end", text: count(about.steps[terms.length - 1]) }));
  const spoken = terms.map((term, i) => `${about.part} ${about.steps[i]}: ${signed(term)}`).join(", ");
  return element("figure", { class: "course" },
    drawn("svg", { viewBox: `0 0 ${WIDTH} ${bottom + 4}`, role: "img", "aria-label": `Course: ${spoken} ${about.unit}` }, ...parts),
    element("figcaption", { text: about.course
      ? `Below, what each ${about.part} adds; above, the sum so far, which ends at the influence (${about.unit || "as it is"}).`
      : `What each ${about.part} adds (${about.unit || "as it is"}).` }));
}
