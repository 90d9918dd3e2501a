"use strict";

// The rule of the frontier, as `standing.py` and `lines.py` have it, for the runs that are shown.
// A place is { curve, l0, fvu, seeds }; a line is a curve's places by rising L0, one of each L0.

const REACH = 0.05, MOST_CHANGE = 0.5, ONE_SEED = 0.01;

/** How each setting stands: a Map from it to { standing, gap, margin, seeds, rival }. */
function standings(curves) {
  const entries = curves.flatMap((curve) => curve.settings.map((setting) => ({ curve: curve.name, setting })));
  const verdicts = new Map();
  for (const members of gathered(entries, ({ setting }) => setting.source).values()) {
    const known = members.filter(({ setting }) => average(setting, "l0") !== null && average(setting, "fvu") !== null);
    const places = known.map(({ curve, setting }) => ({
      curve, l0: average(setting, "l0"), fvu: average(setting, "fvu"), seeds: valuesOf(setting, "fvu").length,
    }));
    const found = judged(places, pooledSpread(members.map(({ setting }) => valuesOf(setting, "fvu"))));
    known.forEach(({ setting }, i) => verdicts.set(setting, found[i]));
  }
  return verdicts;
}

/** Verdicts on places of one source. */
function judged(places, spread) {
  const curves = gathered(places, (place) => place.curve);
  const lines = new Map([...curves].map(([curve, members]) => [curve, lineOf(members)]));
  const slopes = new Map([...lines].map(([curve, line]) =>
    [curve, line.length === 1 ? usualSlope([...lines.values()], line[0].l0) : 0]));
  return places.map((own) => {
    const others = [...lines].filter(([curve]) => curve !== own.curve);
    const read = others.map(([curve, line]) => [curve, readLine(line, own.l0, slopes.get(curve))]);
    return verdict(own, new Map(read.filter(([, place]) => place !== null)), curves, spread);
  });
}

/** Out of reach, and on the setting's own curve, what strictly dominates it counts alone. */
function verdict(own, reached, curves, spread) {
  const beaten = [...curves].flatMap(([curve, places]) =>
    reached.has(curve) ? [] : places.filter((place) => dominates(place, own)));
  const sparser = [...reached.keys()].flatMap((curve) => curves.get(curve).filter((place) => place.l0 <= own.l0));
  const against = [...reached.values(), ...sparser, ...beaten];
  if (!against.length) return { standing: "unopposed", gap: null, margin: null, seeds: null, rival: null };
  const best = against.reduce((a, b) => (isBefore(b, a) ? b : a));
  const gap = best.fvu > 0 ? own.fvu / best.fvu - 1 : own.fvu > best.fvu ? Infinity : 0;
  const margin = marginOf(own.seeds, best.seeds, spread);
  const standing = gap < -margin ? "on" : gap <= margin ? "tie" : "dominated";
  return {
    standing: beaten.length ? "dominated" : standing, gap, margin,
    seeds: Math.min(own.seeds, best.seeds), rival: best.curve,
  };
}

const isBefore = (a, b) =>
  a.fvu !== b.fvu ? a.fvu < b.fvu : a.seeds !== b.seeds ? a.seeds < b.seeds : a.curve < b.curve;

const dominates = (a, b) => a.l0 <= b.l0 && a.fvu <= b.fvu && (a.l0 < b.l0 || a.fvu < b.fvu);

/** Of each L0 above 0 the best place. */
function lineOf(places) {
  const sorted = places.filter((place) => place.l0 > 0).sort((a, b) => a.l0 - b.l0 || a.fvu - b.fvu);
  return sorted.filter((place, i) => i === 0 || place.l0 !== sorted[i - 1].l0);
}

/** What a curve has at an L0, its end segments extended; null where it does not reach. */
function readLine(line, l0, slope) {
  if (!line.length || !((1 - REACH) * line[0].l0 <= l0 && l0 <= (1 + REACH) * line.at(-1).l0)) return null;
  const [left, right] = line.length > 1 ? segmentAt(line, l0) : [line[0], line[0]];
  const anchor = l0 >= right.l0 ? right : left;
  if (anchor.l0 === l0) return anchor;
  const free = anchor.fvu + (left === right ? slope : slopeOf([left, right])) * logOf(anchor.l0, l0);
  const low = (1 - MOST_CHANGE) * Math.min(left.fvu, right.fvu);
  const high = (1 + MOST_CHANGE) * Math.max(left.fvu, right.fvu);
  return { curve: left.curve, l0, fvu: Math.min(Math.max(free, low), high), seeds: Math.min(left.seeds, right.seeds) };
}

/** FVU per unit of log L0 for a line of one place: the median of all other lines' near it. */
function usualSlope(lines, l0) {
  const slopes = lines.filter((line) => line.length > 1).map((line) => slopeOf(segmentAt(line, l0)));
  if (!slopes.length) return 0;
  slopes.sort((a, b) => a - b);
  const half = slopes.length >> 1;
  return slopes.length % 2 ? slopes[half] : (slopes[half - 1] + slopes[half]) / 2;
}

/** The segment that holds an L0, or is nearest to it. */
function segmentAt(line, l0) {
  const found = line.findIndex((place, i) => i > 0 && l0 <= place.l0);
  const end = found === -1 ? line.length - 1 : found;
  return [line[end - 1], line[end]];
}

const slopeOf = ([left, right]) => (right.fvu - left.fvu) / logOf(left.l0, right.l0);

/** The log of a ratio; of neighbouring numbers it is small, but never 0. */
const logOf = (of, to) => Math.log1p((to - of) / of);

/** Standard deviation over seeds as a share of the mean, by degrees of freedom; null without any. */
function pooledSpread(groups) {
  const several = groups.filter((values) => values.length > 1 && mean(values) > 0);
  if (!several.length) return null;
  const sum = (terms) => terms.reduce((total, term) => total + term, 0);
  const squares = sum(several.map((values) => (values.length - 1) * (deviation(values) / mean(values)) ** 2));
  return Math.sqrt(squares / sum(several.map((values) => values.length - 1)));
}

/** Two standard errors of a gap; where a side has one seed it is 1 % at least. */
function marginOf(own, rival, spread) {
  const errors = spread === null ? 0 : 2 * spread * Math.sqrt(1 / own + 1 / rival);
  return Math.min(own, rival) === 1 ? Math.max(errors, ONE_SEED) : errors;
}
