// A draft tree as a drawing: depth to the right, what was kept straight along the top.

import { look } from "./origins.js";

const ROW = 27;
const HEIGHT = 20;
const GAP = 22;
const CHAR = 6.7;
const PAD = 8;
const LONGEST = 10;

// The drawing of a cycle as the server tells it.
export function drawing(cycle) {
  const nodes = placed(cycle);
  const columns = [];
  for (const node of nodes) columns[node.depth] = Math.max(columns[node.depth] ?? 0, node.width);
  const starts = columns.reduce((found, width) => [...found, found.at(-1) + width + GAP], [1]);
  const width = starts.at(-1) - GAP + 1;
  const height = Math.max(...nodes.map((node) => node.row)) * ROW + HEIGHT + 2;
  for (const node of nodes) {
    node.x = starts[node.depth];
    node.y = node.row * ROW + 1;
  }
  const kept = cycle.path.slice(1).map((place) => cycle.texts[place]);
  const svg = make("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  svg.setAttribute("aria-label", `${cycle.tokens.length - 1} guesses, ${kept.length} kept: ${kept.join("")}`);
  // What was kept is drawn last, above the rest.
  const order = [...nodes].sort((a, b) => a.isKept - b.isKept);
  svg.append(...order.filter((node) => node.parent).map(edge), ...order.map(pill));
  return svg;
}

// Nodes with depth and row: a first child stands beside its parent, the others below.
function placed(cycle) {
  const path = new Set(cycle.path);
  const nodes = cycle.tokens.map((_, place) => ({
    text: cycle.texts[place],
    style: place ? look(cycle.origins[place])[0] : "k-own",
    isKept: path.has(place),
    children: [],
  }));
  cycle.parents.forEach((above, place) => {
    if (above >= 0) nodes[above].children.push(nodes[place]);
  });
  if (cycle.bonusText !== null) {
    const bonus = { text: cycle.bonusText, style: "k-own", isKept: true, isBonus: true, children: [] };
    nodes[cycle.path.at(-1)].children.push(bonus);
  }
  const found = [];
  let row = 0;
  const place = (node, parent, depth) => {
    Object.assign(node, { parent, depth, row, width: widthOf(node.text) });
    found.push(node);
    const children = [...node.children].sort((a, b) => b.isKept - a.isKept);
    children.forEach((child, order) => {
      if (order) row += 1;
      place(child, node, depth + 1);
    });
  };
  place(nodes[0], null, 0);
  return found;
}

const visible = (text) => {
  const shown = text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "·") || "∅";
  return shown.length > LONGEST ? `${shown.slice(0, LONGEST - 1)}…` : shown;
};

const widthOf = (text) => visible(text).length * CHAR + 2 * PAD;

function edge({ parent, x, y, isKept }) {
  const from = parent.x + parent.width;
  const [top, bottom] = [parent.y + HEIGHT / 2, y + HEIGHT / 2];
  const bend = (x - from) / 2;
  const d = `M${from} ${top}C${from + bend} ${top} ${x - bend} ${bottom} ${x} ${bottom}`;
  return make("path", { d, class: isKept ? "edge kept" : "edge" });
}

function pill({ x, y, width, text, style, isKept, isBonus, parent }) {
  const role = isBonus ? "bonus" : parent ? "" : "root";
  const group = make("g", { class: `node ${style} ${role} ${isKept ? "kept" : ""}` });
  const label = make("text", { x: x + width / 2, y: y + HEIGHT / 2, dy: "0.34em" });
  label.textContent = visible(text);
  group.append(make("rect", { x, y, width, height: HEIGHT, rx: 6 }), label);
  return group;
}

function make(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
