"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const OWN = "#d9730d", MEAN = "#0b6e99";
const SETS = ["#0b6e99", "#d9730d", "#3f7d3a", "#8b3fa0", "#b3272d", "#8a6d1f"];
const TAPS = ["#1b3f66", "#5aa7c7", "#4f5b66", "#d9730d", "#702c06", "#8b3fa0", "#3f7d3a"];
const SCALE = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const state = { block: 0, place: 0, channel: 0 };

// What was encoded as little-endian float32, which is what browsers' machines compute with.
function floats(text) {
  return text === null ? null : new Float32Array(Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0)).buffer);
}
for (const block of DATA.blocks) {
  block.importance = floats(block.importance);
  block.kernel = floats(block.kernel);
}

// The rows (channels) of one clip, each of `width` values.
function rows(values, width, block) {
  const start = state.place * block.channels * width;
  return Array.from({ length: block.channels }, (_, c) => values.subarray(start + c * width, start + (c + 1) * width));
}
const column = (table, i) => table.map((row) => row[i]);
const mean = (list) => list.reduce((sum, value) => sum + value, 0) / list.length;
function quantile(list, q) {
  const sorted = Float32Array.from(list).sort(), at = q * (sorted.length - 1), low = Math.floor(at);
  return sorted[low] + (at - low) * (sorted[Math.ceil(at)] - sorted[low]);
}
const show = (value) => Math.abs(value) < 0.1 ? value.toFixed(4) : value.toFixed(3);

function add(parent, tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return parent.appendChild(node);
}
function start(id, width, height) {
  const svg = byId(id);
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  return svg;
}
function hint(node, describe) {
  node.addEventListener("mousemove", (event) => {
    const text = describe(event), box = byId("hint");
    box.hidden = !text;
    box.textContent = text;
    box.style.left = Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8) + "px";
    box.style.top = Math.min(event.clientY + 14, innerHeight - box.offsetHeight - 8) + "px";
  });
  node.addEventListener("mouseleave", () => { byId("hint").hidden = true; });
}

function ticks(low, high) {
  const rough = (high - low) / 7, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return [found, Math.max(0, -Math.floor(Math.log10(step) + 1e-9))];
}
// A frame with named axes; gives the functions from values to places.
function axes(svg, left, top, width, height, xs, ys, xName, yName, xTicks) {
  const x = (value) => left + (value - xs[0]) / (xs[1] - xs[0]) * width;
  const y = (value) => top + height - (value - ys[0]) / (ys[1] - ys[0]) * height;
  const [values, digits] = ticks(...ys);
  for (const value of values) {
    add(svg, "line", { x1: left, x2: left + width, y1: y(value), y2: y(value), stroke: "#e6e6e6" });
    add(svg, "text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(digits));
  }
  const [numbers, places] = xTicks ? [[], 0] : ticks(...xs);
  for (const [value, text] of xTicks ?? numbers.map((value) => [value, value.toFixed(places)]))
    add(svg, "text", { x: x(value), y: top + height + 16, "text-anchor": "middle" }, text);
  add(svg, "line", { x1: left, x2: left + width, y1: top + height, y2: top + height, stroke: "#888" });
  add(svg, "text", { x: left + width / 2, y: top + height + 33, "text-anchor": "middle" }, xName);
  const middle = top + height / 2;
  add(svg, "text", { x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` }, yName);
  return [x, y];
}
function legend(svg, left, top, items) {
  for (const [text, color, opacity] of items) {
    add(svg, "rect", { x: left, y: top - 9, width: 10, height: 10, fill: color, opacity: opacity ?? 1 });
    left += 16 + add(svg, "text", { x: left + 15, y: top }, text).textContent.length * 6.2 + 14;
  }
}
function padded(list) {
  const low = Math.min(...list), high = Math.max(...list), room = Math.max((high - low) * 0.06, 0.005);
  return [low - room, high + room];
}

function drawFilm(block, video) {
  const T = DATA.segments, width = Math.min(930, 130 * T), side = width / T, left = 60, base = side + 30;
  const svg = start("film", 1000, block.importance ? base + 190 : base + 30), center = (t) => left + (t + 0.5) * side;
  const size = { x: left, y: 0, width: width, height: side, preserveAspectRatio: "none" };
  add(svg, "image", { ...size, href: "data:image/jpeg;base64," + video.strip });
  if (!block.importance) {
    add(svg, "text", { x: left, y: base + 20 }, `${block.name} has no importance map V.`);
    return;
  }
  const table = rows(block.importance, block.frames, block), every = T / block.frames;
  const frames = Array.from({ length: block.frames }, (_, t) => {
    const values = column(table, t);
    const own = values[state.channel], at = { x: center(t * every), frame: t * every + 1 };
    return { ...at, own, mean: mean(values), low: quantile(values, 0.1), high: quantile(values, 0.9) };
  });
  const range = padded(frames.flatMap((frame) => [frame.own, frame.low, frame.high]));
  const numbers = Array.from({ length: T }, (_, t) => [t + 0.5, t + 1]).filter((_, t) => t % Math.ceil(T / 32) === 0);
  const [, y] = axes(svg, left, base, width, 150, [0, T], range, "sampled frame", "importance V", numbers);
  const line = (name) => frames.map((frame) => `${frame.x},${y(frame[name])}`);
  add(svg, "polygon", { points: [...line("low"), ...line("high").reverse()].join(" "), fill: MEAN, opacity: 0.15 });
  for (const [name, color] of [["mean", MEAN], ["own", OWN]]) {
    add(svg, "polyline", { points: line(name).join(" "), fill: "none", stroke: color, "stroke-width": 2 });
    for (const frame of frames) add(svg, "circle", { cx: frame.x, cy: y(frame[name]), r: 3, fill: color });
  }
  const names = [`channel ${state.channel}`, "mean over channels", "10 to 90 % of channels"];
  legend(svg, left, side + 18, [[names[0], OWN], [names[1], MEAN], [names[2], MEAN, 0.2]]);
  for (const frame of frames) {
    const wide = side * every;
    const area = { x: frame.x - side / 2, y: 0, width: wide, height: base + 150, fill: "#000", opacity: 0 };
    const target = add(svg, "rect", area);
    target.addEventListener("mouseenter", () => target.setAttribute("opacity", 0.08));
    target.addEventListener("mouseleave", () => target.setAttribute("opacity", 0));
    hint(target, () => `frame ${frame.frame} of ${T}\nV of channel ${state.channel}: ${show(frame.own)}\n` +
      `mean ${show(frame.mean)}, 10 to 90 %: ${show(frame.low)} … ${show(frame.high)}`);
  }
}

function drawTaps(block) {
  const K = block.offsets.length, table = rows(block.kernel, K, block), svg = start("taps", 500, 270);
  const values = Array.from({ length: K }, (_, k) => [table[state.channel][k], mean(column(table, k))]);
  const range = [Math.min(0, ...values.flat()), Math.max(...values.flat()) * 1.08 || 1];
  const names = block.offsets.map((offset, k) => [k + 0.5, offset]);
  const [x, y] = axes(svg, 60, 30, 430, 190, [0, K], range, "frame that the tap is of", "weight Θ of the tap", names);
  legend(svg, 60, 14, [[`channel ${state.channel}`, OWN], ["mean over channels", MEAN]]);
  values.forEach((pair, k) => pair.forEach((value, i) => {
    const place = { x: x(k + 0.2 + 0.3 * i), width: x(0.28) - x(0), y: Math.min(y(value), y(0)) };
    const bar = { ...place, height: Math.abs(y(value) - y(0)), fill: [OWN, MEAN][i] };
    hint(add(svg, "rect", bar), () => `${block.offsets[k]}, ${i ? "mean over channels" : "channel " + state.channel}: ` +
      show(value));
  }));
}

function drawSpread(block, video) {
  const K = block.offsets.length, table = rows(block.kernel, K, block), svg = start("spread", 500, 270);
  const all = block.all[video.set], bins = all[0].length, [low, high] = block.edges, size = (high - low) / bins;
  const here = block.offsets.map((_, k) => {
    const counts = new Array(bins).fill(0);
    for (const row of table) counts[Math.max(0, Math.min(bins - 1, Math.floor((row[k] - low) / size)))] += 1;
    return counts.map((count) => 100 * count / table.length);
  });
  const there = all.map((row) => row.map((share) => 100 * share));
  const most = Math.max(...here.flat(), ...there.flat()) * 1.05;
  const [x, y] = axes(svg, 60, 30, 430, 190, block.edges, [0, most], "weight Θ of the tap", "share of channels (%)");
  const steps = (row) => row.map((share, i) => `${x(low + i * size)},${y(share)} ${x(low + (i + 1) * size)},${y(share)}`);
  there.forEach((row, k) => {
    const points = `${x(low)},${y(0)} ${steps(row).join(" ")} ${x(high)},${y(0)}`;
    add(svg, "polygon", { points, fill: TAPS[k % TAPS.length], opacity: 0.18 });
  });
  here.forEach((row, k) => {
    const style = { fill: "none", stroke: TAPS[k % TAPS.length], "stroke-width": 1.5 };
    add(svg, "polyline", { points: steps(row).join(" "), ...style });
  });
  legend(svg, 60, 14, block.offsets.map((offset, k) => [offset, TAPS[k % TAPS.length]]));
  add(svg, "text", { x: 490, y: 14, "text-anchor": "end" }, `lines: this clip; areas: all of ${shorten(video.set, 14)}`);
  const target = add(svg, "rect", { x: 60, y: 30, width: 430, height: 190, opacity: 0 });
  hint(target, (event) => {
    const box = target.getBoundingClientRect();
    const i = Math.max(0, Math.min(bins - 1, Math.floor((event.clientX - box.left) / box.width * bins)));
    const lines = block.offsets.map((offset, k) => `${offset}: ${here[k][i].toFixed(1)} % of this clip's channels, ` +
      `${there[k][i].toFixed(1)} % in all`);
    return [`Θ from ${show(low + i * size)} to ${show(low + (i + 1) * size)}`, ...lines].join("\n");
  });
}

function drawMap(id, values, width, block, names, symbol) {
  const holder = byId(id);
  holder.replaceChildren();
  const caption = holder.appendChild(document.createElement("div"));
  if (!values) {
    caption.textContent = `no ${symbol}`;
    return;
  }
  const table = rows(values, width, block), C = block.channels, flat = table.flatMap((row) => Array.from(row));
  const low = flat.reduce((a, b) => Math.min(a, b)), high = flat.reduce((a, b) => Math.max(a, b));
  caption.textContent = `${symbol}: ${show(low)} (dark) … ${show(high)}`;
  const canvas = holder.appendChild(document.createElement("canvas")), context = canvas.getContext("2d");
  [canvas.width, canvas.height] = [width, C];
  canvas.style.width = `${Math.max(72, Math.min(240, width * 26))}px`;
  canvas.style.height = `${Math.max(256, Math.min(C, 512))}px`;
  const image = context.createImageData(width, C);
  flat.forEach((value, i) => {
    const at = (value - low) / (high - low || 1) * (SCALE.length - 1), step = Math.min(SCALE.length - 2, Math.floor(at));
    SCALE[step].forEach((from, j) => { image.data[4 * i + j] = from + (at - step) * (SCALE[step + 1][j] - from); });
    image.data[4 * i + 3] = 255;
  });
  context.putImageData(image, 0, 0);
  const mark = holder.appendChild(document.createElement("i"));
  mark.style.top = `${canvas.offsetTop + (state.channel + 0.5) / C * canvas.offsetHeight}px`;
  const below = holder.appendChild(document.createElement("div"));
  below.textContent = `${names[0]} … ${names[width - 1]} →, channels 0 … ${C - 1} ↓`;
  const cell = (event) => {
    const box = canvas.getBoundingClientRect();
    const part = (at, from, size, count) => Math.max(0, Math.min(count - 1, Math.floor((at - from) / size * count)));
    return [part(event.clientY, box.top, box.height, C), part(event.clientX, box.left, box.width, width)];
  };
  hint(canvas, (event) => {
    const [c, i] = cell(event);
    return `channel ${c}, ${names[i]}: ${symbol} = ${show(table[c][i])}`;
  });
  canvas.addEventListener("click", (event) => choose({ channel: cell(event)[0] }));
}

function drawMotion(block) {
  const svg = start("motion", 500, 330), motions = DATA.videos.map((video) => video.motion);
  const names = ["motion: mean |ΔY′| of sampled frames (levels of 0…255)", "mean over channels of Θ(t)"];
  const [x, y] = axes(svg, 60, 30, 430, 240, padded(motions), padded(block.central), ...names);
  legend(svg, 60, 14, DATA.sets.map((name, i) => [shorten(name, 20), SETS[i % SETS.length]]));
  DATA.videos.forEach((video, n) => {
    const place = DATA.shown.indexOf(n), color = SETS[DATA.sets.indexOf(video.set) % SETS.length];
    const style = { fill: color, opacity: place < 0 ? 0.35 : 0.9, stroke: place === state.place ? "#000" : "none" };
    const at = { cx: x(video.motion), cy: y(block.central[n]), r: place === state.place ? 6 : 4 };
    const dot = add(svg, "circle", { ...at, ...style, "stroke-width": 2, class: place < 0 ? "" : "dot" });
    hint(dot, () => `${video.name}\n${video.about}\nmotion ${video.motion.toFixed(2)}, ` +
      `mean Θ(t) ${show(block.central[n])}${place < 0 ? "\n(not among those shown one by one)" : ""}`);
    if (place >= 0) dot.addEventListener("click", () => choose({ place }));
  });
}

function drawFilters(block) {
  const holder = byId("filters");
  holder.replaceChildren();
  if (!block.i3d) return;
  const text = `Beside it, the same for every video: the filters of I3D 3×1×1 (${block.i3d.name})`;
  holder.appendChild(document.createElement("div")).textContent = text;
  const table = holder.appendChild(document.createElement("table")), half = Math.floor(block.i3d.taps.length / 2);
  const frames = block.i3d.taps.map((row, k) => [k === half ? "t" : `t${k < half ? "−" : "+"}${Math.abs(k - half)}`, ...row]);
  for (const cells of [["frame", "least", "25 %", "median", "75 %", "greatest"], ...frames]) {
    const row = table.insertRow();
    for (const cell of cells) row.insertCell().textContent = typeof cell === "number" ? show(cell) : cell;
  }
}

const shorten = (text, most) => text.length > most ? text.slice(0, most - 1) + "…" : text;

function choose(change) {
  Object.assign(state, change);
  const block = DATA.blocks[state.block], video = DATA.videos[DATA.shown[state.place]];
  state.channel = Math.max(0, Math.min(block.channels - 1, Math.round(state.channel) || 0));
  for (const id of ["channel", "slider"]) {
    byId(id).max = block.channels - 1;
    byId(id).value = state.channel;
  }
  [byId("block").value, byId("video").value] = [state.block, state.place];
  byId("about").textContent = `${video.name} (${video.set}): ${video.about}; motion ${video.motion.toFixed(2)}`;
  byId("hint").hidden = true;
  drawFilm(block, video);
  drawTaps(block);
  drawSpread(block, video);
  const numbers = Array.from({ length: block.frames ?? 0 }, (_, t) => `frame ${t * DATA.segments / block.frames + 1}`);
  drawMap("importance", block.importance, block.frames, block, numbers, "V");
  drawMap("kernel", block.kernel, block.offsets.length, block, block.offsets, "Θ");
  drawMotion(block);
  drawFilters(block);
}

for (const [name, value] of DATA.made) {
  byId("made").appendChild(document.createElement("dt")).textContent = name;
  byId("made").appendChild(document.createElement("dd")).textContent = value;
}
DATA.blocks.forEach((block, i) => byId("block").add(new Option(block.label, i)));
DATA.shown.map((n) => DATA.videos[n]).forEach((video, i) =>
  byId("video").add(new Option(shorten(`${video.set}: ${video.name} (${video.about})`, 90), i)));
byId("block").addEventListener("change", (event) => choose({ block: Number(event.target.value) }));
byId("video").addEventListener("change", (event) => choose({ place: Number(event.target.value) }));
for (const id of ["channel", "slider"])
  byId(id).addEventListener("input", (event) => choose({ channel: Number(event.target.value) }));
byId("choice").addEventListener("submit", (event) => event.preventDefault());
choose({});
