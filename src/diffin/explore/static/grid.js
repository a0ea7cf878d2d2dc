// A grid of many cards, of which only those in sight exist.
import { element } from "./dom.js";
import { givenUp } from "./api.js";

const GAP = 12, OVERSCAN = 1, MOST_PIXELS = 15e6, CHUNK = 120;
// A look that is not asked for again while it is still here; the server keeps more.
const MOST_LOOKS = 2000;

export class Grid {
  // source: { rows(start, stop), look(ids, signal), fill(row, look, place), aloud(row, look), id(row) }
  constructor(scroller, { onOpen, onMove, onPick, onTrouble }) {
    Object.assign(this, { scroller, onOpen, onMove, onPick, onTrouble });
    this.inner = element("div", { class: "cards", role: "presentation" });
    this.empty = element("p", { class: "note empty", hidden: true, text: "Nothing is like that. Loosen the filters." });
    scroller.append(this.inner, this.empty);
    this.lines = new Map();
    this.looks = new Map();
    this.picked = new Set();
    this.count = 0;
    this.at = 0;
    this.scrolling = null;
    scroller.addEventListener("scroll", () => this.#soon(), { passive: true });
    scroller.addEventListener("focus", () => { if (this.count) this.focus(); });
    scroller.addEventListener("click", (event) => this.#clicked(event));
    new ResizeObserver(() => this.measure()).observe(scroller);
  }

  // Shows another list. Rows that came along with the answer need not be asked for.
  show(source, count, rows = [], at = 0) {
    if (this.source?.kind !== source.kind) this.looks.clear();
    this.source = source;
    this.count = count;
    this.rows = new Map(rows.map((row, place) => [place, row]));
    this.asked = new Set(rows.length ? [0] : []);
    this.at = Math.max(0, Math.min(at, count - 1));
    this.picked.clear();
    this.empty.hidden = count > 0;
    this.#forget();
    this.measure(true);
  }

  get current() { return this.rows?.get(this.at); }

  measure(anew = false) {
    const width = this.scroller.clientWidth - 2 * GAP;
    if (width <= 0 || !this.source) return;
    const { least, height } = this.source.size();
    const columns = Math.max(width < 420 ? (least < 200 ? 2 : 1) : 1, Math.floor((width + GAP) / (least + GAP)));
    const wide = (width - (columns - 1) * GAP) / columns;
    const high = Math.round(height(wide));
    const lineCount = Math.ceil(this.count / columns);
    const shown = Math.min(lineCount, Math.floor(MOST_PIXELS / (high + GAP)));
    const changed = anew || columns !== this.columns || high !== this.high;
    Object.assign(this, { columns, wide, high, lineCount: shown, reach: shown * columns });
    if (!changed && wide === this.lastWide) return;
    this.lastWide = wide;
    this.inner.style.height = `${shown * (high + GAP)}px`;
    this.scroller.setAttribute("aria-rowcount", String(lineCount));
    this.scroller.setAttribute("aria-colcount", String(columns));
    this.#forget();
    if (this.at) this.#reveal(); else if (anew) this.scroller.scrollTop = 0;
    this.render();
    if (this.held) this.card(this.at)?.focus({ preventScroll: true });
    this.held = false;
  }

  render() {
    const step = this.high + GAP;
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / step) - OVERSCAN);
    const last = Math.min(this.lineCount, Math.ceil((this.scroller.scrollTop + this.scroller.clientHeight) / step) + OVERSCAN);
    for (const [line, part] of this.lines) {
      if ((line < first || line >= last) && !part.contains(document.activeElement)) { part.remove(); this.lines.delete(line); }
    }
    for (let line = first; line < last; line++) if (!this.lines.has(line)) this.#line(line);
    // Where the current card is out of sight, the list itself can be reached by tab.
    this.scroller.setAttribute("tabindex", this.card(this.at) ? "-1" : "0");
    this.#complete(first * this.columns, Math.min(this.count, last * this.columns));
  }

  focus() {
    this.#reveal();
    this.render();
    this.card(this.at)?.focus({ preventScroll: true });
  }

  move(by) { this.go(this.at + by); }

  go(place) {
    const to = Math.max(0, Math.min(place, Math.min(this.count, this.reach) - 1));
    if (!this.count) return;
    const before = this.card(this.at);
    this.at = to;
    before?.setAttribute("tabindex", "-1");
    before?.classList.remove("current");
    this.focus();
    const now = this.card(to);
    now?.setAttribute("tabindex", "0");
    now?.classList.add("current");
    this.onMove(this.current);
  }

  // How many cards a page of it holds.
  get page() { return this.columns * Math.max(1, Math.floor(this.scroller.clientHeight / (this.high + GAP))); }

  pick(place) {
    const row = this.rows.get(place);
    if (!row) return;
    const id = this.source.id(row);
    if (!this.picked.delete(id)) this.picked.add(id);
    this.redraw(place);
    this.onPick();
  }

  unpick() {
    this.picked.clear();
    for (const line of this.lines.keys()) this.#refill(line);
    this.onPick();
  }

  // Changes what is known of some rows, by a function.
  change(ids, alter) {
    const wanted = ids === null ? null : new Set(ids);
    for (const [place, row] of this.rows) {
      if (wanted === null || wanted.has(this.source.id(row))) { alter(row); this.redraw(place); }
    }
  }

  // Asks for all rows again, that are no longer as they were.
  reload() {
    this.asked.clear();
    this.render();
  }

  card(place) { return this.lines.get(Math.floor(place / this.columns))?.children[place % this.columns]; }

  redraw(place) {
    const card = this.card(place);
    if (card) this.#fill(card, place);
  }

  #forget() {
    // A card that goes takes the focus with it; the one that comes in its place gets it.
    this.held ||= this.inner.contains(document.activeElement);
    for (const part of this.lines.values()) part.remove();
    this.lines.clear();
  }

  #soon() {
    if (this.scrolling) return;
    this.scrolling = requestAnimationFrame(() => { this.scrolling = null; this.render(); });
  }

  #reveal() {
    const step = this.high + GAP, top = Math.floor(this.at / this.columns) * step, view = this.scroller.clientHeight;
    if (top < this.scroller.scrollTop) this.scroller.scrollTop = top;
    else if (top + step > this.scroller.scrollTop + view) this.scroller.scrollTop = Math.min(top, top + step - view);
  }

  #line(line) {
    const part = element("div", { class: "line", role: "row", "aria-rowindex": line + 1 });
    part.style.transform = `translateY(${line * (this.high + GAP)}px)`;
    for (let column = 0; column < this.columns; column++) {
      const place = line * this.columns + column;
      if (place >= this.count) break;
      const card = element("div", { class: "card", role: "gridcell", "aria-colindex": column + 1, data: { place } });
      card.style.width = `${this.wide}px`;
      card.style.height = `${this.high}px`;
      this.#fill(card, place);
      part.append(card);
    }
    this.lines.set(line, part);
    this.inner.append(part);
  }

  #refill(line) {
    for (const card of this.lines.get(line)?.children ?? []) this.#fill(card, Number(card.dataset.place));
  }

  #fill(card, place) {
    const row = this.rows.get(place);
    card.setAttribute("tabindex", place === this.at ? "0" : "-1");
    card.classList.toggle("current", place === this.at);
    if (!row) { card.setAttribute("aria-busy", "true"); card.replaceChildren(); return; }
    const id = this.source.id(row), look = this.looks.get(id);
    card.removeAttribute("aria-busy");
    card.setAttribute("aria-selected", String(this.picked.has(id)));
    card.setAttribute("aria-label", this.source.aloud(row, look));
    card.classList.toggle("decided", Boolean(row.mark));
    card.dataset.id = id;
    card.replaceChildren(...this.source.fill(row, look, place));
  }

  // Rows first, then what they look like; the question about what was scrolled past is given up.
  async #complete(start, stop) {
    const source = this.source;
    const missing = [];
    for (let chunk = Math.floor(start / CHUNK); chunk * CHUNK < stop; chunk++) if (!this.asked.has(chunk)) missing.push(chunk);
    try {
      await Promise.all(missing.map(async (chunk) => {
        this.asked.add(chunk);
        const rows = await source.rows(chunk * CHUNK, Math.min(this.count, (chunk + 1) * CHUNK));
        if (this.source !== source) return;
        rows.forEach((row, i) => { this.rows.set(chunk * CHUNK + i, row); this.redraw(chunk * CHUNK + i); });
      }));
      if (this.source !== source) return;
      this.#look(start, stop);
    } catch (error) {
      if (!givenUp(error)) this.onTrouble(error);
    }
  }

  #look(start, stop) {
    const wanted = [];
    for (let place = start; place < stop; place++) {
      const row = this.rows.get(place);
      if (row && !this.looks.has(this.source.id(row))) wanted.push(this.source.id(row));
    }
    const key = wanted.join();
    if (key === this.looking) return;
    this.looking = key;
    this.giveUp?.abort();
    clearTimeout(this.pause);
    if (!wanted.length) return;
    // At rest, at once; while it is scrolled fast, nothing is read.
    const wait = performance.now() - (this.lastLook ?? 0) < 120 ? 90 : 0;
    this.lastLook = performance.now();
    this.pause = setTimeout(() => this.#ask(wanted), wait);
  }

  async #ask(wanted) {
    const source = this.source;
    this.giveUp = new AbortController();
    try {
      const looks = await source.look(wanted, this.giveUp.signal);
      if (this.source !== source) return;
      for (const [id, look] of Object.entries(looks)) this.looks.set(Number(id), look);
      while (this.looks.size > MOST_LOOKS) this.looks.delete(this.looks.keys().next().value);
      for (const part of this.lines.values()) {
        for (const card of part.children) {
          const place = Number(card.dataset.place), row = this.rows.get(place), look = row && looks[source.id(row)];
          if (!look) continue;
          if (look.facts && source.learn) source.learn(row, look.facts);
          this.#fill(card, place);
        }
      }
    } catch (error) {
      if (!givenUp(error)) this.onTrouble(error);
    } finally {
      if (this.looking === wanted.join()) this.looking = null;
    }
  }

  #clicked(event) {
    const card = event.target.closest(".card");
    if (!card) return;
    const place = Number(card.dataset.place);
    if (event.ctrlKey || event.metaKey || event.shiftKey) {
      const from = this.at;
      this.go(place);
      if (event.shiftKey) {
        for (let k = Math.min(from, place); k <= Math.max(from, place); k++) {
          const row = this.rows.get(k);
          if (row) this.picked.add(this.source.id(row));
          this.redraw(k);
        }
        this.onPick();
      } else this.pick(place);
      return;
    }
    this.go(place);
    this.onOpen(this.current);
  }
}
