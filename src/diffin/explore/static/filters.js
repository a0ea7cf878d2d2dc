// Everything that narrows down what is listed.
import { calmly, count, element } from "./dom.js";
import { Histogram } from "./histogram.js";

const LISTED = 8;
const ALWAYS = ["influence", "loss"];
const MARKS = ["undecided", "to keep", "to drop", "to relabel"];
const UNRESTRICTED = { categories: {}, ranges: {}, agreement: null, failed: null, marks: [], text: "" };

export class Filters {
  constructor(root, about, onChange) {
    Object.assign(this, { root, about, onChange });
    this.asked = structuredClone(UNRESTRICTED);
    this.histograms = new Map();
    this.categories = new Map();
    this.soon = calmly(() => onChange(), 60);
    this.search = element("input", { type: "search", id: "search", placeholder: "text, label, key or number", spellcheck: "false", oninput: () => { this.asked.text = this.search.value; this.soon(); } });
    this.places = { numbers: element("div"), categories: element("div") };
    this.more = element("select", { "aria-label": "Another number to filter by", onchange: () => this.#added() });
    this.agreement = this.#choice("Label and prediction", "agreement", [["any", null], ["agree", true], ["disagree", false]]);
    this.failed = this.#choice("Failed samples", "failed", [["with", null], ["without", false], ["only", true]]);
    this.marks = this.#boxes("Decided", MARKS, () => this.asked.marks, (codes) => { this.asked.marks = codes; });
    this.reset = element("button", { type: "button", text: "Clear all filters", onclick: () => { this.set(UNRESTRICTED); onChange(); } });
    root.replaceChildren(
      element("div", { class: "filter" }, element("label", { for: "search" }, element("h3", { text: "Search" })), this.search),
      this.agreement.root, this.places.numbers,
      element("div", { class: "filter more-numbers" }, this.more), this.places.categories, this.marks.root, this.failed.root, this.reset);
    this.#offer();
    for (const name of ALWAYS) this.#histogram(name);
    this.learn(about);
  }

  // Takes what a page was left with, or nothing.
  set(asked) {
    this.asked = structuredClone({ ...UNRESTRICTED, ...asked });
    this.search.value = this.asked.text;
    for (const name of Object.keys(this.asked.ranges)) if (this.about.columns.some((column) => column.name === name)) this.#histogram(name);
    for (const [name, histogram] of this.histograms) histogram.set(this.asked.ranges[name] ?? [null, null]);
    for (const part of [this.agreement, this.failed, this.marks, ...this.categories.values()]) part.sync();
    this.#state();
  }

  // What has become known since: categories, classes, whether there are predictions.
  learn(news) {
    this.agreement.root.hidden = !news.agreement;
    this.failed.root.hidden = this.about.failed === 0;
    this.root.querySelector(".filter").hidden = !this.about.searched;
    for (const { name, title, names } of news.categories) {
      const known = this.categories.get(name);
      if (known && known.names.length === names.length) continue;
      const part = this.#boxes(title, names, () => this.asked.categories[name] ?? [], (codes) => {
        if (codes.length) this.asked.categories[name] = codes; else delete this.asked.categories[name];
      });
      if (known) known.root.replaceWith(part.root); else this.places.categories.append(part.root);
      if (this.facets?.[name]) part.update(this.facets[name]);
      this.categories.set(name, part);
    }
    for (const [name, part] of this.categories) {
      if (!news.categories.some((category) => category.name === name)) { part.root.remove(); this.categories.delete(name); delete this.asked.categories[name]; }
    }
  }

  update({ facets, histograms }) {
    this.facets = facets;
    for (const [name, counts] of Object.entries(histograms)) this.histograms.get(name)?.update(counts);
    for (const [name, counts] of Object.entries(facets)) this.categories.get(name)?.update(counts);
    this.#state();
  }

  get wanted() { return { ...this.asked, histograms: [...this.histograms.keys()] }; }

  get active() {
    const { categories, ranges, agreement, failed, marks, text } = this.asked;
    return Object.keys(categories).length + Object.keys(ranges).length + (agreement !== null) + (failed !== null) + (marks.length > 0) + (text !== "");
  }

  #state() { this.reset.disabled = this.active === 0; }

  #offer() {
    const groups = new Map();
    for (const column of this.about.columns) {
      if (this.histograms.has(column.name)) continue;
      const key = column.group || "scores";
      groups.set(key, [...(groups.get(key) ?? []), element("option", { value: column.name, text: column.title })]);
    }
    this.more.replaceChildren(element("option", { value: "", text: "Another number…" }), ...[...groups].map(([label, options]) => element("optgroup", { label }, ...options)));
    this.more.parentElement?.toggleAttribute("hidden", groups.size === 0);
  }

  #added() {
    if (!this.more.value) return;
    const histogram = this.#histogram(this.more.value);
    this.more.value = "";
    this.onChange();
    histogram.inputs[0].focus();
  }

  #histogram(name) {
    if (this.histograms.has(name)) return this.histograms.get(name);
    const column = this.about.columns.find((one) => one.name === name);
    const histogram = new Histogram(column, {
      factor: column.scaled ? this.about.factor : 1,
      unit: column.scaled ? this.about.unit : "",
      onChange: (goesOn = false) => {
        if (histogram.chosen) this.asked.ranges[name] = histogram.range; else delete this.asked.ranges[name];
        if (goesOn) this.soon(); else this.onChange();
      },
      onRemove: ALWAYS.includes(name) ? null : () => {
        histogram.root.remove();
        this.histograms.delete(name);
        delete this.asked.ranges[name];
        this.#offer();
        this.onChange();
      },
    });
    this.histograms.set(name, histogram);
    this.places.numbers.append(histogram.root);
    this.#offer();
    return histogram;
  }

  // One of a few.
  #choice(title, key, options) {
    const inputs = options.map(([, value]) => element("input", { type: "radio", name: key, onchange: () => { this.asked[key] = value; this.onChange(); } }));
    const root = element("fieldset", { class: "filter choice" }, element("legend", { text: title }),
      ...options.map(([text], i) => element("label", {}, inputs[i], element("span", { text }))));
    const sync = () => options.forEach(([, value], i) => { inputs[i].checked = this.asked[key] === value; });
    sync();
    return { root, sync };
  }

  // Any of several, with how many there are of each.
  #boxes(title, names, chosen, choose) {
    const inputs = names.map((name, code) => element("input", { type: "checkbox", onchange: () => {
      choose(inputs.flatMap((input, at) => (input.checked ? [at] : [])));
      this.onChange();
    } }));
    const numbers = names.map(() => element("span", { class: "number" }));
    const lines = names.map((name, code) => element("label", {}, inputs[code], element("span", { class: "name", dir: "auto", text: name }), numbers[code]));
    const all = element("button", { type: "button", class: "plain", hidden: names.length <= LISTED, text: `all ${count(names.length)}`, "aria-expanded": "false", onclick: () => {
      list.classList.toggle("short");
      all.setAttribute("aria-expanded", String(!list.classList.contains("short")));
      all.textContent = list.classList.contains("short") ? `all ${count(names.length)}` : "fewer";
    } });
    const list = element("div", { class: `boxes${names.length > LISTED ? " short" : ""}` }, ...lines);
    const root = element("fieldset", { class: "filter" }, element("legend", { text: title }), list, all);
    const sync = () => { const codes = chosen(); inputs.forEach((input, code) => { input.checked = codes.includes(code); }); };
    const update = (counts) => counts.forEach((number, code) => { if (numbers[code]) numbers[code].textContent = count(number); });
    sync();
    return { root, names, sync, update };
  }
}
