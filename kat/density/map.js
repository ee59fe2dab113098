"use strict";
// A point: x, y in [0, 1], number of its colour, weight times n, r, value, source, text.
const { palette, points } = JSON.parse(document.getElementById("data").textContent);
const canvas = document.getElementById("map");
const [facts, text] = document.getElementById("point").children;
const byWeight = points.map((_, i) => i).sort((a, b) => points[b][3] - points[a][3] || points[b][4] - points[a][4]);
const rank = new Array(points.length);
byWeight.forEach((point, place) => { rank[point] = place; });
const MARGIN = 0.03;
let chosen = -1;

const place = (share, size) => (MARGIN + (1 - 2 * MARGIN) * share) * size;

function draw() {
  const scale = window.devicePixelRatio || 1;
  const size = canvas.clientWidth;
  canvas.width = canvas.height = Math.round(size * scale);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const radius = Math.min(6, Math.max(1.6, 0.18 * size / Math.sqrt(points.length)));
  pen.globalAlpha = 0.85;
  for (const [x, y, colour] of points) {
    pen.fillStyle = palette[colour];
    pen.beginPath();
    pen.arc(place(x, size), place(y, size), radius, 0, 2 * Math.PI);
    pen.fill();
  }
  if (chosen < 0) return;
  const [x, y, colour] = points[chosen];
  pen.globalAlpha = 1;
  pen.fillStyle = palette[colour];
  pen.strokeStyle = "#1f2226";
  pen.lineWidth = 2.5;
  pen.beginPath();
  pen.arc(place(x, size), place(y, size), radius + 5, 0, 2 * Math.PI);
  pen.fill();
  pen.stroke();
}

function choose(point) {
  if (point === chosen) return;
  chosen = point;
  const [, , , weight, r, value, source, words] = points[point];
  const parts = [`${rank[point] + 1} of ${points.length} by weight`, `${weight} × uniform`, `r ${r}`];
  if (source) parts.push(source);
  if (value && value !== source) parts.push(value);
  facts.textContent = parts.join(" · ");
  text.textContent = words;
  draw();
}

function nearest(event) {
  const box = canvas.getBoundingClientRect();
  const [px, py] = [event.clientX - box.left, event.clientY - box.top];
  let best = -1, least = 14 * 14; // pixels
  points.forEach(([x, y], i) => {
    const d = (place(x, box.width) - px) ** 2 + (place(y, box.width) - py) ** 2;
    if (d < least) [best, least] = [i, d];
  });
  return best;
}

for (const kind of ["pointermove", "pointerdown"]) {
  canvas.addEventListener(kind, (event) => {
    const point = nearest(event);
    if (point >= 0) choose(point);
  });
}

const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
canvas.addEventListener("keydown", (event) => {
  if (!(event.key in STEPS) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const now = chosen < 0 ? (STEPS[event.key] > 0 ? -1 : points.length) : rank[chosen];
  const then = Math.min(points.length - 1, Math.max(0, now + STEPS[event.key]));
  choose(byWeight[then]);
});

window.addEventListener("resize", draw);
draw();
