// Minimal updates of the document: rows keep their identity, so that focus, selection and the position of a screen reader
// survive an update. Values are inserted as text, never as markup.

export const byId = (id) => document.getElementById(id);

// element("td", { class: "number", role: "cell" }, child, "text")
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setAttribute(node, name, value) {
  if (value === null || value === undefined) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

export function show(node, shown) {
  if (node.hidden === shown) node.hidden = !shown;
}

const rowsByParent = new WeakMap();

// Makes the children of `parent` show `items` in their order. `make` builds a row and returns the function that fills it.
export function rows(parent, items, key, make) {
  const before = rowsByParent.get(parent) ?? new Map();
  const after = new Map();
  let place = parent.firstElementChild;
  for (const item of items) {
    const id = key(item);
    const row = before.get(id) ?? make(item);
    before.delete(id);
    after.set(id, row);
    row.fill(item);
    if (row.node === place) place = place.nextElementSibling;
    else parent.insertBefore(row.node, place);
  }
  for (const removed of before.values()) removed.node.remove();
  rowsByParent.set(parent, after);
}

// A table row whose cells are labelled for the narrow layout, where the head is not shown.
export function tableRow(labels) {
  const cells = labels.map((label, place) => element(
    place === 0 ? "th" : "td",
    { role: place === 0 ? "rowheader" : "cell", scope: place === 0 ? "row" : undefined, "data-label": label.replace("#", ""),
      class: label.endsWith("#") ? "number" : undefined },
  ));
  return { node: element("tr", { role: "row" }, ...cells), cells };
}

// Two lines: the main text, and details.
export function twoLines(cell) {
  const first = element("span", { class: "first" });
  const second = element("span", { class: "second" });
  cell.append(first, " ", second);
  return (main, details) => {
    setText(first, main);
    setText(second, details);
    show(second, details !== "");
  };
}

// A bar with an accessible value: `share` from 0 to 1, or null if it is unknown.
export function bar(role, label) {
  const inner = element("div", { class: "fill" });
  const node = element("div", { class: "bar", role, "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100" }, inner);
  const set = (share, words) => {
    const percent = share === null ? null : Math.round(Math.max(0, Math.min(1, share)) * 1000) / 10;
    setAttribute(node, "aria-valuenow", percent);
    setAttribute(node, "aria-valuetext", words);
    node.classList.toggle("unknown", share === null);
    node.classList.toggle("full", share !== null && share >= 0.9);
    const width = share === null ? "" : `${percent}%`;
    if (inner.style.width !== width) inner.style.width = width;
  };
  return { node, set };
}
