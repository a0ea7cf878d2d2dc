"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const get = (id) => document.getElementById(id);
  const cards = [...get("strip").children];
  const words = { relabel: "relabel", drop: "drop", keep: "right" };
  const place = "diffin-review-" + data.key;
  let decisions = new Map();
  let at = 0;

  // A browser may forbid a file its storage; the page works without.
  try {
    for (const entry of JSON.parse(localStorage.getItem(place) || "[]")) {
      if (data.doubts[entry.at]?.index === entry.index) decisions.set(entry.at, entry.decision);
    }
  } catch { /* nothing kept */ }

  function keepInBrowser() {
    const kept = [...decisions].map(([number, decision]) => ({ at: number, index: data.doubts[number].index, decision }));
    try { localStorage.setItem(place, JSON.stringify(kept)); } catch { /* see above */ }
  }

  function fact(name, value, strong) {
    const line = document.createElement("div"), term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    text.dir = "auto";
    if (strong) line.className = "strong";
    line.append(term, text);
    return line;
  }

  function named(decision) {
    return decision.decision === "relabel" ? "→ " + data.classes[decision.label] : words[decision.decision];
  }

  function show() {
    const doubt = data.doubts[at], decision = decisions.get(at);
    get("desk-title").textContent = `Sample #${doubt.index}, ${at + 1} of ${data.doubts.length}`;
    get("desk-media").replaceChildren(...[...cards[at].querySelectorAll(".media")].map((part) => part.cloneNode(true)));
    get("desk-facts").replaceChildren(
      fact("label", data.classes[doubt.given], true),
      ...(doubt.suggested === null ? [] : [fact("looks like", data.classes[doubt.suggested], true)]),
      fact("label is wrong", doubt.probability),
      ...doubt.evidence.map(([name, value]) => fact(name, value)),
    );
    get("relabel").disabled = doubt.suggested === null;
    get("relabel-text").textContent = doubt.suggested === null ? "Relabel" : `Relabel as ${data.classes[doubt.suggested]}`;
    get("class").value = String(decision?.decision === "relabel" ? decision.label : doubt.suggested ?? doubt.given);
    for (const name of Object.keys(words)) get(name).setAttribute("aria-pressed", String(decision?.decision === name));
    get("previous").disabled = at === 0;
    get("next").disabled = at === data.doubts.length - 1;
    cards.forEach((card, number) => {
      const made = decisions.get(number), badge = card.querySelector(".badge");
      card.setAttribute("aria-current", String(number === at));
      card.classList.toggle("decided", made !== undefined);
      badge.hidden = made === undefined;
      badge.textContent = made === undefined ? "" : named(made);
    });
    const all = [...decisions.values()];
    for (const name of Object.keys(words)) get("count-" + name).textContent = all.filter((one) => one.decision === name).length;
    get("left").textContent = data.doubts.length - decisions.size;
    get("export").disabled = decisions.size === 0;
  }

  function go(to) {
    if (to < 0 || to >= data.doubts.length) return;
    at = to;
    show();
  }

  function undecided() {
    for (let step = 1; step <= data.doubts.length; step++) {
      const number = (at + step) % data.doubts.length;
      if (!decisions.has(number)) return number;
    }
    return at;
  }

  function decide(decision) {
    decisions.set(at, decision);
    keepInBrowser();
    go(undecided());
  }

  function relabel(label) {
    // To the class that it has is to say that the label is right.
    decide(label === data.doubts[at].given ? { decision: "keep" } : { decision: "relabel", label });
  }

  const acts = {
    r: () => { if (data.doubts[at].suggested !== null) relabel(data.doubts[at].suggested); },
    d: () => decide({ decision: "drop" }),
    k: () => decide({ decision: "keep" }),
    u: () => { decisions.delete(at); keepInBrowser(); show(); },
    n: () => go(undecided()),
    ArrowLeft: () => go(at - 1),
    ArrowRight: () => go(at + 1),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (/^[0-9]$/.test(key) && data.classes.length <= 10 && Number(key) < data.classes.length) relabel(Number(key));
    else if (Object.hasOwn(acts, key)) acts[key]();
    else return;
    event.preventDefault();
  });
  get("relabel").addEventListener("click", acts.r);
  get("drop").addEventListener("click", acts.d);
  get("keep").addEventListener("click", acts.k);
  get("previous").addEventListener("click", acts.ArrowLeft);
  get("next").addEventListener("click", acts.ArrowRight);
  get("class").addEventListener("change", (event) => relabel(Number(event.target.value)));
  cards.forEach((card, number) => card.querySelector(".open").addEventListener("click", () => {
    go(number);
    get("desk-title").focus();
    get("desk").scrollIntoView();
  }));

  get("export").addEventListener("click", () => {
    const made = [...decisions].sort(([a], [b]) => a - b)
      .map(([number, decision]) => ({ index: data.doubts[number].index, given: data.doubts[number].given, ...decision }));
    const text = JSON.stringify({ format: 1, kind: "diffin-decisions", samples: data.samples, decisions: made }, null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = "decisions.json";
    link.click();
    URL.revokeObjectURL(link.href);
    get("exported").textContent = `${made.length} of ${data.doubts.length} decisions exported.`;
  });
  show();
})();
