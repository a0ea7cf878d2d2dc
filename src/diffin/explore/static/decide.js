// Decisions: made here, kept by the server, which has saved them when it answers.
import { post } from "./api.js";
import { count, element, get } from "./dom.js";

export class Decisions {
  // page: { targets(), place(), changed(ids), advance(), say(text), trouble(error), view() }
  constructor(about, words, page) {
    Object.assign(this, { about, words, page });
    get("undo").addEventListener("click", () => this.undo());
    get("mark-all").addEventListener("click", () => this.askAboutAll());
    get("download").addEventListener("click", () => this.download());
    this.heard(about);
  }

  heard({ counts, undoable }) {
    this.counts = counts;
    const total = counts.keep + counts.drop + counts.relabel;
    get("decided").textContent = total ? `${count(counts.keep)} to keep, ${count(counts.drop)} to drop, ${count(counts.relabel)} to relabel` : "nothing decided";
    get("undo").disabled = undoable === 0;
    get("download").disabled = total === 0;
  }

  // About what is selected, or else the current sample; then goes on to the next.
  async decide(verdict, label) {
    const { ids, many } = this.page.targets();
    if (!ids.length) return;
    await this.#send({ rows: ids, verdict, label }, ids);
    if (!many) this.page.advance();
  }

  async all(verdict, label) { await this.#send({ view: this.page.view(), verdict, label }, null); }

  async undo() {
    await this.#trying(async () => {
      const answer = await post("/api/undo", {});
      this.heard(answer);
      this.page.say(answer.changed ? `Undone: ${count(answer.changed)} ${answer.changed === 1 ? "sample" : "samples"}` : "Nothing to undo");
      this.page.reread(answer.row);
    });
  }

  askAboutAll() {
    const number = this.page.count();
    if (!number) return;
    const button = (text, verdict, label) => element("button", { type: "button", text, onclick: () => { get("all").close(); this.all(verdict, label); } });
    get("all-title").textContent = `Decide about all ${count(number)} shown`;
    const classes = this.about.classes;
    const choice = element("select", { "aria-label": "Class" }, ...classes.map((name, code) => element("option", { value: code, text: name })));
    get("all-choices").replaceChildren(button("Keep all", "keep"), button("Drop all", "drop"), button("Take back all", null),
      ...(classes.length ? [element("span", { class: "relabel" }, choice, element("button", { type: "button", text: "Relabel all as this", onclick: () => { get("all").close(); this.all("relabel", Number(choice.value)); } }))] : []));
    get("all").showModal();
  }

  async download() {
    await this.#trying(async () => {
      const response = await fetch("/api/decisions", { cache: "no-store" });
      const link = element("a", { href: URL.createObjectURL(await response.blob()), download: "decisions.json" });
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }

  async #send(content, ids) {
    await this.#trying(async () => {
      const answer = await post("/api/mark", content);
      const { verdict, label } = content;
      this.page.changed(ids, (row) => {
        // To the class that it has is to say that the label is right.
        const kept = verdict === "relabel" && row.given === label;
        row.mark = kept ? "keep" : verdict ?? undefined;
        row.marked = verdict === "relabel" && !kept ? label : undefined;
      });
      this.heard(answer);
      if (answer.trouble) this.page.trouble(new Error(answer.trouble));
      if (ids === null || ids.length > 1) this.page.say(`${count(answer.changed)} ${answer.changed === 1 ? "sample" : "samples"} changed`);
    });
  }

  async #trying(action) {
    try { await action(); } catch (error) { this.page.trouble(error); }
  }
}
