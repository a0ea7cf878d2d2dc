"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 520px)");
  const config = { displayModeBar: false, responsive: true, doubleClick: false, showTips: false };

  // A colour in the figures is the name of a CSS variable, so that light and dark are decided in one place.
  function painted(value, style) {
    if (typeof value === "string") return value.startsWith("--") ? style.getPropertyValue(value).trim() : value;
    if (Array.isArray(value)) return value.map((part) => painted(part, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, painted(part, style)]));
    }
    return value;
  }

  function axis(own) {
    const title = { standoff: 10, ...(own.title || {}) };
    return {
      gridcolor: "--line", zerolinecolor: "--muted", zerolinewidth: 1, linecolor: "--line", tickcolor: "--line",
      automargin: true, fixedrange: true, nticks: narrow.matches ? 5 : 8, ...own, title,
    };
  }

  function draw(element, figure) {
    const style = getComputedStyle(document.documentElement);
    const own = figure.layout;
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false, hovermode: "closest",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: "--muted" },
      margin: { l: 8, r: 18, t: 8, b: 8 }, bargap: 0.05,
      legend: { orientation: "h", x: 0, y: 1.02, xanchor: "left", yanchor: "bottom", font: { color: "--ink" } },
      hoverlabel: { bgcolor: "--raised", bordercolor: "--line", font: { color: "--ink" } },
      ...own,
    };
    for (const [key, value] of Object.entries(own)) {
      if (/^[xy]axis/.test(key)) layout[key] = axis(value);
    }
    Plotly.react(element, painted(figure.traces, style), painted(layout, style), config);
  }

  const redraw = new Map();
  function drawAll() {
    for (const [element, figure] of redraw) draw(element, figure);
  }
  for (const element of document.querySelectorAll("[data-figure]")) {
    redraw.set(element, data.figures[element.dataset.figure]);
  }
  drawAll();
  dark.addEventListener("change", drawAll);
  narrow.addEventListener("change", drawAll);

  for (const grid of document.querySelectorAll(".grid")) {
    const more = grid.parentElement.querySelector(".more");
    if (grid.children.length <= 12) continue;
    grid.classList.add("short");
    more.hidden = false;
    more.addEventListener("click", () => {
      grid.classList.remove("short");
      more.hidden = true;
      grid.children[12].querySelector(".open").focus();
    });
  }

  const dialog = document.getElementById("detail");
  if (!dialog) return; // a page without samples to look at
  const plot = document.getElementById("plot-detail");
  let side = Object.keys(data.cards)[0], place = 0;

  function course(card) {
    const names = data.steps.map((step) => `${data.part} ` + step.toLocaleString("en-US"));
    const sums = [];
    card.terms.reduce((sum, term, i) => (sums[i] = sum + term), 0);
    const last = sums.length - 1;
    const unit = data.unit;
    const line = { type: "scatter", mode: names.length > 40 ? "lines" : "lines+markers", x: names, showlegend: false };
    const error = card.error === null ? [] : [{
      ...line, mode: "markers", x: [names[last]], y: [sums[last]], marker: { size: 6, color: "--ink" }, hoverinfo: "skip",
      error_y: { type: "data", array: [card.error], color: "--ink", thickness: 1.6, width: 6 },
    }];
    return {
      traces: [
        { type: "bar", x: names, y: card.terms, yaxis: "y2", marker: { color: card.terms.map((term) => (term > 0 ? "--harm" : "--help")) },
          hovertemplate: `%{x}: %{y:+.3~g}${unit}<extra></extra>`, showlegend: false },
        { ...line, mode: "lines", y: data.median, line: { color: "--muted", width: 1.6, dash: "dot" },
          hovertemplate: `median sample, %{x}: %{y:+.3~g}${unit}<extra></extra>` },
        { ...line, y: sums, line: { color: "--ink", width: 2 }, marker: { size: 6, color: "--ink" },
          hovertemplate: `so far, %{x}: %{y:+.3~g}${unit}<extra></extra>` },
        ...error,
      ],
      layout: {
        xaxis: { type: "category", nticks: narrow.matches ? 3 : 6, tickangle: 0, anchor: "y2" },
        yaxis: { domain: [0.4, 1], nticks: 6, title: { text: ("so far " + unit).trim() } },
        yaxis2: { domain: [0, 0.3], nticks: 4, title: { text: ("term " + unit).trim() } },
        bargap: 0.45, margin: { l: 8, r: 18, t: 12, b: 8 },
      },
    };
  }

  function fact(name, value) {
    const line = document.createElement("div"), term = document.createElement("dt"), words = document.createElement("dd");
    term.textContent = name;
    words.textContent = value;
    words.dir = "auto";
    line.append(term, words);
    return line;
  }

  function show() {
    const card = data.cards[side][place];
    const element = document.querySelector(`.grid[data-side="${side}"]`).children[place];
    document.getElementById("detail-title").textContent = `Sample #${card.index}, ${data.called[side]}: no. ${place + 1}`;
    const media = document.getElementById("detail-media");
    media.replaceChildren(...[...element.querySelectorAll(".media")].map((part) => part.cloneNode(true)));
    media.classList.toggle("broad", !element.querySelector(".picture"));
    document.getElementById("detail-facts").replaceChildren(...card.facts.map(([name, value]) => fact(name, value)));
    document.getElementById("previous").disabled = place === 0;
    document.getElementById("next").disabled = place === data.cards[side].length - 1;
    if (!dialog.open) dialog.showModal();
    const figure = course(card);
    redraw.set(plot, figure);
    draw(plot, figure);
    plot.setAttribute("aria-label", `Course of sample ${card.index}: ` + data.steps.map((step, i) => `${data.part} ${step}: ${card.terms[i]}`).join(", ") + ` ${data.unit}`);
  }

  function move(by) {
    const to = place + by;
    if (to < 0 || to >= data.cards[side].length) return;
    place = to;
    show();
  }

  for (const button of document.querySelectorAll(".open")) {
    button.addEventListener("click", () => {
      const element = button.closest(".card");
      side = element.parentElement.dataset.side;
      place = [...element.parentElement.children].indexOf(element);
      show();
    });
  }
  document.getElementById("previous").addEventListener("click", () => move(-1));
  document.getElementById("next").addEventListener("click", () => move(1));
  document.getElementById("close").addEventListener("click", () => dialog.close());
  // On the document: the focus leaves the dialog when the button that has it is disabled.
  document.addEventListener("keydown", (event) => {
    if (!dialog.open) return;
    if (event.key === "ArrowLeft") move(-1);
    if (event.key === "ArrowRight") move(1);
  });
  dialog.addEventListener("click", (event) => {
    const box = dialog.getBoundingClientRect();
    const outside = event.clientX < box.left || event.clientX > box.right || event.clientY < box.top || event.clientY > box.bottom;
    // A click by keyboard has no place and reports 0, 0.
    if (event.target === dialog && outside) dialog.close();
  });
  dialog.addEventListener("close", () => redraw.delete(plot));
})();
