"use strict";
// The inspector's page. Bits of the units are read where they are packed: one row a unit, one bit a token, the first
// token in the highest bit of a byte.

const data = JSON.parse(document.getElementById("data").textContent);
const TOKENS = data.pieces.length;
const STRIDE = Math.ceil(TOKENS / 8);
const UNITS = data.figures.length;
const [positive, zero, writes] = [data.positive, data.zero, data.writes].map(
  (text) => text && Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)));
const ONES = Uint8Array.from({length: 256}, (_, byte) => byte.toString(2).replaceAll("0", "").length);

const cellOf = [], names = [], unitNamed = new Map();
for (const cell of data.cells) {
  for (let i = 0; i < cell.width; i++) {
    unitNamed.set(`${cell.layer}.${cell.first + i}`, names.length);
    names.push(`${cell.layer}.${cell.first + i}`);
    cellOf.push(cell);
  }
}

const bit = (plane, unit, token) => (plane[unit * STRIDE + (token >> 3)] >> (7 - (token & 7))) & 1;
const sign = (unit, token) => (zero && bit(zero, unit, token) ? 0 : bit(positive, unit, token) ? 1 : -1);
const LETTER = {"1": "p", "-1": "n", "0": "z"};
const SHOWN = {"1": "+", "-1": "\u2212", "0": "0"};
const look = (unit, token) => LETTER[sign(unit, token)] + (bit(writes, unit, token) ? " w" : "");

// Ones of a plane's row in [from, to).
function count(plane, unit, from, to) {
  const row = unit * STRIDE;
  const first = from >> 3, last = (to - 1) >> 3;
  const head = 0xff >> (from & 7), tail = 0xff << (7 - ((to - 1) & 7)) & 0xff;
  if (first === last) return ONES[plane[row + first] & head & tail];
  let sum = ONES[plane[row + first] & head] + ONES[plane[row + last] & tail];
  for (let i = first + 1; i < last; i++) sum += ONES[plane[row + i]];
  return sum;
}

const at = (id) => document.getElementById(id);
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// What is chosen

const chosen = {unit: 0, token: 0};

function choose(unit, token, from) {
  const before = {...chosen};
  chosen.unit = Math.min(Math.max(unit, 0), UNITS - 1);
  chosen.token = Math.min(Math.max(token, 0), TOKENS - 1);
  history.replaceState(null, "", `#unit=${names[chosen.unit]}&token=${chosen.token}`);
  if (chosen.unit !== before.unit || from === "start") showUnit();
  if (chosen.token !== before.token || from === "start") showToken(before.token, from);
  markGrid();
  tell();
  keepInView();
  draw();
}

function readFragment() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const unit = unitNamed.get(asked.get("unit")), token = parseInt(asked.get("token"), 10);
  return [unit ?? chosen.unit, Number.isNaN(token) ? chosen.token : token];
}

function tell() {
  const {unit, token} = chosen, figures = data.figures[unit];
  const kind = {dead: "; dead: it never writes", always: "; always-writing", "": ""}[figures.kind];
  at("unit").value = names[unit];
  at("token").value = token;
  at("status").textContent =
    `Unit ${names[unit]} (${cellOf[unit].kind}) writes at ${percent(figures.writes)} of the tokens${kind}. ` +
    `Token ${token}, ${JSON.stringify(data.pieces[token])}: state ${SHOWN[sign(unit, token)]}` +
    (bit(writes, unit, token) ? ", written here." : ", held.");
}

const percent = (share) => `${(100 * share).toFixed(share && share < 0.001 ? 3 : 1)} %`;

// The text

const spans = data.pieces.map((piece, token) => {
  const span = make("span", {textContent: piece});
  span.dataset.t = token;
  return span;
});
at("text").append(...spans);
at("text").addEventListener("click", (event) => {
  const span = event.target.closest("span");
  if (span) choose(chosen.unit, Number(span.dataset.t), "text");
});

function showUnit() {
  const unit = chosen.unit;
  for (let token = 0; token < TOKENS; token++) {
    spans[token].className = look(unit, token) + (data.pieces[token].includes("\n") ? " nl" : "");
  }
  spans[chosen.token].classList.add("t");
  for (const element of document.querySelectorAll(".unit-name")) element.textContent = names[unit];
  const holds = data.figures[unit].holds, most = Math.max(...holds, 1);
  at("holds").replaceChildren(...holds.map((number, k) => {
    const bar = make("span", {className: "bar"});
    bar.style.width = `${Math.round(180 * number / most)}px`;
    const length = k === 0 ? "1" : `${2 ** k}\u2013${2 ** (k + 1) - 1}`;
    return make("tr", {}, make("th", {textContent: length}), make("td", {textContent: number}), make("td", {}, bar));
  }));
  if (!holds.length) at("holds").append(make("tr", {}, make("td", {textContent: "none: it writes less than twice"})));
  for (const row of document.querySelectorAll("#units tr.u")) row.classList.remove("u");
  at(`row${unit}`)?.classList.add("u");
}

function showToken(before, from) {
  spans[before].classList.remove("t");
  spans[chosen.token].classList.add("t");
  if (from !== "text") nearby(at("text"), spans[chosen.token]);
  at("token-name").textContent = `${chosen.token} ${JSON.stringify(data.pieces[chosen.token])}`;
}

// Scrolls a box, and not the page, until an element of it is seen.
function nearby(box, element) {
  const top = element.offsetTop - box.offsetTop;
  if (top < box.scrollTop || top + element.offsetHeight > box.scrollTop + box.clientHeight) {
    box.scrollTop = top - box.clientHeight / 2;
  }
}

// All units at a token

const squares = names.map((name) => make("a", {href: `#unit=${name}`, title: name, tabIndex: -1}));
let first = 0;
for (const cell of data.cells) {
  const grid = make("div", {className: "grid"}, ...squares.slice(first, first + cell.width));
  at("at-token").append(make("h3", {textContent: `layer ${cell.layer}, ${cell.kind}`}), grid);
  squares[first].tabIndex = 0;
  first += cell.width;
}
at("at-token").addEventListener("keydown", (event) => {
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key], here = squares.indexOf(document.activeElement);
  if (step && squares[here + step]) {
    event.preventDefault();
    squares[here + step].focus();
  }
});

function markGrid() {
  squares.forEach((square, unit) => {
    square.className = look(unit, chosen.token) + (unit === chosen.unit ? " u" : "");
  });
}

// The table of units

const FIRST_ROWS = 100;
const COLUMNS = [
  ["unit", (unit) => unit, (unit) => names[unit]],
  ["cell", (unit) => cellOf[unit].kind],
  ["writes", (unit) => data.figures[unit].writes, (unit) => percent(data.figures[unit].writes)],
  ["above 0", (unit) => data.figures[unit].plus, (unit) => percent(data.figures[unit].plus)],
  ["changes", (unit) => data.figures[unit].changes],
  ["median hold", (unit) => data.figures[unit].median ?? -1, (unit) => data.figures[unit].median ?? "\u2013"],
  ["longest without a write", (unit) => data.figures[unit].longest],
  ["remark", (unit) => data.figures[unit].kind],
  ...data.features.map((feature) => [
    feature.name, (unit) => Math.abs(feature.r[unit]), (unit) => feature.r[unit].toFixed(3)]),
];
at("token").max = TOKENS - 1;
let sorted = names.map((_, unit) => unit), sorting = 0, falling = false, rowsShown = FIRST_ROWS;

function sortBy(column) {
  falling = column === sorting ? !falling : column > 1;
  sorting = column;
  const key = COLUMNS[column][1];
  const order = (a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) * (falling ? -1 : 1) || a - b;
  sorted = names.map((_, unit) => unit).sort(order);
  fillTable();
  if (at("order").value === "table") arrange();
  at("units").querySelectorAll("thead button")[column].focus({preventScroll: true});
}

function fillTable() {
  const head = make("tr", {}, ...COLUMNS.map(([name], column) => {
    const button = make("button", {type: "button", textContent: name, onclick: () => sortBy(column)});
    const cell = make("th", {}, button);
    if (column === sorting) {
      cell.setAttribute("aria-sort", falling ? "descending" : "ascending");
      button.append(falling ? " \u25be" : " \u25b4");
    }
    return cell;
  }));
  const rows = sorted.slice(0, rowsShown).map((unit) => {
    const cells = COLUMNS.map(([, key, text], column) => {
      const shown = String((text ?? key)(unit));
      return make("td", {}, column === 0 ? make("a", {href: `#unit=${shown}`, textContent: shown}) : shown);
    });
    return make("tr", {id: `row${unit}`, className: unit === chosen.unit ? "u" : ""}, ...cells);
  });
  at("units").replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  at("more").hidden = rowsShown >= UNITS;
}

at("units").addEventListener("click", (event) => {
  const row = event.target.closest("tbody tr");
  if (row && !event.target.closest("a")) choose(Number(row.id.slice(3)), chosen.token, "table");
});
at("more").addEventListener("click", () => {
  rowsShown = UNITS;
  fillTable();
});
