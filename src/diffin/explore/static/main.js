// The page: what is asked, what is listed, what is open, and the keys.
import { get as ask, givenUp, post } from "./api.js";
import { Words } from "./cards.js";
import { count, element, get } from "./dom.js";
import { Decisions } from "./decide.js";
import { Detail } from "./detail.js";
import { Filters } from "./filters.js";
import { Grid } from "./grid.js";

// The token has done its duty: the cookie stands for it, and an address bar is looked at by others.
history.replaceState(null, "", "/" + location.hash);
const about = await ask("/api/about");
const words = new Words(about);
const kinds = new Set();
let view = { number: null, count: 0 }, giveUp = null, tab = "samples", advanceable = true;

document.title = `${about.title} – diffin explore`;
get("title").textContent = about.title;
get("help-sign").textContent = `A sample of positive influence ${about.words.raises}, of negative influence ${about.words.lowers}. ${about.unit ? `Influences are given in ${about.unit.slice(1)}. ` : ""}Counts in histograms are on a logarithmic scale; a bin at an end also holds what lies beyond.`;
get("help-file").textContent = about.decisions ? `Decisions are saved as they are made, in ${about.decisions}; diffin clean --decisions follows them.` : "Decisions are kept while this page is served; download them before it ends.";

const filters = new Filters(get("filters"), about, () => refresh());
const detail = new Detail(get("detail"), about, words, {
  decide: (verdict, label) => decisions.decide(verdict, label),
  open: (row) => detail.sample(row, { onTrail: true }).then(() => detail.title.focus()),
  openQuery: (place) => detail.query(place, { onTrail: true }).then(() => detail.title.focus()),
  close: () => closeDetail(),
  trouble,
});
const grid = new Grid(get("grid"), {
  onOpen: (row) => open(row),
  onMove: (row) => { remember(); if (detail.open && row) open(row); },
  onPick: () => tally(),
  onTrouble: trouble,
});
const decisions = new Decisions(about, words, {
  targets,
  view: () => view.number,
  count: () => view.count,
  changed: (ids, alter) => { if (tab === "samples") { grid.change(ids, alter); if (ids === null) grid.reload(); } detail.again(); },
  reread,
  advance: () => { if (advanceable && tab === "samples" && grid.at < grid.count - 1) grid.move(1); },
  say,
  trouble,
});

// What a card holds tells how high it is.
const samples = {
  kind: "samples",
  id: (row) => row.i,
  rows: async (start, stop) => (await ask("/api/rows", { view: view.number, start, stop })).rows,
  look: about.shows ? (ids, signal) => ask("/api/seen", { of: ids.join() }, signal).then(noticed) : async () => ({}),
  learn: (row, facts) => Object.assign(row, facts),
  fill: (row, look, place) => words.card(row, about.shows ? look : { kind: "none" }, place),
  aloud: (row) => words.aloud(row),
  size: () => size(about.shows, 2),
};
const queries = {
  kind: "queries",
  id: (row) => row.i,
  rows: async (start, stop) => Array.from({ length: stop - start }, (_, k) => ({ i: start + k })),
  look: (ids, signal) => ask("/api/queries", { of: ids.join() }, signal).then(noticed),
  fill: (row, look) => words.queryCard(row, look),
  aloud: (row, look) => `Query ${look?.facts.query ?? row.i}${look?.facts.label ? `, labelled ${look.facts.label}` : ""}`,
  size: () => size(kinds.size > 0 && !(kinds.size === 1 && kinds.has("none")), 1),
};

function size(shows, lines) {
  if (!shows) return { least: 150, height: () => 84 + 20 * lines };
  if (kinds.has("text") || kinds.has("row")) return { least: 252, height: () => 300 };
  return { least: 156, height: (width) => Math.round(width - 26 + 96 + 21 * lines) };
}

// The first looks tell whether cards hold pictures or text; they are laid out again when that is other than thought.
function noticed(looks) {
  const before = JSON.stringify([...kinds]);
  for (const look of Object.values(looks)) if (kinds.size < 6 && !kinds.has(look.kind)) kinds.add(look.kind);
  if (JSON.stringify([...kinds]) !== before) requestAnimationFrame(() => grid.measure());
  return looks;
}

for (const [key, options] of Object.entries(sortable())) {
  get("sort").append(key ? element("optgroup", { label: key }, ...options) : element("optgroup", { label: "scores" }, ...options));
}
function sortable() {
  const groups = { "": [element("option", { value: "index", text: "place in the data" })] };
  for (const column of about.columns) (groups[column.group] ??= []).push(element("option", { value: column.name, text: column.title }));
  return groups;
}
const order = { sort: "influence", descending: about.words.sign > 0 };
function showOrder() {
  get("sort").value = order.sort;
  get("direction").textContent = order.descending ? "largest first ↓" : "smallest first ↑";
}
get("sort").addEventListener("change", () => {
  order.sort = get("sort").value;
  order.descending = about.columns.find((column) => column.name === order.sort)?.large_first ?? false;
  refresh();
});
get("direction").addEventListener("click", () => { order.descending = !order.descending; refresh(); });

// Asks for the samples; what was asked before and is not answered yet is given up.
async function refresh(at = 0) {
  giveUp?.abort();
  const mine = giveUp = new AbortController();
  showOrder();
  try {
    const answer = await post("/api/view", { ...filters.wanted, ...order }, mine.signal);
    view = { number: answer.view, count: answer.count };
    filters.update(answer);
    if (tab === "samples") grid.show(samples, answer.count, answer.rows, at);
    tally();
    remember();
    document.body.dataset.view = answer.view;
  } catch (error) {
    if (!givenUp(error)) trouble(error);
  }
}

function tally() {
  const picked = grid.picked.size;
  if (tab === "queries") get("count").textContent = `${count(about.queries)} ${about.queries === 1 ? "query" : "queries"}`;
  else {
    const all = view.count === about.samples;
    get("count").textContent = `${count(view.count)}${all ? "" : ` of ${count(about.samples)}`} samples${picked ? `, ${count(picked)} selected` : ""}${grid.reach < view.count ? `; the first ${count(grid.reach)} are listed` : ""}`;
  }
  get("mark-all").disabled = view.count === 0;
  get("show-filters").textContent = filters.active ? `Filters (${filters.active})` : "Filters";
}

// A reload comes back to the same filter and the same place.
function remember() {
  const { histograms, ...asked } = filters.wanted;
  history.replaceState(null, "", "/#" + encodeURIComponent(JSON.stringify({ asked, order, at: grid.at })));
}
function recall() {
  try {
    const { asked, order: before, at } = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    filters.set(asked);
    Object.assign(order, before);
    return at;
  } catch { return 0; }
}

function targets() {
  if (tab !== "samples") return detail.at?.kind === "sample" ? { ids: [detail.at.row], many: true } : { ids: [], many: false };
  if (grid.picked.size) return { ids: [...grid.picked], many: true };
  // Someone near, opened from a strip, is not the current card.
  if (detail.open && detail.at?.kind === "sample" && detail.at.row !== grid.current?.i) return { ids: [detail.at.row], many: true };
  return grid.current ? { ids: [grid.current.i], many: false } : { ids: [], many: false };
}

async function reread(row) {
  if (tab === "samples") grid.reload();
  detail.again();
  if (row === null || row === undefined || tab !== "samples") return;
  const { place } = await ask("/api/place", { view: view.number, row });
  if (place !== null && place < grid.reach) grid.go(place);
}

async function open(row, toFocus = full.matches) {
  if (!row) return;
  if (tab === "queries") await detail.query(row.i); else await detail.sample(row.i);
  if (toFocus) detail.title.focus();
}
function closeDetail() {
  detail.hide();
  grid.focus();
}
// Where what is open covers the list.
const full = window.matchMedia("(max-width: 759px)");

function showTab(name) {
  if (tab === name) return;
  tab = name;
  for (const each of ["samples", "queries"]) get(`tab-${each}`).setAttribute("aria-pressed", String(each === name));
  get("sorting").hidden = name === "queries";
  get("desk").classList.toggle("on-queries", name === "queries");
  get("grid").setAttribute("aria-label", name === "queries" ? "Queries" : "Samples");
  detail.hide();
  kinds.clear();
  if (name === "queries") { grid.show(queries, about.queries); tally(); } else refresh();
}
get("tabs").hidden = about.queries === null;
get("tab-samples").addEventListener("click", () => showTab("samples"));
get("tab-queries").addEventListener("click", () => showTab("queries"));

let quiet;
function say(text) {
  get("said").textContent = text;
  clearTimeout(quiet);
  quiet = setTimeout(() => { get("said").textContent = ""; }, 4000);
}
function trouble(error) {
  const lost = error instanceof TypeError;
  get("trouble").textContent = lost ? "The server does not answer: has it been stopped? Decisions made before are saved." : error.message;
  get("trouble").hidden = false;
}

// Labels, predictions and texts are read meanwhile.
async function follow() {
  try {
    const news = await ask("/api/progress");
    about.classes = news.classes;
    filters.learn(news);
    const reading = news.done < news.total && !news.trouble;
    get("progress").hidden = !reading;
    get("progress-bar").max = news.total;
    get("progress-bar").value = news.done;
    get("progress-words").textContent = `Reading labels${about.shows ? " and texts" : ""}: ${count(news.done)} of ${count(news.total)}. Filters by them are not complete yet.`;
    if (news.trouble) trouble(new Error(news.trouble));
    if (reading) { setTimeout(follow, 700); return; }
    if (follow.seen) refreshCounts();
    document.body.dataset.read = "all";
  } catch (error) { trouble(error); }
}
async function refreshCounts() {
  const answer = await post("/api/view", { ...filters.wanted, ...order });
  filters.update(answer);
  grid.reload();
}

get("show-filters").addEventListener("click", () => {
  const shown = get("desk").classList.toggle("filtering");
  get("show-filters").setAttribute("aria-expanded", String(shown));
});
get("show-help").addEventListener("click", () => get("help").showModal());
for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());

const acts = {
  j: () => grid.move(1),
  k: () => grid.move(-1),
  ArrowRight: () => grid.move(1),
  ArrowLeft: () => grid.move(-1),
  ArrowDown: () => grid.move(grid.columns),
  ArrowUp: () => grid.move(-grid.columns),
  PageDown: () => grid.move(grid.page),
  PageUp: () => grid.move(-grid.page),
  Home: () => grid.go(0),
  End: () => grid.go(grid.count - 1),
  Enter: () => open(grid.current, true),
  " ": () => { if (tab === "samples") grid.pick(grid.at); },
  g: () => decisions.decide("keep"),
  d: () => decisions.decide("drop"),
  x: () => decisions.decide(null),
  r: () => relabel(),
  c: () => choose(),
  u: () => decisions.undo(),
  m: () => { if (tab === "samples") decisions.askAboutAll(); },
  s: () => get("sort").focus(),
  "/": () => { get("desk").classList.add("filtering"); get("search").focus(); },
  "?": () => get("help").showModal(),
  Escape: () => { if (detail.open) closeDetail(); else if (grid.picked.size) grid.unpick(); },
};
// Keys that move are of the list; in what is open they scroll.
const MOVES = ["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "PageDown", "PageUp", "Home", "End", "Enter", " "];
// Keys that decide about a sample, which has to be looked at: not from among the filters.
const DECIDES = ["g", "d", "r", "c", "x"];

function relabel() {
  const { ids } = targets();
  const row = [grid.current, detail.facts].find((one) => one && ids.length === 1 && one.i === ids[0]);
  const rather = row?.rather;
  if (rather === undefined) say("Nothing is suggested for it; C chooses a class"); else decisions.decide("relabel", rather);
}
async function choose() {
  if (!about.classes.length) { say("These data have no classes"); return; }
  if (!detail.open) await open(grid.current, false);
  get("class")?.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const typing = event.target.closest("select, textarea, input:not([type=checkbox], [type=radio])");
  if (key === "Escape" && event.target.closest("input, select")) { grid.focus(); return; }
  if (typing) return;
  const elsewhere = event.target !== document.body && !event.target.closest("#grid");
  if (elsewhere && MOVES.includes(key)) return;
  const digit = /^[0-9]$/.test(key) && about.classes.length <= 10 && Number(key) < about.classes.length;
  if (elsewhere && (digit || DECIDES.includes(key)) && !event.target.closest("#detail")) return;
  if (digit) decisions.decide("relabel", Number(key));
  else if (Object.hasOwn(acts, key)) acts[key]();
  else return;
  event.preventDefault();
});

await refresh(recall());
await follow();
follow.seen = true;
