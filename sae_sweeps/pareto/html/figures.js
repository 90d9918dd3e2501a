"use strict";

// What Plotly draws: lists of traces and layouts.

const COLOURS = [
  "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F3C8D", "#5A5A5A",
];
const SYMBOLS = [
  ["circle", "●"], ["square", "■"], ["diamond", "◆"], ["triangle-up", "▲"], ["triangle-down", "▼"],
  ["cross", "✚"], ["x", "✖"], ["pentagon", "⬟"], ["hexagon", "⬢"], ["star", "★"],
];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const INK = "#222", FAINT = "#858585", GRID = "#ececec";

/** Texts for Plotly, which takes them for HTML. */
const plain = (text) =>
  String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

/** A number for people; a dash where there is none. */
function shown(value, digits = 4) {
  if (!Number.isFinite(value)) return "–";
  if (Math.abs(value) >= 10000) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(digits)));
}

/** How a curve looks, by its place among all. */
const styleOf = (index) => ({
  colour: COLOURS[index % COLOURS.length],
  symbol: SYMBOLS[index % SYMBOLS.length][0],
  sign: SYMBOLS[index % SYMBOLS.length][1],
  dash: DASHES[Math.floor(index / COLOURS.length) % DASHES.length],
});

const axis = (title, more) => ({
  title: { text: title, font: { size: 12 }, standoff: 6 },
  gridcolor: GRID, zeroline: false, linecolor: FAINT, ticks: "outside", tickcolor: FAINT,
  ticklen: 4, automargin: true, exponentformat: "power", ...more,
});

const layout = (title, xaxis, yaxis) => ({
  title: { text: title, font: { size: 14 }, x: 0, xref: "paper", xanchor: "left", y: 0.97 },
  font: { family: "system-ui, sans-serif", size: 12, color: INK },
  margin: { l: 56, r: 12, t: 40, b: 46 },
  height: 360, hovermode: "closest", showlegend: false, xaxis, yaxis,
  hoverlabel: { align: "left", font: { size: 12 }, bgcolor: "#fff" },
});

/** Ticks of a logarithmic axis at round numbers, the fewer the more decades it spans. */
function logTicks(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const decades = Math.log10(high / low);
  const steps = decades < 0.7 ? [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9] : decades < 1.5 ? [1, 1.5, 2, 3, 5, 7] : decades < 4 ? [1, 3] : [1];
  const from = Math.floor(Math.log10(low)) - 1;
  const powers = Array.from({ length: Math.ceil(decades) + 3 }, (_, i) => 10 ** (from + i));
  const ticks = powers.flatMap((power) => steps.map((step) => step * power));
  return { type: "log", tickvals: ticks, ticktext: ticks.map((tick) => shown(tick)) };
}

/** A logarithmic axis of L0, with powers of two where these are not too many. */
function l0Axis(l0s, logarithmic) {
  const title = "L0: active latents per token, mean";
  if (!logarithmic) return axis(title, { rangemode: "tozero" });
  const known = l0s.filter((l0) => l0 > 0);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const octaves = Array.from({ length: 32 }, (_, i) => 2 ** (i - 10));
  const ticks = octaves.filter((l0) => l0 >= low / 1.2 && l0 <= high * 1.2);
  const few = ticks.length > 1 && ticks.length < 10;
  return axis(title, {
    type: "log",
    ...(few ? { tickvals: ticks, ticktext: ticks.map((l0) => shown(l0)) } : { dtick: "D2" }),
  });
}

const withSpread = (values, scale) => {
  const spread = deviation(values);
  const end = spread === null ? "" : ` ± ${shown(spread * scale, 2)}`;
  return values.length ? `${shown(mean(values) * scale)}${end}` : "–";
};

/** How points look by their standing in L0 and FVU, in every panel. */
const LOOKS = {
  dominated: { size: 6, ring: 0 },
  unopposed: { size: 7, ring: 1.4, open: true },
  tie: { size: 8, ring: 0.9, ink: INK },
  on: { size: 12.5, ring: 1.8, ink: INK },
};

const percent = (share, digits) => `${shown(100 * share, digits)} %`.replace("-", "−");

/** A gap for people, as −4.7 %; nothing where there is no rival. */
const gapText = (gap) =>
  (gap === null ? "" : `${gap > 0 ? "+" : ""}${gap === Infinity ? "∞" : percent(Number(gap.toFixed(3)), 3)}`);

/** How a setting stands, in words. */
function standingText(verdict) {
  if (!verdict) return "";
  const { standing, gap, margin, seeds, rival } = verdict;
  if (standing === "unopposed") return "unopposed: no other curve comes near this L0";
  const what = { on: "on the frontier", tie: "tie", dominated: "dominated" }[standing];
  const about = `margin ${percent(margin, 2)}${seeds === 1 ? ", one seed" : ""}`;
  return `${what}: FVU ${gapText(gap)} beside ${rival || "the others"} (${about})`;
}

/** What a point says when the mouse is on it; how it stands, and right beside it at what price. */
function hoverText(curve, setting, panel, options, frontier) {
  const names = setting.runs.map((run) => run.row.run);
  const seeds = names.length > 1 ? `${names.length} seeds, ${names[0]} …` : names[0];
  const lines = [
    `<b>${plain(curve.name)}</b>`,
    plain(seeds),
    `L0 ${withSpread(valuesOf(setting, "l0"), 1)}`,
    `${plain(panel.title)} ${withSpread(valuesOf(setting, panel.measure), panel.scale)}`,
    ...options.map((key) => `${plain(key)}: ${plain(setting.options[key])}`),
  ];
  const stands = standingText(frontier.verdicts.get(setting));
  if (stands) lines.push(plain(stands));
  const price = frontier.price;
  if (price && price !== panel) lines.push(`${plain(price.title)} ${withSpread(valuesOf(setting, price.measure), price.scale)}`);
  return lines.join("<br>");
}

/** The end of an error bar, for each setting. */
const bars = (settings, measure, scale) => {
  const all = settings.map((setting) => valuesOf(setting, measure));
  return {
    type: "data", symmetric: false, thickness: 1.2, width: 3,
    visible: all.some((values) => values.length > 1),
    array: all.map((values) => (Math.max(...values) - mean(values)) * scale),
    arrayminus: all.map((values) => (mean(values) - Math.min(...values)) * scale),
  };
};

/** A curve of one panel, its points by how they stand. */
function curveTraces(curve, style, panel, options, frontier) {
  const known = curve.settings.filter(
    (s) => average(s, "l0") > 0 && average(s, panel.measure) !== null,
  );
  const looks = known.map((setting) => LOOKS[frontier.verdicts.get(setting)?.standing ?? "dominated"]);
  const x = known.map((setting) => average(setting, "l0"));
  const y = known.map((setting) => average(setting, panel.measure) * panel.scale);
  const points = {
    x, y, type: "scatter", mode: "markers", name: plain(curve.name), hoverinfo: "text",
    hovertext: known.map((s) => hoverText(curve, s, panel, options, frontier)),
    error_x: { ...bars(known, "l0", 1), color: style.colour },
    error_y: { ...bars(known, panel.measure, panel.scale), color: style.colour },
    marker: {
      color: style.colour, opacity: 1, size: looks.map((look) => look.size),
      line: { width: looks.map((look) => look.ring), color: looks.map((look) => look.ink ?? style.colour) },
      symbol: looks.map((look) => style.symbol + (look.open ? "-open" : "")),
    },
  };
  const joined = isFamily(curve) ? known : strictFrontiers(known, panel).flat();
  const line = {
    x: joined.map((setting) => average(setting, "l0")),
    y: joined.map((setting) => average(setting, panel.measure) * panel.scale),
    type: "scatter", mode: "lines", hoverinfo: "skip",
    line: { color: style.colour, width: 1.5, dash: style.dash },
  };
  return [line, points];
}

/** One panel: a measure over L0. `frontier` has the verdicts, and the panel of the price. */
function paretoFigure(curves, styles, panel, options, axes, frontier) {
  const settings = curves.flatMap((curve) => curve.settings);
  const drawn = curves.map((curve) => curveTraces(curve, styles.get(curve.name), panel, options, frontier));
  const traces = [...drawn.map(([line]) => line), ...drawn.map(([, points]) => points)];
  const l0s = settings.map((setting) => average(setting, "l0")).filter((l0) => l0 !== null);
  const values = settings.flatMap((setting) => valuesOf(setting, panel.measure));
  const logarithmic = panel.logarithmic && axes.y && Math.min(...values) > 0;
  const insane = values.filter((value) => value < panel.sane[0] || value > panel.sane[1]);
  const yaxis = axis("", logarithmic ? logTicks(values.map((value) => value * panel.scale)) : {});
  if (insane.length) Object.assign(yaxis, clipped(values, panel, logarithmic));
  const told = [
    ...(panel.better ? [`${panel.better} is better`] : []),
    ...(insane.length ? [`${insane.length} outside`] : []),
  ];
  const title = `<b>${plain(panel.title)}</b>${told.length ? `  (${told.join("; ")})` : ""}`;
  return { traces, layout: layout(title, l0Axis(l0s, axes.x), yaxis) };
}

/** A range for the values that make sense: runs that diverged may not squeeze the others. */
function clipped(values, panel, logarithmic) {
  const kept = values.filter((value) => value >= panel.sane[0] && value <= panel.sane[1]);
  if (!kept.length) return {};
  const [low, high] = [Math.min(...kept) * panel.scale, Math.max(...kept) * panel.scale];
  if (logarithmic) return { range: [Math.log10(low / 1.1), Math.log10(high * 1.1)] };
  const margin = 0.05 * (high - low) || 0.1;
  return { range: [low - margin, high + margin] };
}

/** A line for every run, by what `coordinates` gives of it; runs that have nothing are left out. */
function runTraces(curves, styles, coordinates) {
  return curves.flatMap((curve) =>
    curve.runs.flatMap((run) => {
      const found = coordinates(run);
      if (!found) return [];
      const style = styles.get(curve.name);
      return {
        x: found[0], y: found[1], type: "scatter", mode: "lines", name: plain(curve.name),
        text: plain(run.row.run), hovertemplate: "<b>%{fullData.name}</b><br>%{text}<br>%{x}: %{y:.4g}<extra></extra>",
        line: { color: style.colour, width: 1.4, dash: style.dash },
      };
    }),
  );
}

const centres = (edges) => edges.slice(1).map((edge, i) => (edge + edges[i]) / 2);

function shares(counts) {
  const all = counts.reduce((sum, count) => sum + count, 0);
  return counts.map((count) => count / all);
}

function densityFigure(curves, styles) {
  const traces = runTraces(curves, styles, ({ density }) =>
    density && [centres(density.log10_edges), shares(density.counts)],
  );
  const x = axis("log10 of the share of tokens on which a latent is active");
  return { traces, layout: layout("<b>Firing densities</b>  (share of latents)", x, axis("")) };
}

/** As shares of all tokens up to an L0, since with token choice all tokens have the same. */
function l0Figure(curves, styles) {
  const traces = runTraces(curves, styles, ({ l0s }) => {
    if (!l0s) return null;
    let upTo = 0;
    return [l0s.edges.slice(1).map((edge) => edge - 1), shares(l0s.counts).map((share) => (upTo += share))];
  });
  const x = axis("active latents of one token");
  return { traces, layout: layout("<b>L0 per token</b>  (share of tokens with as many or fewer)", x, axis("")) };
}

function trainingFigure(curves, styles, measure, title) {
  const traces = runTraces(curves, styles, ({ training }) =>
    training[measure] && [training.tokens, training[measure]],
  );
  const values = traces.flatMap((trace) => trace.y).filter((value) => value !== null);
  const wide = Math.min(...values) > 0 && Math.max(...values) > 3 * Math.min(...values);
  const y = axis("", wide ? logTicks(values) : {});
  const x = axis("tokens", { tickformat: "~s" });
  return { traces, layout: layout(`<b>${plain(title)}</b>  in training`, x, y) };
}
