// What is shown is kept in the address, after the #: a view can be linked to, and Back leads back.

const FILTERS = {paper: "Paper", method: "Method", model: "Model", dataset: "Dataset", section: "Section",
  kind: "Verdict"};
const UNSET = {q: "", ...Object.fromEntries(Object.keys(FILTERS).map((name) => [name, ""])),
  sort: "", net: "", x: "", y: "", hide: "", line: ""};
const state = {...UNSET};

function readAddress() {
  const said = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(UNSET)) state[name] = said.get(name) ?? UNSET[name];
}

function address(changes = {}) {
  const said = Object.entries({...state, ...changes}).filter(([name, value]) => value !== UNSET[name]);
  return `#${new URLSearchParams(said)}`;
}

// Details get an entry in the history of their own; filters and order do not.
function change(changes) {
  const to = address(changes);
  if ("line" in changes && changes.line) history.pushState(null, "", to);
  else history.replaceState(null, "", to);
  Object.assign(state, changes);
}

function choices(name) {
  const counts = new Map();
  for (const line of LINES) if (given(line[name])) counts.set(line[name], (counts.get(line[name]) || 0) + 1);
  return [...counts].sort(([a], [b]) => compareText(a, b));
}

const compareText = new Intl.Collator("en", {numeric: true}).compare;

// The lines that pass the filters, all words of the search in any order.
function passing() {
  const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = Object.keys(FILTERS).filter((name) => state[name]);
  return LINES.filter((line) => wanted.every((name) => (line[name] ?? "") === state[name])
    && words.every((word) => line.words.includes(word)));
}

function buildFilters(update) {
  const form = document.getElementById("filters");
  for (const [name, title] of Object.entries(FILTERS)) {
    const select = make("select", {id: `f-${name}`, onchange: () => update({[name]: select.value})},
      make("option", {value: ""}, "all"), ...choices(name).map(([value, n]) => make("option", {value},
        `${value} (${n})`)));
    form.append(make("label", {}, `${title} `, select));
  }
  const clear = {q: "", ...Object.fromEntries(Object.keys(FILTERS).map((name) => [name, ""]))};
  form.append(make("button", {type: "button", class: "reset"}, "Reset"));
  for (const button of document.querySelectorAll(".reset")) button.addEventListener("click", () => update(clear));
  document.getElementById("q").addEventListener("input", (event) => update({q: event.target.value}));
  form.addEventListener("submit", (event) => event.preventDefault());
}

// Puts the state into the controls; a value that nothing has (an old link) is dropped.
function showFilters() {
  document.getElementById("q").value = state.q;
  for (const name of Object.keys(FILTERS)) {
    const select = document.getElementById(`f-${name}`);
    select.value = state[name];
    if (select.selectedIndex < 0) {
      select.value = "";
      change({[name]: ""});
    }
    select.classList.toggle("set", state[name] !== "");
  }
}
