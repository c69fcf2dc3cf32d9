// The table. Up to WHOLE rows are all there (the browser's own search finds them); of more, those in sight.

const WHOLE = 300;
const arrow = (from, to) => given(to) ? `${given(from) ? fixed(from) : "–"} → ${fixed(to)}` : "";

// [title of a group of columns, its columns]; a column's sort gives a number or a text.
const GROUPS = [
  ["", [{id: "row", head: "Row", align: "left", sort: (l) => l.row}]],
  ["Top-1, %", [
    {id: "pruned", head: "ours", sort: (l) => l.pruned_top1,
      text: (l) => l.runs.length ? spread(arrow(l.baseline_top1, l.pruned_top1), l.pruned_top1_std) : "not run"},
    {id: "claim_pruned", head: "paper", paper: true, sort: (l) => l.claim_pruned,
      text: (l) => arrow(l.claim_baseline, l.claim_pruned) + (l.claim_metric === "top5" ? " (top-5)" : "")}]],
  ["Δ, points", [
    {id: "delta", head: "ours", sort: (l) => l.delta, text: (l) => spread(signed(l.delta), l.delta_std)},
    {id: "claim_delta", head: "paper", paper: true, sort: (l) => l.claim_delta, text: claimedDelta}]],
  ["", [{id: "verdict", head: "Verdict", align: "left", sort: (l) => l.verdict ? DATA.kinds.indexOf(l.kind) : null,
    text: (l) => l.runs.length ? (l.verdict ?? "no claim").replace("not comparable: ", "") : ""}]],
  ["MACs removed, %", [
    {id: "macs_drop", head: "ours", sort: (l) => l.macs_drop, text: (l) => fixed(l.macs_drop, 1)},
    {id: "claim_macs_drop", head: "paper", paper: true, sort: (l) => l.claim_macs_drop,
      text: (l) => claimed(l, "macs_drop")}]],
  ["", [{id: "series", head: "Method", align: "left", sort: (l) => l.series, text: (l) => l.series}]]];
const COLUMNS = GROUPS.flatMap(([group, columns]) => columns.map((column) => ({...column, group})));

const box = document.getElementById("table-box");
const head = document.querySelector("#table thead");
const body = document.querySelector("#table tbody");
let shown = [];                 // the lines that pass the filter, in order
let active = 0;                 // the row that Tab leads to
let drawn = [-1, -1];           // the part of `shown` that stands in the document
let height = 36;                // of a row, measured

function buildHead(update) {
  const heads = [make("tr", {"aria-rowindex": 1}), make("tr", {"aria-rowindex": 2})];
  for (const [group, columns] of GROUPS) {
    if (group) heads[0].append(make("th", {scope: "colgroup", colspan: columns.length, class: "group"}, group));
    for (const column of columns) {
      const button = make("button", {type: "button", onclick: () => update({sort: nextOrder(column)})});
      const order = make("span", {class: "order", "aria-hidden": "true"});
      button.append(...(column.align === "left" ? [column.head, order] : [order, column.head]));
      if (group) button.setAttribute("aria-label", `${group} ${column.head}`);
      heads[group ? 1 : 0].append(make("th", {scope: "col", rowspan: group ? 1 : 2, "data-column": column.id,
        class: `${column.align || ""} ${column.paper ? "paper" : ""} ${column.id === "row" ? "name" : ""}`}, button));
    }
  }
  head.replaceChildren(...heads);
}

// One column with one direction: "delta" rises, "-delta" falls. Numbers fall first: the largest is what one looks for.
function nextOrder(column) {
  const first = column.align === "left" ? column.id : `-${column.id}`;
  return state.sort === first ? (first === column.id ? `-${column.id}` : column.id) : first;
}

// Lines without a value come last in both directions, before them, of numbers, the pale ones: a short run leads no
// column. Equal ones stay in the order of the data.
function inOrder(lines) {
  const falls = state.sort.startsWith("-");
  const column = COLUMNS.find((c) => c.id === state.sort.replace("-", ""));
  if (!column) return lines;
  const place = (line, key) => !given(key) ? 2 : Number(line.pale && typeof key === "number");
  return lines.map((line) => [line, column.sort(line)]).map(([line, key]) => [line, key, place(line, key)])
    .sort(([one, a, first], [other, b, second]) => first - second || (first === 2 || a === b ? 0
      : (falls ? -1 : 1) * (typeof a === "number" ? a - b : compareText(a, b))) || one.index - other.index)
    .map(([line]) => line);
}

function showTable(lines) {
  shown = inOrder(lines);
  active = 0;
  drawn = [-1, -1];
  for (const th of head.querySelectorAll("th[data-column]")) {
    const own = state.sort.replace("-", "") === th.dataset.column;
    if (own) th.setAttribute("aria-sort", state.sort.startsWith("-") ? "descending" : "ascending");
    else th.removeAttribute("aria-sort");
  }
  document.getElementById("table").setAttribute("aria-rowcount", shown.length + 2);
  document.getElementById("none").hidden = shown.length > 0;
  box.hidden = shown.length === 0;
  box.scrollTop = 0;
  draw();
}

function draw(all = false) {
  const sight = Math.ceil((box.clientHeight || 800) / height);
  const first = Math.max(0, Math.floor(box.scrollTop / height) - sight);
  const [from, to] = all || shown.length <= WHOLE ? [0, shown.length]
    : [first, Math.min(shown.length, first + 3 * sight)];
  if (drawn[0] === from && drawn[1] === to) return;
  drawn = [from, to];
  const focused = body.contains(document.activeElement);
  if (active < from || active >= to) active = Math.min(to - 1, from + sight);
  body.replaceChildren(gap(from), ...shown.slice(from, to).map((line, i) => rowOf(line, from + i)),
    gap(shown.length - to));
  const row = body.querySelector("tr[aria-rowindex]");
  if (row && row.offsetHeight) height = row.offsetHeight;
  if (focused) body.querySelector(`a[data-at="${active}"]`)?.focus({preventScroll: true});
}

function gap(rows) {
  const cell = make("td", {colspan: COLUMNS.length});
  cell.style.height = `${rows * height}px`;
  const row = make("tr", {class: "gap", "aria-hidden": "true"}, cell);
  row.hidden = rows === 0;
  return row;
}

function rowOf(line, at) {
  const [paper, name] = line.row.split("/");
  const link = make("a", {href: address({line: line.id}), tabindex: at === active ? 0 : -1, "data-at": at},
    make("span", {class: "muted"}, `${paper}/`), name);
  const cells = COLUMNS.slice(1).map((column) => {
    const text = column.text(line);
    const verdict = column.id === "verdict" && line.verdict;
    const shape = [column.align || "", column.paper || (column.id === "verdict" && !verdict) ? "paper" : ""];
    const content = verdict ? make("span", {class: "chip", "data-is": line.kind, title: text}, text) : text;
    return make("td", {class: shape.join(" ").trim() || null}, text ? content : "");
  });
  const setting = line.setting && line.runs.length ? make("span", {class: "setting", title: line.setting},
    line.setting.replace(/[\w.]+\.(?=\w+\.\w+=)/g, "")) : "";
  return make("tr", {"aria-rowindex": at + 3, class: !line.runs.length ? "unrun" : line.pale ? "pale" : null},
    make("th", {scope: "row", class: "name"}, link, setting), ...cells);
}

function focusRow(at) {
  active = Math.max(0, Math.min(shown.length - 1, at));
  const place = active * height;
  if (shown.length > WHOLE && (place < box.scrollTop || place > box.scrollTop + box.clientHeight - 4 * height)) {
    box.scrollTop = place - box.clientHeight / 2;
    draw();
  }
  for (const link of body.querySelectorAll("a[data-at]")) link.tabIndex = Number(link.dataset.at) === active ? 0 : -1;
  body.querySelector(`a[data-at="${active}"]`)?.focus();
}

function listenTable(open) {
  box.addEventListener("scroll", () => requestAnimationFrame(() => draw()), {passive: true});
  body.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(box.clientHeight / height) - 3);
    const steps = {ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -shown.length, End: shown.length};
    if (!(event.key in steps) || !event.target.dataset.at) return;
    event.preventDefault();
    focusRow(Number(event.target.dataset.at) + steps[event.key]);
  });
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr[aria-rowindex]");
    if (!row || event.ctrlKey || event.metaKey || event.shiftKey || String(getSelection())) return;
    event.preventDefault();
    active = Number(row.getAttribute("aria-rowindex")) - 3;
    open(shown[active]);
  });
  addEventListener("beforeprint", () => draw(true));
  addEventListener("afterprint", () => draw());
}
