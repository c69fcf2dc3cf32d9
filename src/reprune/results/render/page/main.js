// Joins the parts: the address says what is shown, every control changes the address.

function show(what = {}) {
  showFilters();
  showPlotControls();
  const lines = passing();
  document.getElementById("count").textContent = `${count(lines.length)} of ${count(LINES.length)} rows`;
  if (what.table !== false) showTable(lines);
  if (what.plot !== false) showPlot(lines);
}

function update(changes) {
  change(changes);
  const names = Object.keys(changes);
  show({plot: !names.includes("sort"), table: !names.some((name) => ["net", "x", "y", "hide"].includes(name))});
}

function open(line) {
  change({line: line.id});
  showDetails();
}

function follow() {
  readAddress();
  show();
  showDetails();
}

function theme() {
  const button = document.getElementById("theme");
  const wanted = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("theme"); } catch { /* a browser that keeps nothing */ }
  const dark = () => chosen ? chosen === "dark" : wanted.matches;
  const apply = () => {
    document.documentElement.dataset.theme = dark() ? "dark" : "light";
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", dark() ? "Light colours" : "Dark colours");
  };
  button.addEventListener("click", () => {
    chosen = dark() ? "light" : "dark";
    try { localStorage.setItem("theme", chosen); } catch { /* for this visit only */ }
    apply();
  });
  wanted.addEventListener("change", apply);
  apply();
}

theme();
buildFilters(update);
buildPlotControls(update);
buildHead(update);
listenTable(open);
listenPlot(open, update);
listenDetails();
follow();
addEventListener("popstate", follow);
let width = plot.clientWidth;
new ResizeObserver(() => {
  if (plot.clientWidth === width) return;
  width = plot.clientWidth;
  showPlot(passing());
}).observe(plot);
