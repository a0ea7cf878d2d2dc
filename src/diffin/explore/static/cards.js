// What a sample looks like, small or large.
import { drawn, element, fact, share, signed, three } from "./dom.js";

export function media(look, alt) {
  if (!look) return element("span", { class: "media waiting", "aria-hidden": "true" });
  if (look.kind === "picture") {
    const picture = element("img", { src: look.picture, alt, draggable: "false" });
    const frame = element("span", { class: `media picture${look.crisp ? " crisp" : ""}` }, picture);
    return look.text ? element("span", { class: "media captioned" }, frame, element("span", { class: "caption", dir: "auto", text: look.text })) : frame;
  }
  if (look.kind === "text") return element("span", { class: "media text", dir: "auto", text: look.text ?? "" });
  if (look.kind === "row") return element("dl", { class: "media row" }, ...look.row.map(([name, value]) => fact(name, value)));
  if (look.kind === "wave") return wave(look.wave, alt);
  if (look.kind === "trouble") return element("span", { class: "media note", text: look.text });
  return element("span", { class: "media nothing" });
}

function wave(ends, alt) {
  const pieces = ends.length / 2;
  let path = "";
  for (let i = 0; i < pieces; i++) path += `M${i + 0.5} ${(1 - ends[2 * i]).toFixed(3)}V${(0.98 - ends[2 * i + 1]).toFixed(3)}`;
  return element("span", { class: "media wave" }, drawn("svg", { viewBox: `0 0 ${pieces} 2`, preserveAspectRatio: "none", role: "img", "aria-label": alt }, drawn("path", { d: path })));
}

export const sampleName = (row) => row.key ?? `#${row.i}`;

// How pages speak of one sample.
export class Words {
  constructor(about) { this.about = about; }

  influence(row) { return row.influence === undefined ? "none" : `${signed(row.influence * this.about.factor)}`; }

  verdict(row) {
    if (row.mark === "relabel") return `→ ${this.about.classes[row.marked] ?? row.marked}`;
    return { keep: "keep", drop: "drop" }[row.mark] ?? "";
  }

  aloud(row) {
    const parts = [`Sample ${row.key ?? row.i}`];
    if (row.label !== undefined) parts.push(`labelled ${row.label}`);
    if (row.predicted !== undefined) parts.push(`predicted ${row.predicted}`);
    if (row.influence === undefined) parts.push("no influence");
    else parts.push(`influence ${this.influence(row)} ${this.about.unit}, ${row.influence > 0 ? this.about.words.raises : this.about.words.lowers}`);
    if (row.mark) parts.push(`decided: ${this.verdict(row)}`);
    return parts.join(", ");
  }

  // The children of a card.
  card(row, look, place) {
    const disagrees = row.label !== undefined && row.predicted !== undefined && row.label !== row.predicted;
    const said = [];
    if (row.label !== undefined) said.push(fact("label", row.label));
    if (row.predicted !== undefined) {
      said.push(fact("model", row.confidence === undefined ? row.predicted : `${row.predicted} (${share(row.confidence)})`, disagrees ? "differs" : ""));
    } else if (row.suggested !== undefined && row.probability >= 0.5) said.push(fact("rather", row.suggested, "differs"));
    const numbers = [];
    if (row.loss !== undefined) numbers.push(element("span", {}, "loss ", element("b", { text: three(row.loss) })));
    if (row.probability !== undefined) numbers.push(element("span", {}, "wrong ", element("b", { text: share(row.probability) })));
    const sign = row.influence > 0 ? "harm" : row.influence < 0 ? "help" : "";
    return [
      element("div", { class: "top" }, element("span", { class: "place", text: (place + 1).toLocaleString("en-US") }),
        row.mark ? element("span", { class: `badge ${row.mark}`, text: this.verdict(row) }) : element("span", { class: "index", text: sampleName(row) })),
      media(look, this.aloud(row)),
      said.length ? element("dl", { class: "said" }, ...said) : null,
      element("p", { class: `influence ${sign}` }, element("b", { text: this.influence(row) }), row.influence === undefined ? null : ` ${this.about.unit}`),
      numbers.length ? element("p", { class: "loss" }, ...numbers) : null,
    ].filter((part) => part !== null);
  }

  // The same of a query.
  queryCard(query, look) {
    const facts = look?.facts;
    const best = facts?.proponents[0], worst = facts?.opponents[0];
    return [
      element("div", { class: "top" }, element("span", { class: "place", text: facts ? `query ${facts.query}` : "" })),
      media(look, `Query ${facts?.query ?? query.i}`),
      facts?.label ? element("dl", { class: "said" }, fact("label", facts.label)) : null,
      best ? element("p", { class: "loss" }, element("span", {}, "helped most by ", element("b", { text: `#${best[0]}` }))) : null,
      worst ? element("p", { class: "loss" }, element("span", {}, "harmed most by ", element("b", { text: `#${worst[0]}` }))) : null,
    ].filter((part) => part !== null);
  }
}
