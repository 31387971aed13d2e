"use strict";
// Long tables: the rows after the first ones lie in a template, which no browser lays out, and are
// shown on demand. Headings sort; the first table is searched.
const STEP = 1000; // rows that a click adds
const UNKNOWN = "–"; // stands where nothing is known
const find = (query, within = document) => within.querySelector(query);
const all = (query, within = document) => [...within.querySelectorAll(query)];

// What a cell is sorted by: the number that it begins with (that before review), or its text.
function keyOf(cell) {
  const text = cell.textContent.trim();
  if (!text || text === UNKNOWN) return null;
  return /^[-+]?[\d.]+(e[-+]?\d+)?( →.*)?$/i.test(text) ? parseFloat(text) : text;
}

// Numbers first, then words; what is not known comes last, whichever way the column is sorted.
function compare(a, b, way) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return (a < b ? -1 : a > b ? 1 : 0) * way;
}

function begin(table) {
  const body = table.tBodies[0], rest = find("template", table.parentElement), more = find(".more", table.parentElement.parentElement);
  let ordered = [...body.rows, ...(rest ? rest.content.children : [])], wanted = "", texts = null;
  const first = body.rows.length;
  let most = first;
  const fits = row => {
    texts ||= new Map(ordered.map(each => [each, each.textContent.toLowerCase()]));
    return texts.get(row).includes(wanted);
  };
  const show = () => {
    const fitting = wanted ? ordered.filter(fits) : ordered;
    body.replaceChildren(...fitting.slice(0, most));
    more.hidden = fitting.length <= most;
    more.textContent = `Show ${Math.min(STEP, fitting.length - most)} more of ${fitting.length - most}`;
    return fitting.length;
  };
  const showUpTo = number => { most = number; show(); };
  const sort = (head, at) => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    const keyed = ordered.map(row => [keyOf(row.cells[at]), row]);
    keyed.sort(([a], [b]) => compare(a, b, up ? 1 : -1));
    for (const other of all("th", table)) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    ordered = keyed.map(([, row]) => row);
    showUpTo(first);
  };
  more.addEventListener("click", () => showUpTo(most + STEP));
  window.addEventListener("beforeprint", () => showUpTo(Infinity));
  all("thead th", table).forEach((head, at) => find("button", head).addEventListener("click", () => sort(head, at)));
  return text => { wanted = text.toLowerCase(); most = first; return [show(), ordered.length]; };
}

const searches = new Map(all("table.long").map(table => [table.id, begin(table)]));
find("#search").addEventListener("input", event => {
  const [fitting, count] = searches.get("scans")(event.target.value);
  find("#shown").textContent = event.target.value ? `${fitting} of ${count}` : "";
});
for (const table of all("table.long")) searches.get(table.id)("");
