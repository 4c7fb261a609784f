// The picture of all units over time. `view.start` is the token at its left edge, `view.scale` pixels a token.

const canvas = at("picture"), context = canvas.getContext("2d");
const MARGIN = 84, AXIS = 20, GAP = 8, LARGEST_SCALE = 24, WRITE_MARK = 3;
const PLUS = [232, 146, 60], MINUS = [91, 143, 201], NOTHING = [225, 225, 225], INK = [30, 30, 30];
const view = {start: 0, scale: 1, width: 0, rowHeight: 1, whole: true};
let rows = []; // units from top to bottom
let tops = []; // unit -> y of its row

function arrange() {
  const byLayer = at("order").value === "number";
  rows = byLayer ? names.map((_, unit) => unit) : sorted;
  view.width = Math.max(200, at("view").clientWidth - MARGIN - 18);
  const gaps = byLayer ? GAP * (data.cells.length - 1) : 0;
  view.rowHeight = Math.min(12, Math.max(1, Math.floor((800 - gaps) / UNITS)));
  let y = AXIS;
  tops = [];
  rows.forEach((unit, place) => {
    if (byLayer && place && cellOf[unit] !== cellOf[unit - 1]) y += GAP;
    tops[unit] = y;
    y += view.rowHeight;
  });
  canvas.width = MARGIN + view.width;
  canvas.height = y + 2;
  move(view.start, view.whole ? view.width / TOKENS : view.scale);
}

// Shows the text from a token on, at a scale; keeps both within what there is.
function move(start, scale) {
  const smallest = view.width / TOKENS;
  view.scale = Math.max(smallest, Math.min(scale, Math.max(LARGEST_SCALE, smallest)));
  view.whole = view.scale === smallest;
  view.start = Math.max(0, Math.min(start, TOKENS - view.width / view.scale));
  at("scroll").max = Math.ceil(TOKENS - view.width / view.scale);
  at("scroll").value = view.start;
  draw();
}

function zoom(factor, token = chosen.token + 0.5) {
  const x = (token - view.start) * view.scale;
  const inside = x >= 0 && x <= view.width ? x : view.width / 2;
  const scale = Math.max(view.width / TOKENS, Math.min(view.scale * factor, LARGEST_SCALE));
  move(token - inside / scale, scale);
}

function keepInView() {
  const shown = view.width / view.scale;
  if (chosen.token < view.start || chosen.token + 1 > view.start + shown) move(chosen.token - shown / 2, view.scale);
  const box = at("view"), top = tops[chosen.unit];
  if (top < box.scrollTop + AXIS || top + view.rowHeight > box.scrollTop + box.clientHeight) {
    box.scrollTop = top - box.clientHeight / 2;
  }
}

let waiting = false;
function draw() {
  if (!waiting) {
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      paint();
    });
  }
}

// Only what is scrolled into sight.
function paint() {
  const first = Math.floor(at("view").scrollTop), end = Math.min(canvas.height, first + at("view").clientHeight + 1);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  const image = context.createImageData(view.width, end - first);
  const pixels = new Uint32Array(image.data.buffer).fill(0xffffffff);
  const from = new Int32Array(view.width), to = new Int32Array(view.width);
  for (let x = 0; x < view.width; x++) {
    from[x] = Math.min(TOKENS - 1, Math.floor(view.start + x / view.scale));
    to[x] = Math.max(from[x] + 1, Math.min(TOKENS, Math.floor(view.start + (x + 1) / view.scale)));
  }
  for (const unit of rows) {
    const top = Math.max(first, tops[unit]), below = Math.min(end, tops[unit] + view.rowHeight);
    const line = top < below ? paintRow(unit, from, to) : null;
    for (let y = top; y < below; y++) pixels.set(line, (y - first) * view.width);
  }
  context.putImageData(image, MARGIN, first);
  paintLabels(first);
  paintChoice();
}

function paintRow(unit, from, to) {
  const mode = at("show").value, marks = view.scale >= 2 * WRITE_MARK;
  const line = new Uint32Array(view.width);
  for (let x = 0; x < view.width; x++) {
    const many = to[x] - from[x];
    const written = mode === "states" ? 0 : count(writes, unit, from[x], to[x]) / many;
    let plus = 0, none = 1, dark = written;
    if (mode !== "writes") {
      plus = count(positive, unit, from[x], to[x]) / many;
      none = zero ? count(zero, unit, from[x], to[x]) / many : 0;
      dark = 0.5 * written;
    }
    if (marks) { // the first pixels of a token that writes
      dark = written && x - (from[x] - view.start) * view.scale < WRITE_MARK ? 1 : 0;
    }
    line[x] = mixed(plus, 1 - plus - none, none, dark);
  }
  return line;
}

// A colour as bytes r, g, b, a in memory: shares of the states, darkened.
function mixed(plus, minus, none, dark) {
  let colour = 255;
  for (let i = 2; i >= 0; i--) {
    const bright = plus * PLUS[i] + minus * MINUS[i] + none * NOTHING[i];
    colour = colour << 8 | Math.round(bright + dark * (INK[i] - bright));
  }
  return colour >>> 0;
}

function paintLabels(top) {
  context.fillStyle = "#444";
  context.font = "12px system-ui, sans-serif";
  context.textBaseline = "top";
  context.textAlign = "left";
  if (at("order").value === "number") {
    let unit = 0;
    for (const cell of data.cells) {
      context.fillText(`${cell.layer} ${cell.kind}`, 4, tops[unit]);
      unit += cell.width;
    }
  }
  context.clearRect(0, top, canvas.width, AXIS);
  const spacing = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 1e7].find(
    (step) => step * view.scale >= 70);
  for (let token = Math.ceil(view.start / spacing) * spacing; token < TOKENS; token += spacing) {
    const x = MARGIN + (token - view.start) * view.scale;
    if (x > canvas.width - 20) break;
    context.fillRect(x, top + AXIS - 5, 1, 5);
    context.fillText(token.toLocaleString("en"), x + 3, top + 2);
  }
}

function paintChoice() {
  context.strokeStyle = "#c2185b";
  context.lineWidth = 1.5;
  context.strokeRect(MARGIN - 2, tops[chosen.unit] - 1, view.width + 1, view.rowHeight + 2);
  const x = MARGIN + (chosen.token - view.start) * view.scale;
  if (x >= MARGIN - 1 && x <= canvas.width) {
    context.strokeRect(x, AXIS - 4, Math.max(1, view.scale), canvas.height - AXIS + 4);
  }
  context.fillStyle = "#c2185b";
  context.textAlign = "right";
  context.fillText(names[chosen.unit], MARGIN - 5, Math.max(AXIS, Math.min(tops[chosen.unit] - 5, canvas.height - 14)));
  context.textAlign = "left";
}

const tokenAt = (event) => Math.floor(view.start + (event.offsetX - MARGIN) / view.scale);
function unitAt(event) {
  const under = rows.find((unit) => event.offsetY < tops[unit] + view.rowHeight + GAP / 2);
  return under ?? rows[rows.length - 1];
}

let drag = null;
canvas.addEventListener("pointerdown", (event) => {
  drag = {x: event.offsetX, start: view.start, moved: false};
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointermove", (event) => {
  if (!drag) return;
  drag.moved ||= Math.abs(event.offsetX - drag.x) > 4;
  if (drag.moved) move(drag.start - (event.offsetX - drag.x) / view.scale, view.scale);
});
canvas.addEventListener("pointerup", (event) => {
  if (drag && !drag.moved) choose(unitAt(event), tokenAt(event), "picture");
  drag = null;
});
canvas.addEventListener("wheel", (event) => {
  if (!event.ctrlKey && !event.shiftKey && !event.deltaX) return; // the page scrolls
  event.preventDefault();
  if (event.ctrlKey) zoom(event.deltaY < 0 ? 1.25 : 0.8, view.start + (event.offsetX - MARGIN) / view.scale);
  else move(view.start + (event.deltaX || event.deltaY) / view.scale, view.scale);
}, {passive: false});

canvas.addEventListener("keydown", (event) => {
  const tokens = event.shiftKey ? 100 : 1, units = event.shiftKey ? 20 : 1, place = rows.indexOf(chosen.unit);
  const unitOf = (row) => rows[Math.max(0, Math.min(row, UNITS - 1))];
  const actions = {
    ArrowLeft: () => choose(chosen.unit, chosen.token - tokens, "picture"),
    ArrowRight: () => choose(chosen.unit, chosen.token + tokens, "picture"),
    ArrowUp: () => choose(unitOf(place - units), chosen.token, "picture"),
    ArrowDown: () => choose(unitOf(place + units), chosen.token, "picture"),
    Home: () => choose(chosen.unit, 0, "picture"),
    End: () => choose(chosen.unit, TOKENS - 1, "picture"),
    "+": () => zoom(1.5),
    "=": () => zoom(1.5),
    "-": () => zoom(1 / 1.5),
    "0": () => move(0, 0),
  };
  act(event, actions);
});
at("text").addEventListener("keydown", (event) => act(event, {
  ArrowLeft: () => choose(chosen.unit, chosen.token - 1, "keys"),
  ArrowRight: () => choose(chosen.unit, chosen.token + 1, "keys"),
}));
function act(event, actions) {
  if (!Object.hasOwn(actions, event.key) || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  actions[event.key]();
}

at("in").addEventListener("click", () => zoom(2));
at("out").addEventListener("click", () => zoom(0.5));
at("whole").addEventListener("click", () => move(0, 0));
at("scroll").addEventListener("input", () => move(Number(at("scroll").value), view.scale));
at("view").addEventListener("scroll", draw);
at("show").addEventListener("change", draw);
at("order").addEventListener("change", arrange);
at("unit").addEventListener("change", () => {
  const unit = unitNamed.get(at("unit").value.trim());
  if (unit === undefined) at("status").textContent = `There is no unit ${at("unit").value}: ${names[0]} is one.`;
  else choose(unit, chosen.token, "input");
});
at("token").addEventListener("change", () => choose(chosen.unit, Number(at("token").value) || 0, "input"));
addEventListener("hashchange", () => choose(...readFragment(), "link"));
addEventListener("resize", arrange);

[chosen.unit, chosen.token] = readFragment();
fillTable();
arrange();
choose(chosen.unit, chosen.token, "start");
