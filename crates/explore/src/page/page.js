"use strict";
// Draws stories. What can be worked out of a story was worked out before; here it gets its place.
// A place in time is a row; how wide a row is depends on how much it tells.

const root = document.documentElement;
window.addEventListener("error", (event) => { root.dataset.failed = event.message || "failed"; });

const by = (id) => document.getElementById(id);
const data = JSON.parse(by("data").textContent);
const canvas = by("canvas");
const g = canvas.getContext("2d");

const FONT = getComputedStyle(document.body).fontFamily;
const AXIS = 34, BAR = 14, THIN = 5, BASE = 18, STEPS = 22;
// After Okabe and Ito: told apart by most eyes, on light and on dark.
const HUES = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#8a6fd1"];
// Which classes of the lock order have a colour of their own; the others share one and have a stripe.
const PLAIN = [1, 8, 6, 7, 2, 11, 13, 0];

let story, lanes, laneOf, at, total, view, gutter, width, height, things, thingsTop, thingTall, colours, chosen, looks;

function element(tag, text, where, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  if (where) where.append(made);
  return made;
}

function facts(list, pairs) {
  list.replaceChildren();
  for (const [what, value] of pairs) {
    const pair = element("div", undefined, list);
    element("dt", what, pair);
    element("dd", value, pair);
  }
}

// ---- colours

function assignLooks() {
  const order = data.ordered, present = new Set();
  for (const told of data.stories) for (const lock of told.locks) if (!lock[6]) present.add(told.texts[lock[1]]);
  const taken = new Set(), of = new Map();
  for (const name of order.filter((name) => present.has(name))) {
    const place = order.indexOf(name), plain = PLAIN.indexOf(place);
    const hue = plain >= 0 ? plain : (place * 3) % HUES.length;
    if (plain >= 0) taken.add(hue);
    of.set(name, { hue: HUES[hue], stripe: plain < 0 });
  }
  let next = 0;
  for (const name of [...present].filter((name) => !of.has(name)).sort()) {
    while (taken.size < HUES.length && taken.has(next % HUES.length)) next += 1;
    of.set(name, { hue: HUES[next % HUES.length], stripe: taken.has(next % HUES.length) });
    taken.add(next % HUES.length);
    next += 1;
  }
  return of;
}

function look(name, small) {
  return (!small && looks.get(name)) || { hue: colours.small, stripe: false };
}

function readColours() {
  const style = getComputedStyle(root);
  colours = {};
  for (const name of ["card", "band", "line", "text", "quiet", "broken", "broken-text", "small", "run", "switch", "preempt",
    "there", "edge", "focus"]) {
    colours[name] = style.getPropertyValue("--" + name).trim();
  }
}

function textOn(hue) {
  const part = (from) => {
    const value = parseInt(hue.slice(from, from + 2), 16) / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  };
  return 0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5) > 0.18 ? "#000000" : "#ffffff";
}

// ---- time

function layTime() {
  const every = by("every").checked, rows = story.rows;
  const first = rows.findIndex((row) => row[2] === "step_begin");
  const marks = rows.findIndex((row) => ["step_begin", "fault", "violation", "preempted"].includes(row[2]));
  const lead = first >= 0 ? marks : 0, end = story.broken ?? rows.length;
  // What looks at what is left when all is over and takes it down is less interesting, unless it breaks there.
  const atEnd = story.broken === null || rows[story.broken][1] === 0, stuck = story.waits.some((wait) => wait[6]);
  const last = rows.findLastIndex((row) => ["step_end", "fault", "preempted"].includes(row[2]));
  const closes = (row) => ["main", "epilogue"].includes(story.threads[row[1]]);
  at = new Float64Array(rows.length + 1);
  for (let i = 0; i < rows.length; i++) {
    const aside = i < lead || i > end + 2;
    const closing = atEnd && !stuck && last >= 0 && i > last && closes(rows[i]);
    const wide = every ? 1 : aside ? 0.04 : closing ? 0.2 : rows[i][6] ? 0.25 : 1;
    at[i + 1] = at[i] + wide;
  }
  total = at[rows.length] || 1;
  view = [0, total];
}

const room = () => width - gutter - 8;
const x = (row) => gutter + ((at[row] + at[Math.min(row + 1, at.length - 1)]) / 2 - view[0]) * room() / (view[1] - view[0]);
const left = (row) => gutter + (at[row] - view[0]) * room() / (view[1] - view[0]);

function rowNear(px) {
  const place = view[0] + (px - gutter) * (view[1] - view[0]) / room();
  let low = 0, high = story.rows.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (at[middle + 1] < place) low = middle + 1; else high = middle;
  }
  return low;
}

function show(from, to) {
  const wide = Math.min(Math.max(to - from, Math.min(4, total)), total);
  const start = Math.min(Math.max(0, (from + to - wide) / 2), total - wide);
  view = [start, start + wide];
  draw();
}

function zoom(factor, px = gutter + room() / 2) {
  const wide = view[1] - view[0], share = Math.min(1, Math.max(0, (px - gutter) / room())), place = view[0] + share * wide;
  const next = Math.min(Math.max(wide * factor, Math.min(4, total)), total);
  show(place - share * next, place + (1 - share) * next);
}

function pan(share) {
  const by = share * (view[1] - view[0]);
  const moved = Math.min(Math.max(by, -view[0]), total - view[1]);
  show(view[0] + moved, view[1] + moved);
}

function toBreak() {
  const row = story.broken ?? story.rows.length - 1, wide = Math.min(total, Math.max(30, room() / 22));
  show(at[row] - wide * 0.8, at[row] + wide * 0.2);
  choose(row);
}

// ---- places

function layOut() {
  width = by("chart").clientWidth;
  gutter = width >= 720 ? 172 : 8;
  let y = AXIS;
  for (const lane of lanes) {
    lane.top = y;
    lane.title = gutter > 8 ? 0 : 20;
    lane.steps = y + 6 + lane.title;
    lane.locks = lane.steps + (lane.hasSteps ? STEPS : 2);
    lane.base = lane.locks + (lane.idle ? 0 : lane.depth * BAR) + 11;
    lane.bottom = lane.base + BASE - 6;
    y = lane.bottom + 4;
  }
  thingsTop = y + 26;
  // Without a gutter a name stands above its bar.
  thingTall = gutter > 8 ? 15 : 27;
  height = things.length ? thingsTop + things.length * thingTall + 8 : y + 4;
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.height = height + "px";
  g.setTransform(scale, 0, 0, scale, 0, 0);
  const labels = by("labels");
  labels.replaceChildren();
  for (const lane of lanes) {
    const label = element("div", story.threads[lane.thread], labels, "lane");
    label.style.top = (gutter > 8 ? (lane.steps + lane.bottom) / 2 - 10 : lane.top + 4) + "px";
    label.style.maxWidth = (gutter > 8 ? gutter - 20 : width - 16) + "px";
  }
}

const measured = new Map();
function long(text) {
  const key = g.font + text;
  if (!measured.has(key)) {
    if (measured.size > 20000) measured.clear();
    measured.set(key, g.measureText(text).width);
  }
  return measured.get(key);
}

function fit(text, wide) {
  if (wide < 18) return "";
  const needed = long(text);
  if (needed <= wide) return text;
  const kept = Math.floor(text.length * (wide - 8) / needed) - 1;
  return kept < 3 ? "" : text.slice(0, kept).trimEnd() + "…";
}

function line(x1, y1, x2, y2, colour, wide = 1, dash = []) {
  g.strokeStyle = colour;
  g.lineWidth = wide;
  g.setLineDash(dash);
  g.beginPath();
  g.moveTo(x1, y1);
  g.lineTo(x2, y2);
  g.stroke();
  g.setLineDash([]);
}

function hatch(from, top, wide, tall, colour) {
  g.save();
  g.beginPath();
  g.rect(from, top, wide, tall);
  g.clip();
  g.strokeStyle = colour;
  g.lineWidth = 1.6;
  g.beginPath();
  for (let i = Math.floor((from - tall) / 6) * 6; i < from + wide; i += 6) {
    g.moveTo(i, top + tall);
    g.lineTo(i + tall, top);
  }
  g.stroke();
  g.restore();
  g.strokeStyle = colour;
  g.lineWidth = 1;
  g.strokeRect(from + 0.5, top + 0.5, Math.max(0, wide - 1), tall - 1);
}

function bar(from, top, wide, tall, style) {
  g.fillStyle = style.hue;
  g.fillRect(from, top, wide, tall);
  if (style.stripe && wide > 2) {
    g.fillStyle = colours.card;
    g.fillRect(from, top + 2, wide, 2);
  }
  if (wide > 3) {
    g.strokeStyle = colours.edge;
    g.lineWidth = 1;
    g.strokeRect(from + 0.5, top + 0.5, wide - 1, tall - 1);
  }
}

// ---- drawing

let asked = 0;
function draw() {
  if (!asked) asked = requestAnimationFrame(() => { asked = 0; paint(); });
}

function paint() {
  g.clearRect(0, 0, width, height);
  g.fillStyle = colours.card;
  g.fillRect(0, 0, width, height);
  g.textBaseline = "middle";
  lanes.forEach((lane, index) => {
    if (index % 2 === 0) {
      g.fillStyle = colours.band;
      g.fillRect(0, lane.top, width, lane.bottom - lane.top + 4);
    }
  });
  g.save();
  g.beginPath();
  g.rect(gutter, 0, width - gutter, height);
  g.clip();
  const first = rowNear(gutter), last = rowNear(width);
  paintAxis(first, last);
  paintSwitches(first, last, 0);
  let drawn = 0;
  for (const lane of lanes) drawn += paintLane(lane, first, last);
  paintRuns(first, last);
  paintSwitches(first, last, 1);
  paintTicks(first, last);
  paintThings();
  paintChosen();
  paintBreak();
  g.restore();
  paintThingNames();
  root.dataset.drawn = "lanes=" + lanes.length + " spans=" + drawn + " rows=" + story.rows.length;
}

function paintAxis(first, last) {
  g.font = "11px " + FONT;
  g.textAlign = "left";
  let free = gutter - 1;
  const broken = story.rows.length ? x(story.broken ?? story.rows.length - 1) : -1000;
  for (let i = first; i <= last; i++) {
    const step = story.rows[i][0];
    if (i > 0 && story.rows[i - 1][0] === step) continue;
    const px = left(i), text = free === gutter - 1 ? "step " + step : String(step), wide = long(text);
    if (px < free || px + wide > width - 6) continue;
    line(px + 0.5, AXIS - 5, px + 0.5, AXIS, colours.quiet);
    line(px + 0.5, AXIS, px + 0.5, thingsTop - 26, colours.line);
    if (broken < px - 3 || broken > px + wide + 6) {
      g.fillStyle = colours.quiet;
      g.fillText(text, px + 3, AXIS - 8);
    }
    free = px + wide + 40;
  }
}

function paintLane(lane, first, last) {
  let drawn = 0;
  const ends = width;
  for (const wait of lane.waits) {
    if (wait.to < first || wait.from > last) continue;
    const from = Math.max(gutter, x(wait.from)), wide = Math.min(ends, x(wait.to)) - from;
    if (wide < 1) continue;
    const lock = wait.kind === 0, colour = lock ? look(wait.class, wait.small).hue : colours.small;
    const tall = lock ? BAR - 2 : 7, top = lock ? lane.locks + wait.depth * BAR : lane.base - 3;
    hatch(from, top, wide, tall, colour);
    if (lock) {
      g.font = "11px " + FONT;
      const text = fit(wait.said, wide - 14);
      if (text) {
        g.fillStyle = colours.card;
        g.fillRect(from + 4, top + 1, long(text) + 6, tall - 2);
        g.fillStyle = colours.text;
        g.textAlign = "left";
        g.fillText(text, from + 7, top + tall / 2 + 0.5);
      }
    }
    drawn += 1;
  }
  for (const lock of lane.idle ? [] : lane.held) {
    if (lock.to < first || lock.from > last) continue;
    const from = Math.max(gutter - 2, x(lock.from)), wide = Math.max(1.5, Math.min(ends + 2, x(lock.to)) - from);
    const style = look(lock.class, lock.small), top = lane.locks + lock.depth * BAR;
    bar(from, lock.small ? top + 4 : top, wide, lock.small ? THIN : BAR - 2, style);
    if (!lock.small) {
      g.font = "11px " + FONT;
      const text = fit(lock.name, Math.min(wide, ends - from) - 8);
      if (text) {
        g.textAlign = "left";
        if (style.stripe) {
          g.fillStyle = style.hue;
          g.fillRect(from + 2, top + 1, long(text) + 6, BAR - 4);
        }
        g.fillStyle = textOn(style.hue);
        g.fillText(text, from + 4, top + (BAR - 2) / 2 + 0.5);
      }
    }
    drawn += 1;
  }
  g.font = "12px " + FONT;
  for (const step of lane.steps_) {
    if (step.to < first || step.from > last) continue;
    const from = x(step.from), to = x(step.to), y = lane.steps + 17.5;
    line(Math.max(gutter - 4, from), y, Math.min(ends + 4, to), y, step.end ? colours.broken : colours.text);
    line(from, y, from, y + 4, colours.text);
    line(to, y, to, y + 4, colours.text);
    const start = Math.max(gutter, from), text = fit(step.end || step.text, Math.min(ends, to) - start - 4);
    if (text) {
      g.textAlign = "left";
      g.fillStyle = step.end ? colours.broken : colours.text;
      g.fillText(text, start + 2, lane.steps + 9);
    }
    drawn += 1;
  }
  return drawn;
}

function paintRuns(first, last) {
  let from = first;
  for (let i = first; i <= last; i++) {
    const thread = story.rows[i][1];
    if (i < last && story.rows[i + 1][1] === thread) continue;
    const lane = laneOf.get(thread);
    if (lane) line(left(from), lane.base, Math.max(left(i + 1), left(from) + 1), lane.base, colours.run, 3);
    from = i + 1;
  }
}

function paintSwitches(first, last, which) {
  for (const [row, from, to, preempted] of story.switches) {
    if (preempted !== which || row < first || row > last + 1) continue;
    const a = laneOf.get(from), b = laneOf.get(to);
    if (!a || !b || a === b) continue;
    const px = left(row), down = b.base > a.base ? 1 : -1;
    line(px, a.base, px, b.base, preempted ? colours.preempt : colours.switch, preempted ? 2 : 1, preempted ? [5, 3] : []);
    if (preempted) {
      g.fillStyle = colours.preempt;
      g.beginPath();
      g.arc(px, a.base, 4, 0, 7);
      g.moveTo(px, b.base - down * 1);
      g.lineTo(px - 5, b.base - down * 9);
      g.lineTo(px + 5, b.base - down * 9);
      g.fill();
    }
  }
}

function paintTicks(first, last) {
  for (let i = first; i <= last; i++) {
    const [, thread, kind, , , , detail] = story.rows[i], lane = laneOf.get(thread);
    if (!lane) continue;
    const px = x(i), y = lane.base;
    if (kind === "make" || kind === "unmake") {
      const up = kind === "make" ? 1 : -1;
      g.fillStyle = kind === "make" ? colours.text : colours.card;
      g.strokeStyle = colours.text;
      g.lineWidth = 1.2;
      g.beginPath();
      g.moveTo(px, y - up * 5);
      g.lineTo(px - 4, y + up * 4);
      g.lineTo(px + 4, y + up * 4);
      g.closePath();
      g.fill();
      g.stroke();
    } else if (kind === "fault") {
      line(px - 5, y - 5, px + 5, y + 5, colours.broken, 2.5);
      line(px - 5, y + 5, px + 5, y - 5, colours.broken, 2.5);
    } else if (kind === "violation") {
      g.fillStyle = colours.broken;
      g.beginPath();
      g.arc(px, y, 6, 0, 7);
      g.fill();
    } else if (!detail && kind !== "preempted") {
      line(px, y - 4, px, y + 4, colours.run);
    }
  }
}

function paintThings() {
  things.forEach((thing, index) => {
    const bottom = thingsTop + (index + 1) * thingTall;
    line(gutter, bottom - 0.5, width, bottom - 0.5, colours.line);
    for (const [from, to, state] of thing.spans) {
      const start = Math.max(gutter, x(from)), wide = Math.max(2, Math.min(width, x(to)) - start);
      if (x(to) < gutter || x(from) > width) continue;
      presence(start, bottom - 12, wide, state);
    }
  });
}

/** A bar for what is there; of what has states, by its state. */
function presence(left, top, wide, state) {
  const [colour, tall] = state?.startsWith("failed") ? [colours.broken, 9]
    : state === "registered" ? [colours.there, 3] : state === "unregistered" ? [colours.line, 1] : [colours.there, 9];
  g.fillStyle = colour;
  g.fillRect(left, top + (9 - tall) / 2, wide, tall);
}

function paintThingNames() {
  if (!things.length) return;
  g.textAlign = "left";
  g.font = "600 13px " + FONT;
  g.fillStyle = colours.text;
  g.fillText("What there is, and in which state", 8, thingsTop - 12);
  g.font = "11px " + FONT;
  g.fillStyle = colours.quiet;
  things.forEach((thing, index) => {
    g.fillText(fit(thing.name, (gutter > 8 ? gutter : width) - 16), 8, thingsTop + index * thingTall + 8);
  });
}

function paintBreak() {
  if (!story.invariant || !story.rows.length) return;
  const row = story.broken ?? story.rows.length - 1, px = x(row);
  line(px, AXIS - 14, px, height, colours.broken, 2);
  g.font = "600 12px " + FONT;
  const text = "✗ " + (story.broken === null ? "found at the end: " : "") + story.invariant;
  const shown = fit(text, room() - 20), wide = long(shown) + 12;
  if (px < gutter - 2 || px > width + 2) return;
  const start = Math.min(Math.max(gutter, px - wide / 2), width - wide - 2);
  g.fillStyle = colours.broken;
  g.fillRect(start, 1, wide, 19);
  g.fillStyle = colours["broken-text"];
  g.textAlign = "left";
  g.fillText(shown, start + 6, 11);
}

function paintChosen() {
  if (chosen === null) return;
  const px = x(chosen), lane = laneOf.get(story.rows[chosen][1]);
  line(px, AXIS, px, height, colours.focus, 1, [2, 3]);
  if (lane) {
    g.strokeStyle = colours.focus;
    g.lineWidth = 2;
    g.beginPath();
    g.arc(px, lane.base, 8, 0, 7);
    g.stroke();
  }
}

// ---- pointing

function about(row) {
  const [step, thread, kind, said, where, held] = story.rows[row], lines = [];
  lines.push(story.threads[thread] + (kind === "step_begin" ? " begins: " : " ") + story.texts[said]);
  lines.push("step " + step + (story.texts[where] ? ", at " + story.texts[where] : ""));
  lines.push(story.texts[held] ? "holds then: " + story.texts[held] : "holds nothing then");
  if (kind === "violation" && story.detail && story.detail !== story.texts[said]) lines.push(story.detail);
  return lines;
}

function spanned(from, to) {
  return "steps " + story.rows[from][0] + " to " + story.rows[to][0];
}

/** What is at a place in the figure, as lines, with the row it belongs to. */
function pointed(px, y) {
  if (px < gutter - 4) return null;
  const row = rowNear(px), inside = (span) => x(span.from) - 3 <= px && px <= Math.max(x(span.to), x(span.from) + 2) + 3;
  const thing = things[Math.floor((y - thingsTop) / thingTall)];
  if (y >= thingsTop && thing) {
    const there = thing.spans.find(([from, to]) => x(from) - 3 <= px && px <= x(to) + 3);
    if (!there) return { row, lines: [thing.name, "not there"] };
    return { row, lines: [thing.name, (there[2] || "there") + ": " + spanned(there[0], there[1])] };
  }
  const lane = lanes.find((lane) => lane.top <= y && y <= lane.bottom + 4);
  if (!lane) return null;
  const who = story.threads[lane.thread];
  if (lane.hasSteps && y < lane.locks) {
    const step = lane.steps_.find(inside);
    if (step) return { row: step.from, lines: [step.end || step.text, who + ", " + spanned(step.from, step.to)] };
  }
  const wait = lane.waits.find((wait) => inside(wait) && (wait.kind !== 0 || y < lane.base - 5));
  if (y < lane.base - 5 && !lane.idle) {
    const depth = Math.floor((y - lane.locks) / BAR);
    const locks = lane.held.filter((lock) => lock.depth === depth && inside(lock));
    const lock = locks.find((lock) => lock.from <= row && row <= lock.to) || locks[0];
    if (lock) {
      const taken = story.texts[story.rows[lock.from][4]], holds = story.texts[story.rows[lock.from][5]];
      const lines = [lock.name, who + " holds it, " + spanned(lock.from, lock.to)];
      if (taken) lines.push("taken at " + taken);
      lines.push("held then: " + holds);
      return { row: lock.from, lines };
    }
    if (wait && wait.depth === depth) return { row: wait.from, lines: [who + " " + wait.said, spanned(wait.from, wait.to)] };
  }
  let near = null;
  for (const other of lane.rows) {
    const away = Math.abs(x(other) - px) + (story.rows[other][6] ? 2 : 0);
    if (away < 8 && (!near || away < near.away)) near = { row: other, away };
  }
  if (near) return { row: near.row, lines: about(near.row) };
  return wait ? { row: wait.from, lines: [who + " " + wait.said, spanned(wait.from, wait.to)] } : null;
}

function tell(lines, px, y) {
  const tip = by("tip");
  tip.replaceChildren();
  lines.forEach((text, index) => element(index ? "div" : "b", text, tip));
  tip.hidden = false;
  const wide = tip.offsetWidth, tall = tip.offsetHeight;
  tip.style.left = Math.max(4, Math.min(px + 14, width - wide - 4)) + "px";
  tip.style.top = (y + 18 + tall > height ? Math.max(4, y - tall - 14) : y + 18) + "px";
}

function hush() { by("tip").hidden = true; }

function choose(row) {
  chosen = row;
  const middle = (at[row] + at[row + 1]) / 2, wide = view[1] - view[0];
  if (middle < view[0] || middle > view[1]) show(middle - wide / 2, middle + wide / 2);
  const lane = laneOf.get(story.rows[row][1]), lines = about(row);
  tell(lines, x(row), lane ? lane.base : AXIS);
  by("status").textContent = lines.join(". ");
  draw();
}

function step(by) {
  const every = document.getElementById("every").checked;
  let row = chosen === null ? (by > 0 ? -1 : story.rows.length) : chosen;
  do row += by; while (row >= 0 && row < story.rows.length && !every && story.rows[row][6]);
  if (row >= 0 && row < story.rows.length) choose(row);
}

function sideways(by) {
  if (chosen === null) return step(1);
  const place = lanes.indexOf(laneOf.get(story.rows[chosen][1])), lane = lanes[place + by];
  if (!lane) return;
  const near = lane.rows.reduce((best, row) => Math.abs(at[row] - at[chosen]) < Math.abs(at[best] - at[chosen]) ? row : best);
  choose(near);
}

const fingers = new Map();
let travelled = 0;
canvas.addEventListener("pointerdown", (event) => {
  fingers.set(event.pointerId, event.offsetX);
  travelled = 0;
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointermove", (event) => {
  const before = fingers.get(event.pointerId);
  if (before === undefined) {
    const found = pointed(event.offsetX, event.offsetY);
    return found ? tell(found.lines, event.offsetX, event.offsetY) : hush();
  }
  const moved = event.offsetX - before;
  travelled += Math.abs(moved);
  if (fingers.size === 2) {
    const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, px]) => px);
    const was = Math.abs(before - other), is = Math.abs(event.offsetX - other);
    if (was > 10 && is > 10) zoom(was / is, (event.offsetX + other) / 2);
  } else if (travelled > 4) {
    canvas.classList.add("drags");
    hush();
    pan(-moved / room());
  }
  fingers.set(event.pointerId, event.offsetX);
});
for (const kind of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(kind, (event) => {
    fingers.delete(event.pointerId);
    canvas.classList.remove("drags");
    if (kind === "pointerup" && travelled <= 4) {
      const found = pointed(event.offsetX, event.offsetY);
      chosen = found ? found.row : null;
      if (found) {
        tell(found.lines, event.offsetX, event.offsetY);
        by("status").textContent = found.lines.join(". ");
      }
      draw();
    }
  });
}
canvas.addEventListener("pointerleave", () => { if (!fingers.size && document.activeElement !== canvas) hush(); });
canvas.addEventListener("blur", hush);
canvas.addEventListener("wheel", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) {
    zoom(Math.exp(Math.max(-60, Math.min(60, event.deltaY)) * 0.01), event.offsetX);
  } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
    pan((event.deltaX || event.deltaY) / room());
  } else {
    return;
  }
  event.preventDefault();
}, { passive: false });
canvas.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const keys = {
    ArrowRight: () => step(1), ArrowLeft: () => step(-1), ArrowUp: () => sideways(-1), ArrowDown: () => sideways(1),
    Home: () => { chosen = null; step(1); }, End: () => { chosen = null; step(-1); },
    "+": () => zoom(0.7), "=": () => zoom(0.7), "-": () => zoom(1.4), "0": () => show(0, total), b: toBreak,
    Escape: () => { chosen = null; hush(); draw(); },
  };
  const does = keys[event.key];
  if (!does) return;
  event.preventDefault();
  does();
});

by("in").onclick = () => zoom(0.6);
by("out").onclick = () => zoom(1 / 0.6);
by("left").onclick = () => pan(-0.4);
by("right").onclick = () => pan(0.4);
by("fit").onclick = () => show(0, total);
by("break").onclick = () => { canvas.focus({ preventScroll: true }); toBreak(); };
by("every").onchange = () => { layTime(); hush(); fillTable(); draw(); };

// ---- the rest of the page

function legend() {
  const list = by("legend"), names = new Map();
  list.replaceChildren();
  for (const lock of story.locks) if (!lock[6]) names.set(story.texts[lock[1]], false);
  const order = (name) => { const place = data.ordered.indexOf(name); return place < 0 ? 1000 : place; };
  const entries = [...names.keys()].sort((a, b) => order(a) - order(b) || (a < b ? -1 : 1)).map((name) => {
    return [name, (c) => drawn(c, () => bar(0, 0, 22, 12, look(name, false)))];
  });
  if (story.locks.some((lock) => lock[6])) {
    entries.push(["other locks", (c) => drawn(c, () => bar(0, 3, 22, THIN, look("", true)))]);
  }
  if (story.waits.length) entries.push(["waits", (c) => drawn(c, () => hatch(0, 0, 22, 12, colours.small))]);
  if (story.switches.some((one) => one[3])) {
    entries.push(["preemption", (c) => drawn(c, () => line(0, 6, 22, 6, colours.preempt, 2, [5, 3]))]);
  }
  const has = (kind) => story.rows.some((row) => row[2] === kind);
  const triangle = (up) => () => {
    g.fillStyle = up ? colours.text : colours.card;
    g.strokeStyle = colours.text;
    g.beginPath();
    g.moveTo(11, up ? 1 : 11);
    g.lineTo(6, up ? 11 : 1);
    g.lineTo(16, up ? 11 : 1);
    g.closePath();
    g.fill();
    g.stroke();
  };
  const states = new Set(story.things.flatMap((rep) => rep.states.map(([, , state]) => state.split(":")[0])));
  for (const [state, said] of [["loaded", "loaded, or there"], ["registered", "registered, not loaded"], ["failed", "failed to load"]]) {
    if (states.has(state)) entries.push([said, (c) => drawn(c, () => presence(0, 2, 22, state))]);
  }
  if (has("make")) entries.push(["made", (c) => drawn(c, triangle(true))]);
  if (has("unmake")) entries.push(["unmade", (c) => drawn(c, triangle(false))]);
  if (has("fault")) {
    entries.push(["fails as planned", (c) => drawn(c, () => {
      line(6, 1, 16, 11, colours.broken, 2.5);
      line(6, 11, 16, 1, colours.broken, 2.5);
    })]);
  }
  for (const [name, paints] of entries) {
    const item = element("li", undefined, list), small = element("canvas", undefined, item);
    small.setAttribute("aria-hidden", "true");
    paints(small);
    element("span", name, item);
  }
}

/** Draws on a small canvas what is drawn on the large one. */
function drawn(small, paints) {
  const scale = window.devicePixelRatio || 1;
  small.width = 22 * scale;
  small.height = 12 * scale;
  const aside = document.createElement("canvas");
  aside.width = small.width;
  aside.height = small.height;
  g.save();
  g.setTransform(scale, 0, 0, scale, 0, 0);
  g.clearRect(0, 0, 22, 12);
  paints();
  small.getContext("2d").drawImage(canvas, 0, 0, small.width, small.height, 0, 0, small.width, small.height);
  g.restore();
}

function fillTable() {
  const body = by("rows"), every = by("every").checked;
  body.parentElement.classList.toggle("brief", !every);
  if (!by("all").open || body.dataset.of === String(data.stories.indexOf(story))) return;
  body.dataset.of = String(data.stories.indexOf(story));
  const all = document.createDocumentFragment();
  story.rows.forEach(([number, thread, kind, said, where, held, detail], row) => {
    const tr = element("tr", undefined, all, kind === "violation" ? "broken" : detail ? "detail" : "");
    const button = element("button", String(number), element("td", undefined, tr));
    button.type = "button";
    button.dataset.row = row;
    button.setAttribute("aria-label", "step " + number + ": show it in the figure");
    for (const text of [story.threads[thread], story.texts[said], story.texts[held], story.texts[where]]) element("td", text, tr);
  });
  body.replaceChildren(all);
}
by("rows").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  canvas.focus();
  by("chart").scrollIntoView({ block: "nearest" });
  choose(Number(button.dataset.row));
});
by("all").addEventListener("toggle", fillTable);

by("copy").onclick = async () => {
  const text = by("replay").textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const range = document.createRange();
    range.selectNodeContents(by("replay"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    document.execCommand("copy");
  }
  by("copy").textContent = "Copied";
  setTimeout(() => { by("copy").textContent = "Copy"; }, 1500);
};

function dress(theme) {
  root.dataset.theme = theme;
  by("theme").textContent = theme === "dark" ? "Light" : "Dark";
  readColours();
  if (story) {
    legend();
    paint();
  }
}
const prefers = matchMedia("(prefers-color-scheme: dark)");
prefers.addEventListener("change", () => dress(prefers.matches ? "dark" : "light"));
by("theme").onclick = () => dress(root.dataset.theme === "dark" ? "light" : "dark");

function tellStory(index) {
  story = data.stories[index];
  chosen = null;
  hush();
  by("story").hidden = false;
  by("invariant").textContent = story.invariant;
  by("detail").textContent = story.detail;
  by("again").hidden = !story.token;
  by("replay").textContent = story.again;
  facts(by("facts"), [
    [story.kind, story.program], ...(story.after ? [["run first", story.after]] : []),
    ["faults", story.faults.length ? story.faults.join("; ") : "none"],
    ["preemptions", story.preemptions], ["threads", story.lanes.length], ["rows", story.rows.length],
  ]);
  const name = (place) => story.texts[place];
  lanes = story.lanes.map((thread) => ({ thread, held: [], waits: [], steps_: [], rows: [], depth: 0, hasSteps: false }));
  laneOf = new Map(lanes.map((lane) => [lane.thread, lane]));
  for (const [thread, kind, lock, from, to, depth, small] of story.locks) {
    const lane = laneOf.get(thread);
    if (!lane) continue;
    lane.held.push({ class: name(kind), name: name(lock), from, to, depth, small });
    lane.depth = Math.max(lane.depth, depth + 1);
  }
  const smalls = new Set(story.locks.filter((lock) => lock[6]).map((lock) => lock[1]));
  for (const [thread, kind, said, from, to, sort, forever] of story.waits) {
    const lane = laneOf.get(thread);
    if (!lane) continue;
    const depth = lane.held.filter((lock) => lock.from <= from && from < lock.to).length;
    lane.waits.push({ class: name(kind), small: smalls.has(kind), said: name(said), from, to, kind: sort, forever, depth });
    if (sort === 0) lane.depth = Math.max(lane.depth, depth + 1);
  }
  for (const [thread, text, end, from, to] of story.steps) {
    const lane = laneOf.get(thread);
    if (!lane) continue;
    lane.steps_.push({ text: name(text), end: end === null ? null : name(end), from, to });
    lane.hasSteps = true;
  }
  story.rows.forEach((row, place) => laneOf.get(row[1])?.rows.push(place));
  // A thread that does nothing but wait needs little room.
  for (const lane of lanes) lane.idle = !lane.hasSteps && lane.rows.every((row) => story.rows[row][6]);
  // What never was anything says nothing.
  const states = story.things.filter((rep) => rep.states.some(([, , state]) => state !== "unregistered"));
  things = states.map((rep) => ({ name: rep.name, spans: rep.states }));
  things = [...things, ...story.resources.map(([what, spans]) => ({ name: what, spans }))].slice(0, 400);
  for (const button of by("stories").children) {
    button.setAttribute("aria-current", String(button.dataset.index === String(index)));
  }
  layTime();
  layOut();
  legend();
  delete by("rows").dataset.of;
  fillTable();
  paint();
}

by("version").textContent = data.version;
facts(by("summary"), data.summary);
if (data.stories.length > 1) {
  data.stories.forEach((told, index) => {
    const button = element("button", undefined, by("stories"));
    button.type = "button";
    button.dataset.index = index;
    element("span", told.invariant, button);
    element("span", told.program, button);
    if (told.faults.length) element("span", told.faults.join("; "), button, "quiet");
    button.onclick = () => tellStory(index);
  });
}
looks = assignLooks();
dress(prefers.matches ? "dark" : "light");
if (data.stories.length) {
  tellStory(0);
  new ResizeObserver(() => {
    if (by("chart").clientWidth !== width) {
      layOut();
      hush();
      legend();
      paint();
    }
  }).observe(by("chart"));
} else {
  element("p", "No invariant was broken.", by("stories"), "card");
  root.dataset.drawn = "lanes=0 spans=0 rows=0";
}
