// A histogram with a range on it: by brush, or by two numbers.
import { count, drawn, element, three } from "./dom.js";

const HEIGHT = 44;

export class Histogram {
  // column: as the server describes it; factor: values are shown multiplied by it.
  constructor(column, { factor, unit, onChange, onRemove }) {
    Object.assign(this, { column, factor, onChange });
    this.range = [null, null];
    this.bins = column.all.length;
    this.bars = drawn("g");
    this.brush = drawn("rect", { class: "brush", y: 0, height: HEIGHT, visibility: "hidden" });
    this.zero = drawn("line", { class: "zero", y1: 0, y2: HEIGHT });
    this.picture = drawn("svg", { viewBox: `0 0 ${this.bins} ${HEIGHT}`, preserveAspectRatio: "none", class: "histogram", role: "img" }, this.brush, this.bars, this.zero);
    const name = column.title;
    this.inputs = ["least", "most"].map((end, place) => element("input", {
      type: "number", step: "any", "aria-label": `${name}, ${end}`, placeholder: three(this.#shown(column.edges[place ? this.bins : 0])),
      onchange: () => this.#typed(),
    }));
    this.clearing = element("button", { type: "button", class: "plain", "aria-label": `Any ${name}`, text: "any", hidden: true, onclick: () => { this.set([null, null]); this.onChange(); } });
    this.root = element("section", { class: "filter", "aria-label": name },
      element("div", { class: "filter-head" }, element("h3", { text: unit ? `${name} (${unit})` : name }), this.clearing,
        onRemove ? element("button", { type: "button", class: "plain", "aria-label": `Remove ${name}`, text: "×", onclick: onRemove }) : null),
      this.picture, element("div", { class: "bounds" }, this.inputs[0], element("span", { "aria-hidden": "true", text: "to" }), this.inputs[1]));
    this.#draw(column.all);
    this.#brushing();
  }

  // Counts under the other filters.
  update(counts) { this.#draw(counts); }

  set(range) {
    this.range = range;
    range.forEach((value, place) => { this.inputs[place].value = value === null ? "" : String(Number((value * this.factor).toPrecision(4))); });
    this.#show();
  }

  get chosen() { return this.range[0] !== null || this.range[1] !== null; }

  #shown(value) { return value * this.factor; }

  #typed() {
    this.range = this.inputs.map((input) => (input.value === "" ? null : Number(input.value) / this.factor));
    this.#show();
    this.onChange();
  }

  #draw(counts) {
    const top = Math.log1p(Math.max(1, ...this.column.all));
    const bar = (kind, i, number) => {
      const height = (HEIGHT - 2) * Math.log1p(number) / top;
      return drawn("rect", { class: kind, x: i + 0.08, y: HEIGHT - height, width: 0.84, height });
    };
    const edges = this.column.edges;
    const sign = (i) => (!this.column.scaled || this.column.name === "standard_error" || this.column.name === "magnitude" ? "some" : edges[i] + edges[i + 1] > 0 ? "harm" : "help");
    this.bars.replaceChildren(...this.column.all.map((number, i) => bar("all", i, number)), ...counts.map((number, i) => bar(sign(i), i, number)));
    const total = counts.reduce((sum, number) => sum + number, 0);
    this.picture.setAttribute("aria-label", `Histogram of ${this.column.title}: ${count(total)} samples from ${three(this.#shown(edges[0]))} to ${three(this.#shown(edges[this.bins]))}`);
    const zero = this.#place(0);
    this.zero.setAttribute("visibility", zero > 0 && zero < this.bins ? "visible" : "hidden");
    this.zero.setAttribute("x1", zero);
    this.zero.setAttribute("x2", zero);
    this.#show();
  }

  #place(value) {
    const edges = this.column.edges;
    return (value - edges[0]) / (edges[this.bins] - edges[0]) * this.bins;
  }

  #show() {
    this.clearing.hidden = !this.chosen;
    this.brush.setAttribute("visibility", this.chosen ? "visible" : "hidden");
    if (!this.chosen) return;
    const clamp = (value) => Math.max(0, Math.min(this.bins, value));
    const from = this.range[0] === null ? 0 : clamp(this.#place(this.range[0]));
    const to = this.range[1] === null ? this.bins : clamp(this.#place(this.range[1]));
    this.brush.setAttribute("x", from);
    this.brush.setAttribute("width", Math.max(0.3, to - from));
  }

  #brushing() {
    let start = null;
    const at = (event) => {
      const box = this.picture.getBoundingClientRect();
      return Math.max(0, Math.min(this.bins, (event.clientX - box.left) / box.width * this.bins));
    };
    const drag = (event) => {
      const [low, high] = [start, at(event)].sort((a, b) => a - b).map((place, end) => (end ? Math.ceil(place) : Math.floor(place)));
      const edges = this.column.edges;
      // What lies beyond the last bin belongs to it.
      this.set([low <= 0 ? null : edges[low], high >= this.bins ? null : edges[high]]);
    };
    this.picture.addEventListener("pointerdown", (event) => {
      this.picture.setPointerCapture(event.pointerId);
      start = at(event);
      event.preventDefault();
    });
    this.picture.addEventListener("pointermove", (event) => { if (start !== null) { drag(event); this.onChange(true); } });
    this.picture.addEventListener("pointerup", (event) => {
      if (start === null) return;
      drag(event);
      start = null;
      this.onChange();
    });
    this.picture.addEventListener("pointercancel", () => { start = null; });
  }
}
