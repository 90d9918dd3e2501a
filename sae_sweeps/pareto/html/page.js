"use strict";

// Controls, tables, and what is drawn again when a control changes.

const content = JSON.parse(document.getElementById("content").textContent);
const state = {
  ticked: new Map(), // option: the values ticked, where these are not all
  keys: content.group_by,
  hidden: new Set(), // names of curves
  axes: { x: true, y: true },
  k: null,
  training: Object.keys(content.training)[0],
  reference: null,
  sorted: { column: null, falling: false },
};

/** An element with properties and children; texts are texts, never HTML. */
function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const place = (id) => document.getElementById(id);

// ---------------------------------------------------------------- controls

function checkbox(text, checked, onchange) {
  const box = make("input", { type: "checkbox", checked });
  box.addEventListener("change", () => onchange(box.checked));
  return make("label", {}, box, text);
}

function choice(text, values, names, chosen, onchange) {
  const options = values.map((value, i) =>
    make("option", { value: String(i), selected: value === chosen }, String(names[i])),
  );
  const select = make("select", {}, ...options);
  select.addEventListener("change", () => onchange(values[Number(select.value)]));
  return make("label", {}, `${text} `, select);
}

function filterBox(key) {
  const values = distinct(content.runs.map((run) => run.options[key]));
  const summary = make("summary", {});
  const tell = () => {
    const count = state.ticked.get(key)?.size ?? values.length;
    summary.textContent = count === values.length ? `${key}: all` : `${key}: ${count} of ${values.length}`;
  };
  const boxes = values.map((value) =>
    checkbox(value, true, (checked) => {
      const ticked = state.ticked.get(key) ?? new Set(values);
      if (checked) ticked.add(value);
      else ticked.delete(value);
      if (ticked.size === values.length) state.ticked.delete(key);
      else state.ticked.set(key, ticked);
      tell();
      draw();
    }),
  );
  tell();
  return make("details", { className: "filter" }, summary, make("div", {}, ...boxes));
}

function groupBox() {
  const summary = make("summary", {});
  const tell = () => { summary.textContent = `curves by: ${state.keys.join(", ") || "nothing"}`; };
  const boxes = content.options.map((key) =>
    checkbox(key, state.keys.includes(key), (checked) => {
      state.keys = content.options.filter((other) => (other === key ? checked : state.keys.includes(other)));
      state.hidden.clear();
      tell();
      draw();
    }),
  );
  tell();
  return make("details", { className: "filter" }, summary, make("div", {}, ...boxes));
}

function controls() {
  const filters = content.options.filter((key) => distinct(content.runs.map((run) => run.options[key])).length > 1);
  const toggle = (name, key) =>
    checkbox(name, true, (checked) => { state.axes[key] = checked; draw(); });
  const logarithmic = content.panels.filter((panel) => panel.logarithmic).map((panel) => panel.title);
  place("controls").append(
    groupBox(), ...filters.map(filterBox), toggle("log L0", "x"), toggle(`log ${logarithmic.join(", ")}`, "y"),
  );
}

function legend(curves, styles) {
  place("legend").replaceChildren(...curves.map(({ name, runs }) => {
    const style = styles.get(name);
    const sign = make("span", { className: "sign" }, style.sign);
    sign.style.color = style.colour;
    const button = make("button", { type: "button", title: "show or hide" }, sign, name || "all runs");
    button.setAttribute("aria-pressed", String(!state.hidden.has(name)));
    button.append(make("span", { className: "count" }, ` ${runs.length}`));
    button.addEventListener("click", () => {
      if (!state.hidden.delete(name)) state.hidden.add(name);
      draw();
    });
    return button;
  }));
}

// ---------------------------------------------------------------- tables

function table(headings, rows, className) {
  const head = headings.map((heading) => (heading instanceof Node ? heading : make("th", {}, heading)));
  const body = rows.map((cells) => make("tr", {}, ...cells.map((cell) =>
    cell instanceof Node ? cell : make("td", { className: typeof cell === "number" ? "number" : "" },
      typeof cell === "number" ? shown(cell) : String(cell ?? "–")),
  )));
  const whole = make("table", { className }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
  return make("div", { className: "scroll" }, whole);
}

const signed = (value) => (value > 0 ? "+" : "") + shown(value, 3).replace("-", "−");

function comparisonCell(here, reference, best) {
  const cell = make("td", { className: "number" });
  if (here.value === null) return make("td", { className: "number" }, "–");
  const spread = deviation([...here.seeds.values()]);
  const text = shown(here.value) + (spread === null ? "" : ` ± ${shown(spread, 2)}`);
  cell.append(make(best ? "strong" : "span", {}, text));
  if (reference && reference !== here) {
    const less = difference(here, reference);
    if (less.value !== null) {
      const around = less.spread === null ? "" : ` ± ${shown(less.spread, 2)}`;
      cell.append(make("small", {}, `${signed(less.value)}${around}`));
    }
  }
  return cell;
}

function comparison(curves, panel) {
  const found = matched(curves, panel.measure);
  if (!found.l0s.length) return null;
  const which = curves.findIndex((curve) => curve.name === state.reference);
  const sign = panel.better === "higher" ? -1 : 1;
  const bests = found.l0s.map((_, i) =>
    Math.min(...found.rows.map((row) => row[i].value).filter((v) => v !== null).map((v) => sign * v)),
  );
  const rows = curves.map((curve, row) => [
    make("th", { scope: "row" }, curve.name || "all runs"),
    ...found.rows[row].map((here, i) =>
      comparisonCell(here, found.rows[which]?.[i], here.value !== null && sign * here.value === bests[i])),
  ]);
  const body = table(["", ...found.l0s.map((l0) => `L0 = ${shown(l0)}`)], rows, "matched");
  return make("div", {}, make("h3", {}, panel.title), body);
}

function comparisons(curves) {
  const several = new Set(curves.flatMap((curve) => curve.settings.map((s) => s.source))).size > 1;
  if (several) {
    const text = "These runs reconstruct different activations, whose figures cannot be compared: tick one target model and data set.";
    place("matched").replaceChildren(make("p", {}, text));
    return;
  }
  const names = curves.map((curve) => curve.name);
  if (!names.includes(state.reference)) state.reference = names[0] ?? null;
  const tables = content.panels.filter((panel) => panel.ranked)
    .map((panel) => comparison(curves, panel)).filter((found) => found !== null);
  const select = choice("differences from", names, names, state.reference, (name) => {
    state.reference = name;
    draw();
  });
  const none = make("p", {}, "No L0 is reached by most of the curves shown.");
  const panels = make("div", { className: "tables" }, ...tables);
  place("matched").replaceChildren(...(tables.length ? [select, panels] : [none]));
}

function costs(curves) {
  const rows = curves.map(({ name, runs }) => {
    const speeds = runs.map((run) => run.row.cost_tokens_per_s).filter(Number.isFinite);
    const tokens = runs.reduce((sum, run) => sum + run.row.tokens, 0);
    return [name || "all runs", runs.length, tokens, speeds.length ? mean(speeds) : null];
  });
  const shownRuns = new Set(curves.flatMap((curve) => curve.runs.map((run) => `${run.sweep} ${run.row.run}`)));
  const packs = content.packs.filter((pack) => pack.runs.some((run) => shownRuns.has(`${pack.sweep} ${run}`)));
  const hours = (key) => packs.reduce((sum, pack) => sum + (pack[key] ?? 0), 0);
  const known = (pack, key) => (pack[key] === null ? "–" : pack[key]);
  const machines = packs.map((pack) => [
    pack.sweep, pack.name, pack.runs.length, pack.device, pack.tokens_per_s,
    known(pack, "hours"), known(pack, "cpu_hours"), known(pack, "gpu_hours"),
  ]);
  const total = ["all", "", packs.reduce((sum, pack) => sum + pack.runs.length, 0), "", null,
    hours("hours"), hours("cpu_hours"), hours("gpu_hours")];
  const headings = ["sweep", "pack", "runs", "device", "tokens/s of all its runs", "hours", "CPU hours", "GPU hours"];
  place("costs").replaceChildren(
    table(["curve", "runs", "tokens", "tokens/s of a run"], rows, "plain"),
    ...(packs.length ? [table(headings, [...machines, ...(packs.length > 1 ? [total] : [])], "plain")] : []),
  );
}

/** Of the runs shown; beside how a run's setting stands is its price, dead latents. */
function runTable(runs, verdicts) {
  const measured = content.columns.filter((column) => runs.some((run) => run.row[column] !== undefined));
  measured.sort((a, b) => (b === content.price) - (a === content.price));
  const named = content.options.filter((key) => key !== "k" && key !== "seed");
  const columns = [...named, "k", "seed", "standing", "gap, %", ...measured, "tokens/s"];
  const stands = new Map([...verdicts].flatMap(([{ runs: members }, { standing, gap }]) => members.map((run) =>
    [run, { standing, "gap, %": Number.isFinite(gap) ? 100 * gap : null }])));
  const cells = new Map(runs.map((run) =>
    [run, { ...run.options, ...run.row, ...stands.get(run), "tokens/s": run.row.cost_tokens_per_s }]));
  const valueOf = (run, column) => cells.get(run)[column];
  const { column: by, falling } = state.sorted;
  const order = by === null ? runs : [...runs].sort((a, b) => {
    const [left, right] = [valueOf(a, by), valueOf(b, by)];
    const sign = falling ? -1 : 1;
    if (typeof left === "number" && typeof right === "number") return sign * (left - right);
    return sign * String(left ?? "").localeCompare(String(right ?? ""));
  });
  const headings = ["run", ...columns].map((column) => {
    const arrow = by === column ? (falling ? " ▾" : " ▴") : "";
    const button = make("button", { type: "button" }, column + arrow);
    button.addEventListener("click", () => {
      state.sorted = { column, falling: by === column && !falling };
      runTable(runs, verdicts);
    });
    return make("th", { scope: "col" }, button);
  });
  const rows = order.map((run) => [run.row.run, ...columns.map((column) => valueOf(run, column))]);
  place("runs").replaceChildren(table(headings, rows, "plain runs"));
}

// ---------------------------------------------------------------- once

function launch({ command, time, host, cwd, git, packages }) {
  const parts = [make("pre", {}, command), make("p", {}, `${time.slice(0, 16).replace("T", " ")} UTC, on ${host}, in ${cwd}`)];
  const commit = git.commit ? `commit ${git.commit}${git.diff ? ", with uncommitted changes" : ""}` : "no commit is known";
  parts.push(make("p", {}, commit));
  if (git.diff) parts.push(make("details", {}, make("summary", {}, "the uncommitted changes"), make("pre", {}, git.diff)));
  const versions = Object.entries(packages).map(([name, version]) => `${name} ${version}`).join(", ");
  return make("div", { className: "launch" }, ...parts, make("p", { className: "faint" }, versions));
}

function once() {
  place("notes").append(...content.notes.map((note) => make("li", {}, note)));
  const failures = content.sweeps.flatMap((sweep) =>
    sweep.failures.map(([run, error]) => [sweep.name, run, error]));
  if (failures.length) place("failures").append(table(["sweep", "run", "error"], failures, "plain"));
  else place("failures").append(make("p", {}, "No run failed."));
  const open = content.sweeps.flatMap((sweep) => sweep.unfinished.map((run) => [sweep.name, run]));
  if (open.length) place("failures").append(table(["sweep", "without a result so far"], open, "plain"));
  for (const sweep of content.sweeps) {
    place("repeat").append(make("h3", {}, sweep.name), ...sweep.launches.map(launch));
    if (!sweep.launches.length) place("repeat").append(make("p", {}, "The command is not known: there is no sweep.json."));
  }
}

// ---------------------------------------------------------------- all that changes

function figureIn(id, { traces, layout }) {
  const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
  return Plotly.react(place(id), traces, layout, options);
}

function distributions(curves, styles) {
  const ks = distinct(curves.flatMap((curve) => curve.settings.map((setting) => setting.k)));
  if (!ks.includes(state.k)) state.k = ks[Math.floor(ks.length / 2)] ?? null;
  const ofK = curves.map((curve) => ({ ...curve, runs: curve.runs.filter((run) => run.row.k === state.k) }));
  place("dial").replaceChildren(
    choice("runs with k", ks, ks, state.k, (k) => { state.k = k; draw(); }),
    choice("training curve of", Object.keys(content.training), Object.values(content.training), state.training, (name) => {
      state.training = name;
      draw();
    }),
  );
  return [
    figureIn("density", densityFigure(ofK, styles)),
    figureIn("l0", l0Figure(ofK, styles)),
    figureIn("training", trainingFigure(ofK, styles, state.training, content.training[state.training])),
  ];
}

/** Draw all there is, from the state; a promise that is kept when the figures stand. */
function draw() {
  const runs = passing(content.runs, state.ticked);
  const all = curvesOf(runs, state.keys);
  const styles = new Map(all.map((curve, index) => [curve.name, styleOf(index)]));
  const curves = all.filter((curve) => !state.hidden.has(curve.name));
  const seen = curves.flatMap((curve) => curve.runs);
  place("count").textContent = `${seen.length} of ${content.runs.length} runs are shown`;
  legend(all, styles);
  const told = content.options.filter((key) => key !== "curve" && key !== "seed");
  const price = content.panels.find((panel) => panel.measure === content.price);
  const frontier = { verdicts: standings(curves), price };
  const drawn = content.panels.map((panel, index) =>
    figureIn(`pareto-${index}`, paretoFigure(curves, styles, panel, told, state.axes, frontier)));
  comparisons(curves);
  costs(curves);
  runTable(seen, frontier.verdicts);
  return Promise.all([...drawn, ...distributions(curves, styles)]);
}

controls();
once();
for (const index of content.panels.keys()) place("pareto").append(make("div", { id: `pareto-${index}` }));
draw().then(() => { document.body.dataset.ready = "yes"; });
