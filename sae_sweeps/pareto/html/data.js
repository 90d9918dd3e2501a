"use strict";

// From runs to settings, curves and comparisons; nothing here draws.
// A run has `row`, its line of pareto.csv, `options`, texts by name, and two numbers: runs with the
// same `setting` differ in seeds only, runs with the same `source` reconstruct the same activations.

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** Standard deviation of a sample; null for fewer than two values. */
function deviation(values) {
  if (values.length < 2) return null;
  const middle = mean(values);
  const squares = values.reduce((sum, value) => sum + (value - middle) ** 2, 0);
  return Math.sqrt(squares / (values.length - 1));
}

/** Items in lists, by what `key` says of each, in order of appearance. */
function gathered(items, key) {
  const found = new Map();
  for (const item of items) {
    const name = key(item);
    if (!found.has(name)) found.set(name, []);
    found.get(name).push(item);
  }
  return found;
}

/** The runs whose options are among those ticked; options without an entry do not matter. */
function passing(runs, ticked) {
  const asked = [...ticked];
  return runs.filter((run) => asked.every(([key, values]) => values.has(run.options[key])));
}

/** The finite values that the runs of a setting have of a measure. */
const valuesOf = (setting, measure) =>
  setting.runs.map((run) => run.row[measure]).filter((value) => Number.isFinite(value));

/** Mean over seeds; null where no run has the measure. */
function average(setting, measure) {
  const values = valuesOf(setting, measure);
  return values.length ? mean(values) : null;
}

const settingsOf = (runs) =>
  [...gathered(runs, (run) => run.setting).values()].map((members) => ({
    runs: members,
    k: members[0].row.k,
    source: members[0].source,
    options: members[0].options,
  }));

/** Runs by the values of some options: each group's name and its settings, by rising L0. */
function curvesOf(runs, keys) {
  const groups = gathered(runs, (run) => keys.map((key) => run.options[key]).join(" · "));
  return [...groups].map(([name, members]) => ({
    name,
    runs: members,
    settings: settingsOf(members).sort((a, b) => average(a, "l0") - average(b, "l0")),
  }));
}

/** Whether a curve has one setting for each value of the dial, so that a line may join them. */
const isFamily = (curve) =>
  new Set(curve.settings.map((setting) => `${setting.source} ${setting.k}`)).size ===
  curve.settings.length;

/** Items of [x, y, item] that no other beats, both minimised; equal ones do not beat each other. */
function nonDominated(points) {
  const kept = [];
  let lowest = Infinity;
  const sorted = [...points].sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  for (let start = 0, end = 0; start < sorted.length; start = end) {
    const [x, y] = sorted[start];
    while (end < sorted.length && sorted[end][0] === x) end++;
    if (y >= lowest) continue;
    lowest = y;
    kept.push(...sorted.slice(start, end).filter((point) => point[1] === y));
  }
  return kept.map((point) => point[2]);
}

/** Settings that no other strictly dominates in L0 and a measure, a list for each source, by rising L0. */
function strictFrontiers(settings, panel) {
  const sign = panel.better === "higher" ? -1 : 1;
  return [...gathered(settings, (setting) => setting.source).values()].map((members) => {
    const points = members.map((s) => [average(s, "l0"), average(s, panel.measure), s]);
    const known = points.filter(([x, y]) => x !== null && y !== null);
    return nonDominated(known.map(([x, y, setting]) => [x, sign * y, setting]));
  });
}

/** [L0, value] by rising L0; several of one L0 are averaged, and a log axis has no L0 of 0. */
function vertices(points) {
  const known = points.filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y) && x > 0);
  const byL0 = [...gathered(known, ([x]) => x)];
  return byL0.map(([x, at]) => [x, mean(at.map((p) => p[1]))]).sort((a, b) => a[0] - b[0]);
}

/** Linear in log L0 between two vertices; null outside of them. */
function interpolated(places, l0) {
  for (let i = 0; i < places.length; i++) {
    const [right, high] = places[i];
    if (right === l0) return high;
    if (i === 0 || l0 > right || l0 < places[i - 1][0]) continue;
    const [left, low] = places[i - 1];
    return low + (Math.log(l0 / left) / Math.log(right / left)) * (high - low);
  }
  return null;
}

/** A curve's value at an L0, between means over seeds, and the values of its seeds one by one. */
function valueAt(curve, measure, l0) {
  const means = curve.settings.map((s) => [average(s, "l0"), average(s, measure)]);
  const seeds = gathered(curve.runs, (run) => run.row.seed);
  const ofSeed = [...seeds].map(([seed, runs]) => {
    const points = runs.map((run) => [run.row.l0, run.row[measure]]);
    return [seed, interpolated(vertices(points), l0)];
  });
  return {
    value: interpolated(vertices(means), l0),
    seeds: new Map(ofSeed.filter(([, value]) => value !== null)),
  };
}

/** One value less another: of the seeds that both have, if these are two or more. */
function difference(here, there) {
  const pairs = [...here.seeds].filter(([seed]) => there.seeds.has(seed));
  const differences = pairs.map(([seed, value]) => value - there.seeds.get(seed));
  if (differences.length > 1) return { value: mean(differences), spread: deviation(differences) };
  const known = here.value !== null && there.value !== null;
  return { value: known ? here.value - there.value : null, spread: null };
}

/** Rounded to three digits, by `way` of Math: inwards, a curve that reaches L0 reaches it too. */
function toThreeDigits(value, way) {
  const unit = 10 ** (Math.floor(Math.log10(value)) - 2);
  return Number((way(Number((value / unit).toPrecision(12))) * unit).toPrecision(3));
}

/** The dial's values, those outside of what all curves reach replaced by where these limits are. */
function commonL0s(curves, measure) {
  const dial = distinct(curves.flatMap((curve) => curve.settings.map((setting) => setting.k)));
  const ends = curves.map((curve) => {
    const points = curve.settings.map((s) => [average(s, "l0"), average(s, measure)]);
    return vertices(points).map(([l0]) => l0);
  }).filter((l0s) => l0s.length > 1);
  const low = toThreeDigits(Math.max(...ends.map((l0s) => l0s[0])), Math.ceil);
  const high = toThreeDigits(Math.min(...ends.map((l0s) => l0s.at(-1))), Math.floor);
  if (!ends.length || low >= high) return dial;
  return distinct([low, ...dial.filter((k) => low < k && k < high), high]);
}

/** Curves at equal L0s, at those that most of the curves reach, and two at least. */
function matched(curves, measure) {
  const l0s = commonL0s(curves, measure);
  const table = curves.map((curve) => l0s.map((l0) => valueAt(curve, measure, l0)));
  const enough = Math.max(2, Math.floor(curves.length / 2) + 1);
  const reached = l0s.map((_, i) => table.filter((row) => row[i].value !== null).length);
  const kept = l0s.map((_, i) => i).filter((i) => reached[i] >= enough);
  return { l0s: kept.map((i) => l0s[i]), rows: table.map((row) => kept.map((i) => row[i])) };
}

/** Distinct values, numbers by size. */
const distinct = (values) =>
  [...new Set(values)].sort((a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)),
  );
