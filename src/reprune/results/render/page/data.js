// The data as the other scripts see it: LINES, one object per line of the tables; and how values are written.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SEARCHED = ["method", "model", "dataset", "recipe", "section", "setting", "verdict", "baseline_source"];
const RUN = ["key", "seed", "baseline", "pruned", "commit", "torch"];

const LINES = DATA.lines.map(([row, cells, series, kind, runs, config, changes, pale], index) => {
  const line = {index, about: DATA.rows[row], ...DATA.rows[row].values, series: DATA.texts[series],
    kind: DATA.texts[kind] ?? "", runs, config, pale: pale === 1, seeds: new Set(runs.map(([, seed]) => seed)).size};
  DATA.columns.forEach((name, i) => { line[name] = cells[i]; });
  for (const name of DATA.text) if (line[name] !== null) line[name] = DATA.texts[line[name]];
  line.otherwise = changes.map((i) => DATA.changes[i]);
  line.id = runs.length ? runs[0][0] : line.row;
  line.net = `${line.model || "?"} / ${line.dataset || "?"}`;
  line.words = [line.row, line.series, ...SEARCHED.map((name) => line[name] || ""), ...runs.map(([key]) => key),
    line.about.title].join("\n").toLowerCase();
  return line;
});

function runsOf(line) {
  return line.runs.map((values) => Object.fromEntries(RUN.map((name, i) =>
    [name, i < 4 || values[i] === null ? values[i] : DATA.texts[values[i]]])));
}

// A config of DATA.configs as {dotted name: value}: in its tree [index] is a branch, [[...]] a list.
function configOf(index, prefix = "") {
  return Object.assign({}, ...Object.entries(DATA.configs[index]).map(([name, leaf]) =>
    Array.isArray(leaf) && !Array.isArray(leaf[0]) ? configOf(leaf[0], `${prefix}${name}.`)
      : {[prefix + name]: Array.isArray(leaf) ? leaf[0] : leaf}));
}

const given = (value) => value !== null && value !== undefined && value !== "";
const fixed = (value, digits = 2) => given(value) ? value.toFixed(digits) : "";
const signed = (value) => given(value) ? (value < 0 ? "" : "+") + (Math.round(value * 100) / 100 + 0).toFixed(2) : "";
const spread = (text, std, digits = 2) => text && given(std) ? `${text} ± ${std.toFixed(digits)}` : text;
const count = (value) => given(value) ? Math.round(value).toLocaleString("en") : "";

// What a paper states as "more than" or "up to" keeps its sign.
function claimed(line, what, digits = 1) {
  const bounds = line.claim_bounds || "";
  const sign = bounds.includes(`${what}_min`) ? "> " : bounds.includes(`${what}_max`) ? "≤ " : "";
  return given(line[`claim_${what}`]) ? sign + fixed(line[`claim_${what}`], digits) : "";
}

function claimedDelta(line) {
  const open = /delta (>=?) 0/.exec(line.claim_bounds || "");
  return given(line.claim_delta) || !open ? signed(line.claim_delta) : open[1] === ">" ? "> 0" : "≥ 0";
}

// An element: make("a", {href: "x", class: "y"}, "text", child, ...). Text stays text, whatever it holds.
function make(name, attributes = {}, ...children) {
  const space = ["svg", "g", "path", "line", "text"].includes(name) ? "http://www.w3.org/2000/svg" : null;
  const node = space ? document.createElementNS(space, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== ""));
  return node;
}
