// Accuracy against cost on one network: filled what we ran, hollow what the paper states.

const ACROSS = {
  macs_drop: {title: "MACs removed, %", ours: (l) => l.macs_drop,
    paper: (l) => l.claim_macs_drop, least: 4},
  params_drop: {title: "Parameters removed, %", ours: (l) => l.params_drop,
    paper: (l) => l.claim_params_drop, least: 4},
  latency_ratio: {title: "Measured speed-up", ours: (l) => l.latency_ratio, paper: () => null, least: 0.4}};
const UP = {
  top1: {title: "Top-1, %", ours: (l) => [l.pruned_top1, l.pruned_top1_std], paper: (l) => l.claim_pruned,
    base: (l) => l.baseline_top1, least: 2, warp: (v) => -Math.log(Math.max(100 - v, 0.01))},
  delta: {title: "Δ top-1, points", ours: (l) => [l.delta, l.delta_std], paper: (l) => l.claim_delta,
    base: () => 0, least: 2, warp: (v) => Math.sign(v) * Math.log1p(Math.abs(v))}};
const look = (series) => ({hue: DATA.looks[series][0], shape: DATA.looks[series][1]});
const STEPS = [50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01];

const plot = document.getElementById("plot");
const tip = document.getElementById("tip");
let points = [];
let sets = [];                          // the series on this network, hidden ones too
const hidden = () => state.hide.split(",").filter(Boolean);

function pointsOf(lines) {
  const [across, up] = [ACROSS[state.x], UP[state.y]];
  const claimed = new Set();
  return lines.filter((line) => line.net === state.net && !hidden().includes(line.series)).flatMap((line) => {
    const found = [];
    const [y, std] = up.ours(line);
    if (given(y) && given(across.ours(line))) found.push({line, x: across.ours(line), y, std: std ?? 0, ours: true});
    const [px, py] = [across.paper(line), line.claim_metric === "top5" ? null : up.paper(line)];
    if (given(px) && given(py) && !claimed.has(line.row)) found.push({line, x: px, y: py, std: 0, ours: false});
    claimed.add(line.row);
    return found;
  }).sort((a, b) => b.ours - a.ours || a.x - b.x || b.y - a.y);
}

// Where the values lie between the pixels `from` and `to`, at least `least` shown, warped so that one that is far away
// does not flatten the rest; ticks at round numbers, the roundest first, `apart` pixels from each other.
function scale(values, least, from, to, apart, warp = (v) => v) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const spare = Math.max(0, least - (high - low)) / 2;
  [low, high] = [warp(low - spare), warp(high + spare)];
  [low, high] = [low - 0.05 * (high - low), high + 0.05 * (high - low)];
  const at = (v) => from + (warp(v) - low) / (high - low) * (to - from);
  const inside = (v) => warp(v) >= low && warp(v) <= high;
  const ticks = [];
  let digits = 0;
  for (const step of STEPS) {
    const first = Math.floor((Math.min(...values) - least) / step);
    const last = Math.ceil((Math.max(...values) + least) / step);
    if (ticks.length > 4) break;
    for (let i = first; i <= last; i++) {
      const v = i * step;
      if (!inside(v) || ticks.some((other) => Math.abs(at(other) - at(v)) < apart)) continue;
      ticks.push(v);
      digits = Math.max(digits, -Math.floor(Math.log10(step) + 1e-9));
    }
  }
  return {at, ticks, name: (v) => (v + 0).toFixed(digits)};
}

function showPlot(lines) {
  points = pointsOf(lines);
  const here = lines.filter((line) => line.net === state.net && (line.runs.length || given(line.claim_pruned)));
  sets = [...new Set(here.map((line) => line.series))].sort(compareText);
  const [across, up] = [ACROSS[state.x], UP[state.y]];
  const width = plot.clientWidth || 700;
  const tall = Math.max(260, Math.min(420, width * 0.6));
  const [left, right, top, bottom] = [52, 14, 12, tall - 44];
  tip.hidden = true;
  if (!points.length) {
    plot.replaceChildren(make("p", {class: "muted"}, "No row that passes has both numbers on this network."));
    showLegend();
    return;
  }
  const bases = [...new Set(points.filter((p) => p.ours).map((p) => up.base(p.line)).filter(given))].sort();
  const x = scale(points.map((p) => p.x), across.least, left, width - right, 60);
  const y = scale([...points.flatMap((p) => [p.y - p.std, p.y + p.std]), ...bases], up.least, bottom, top, 34,
    up.warp);
  const axes = make("g", {class: "axes", "aria-hidden": "true"},
    ...x.ticks.flatMap((v) => [make("line", {x1: x.at(v), x2: x.at(v), y1: top, y2: bottom}),
      make("text", {x: x.at(v), y: bottom + 18, "text-anchor": "middle"}, x.name(v))]),
    ...y.ticks.flatMap((v) => [make("line", {x1: left, x2: width - right, y1: y.at(v), y2: y.at(v)}),
      make("text", {x: left - 7, y: y.at(v) + 4, "text-anchor": "end"}, y.name(v))]),
    make("text", {class: "title", x: (left + width - right) / 2, y: tall - 6, "text-anchor": "middle"}, across.title),
    make("text", {class: "title", transform: `translate(12 ${(top + bottom) / 2}) rotate(-90)`,
      "text-anchor": "middle"}, up.title),
    ...bases.map((v) => make("line", {class: "base", x1: left, x2: width - right, y1: y.at(v), y2: y.at(v)})));
  const marks = points.map((p, i) => mark(p, i, x.at(p.x), y));
  plot.replaceChildren(make("svg", {width, height: tall, viewBox: `0 0 ${width} ${tall}`, role: "group",
    "aria-label": `${up.title} against ${across.title} on ${state.net}: ${points.length} points`}, axes, ...marks));
  showLegend();
}

function mark(point, at, x, y) {
  const {hue, shape} = look(point.line.series);
  const kind = point.ours ? (point.line.pale ? "ours pale" : "ours") : "paper";
  const g = make("g", {class: `mark ${kind}`, tabindex: at === 0 ? 0 : -1, role: "link", "data-at": at,
    "aria-label": said(point).join(", ")});
  g.style.setProperty("--hue", hue);
  if (point.std) {
    const [high, low] = [y.at(point.y + point.std), y.at(point.y - point.std)];
    g.append(make("path", {class: "bar", d: `M${x} ${high}V${low}M${x - 4} ${high}h8M${x - 4} ${low}h8`}));
  }
  const place = `translate(${x.toFixed(1)} ${y.at(point.y).toFixed(1)})`;
  g.append(make("path", {class: "shape", d: shape, transform: place}));
  return g;
}

function said({line, x, y, std, ours}) {
  const value = state.y === "delta" ? signed(y) : fixed(y);
  return [`${line.row}${ours ? "" : ", the paper's claim"}`, line.series,
    `${UP[state.y].title}: ${ours ? spread(value, std || null) : value}`,
    `${ACROSS[state.x].title}: ${ours ? fixed(x, state.x === "latency_ratio" ? 2 : 1) : claimed(line, state.x)}`,
    ours ? `${line.section}, ${line.seeds} seed${line.seeds === 1 ? "" : "s"}` : line.claim_source,
    ours && line.setting ? line.setting : ""].filter(Boolean);
}

function showLegend() {
  document.getElementById("legend").replaceChildren(...sets.map((series) => {
    const {hue, shape} = look(series);
    const svg = make("svg", {width: 16, height: 16, viewBox: "-8 -8 16 16", "aria-hidden": "true"},
      make("g", {class: "mark ours"}, make("path", {class: "shape", d: shape})));
    svg.firstChild.style.setProperty("--hue", hue);
    const shows = !hidden().includes(series);
    const button = make("button", {type: "button", "aria-pressed": String(shows), "data-series": series}, svg, series);
    return make("li", {}, button);
  }));
}

function showTip(g) {
  tip.replaceChildren(...said(points[g.dataset.at]).map((text) => make("div", {}, text)));
  tip.hidden = false;
  const at = g.querySelector(".shape").getBoundingClientRect();
  const left = Math.min(at.right + 8, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const above = at.top - tip.offsetHeight - 8;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${above > 8 ? above : at.bottom + 8}px`;
}

function listenPlot(open, update) {
  document.getElementById("legend").addEventListener("click", (event) => {
    const series = event.target.closest("button")?.dataset.series;
    if (!series) return;
    const others = hidden().filter((name) => name !== series);
    update({hide: (others.length < hidden().length ? others : [...others, series]).join(",")});
    document.querySelector(`#legend button[data-series="${CSS.escape(series)}"]`)?.focus();
  });
  const markOf = (event) => event.target.closest?.(".mark[data-at]");
  const hide = () => { tip.hidden = true; };
  for (const name of ["pointerover", "focusin"]) {
    plot.addEventListener(name, (event) => markOf(event) ? showTip(markOf(event)) : hide());
  }
  for (const name of ["pointerleave", "focusout"]) plot.addEventListener(name, hide);
  const moved = () => {                                           // the tip goes with its mark
    const g = plot.querySelector(".mark[data-at]:focus") || plot.querySelector(".mark[data-at]:hover");
    if (g) showTip(g); else hide();
  };
  addEventListener("scroll", moved, {passive: true, capture: true});
  plot.addEventListener("click", (event) => { if (markOf(event)) open(points[markOf(event).dataset.at].line); });
  plot.addEventListener("keydown", (event) => {
    const g = markOf(event);
    if (!g) return;
    const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (event.key === "Escape") hide();
    if (event.key === "Enter" || event.key === " ") open(points[g.dataset.at].line);
    if (!step && event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    if (!step) return;
    const at = (Number(g.dataset.at) + step + points.length) % points.length;
    const next = plot.querySelector(`.mark[data-at="${at}"]`);
    g.setAttribute("tabindex", -1);
    next.setAttribute("tabindex", 0);
    next.focus();
  });
}

// Networks with something to show first, the one with the most points chosen.
function buildPlotControls(update) {
  const counts = new Map();
  for (const line of LINES) {
    const n = (given(line.pruned_top1) ? 1000 : 0) + (given(line.claim_pruned) && given(line.claim_macs_drop) ? 1 : 0);
    counts.set(line.net, (counts.get(line.net) || 0) + n);
  }
  const nets = [...counts].filter(([, n]) => n).sort(([a, n], [b, m]) => m - n || compareText(a, b))
    .map(([net]) => net);
  const options = {net: nets.map((net) => [net, net]), x: Object.entries(ACROSS).map(([id, {title}]) => [id, title]),
    y: Object.entries(UP).map(([id, {title}]) => [id, title])};
  for (const [name, values] of Object.entries(options)) {
    UNSET[name] = values.length ? values[0][0] : "";
    const select = document.getElementById(name);
    select.append(...values.map(([value, title]) => make("option", {value}, title)));
    select.addEventListener("change", () => update({[name]: select.value}));
  }
}

function showPlotControls() {
  for (const name of ["net", "x", "y"]) {
    const select = document.getElementById(name);
    select.value = state[name];
    if (select.selectedIndex < 0) select.value = UNSET[name];
    state[name] = select.value;
  }
}
