// All that is known of one line: the claim and where it stands, the runs, the config, the command.

const dialog = document.getElementById("details");

function pairs(entries) {
  const known = entries.filter(([, value]) => value !== null && value !== "" && value !== undefined);
  return make("dl", {}, ...known.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

function small(heads, rows, caption) {
  return make("div", {class: "scroll"}, make("table", {}, caption ? make("caption", {}, caption) : null,
    make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", {scope: "col"}, text)))),
    make("tbody", {}, ...rows.map(([first, ...rest]) => make("tr", {}, make("th", {scope: "row"}, first),
      ...rest.map((cell) => make("td", {}, cell)))))));
}

const part = (title, ...content) => make("section", {}, make("h3", {}, title), ...content);
const link = (href, text) => make("a", {href}, text);
const written = (value) => typeof value === "string" ? value : JSON.stringify(value);

function numbers(line) {
  const size = (what) => given(line[`${what}_pruned`])
    ? `${count(line[`${what}_baseline`])} → ${count(line[`${what}_pruned`])}` : "";
  const top5 = line.claim_metric === "top5" ? " (top-5)" : "";
  const own = line.claim_source === null;
  return [small(["", "ours", ...own ? [] : ["paper"]], [
    ["baseline top-1, %", fixed(line.baseline_top1),
      fixed(line.claim_baseline) + (given(line.claim_baseline) ? top5 : "")],
    ["pruned top-1, %", spread(fixed(line.pruned_top1), line.pruned_top1_std),
      fixed(line.claim_pruned) + (given(line.claim_pruned) ? top5 : "")],
    ["Δ, points", spread(signed(line.delta), line.delta_std), claimedDelta(line)],
    ["parameters removed, %", fixed(line.params_drop, 1), claimed(line, "params_drop")],
    ["MACs removed, %", fixed(line.macs_drop, 1), claimed(line, "macs_drop")],
    ...["baseline", "sparse", "recover"].map((stage) => [`epochs, ${stage}`, count(line[`epochs_${stage}`]),
      count(line[`paper_epochs_${stage}`])])].map((cells) => own ? cells.slice(0, 2) : cells)),
  pairs([["parameters", size("params")], ["MACs", size("macs")],
    ["before recovery, %", fixed(line.top1_before_recovery)], ["best epoch on test, %", fixed(line.top1_best)],
    ["speed-up", given(line.latency_ratio) ? `${fixed(line.latency_ratio)}x (${line.latency_at || ""})` : ""],
    ["seconds, all stages, mean", given(line.seconds) ? count(line.seconds) : ""],
    ["recipe", line.recipe], ["baseline from", line.baseline_source]])];
}

const ABOVE = ["baseline", "pruned", "delta", "params_drop", "macs_drop"];    // of the claim, stand in the first table

function claim(line) {
  const {claim: said, about: paper} = line.about;
  const at = paper.arxiv ? link(`https://arxiv.org/abs/${paper.arxiv}`, `arXiv:${paper.arxiv}`)
    : paper.doi ? link(`https://doi.org/${paper.doi}`, `doi:${paper.doi}`) : "";
  const cited = make("p", {}, [paper.authors, paper.title, paper.venue].filter(Boolean).join(". "), at ? ". " : "", at);
  if (!said) return part("Claim", make("p", {}, "None: a row of our own."), cited);
  const {source, provenance, setting, reconstruction, derived, ...rest} = said;
  for (const name of ABOVE) delete rest[name];
  return part("Claim", cited, pairs([["where it stands", source], ["provenance", provenance],
    ["the paper's setting", setting],
    ...Object.entries(rest).map(([name, value]) => [name.replaceAll("_", " "), written(value)]),
    ["computed, not printed there", derived.map((name) => name.replaceAll("_", " ")).join(", ")],
    ["reconstructed here", line.reconstruction || reconstruction]]));
}

function again(line) {
  return part("Run this again", command(line.command), ...line.runs.length ? [
    make("p", {}, "One of the runs below, explained, with the command that has its very key:"),
    command(`python -m reprune show ${line.runs[0][0]}`)] : []);
}

function command(text) {
  const code = make("code", {}, text);
  const copied = make("span", {role: "status"});
  return make("div", {class: "command"}, make("pre", {}, code),
    make("button", {type: "button", class: "copy", onclick: () => copy(code, copied)}, "Copy"), copied);
}

async function copy(node, status) {
  try {
    await navigator.clipboard.writeText(node.textContent);
    status.textContent = "Copied.";
  } catch {                             // not allowed: marked, for the user's own copy
    getSelection().selectAllChildren(node);
    status.textContent = "Marked: copy it with the keyboard.";
  }
}

function runs(line) {
  if (!line.runs.length) return part("Runs", make("p", {}, "Not run yet."));
  const heads = ["record", "seed", "baseline", "pruned", "commit", "torch"];
  return part("Runs", small(heads, runsOf(line).map((run) =>
    [link(`runs/${run.key}.json`, run.key), String(run.seed), fixed(run.baseline), fixed(run.pruned),
      run.commit || "unknown", run.torch || ""])));
}

function config(line) {
  const parts = [make("p", {}, link(`../experiments/${line.row}.yaml`, `experiments/${line.row}.yaml`))];
  if (line.runs.length) {
    const values = Object.entries(configOf(line.config)).map(([name, value]) => `${name}: ${written(value)}`);
    parts.unshift(pairs([["sets it apart", line.setting]]), line.otherwise.length
      ? small(["", "the row's file", "run"], line.otherwise.map(([name, ...both]) => [name, ...both.map(written)]))
      : make("p", {}, "All that the row's file sets was run as it says."));
    parts.push(make("details", {}, make("summary", {}, "All that determines the result"),
      make("pre", {}, values.join("\n"))));
  }
  return part("Config", ...parts);
}

function showDetails() {
  const line = state.line && LINES.find((l) => l.row === state.line || l.runs.some(([key]) => key === state.line));
  if (!line) {
    if (dialog.open) dialog.close();
    return;
  }
  dialog.replaceChildren(make("header", {}, make("h2", {id: "details-title"}, line.row),
    make("button", {type: "button", class: "close", "aria-label": "Close", onclick: () => dialog.close()}, "×")),
  make("p", {}, line.about.title),
  make("p", {}, line.verdict ? make("span", {class: "chip", "data-is": line.kind}, line.verdict) : "", " ",
    make("span", {class: "muted"}, [line.section, line.series, line.net].join(" · "))),
  ...numbers(line), claim(line), again(line), runs(line), config(line));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

function listenDetails() {
  dialog.addEventListener("close", () => { if (state.line) change({line: ""}); });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}
