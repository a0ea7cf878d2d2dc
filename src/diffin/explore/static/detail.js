// One sample, or one query, large: all that is known about it, its course, and who is near to it.
import { get as ask, givenUp } from "./api.js";
import { media, sampleName } from "./cards.js";
import { course } from "./course.js";
import { count, element, fact, share, signed, three } from "./dom.js";

export class Detail {
  // act: { decide(verdict, label), open(row), openQuery(place), close(), trouble(error) }
  constructor(root, about, words, act) {
    Object.assign(this, { root, about, words, act });
    this.title = element("h2", { id: "detail-title", tabindex: "-1" });
    this.close = element("button", { type: "button", "aria-label": "Close", text: "×", onclick: () => act.close() });
    this.back = element("button", { type: "button", "aria-label": "Back", text: "←", hidden: true, onclick: () => this.#return() });
    this.body = element("div", { class: "detail-inner" });
    this.trail = [];
    root.replaceChildren(element("div", { class: "detail-head" }, this.title, element("div", { class: "controls" }, this.back, this.close)), this.body);
  }

  get open() { return !this.root.hidden; }

  async sample(row, { onTrail = false } = {}) {
    await this.#show({ kind: "sample", row }, onTrail, async (signal) => {
      const [facts, looks] = await Promise.all([ask(`/api/sample/${row}`, {}, signal), this.about.shows ? ask("/api/seen", { of: row }, signal) : {}]);
      return () => this.#fillSample({ ...facts, ...looks[row]?.facts }, looks[row]);
    });
  }

  async query(place, { onTrail = false } = {}) {
    await this.#show({ kind: "query", place }, onTrail, async (signal) => {
      const looks = await ask("/api/queries", { of: place }, signal);
      return () => this.#fillQuery(looks[place]);
    });
  }

  hide() {
    this.root.hidden = true;
    this.giveUp?.abort();
    this.at = null;
    this.trail = [];
  }

  // Shows again what is open, after a decision about it.
  again() { if (this.at?.kind === "sample") this.sample(this.at.row, { onTrail: null }); }

  #return() {
    const before = this.trail.pop();
    if (!before) return;
    const to = before.kind === "sample" ? this.sample(before.row, { onTrail: null }) : this.query(before.place, { onTrail: null });
    to.then(() => this.title.focus());
  }

  // onTrail: true remembers the present one, false begins anew, null changes nothing.
  async #show(at, onTrail, load) {
    this.giveUp?.abort();
    const giveUp = this.giveUp = new AbortController();
    try {
      const fill = await load(giveUp.signal);
      if (onTrail === true && this.at) this.trail.push(this.at);
      if (onTrail === false) this.trail = [];
      const same = JSON.stringify(this.at) === JSON.stringify(at);
      this.at = at;
      this.back.hidden = this.trail.length === 0;
      fill();
      this.root.hidden = false;
      if (!same) this.root.scrollTop = 0;
    } catch (error) {
      if (!givenUp(error)) this.act.trouble(error);
    }
  }

  #fillSample(row, look) {
    this.facts = row;
    const { about } = this;
    this.title.textContent = `Sample ${sampleName(row)}`;
    const facts = [
      fact("influence", `${this.words.influence(row)}${this.#error(row)} ${row.influence === undefined ? "" : about.unit}`.trim(), `strong ${row.influence > 0 ? "harm" : "help"}`),
      row.rank ? fact("rank", `${count(row.rank)} of ${count(row.ranked)}, largest first`) : null,
      row.failure ? fact("failed", row.failure) : null,
      fact("mean loss", three(row.loss ?? null)),
      row.key === undefined ? null : fact("place", `#${row.i}`),
      row.label === undefined ? null : fact("label", row.label, "strong"),
      row.predicted === undefined ? null : fact("model says", row.confidence === undefined ? row.predicted : `${row.predicted} (${share(row.confidence)})`, "strong"),
      row.probability === undefined ? null : fact("label is wrong", share(row.probability)),
      ...Object.values(row.categories).filter(([, name]) => name !== null).map(([title, name]) => fact(title, name)),
    ];
    this.body.replaceChildren(...[
      media(look, this.words.aloud(row)),
      this.#decisions(row),
      element("dl", { class: "facts-list" }, ...facts.filter(Boolean)),
      course(row, about),
      this.#numbers(row),
      ...(row.queries ? this.#queries(row.queries) : []),
    ].filter(Boolean));
  }

  #error(row) {
    const error = row.numbers.standard_error?.[2];
    return error === null || error === undefined ? "" : ` ± ${three(error * this.about.factor)}`;
  }

  #decisions(row) {
    const button = (verdict, text, key) => element("button", {
      type: "button", "aria-pressed": String(row.mark === verdict), onclick: () => this.act.decide(row.mark === verdict ? null : verdict),
    }, element("kbd", { text: key }), ` ${text}`);
    const classes = this.about.classes;
    const choice = classes.length === 0 ? null : element("label", { class: "relabel" }, element("span", { text: "Relabel as" }),
      element("select", { id: "class", onchange: (event) => { if (event.target.value !== "") this.act.decide("relabel", Number(event.target.value)); } },
        element("option", { value: "", text: "…" }),
        ...classes.map((name, code) => element("option", { value: code, text: name, selected: row.mark === "relabel" && row.marked === code }))));
    return element("div", { class: "deciding", role: "group", "aria-label": "Decision" }, button("keep", "Good", "G"), button("drop", "Drop", "D"),
      row.rather === undefined ? null : element("button", { type: "button", "aria-pressed": String(row.mark === "relabel" && row.marked === row.rather), onclick: () => this.act.decide("relabel", row.rather) },
        element("kbd", { text: "R" }), ` ${classes[row.rather]}`),
      choice);
  }

  #numbers(row) {
    const groups = new Map();
    for (const [name, [title, group, value]] of Object.entries(row.numbers)) {
      if (!group || value === null || name === "probability" || name === "confidence") continue;
      groups.set(group, [...(groups.get(group) ?? []), fact(title, three(value))]);
    }
    if (!groups.size) return null;
    return element("details", { class: "signals", open: true }, element("summary", { text: "Signals and columns" }),
      ...[...groups].flatMap(([title, facts]) => [element("h3", { text: title }), element("dl", { class: "facts-list two" }, ...facts)]));
  }

  #queries({ helped, harmed }) {
    const strip = (title, list) => {
      const place = element("div", { class: "strip" });
      this.#fillStrip(place, "/api/queries", list.map(([at, query, influence]) => ({ id: at, name: `query ${query}`, influence, open: () => this.act.openQuery(at) })));
      return element("section", {}, element("h3", { text: title }), list.length ? place : element("p", { class: "note", text: "None known." }));
    };
    const about = this.about.complete ? "" : ` From the strongest ${this.about.top} of each query; of others nothing is known.`;
    return [strip("Queries it helps most", helped), strip("Queries it harms most", harmed), element("p", { class: "note", text: `Influence on the loss of each query.${about}` })];
  }

  #fillQuery(look) {
    const { facts } = look;
    this.title.textContent = `Query ${facts.query}`;
    const strip = (title, pairs) => {
      const place = element("div", { class: "strip" });
      this.#fillStrip(place, "/api/seen", pairs.map(([index, influence]) => ({ id: index, name: `#${index}`, influence, open: () => this.act.open(index) })));
      return element("section", {}, element("h3", { text: title }), place);
    };
    this.body.replaceChildren(media(look, `Query ${facts.query}`),
      ...(facts.label ? [element("dl", { class: "facts-list" }, fact("label", facts.label, "strong"))] : []),
      strip("Proponents: helped it most", facts.proponents), strip("Opponents: harmed it most", facts.opponents));
  }

  async #fillStrip(place, path, entries) {
    const buttons = entries.map((entry) => element("button", { type: "button", class: "neighbour", onclick: entry.open, "aria-label": `${entry.name}, influence ${signed(entry.influence)}` },
      element("span", { class: "media waiting" }),
      element("span", { class: "neighbour-name", text: entry.name }),
      element("span", { class: entry.influence > 0 ? "harm" : "help", text: signed(entry.influence) })));
    place.replaceChildren(...buttons);
    if (!entries.length) return;
    try {
      const looks = await ask(path, { of: entries.map((entry) => entry.id).join() }, this.giveUp.signal);
      buttons.forEach((button, i) => {
        const look = looks[entries[i].id];
        button.firstChild.replaceWith(media(look ?? { kind: "none" }, entries[i].name));
        if (look?.facts.label) button.append(element("span", { class: "neighbour-label", dir: "auto", text: look.facts.label }));
      });
    } catch (error) {
      if (!givenUp(error)) this.act.trouble(error);
    }
  }
}
