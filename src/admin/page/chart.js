// Two small charts, drawn as SVG from the worker's own record of the last minutes.

import { count, plural, rate } from "./format.js";
import { byId, setText } from "./view.js";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 62, right: 8, top: 8, bottom: 20 };
// Time spans to draw: minutes, and steps of the record per bar. The span grows with the record, so that a worker that has
// just started does not show an empty chart.
const SPANS = [[2, 1], [5, 2], [15, 6]];

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// The next round number of at least n, for the upper end of an axis.
function ceiling(n, base, steps) {
  if (n <= steps[0]) return steps[0];
  const power = base ** Math.floor(Math.log(n) / Math.log(base));
  return power * steps.find((step) => step * power >= n);
}

const BINARY = [1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 100, 128, 160, 200, 256, 320, 400, 512, 640, 800, 1024];
const DECIMAL = [1, 2, 4, 6, 8, 10];

// The part of the record that is drawn.
function span(record) {
  const steps = (minutes) => (minutes * 60) / record.step_seconds;
  const [minutes, group] = SPANS.find(([fits]) => record.bytes.length <= steps(fits)) ?? SPANS.at(-1);
  return { minutes, group, steps: steps(minutes) };
}

function frame(svg, top, minutes, label) {
  const width = Math.max(240, svg.clientWidth);
  const height = Math.max(100, svg.clientHeight);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const area = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: height - MARGIN.bottom };
  const parts = [];
  for (const share of [0, 0.5, 1]) {
    const y = Math.round(area.bottom - share * (area.bottom - area.top)) + 0.5;
    parts.push(shape("line", { class: "grid", x1: area.left, x2: area.right, y1: y, y2: y }));
    if (share === 0.5 && top < 2) continue;
    parts.push(shape("text", { x: area.left - 6, y: y + 4, "text-anchor": "end" }, label(top * share)));
  }
  for (const [share, text, anchor] of [[0, `${minutes} min ago`, "start"], [0.5, `${minutes / 2}`, "middle"], [1, "now", "end"]]) {
    const x = area.left + share * (area.right - area.left);
    parts.push(shape("text", { x, y: height - 5, "text-anchor": anchor }, text));
  }
  return { area, parts };
}

function drawSent(record, { minutes, steps }) {
  const svg = byId("sent-chart");
  const rates = record.bytes.map((sum) => sum / record.step_seconds);
  const peak = Math.max(0, ...rates);
  const top = ceiling(Math.max(peak, 1024), 1024, BINARY);
  const { area, parts } = frame(svg, top, minutes, (value) => (value === 0 ? "0" : rate(value)));
  const step = (area.right - area.left) / (steps - 1);
  const x = (place) => area.right - (rates.length - 1 - place) * step;
  const y = (value) => area.bottom - (value / top) * (area.bottom - area.top);
  if (rates.length > 0) {
    const line = rates.map((value, place) => `${x(place).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    parts.push(shape("polygon", { class: "area", points: `${x(0)},${area.bottom} ${line} ${x(rates.length - 1)},${area.bottom}` }));
    parts.push(shape("polyline", { class: "line", points: line }));
  }
  svg.replaceChildren(...parts);
  const now = rates.at(-1) ?? 0;
  svg.setAttribute("aria-label", `Sent to S3 over the last ${minutes} minutes: now ${rate(now)}, maximum ${rate(peak)}`);
  setText(byId("sent-reading"), rates.length ? `now ${rate(now)}, maximum ${rate(peak)}` : "no data yet");
}

// Steps summed to bars. Groups begin at fixed steps, so that a complete bar no longer changes.
function grouped(record, values, size) {
  const sums = new Map();
  values.forEach((value, place) => {
    const group = Math.floor((record.forgotten + place) / size);
    sums.set(group, (sums.get(group) ?? 0) + value);
  });
  return sums;
}

function drawEnded(record, { minutes, group: size, steps }) {
  const svg = byId("ended-chart");
  const kinds = ["delivered", "repeated", "failed"].map((kind) => [kind, grouped(record, record[kind], size)]);
  const groups = [...kinds[0][1].keys()];
  const total = (group) => kinds.reduce((sum, [, sums]) => sum + sums.get(group), 0);
  const top = ceiling(Math.max(2, ...groups.map(total)), 10, DECIMAL);
  const { area, parts } = frame(svg, top, minutes, count);
  const bars = Math.ceil(steps / size) + 1;
  const slot = (area.right - area.left) / bars;
  const last = groups.at(-1) ?? 0;
  for (const group of groups) {
    let y = area.bottom;
    for (const [kind, sums] of kinds) {
      const height = (sums.get(group) / top) * (area.bottom - area.top);
      y -= height;
      if (height > 0) {
        const x = area.right - (last - group + 1) * slot;
        parts.push(shape("rect", { class: kind, x: (x + 1).toFixed(1), y: y.toFixed(1), width: Math.max(1, slot - 2).toFixed(1), height: height.toFixed(1) }));
      }
    }
  }
  svg.replaceChildren(...parts);
  const sum = (values) => values.reduce((all, value) => all + value, 0);
  svg.setAttribute("aria-label",
    `Ended in the last ${minutes} minutes: ${plural(sum(record.delivered), "transfer")} delivered, ` +
    `${plural(sum(record.repeated), "attempt")} to be retried, ${count(sum(record.failed))} failed`);
}

let drawn = "";

// Draws only if the record or the size of the chart has changed.
export function draw(record) {
  const now = JSON.stringify([record, byId("sent-chart").clientWidth]);
  if (now === drawn) return;
  drawn = now;
  const shown = span(record);
  setText(byId("throughput-title"), `The last ${shown.minutes} minutes`);
  setText(byId("ended-steps"), `Ended, in steps of ${shown.group * record.step_seconds} s`);
  drawSent(record, shown);
  drawEnded(record, shown);
}

export function peakRate(record) {
  return Math.max(0, ...record.bytes) / record.step_seconds;
}

export function lastRate(record) {
  return (record.bytes.at(-1) ?? 0) / record.step_seconds;
}

