// The reader's verdicts: kept in this browser, saved as a table, read back.
const about = JSON.parse(document.querySelector("#about").textContent);
const store = "bids_cmb review " + location.pathname;
const columns = about.columns, verdicts = ["accept", "reject", "unsure"];
const scans = new Map(about.scans.map(scan => [scan.filename, scan]));
let review = {reader: "", lesions: {}, missed: {}, complete: {}};
const find = (query, within = document) => within.querySelector(query);
const all = (query, within = document) => [...within.querySelectorAll(query)];
const say = text => { find("#said").textContent = text; };
const now = () => new Date().toISOString().slice(0, 19) + "Z";
const near = (a, b) => a.every((x, i) => Math.abs(x - b[i]) < 0.05);
const keyOf = (scan, lesion) => `${scan.filename}#${lesion.index}@${lesion.at.join()}`;

function keep() {
  try { localStorage.setItem(store, JSON.stringify(review)); }
  catch { say("This browser keeps nothing for pages opened from files: save the table before you leave."); }
  show();
}

function recall() {
  try { review = {...review, ...JSON.parse(localStorage.getItem(store) || "{}")}; }
  catch { /* what cannot be read is as if it were not there */ }
}

// What group --reviews counts of one reader: accepted lesions and candidates, counted lesions
// without a verdict, and missed ones.
function countAfter(scan) {
  const counts = lesion => {
    const verdict = review.lesions[keyOf(scan, lesion)]?.verdict;
    return verdict === "accept" || (!verdict && lesion.kind === "included");
  };
  return scan.lesions.filter(counts).length + (review.missed[scan.filename] || []).length;
}

function isReviewed(scan) {
  return scan.lesions.some(lesion => review.lesions[keyOf(scan, lesion)]?.verdict)
    || Boolean(review.complete[scan.filename] || review.missed[scan.filename]?.length);
}

function show() {
  const judged = {}, listed = {};
  find("#reader").value = review.reader;
  for (const scan of scans.values()) {
    const home = homeOf(scan);
    for (const lesion of scan.lesions) {
      const said = review.lesions[keyOf(scan, lesion)] || {};
      const row = find(`[data-index="${lesion.index}"]`, home);
      row.dataset.verdict = said.verdict || "";
      for (const radio of all("input[type=radio]", row)) radio.checked = radio.value === said.verdict;
      const comment = find(".comment", row);
      if (comment !== document.activeElement) comment.value = said.comment || "";
      const kind = lesion.kind === "candidates" ? "candidates" : "lesions";
      judged[kind] = (judged[kind] || 0) + Boolean(said.verdict);
      listed[kind] = (listed[kind] || 0) + 1;
    }
    find(".after", home).textContent = isReviewed(scan) ? `After your review: ${countAfter(scan)}.` : "";
    find(".complete", home).checked = Boolean(review.complete[scan.filename]);
    showMissed(home, scan);
  }
  const parts = [`${judged.lesions || 0} of ${listed.lesions || 0} lesions`];
  if (listed.candidates) parts.push(`${judged.candidates} of ${listed.candidates} candidates`);
  find("#progress").textContent = `${parts.join(", ")} reviewed`;
  describeView();
  document.dispatchEvent(new Event("reviewed"));
}

function showMissed(home, scan) {
  const list = find(".missed", home), points = review.missed[scan.filename] || [];
  list.replaceChildren(...points.map((point, at) => {
    const item = document.createElement("li"), place = document.createElement("button");
    const comment = document.createElement("input"), remove = document.createElement("button");
    place.type = remove.type = "button";
    place.textContent = point.at.map(x => x.toFixed(1)).join(", ") + " mm";
    place.addEventListener("click", () => visit(scan, null, point.at));
    comment.value = point.comment || "";
    comment.placeholder = "comment";
    comment.setAttribute("aria-label", "Comment on this place");
    comment.addEventListener("change", () => { point.comment = comment.value; point.date = now(); keep(); });
    remove.textContent = "remove";
    remove.addEventListener("click", () => { points.splice(at, 1); keep(); });
    item.append(place, " ", comment, " ", remove);
    return item;
  }));
}

const homeOf = scan => find(`[data-scan="${CSS.escape(scan.filename)}"]`);
const rowOf = (scan, lesion) => find(`[data-index="${lesion.index}"]`, homeOf(scan));

// What a key does on a lesion, also where the viewer shows it. Returns whether it is one.
function pressOnLesion(scan, lesion, key) {
  const verdict = {a: "accept", r: "reject", u: "unsure", x: ""}[key.toLowerCase()];
  const step = {j: 1, n: 1, k: -1, p: -1}[key];
  if (verdict !== undefined) {
    judge(scan, lesion, {verdict});
    if (key !== key.toLowerCase()) leave(scan, lesion, 1); // with the shift key
  }
  else if (step) leave(scan, lesion, step);
  else if (key === "c") find(".comment", rowOf(scan, lesion)).focus();
  else if (key === "v" && scan.view) visit(scan, lesion);
  else return false;
  return true;
}

// Goes to the next lesion of the page, or to the one before: with the viewer, if that has the focus.
function leave(scan, lesion, step) {
  const next = scan.lesions[scan.lesions.indexOf(lesion) + step];
  if (!next) return;
  if (current?.box.contains(document.activeElement)) { visit(scan, next); return; }
  const row = unfold(rowOf(scan, next));
  row.focus();
  row.scrollIntoView({block: "nearest"});
}

function unfold(row) {
  const fold = row.closest("details");
  if (fold) fold.open = true;
  return row;
}

function judge(scan, lesion, change) {
  const key = keyOf(scan, lesion);
  review.lesions[key] = {...review.lesions[key], ...change, date: now()};
  keep();
}

function miss(scan, at) {
  const points = review.missed[scan.filename] ||= [];
  points.push({at: at.map(x => Math.round(x * 100) / 100), date: now()});
  keep();
  say(`Missed microbleed noted at ${at.map(x => x.toFixed(1)).join(", ")} mm.`);
}

// The table: tab-separated, quotes as spreadsheets have them.
const cell = value => {
  const text = String(value ?? "").replace(/[\t\r\n]+/g, " ").trim() || "n/a";
  return text.includes('"') ? `"${text.replaceAll('"', '""')}"` : text;
};

function table() {
  const lines = [columns.join("\t")];
  for (const scan of scans.values()) {
    const fixed = {participant_id: scan.participant_id, session_id: scan.session_id, filename: scan.filename,
                   reader: review.reader, software_version: about.version};
    const add = (row, at) => {
      const [x_mm, y_mm, z_mm] = at || [];
      const whole = {...fixed, x_mm, y_mm, z_mm, ...row};
      lines.push(columns.map(name => cell(whole[name])).join("\t"));
    };
    for (const lesion of scan.lesions) {
      const {verdict, comment, date} = review.lesions[keyOf(scan, lesion)] || {};
      add({index: lesion.index, verdict, comment, date}, lesion.at);
    }
    for (const {at, comment, date} of review.missed[scan.filename] || []) add({verdict: "missed", comment, date}, at);
    if (review.complete[scan.filename]) add({verdict: "complete", date: review.complete[scan.filename]});
  }
  return lines.join("\n") + "\n";
}

function save() {
  if (!review.reader.trim()) { say("Give your name first."); find("#reader").focus(); return; }
  if (/^[=+\-@]/.test(review.reader)) { say("A name must not begin with = + - or @."); find("#reader").focus(); return; }
  const link = document.createElement("a");
  const label = review.reader.normalize("NFKD").replace(/[^A-Za-z0-9]+/g, "") || "anonymous";
  link.href = URL.createObjectURL(new Blob([table()], {type: "text/tab-separated-values"}));
  link.download = `${about.subject}_reader-${label}_review.tsv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  say(`Saved as ${link.download}.`);
}

function cells(line) {
  const found = [];
  for (const [, quoted, plain] of line.matchAll(/(?:^|\t)(?:"((?:[^"]|"")*)"|([^\t]*))/g))
    found.push(quoted === undefined ? plain : quoted.replaceAll('""', '"'));
  return found.map(text => text === "n/a" ? "" : text);
}

function load(name, text) {
  const [head, ...lines] = text.replace(/^\uFEFF/, "").split(/\r?\n/).filter(Boolean);
  const titles = cells(head || "");
  if (!["filename", "index", "verdict", "reader"].every(title => titles.includes(title))) {
    say(`${name} is no review: it lacks the columns filename, index, verdict, reader.`);
    return;
  }
  let taken = 0, foreign = 0, stale = 0;
  const rows = lines.map(line => Object.fromEntries(cells(line).map((text, at) => [titles[at], text])));
  const here = rows.filter(row => scans.has(row.filename));
  for (const filename of new Set(here.map(row => row.filename))) {
    delete review.complete[filename];
    review.missed[filename] = [];
  }
  for (const row of rows) {
    const scan = scans.get(row.filename), at = [row.x_mm, row.y_mm, row.z_mm].map(Number);
    if (!scan) { foreign += 1; continue; }
    if (row.reader) review.reader = row.reader;
    const said = {comment: row.comment || "", date: row.date};
    if (row.verdict === "complete") review.complete[row.filename] = said.date || now();
    else if (row.verdict === "missed" && at.every(Number.isFinite)) review.missed[row.filename].push({at, ...said});
    else {
      const lesion = scan.lesions.find(one => String(one.index) === row.index && near(one.at, at));
      if (!lesion) { stale += 1; continue; }
      review.lesions[keyOf(scan, lesion)] = {...said, verdict: verdicts.includes(row.verdict) ? row.verdict : ""};
    }
    taken += 1;
  }
  keep();
  say(`${name}: ${taken} lines taken${foreign ? `, ${foreign} of other scans` : ""}${stale ? `, ${stale} of lesions that are not on this page` : ""}.`);
}

for (const scan of scans.values()) {
  const home = homeOf(scan);
  for (const lesion of scan.lesions) {
    const row = find(`[data-index="${lesion.index}"]`, home);
    for (const radio of all("input[type=radio]", row))
      radio.addEventListener("change", () => judge(scan, lesion, {verdict: radio.value}));
    const comment = find(".comment", row);
    comment.addEventListener("change", () => judge(scan, lesion, {comment: comment.value}));
    if (scan.view) {
      find(".views", row).addEventListener("click", () => visit(scan, lesion));
      find(".go", row).addEventListener("click", () => visit(scan, lesion));
    }
    row.addEventListener("keydown", event => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target === comment) { if (event.key === "Escape" || event.key === "Enter") row.focus(); return; }
      if (pressOnLesion(scan, lesion, event.key)) event.preventDefault();
    });
  }
  find(".complete", home).addEventListener("change", event => {
    if (event.target.checked) review.complete[scan.filename] = now(); else delete review.complete[scan.filename];
    keep();
  });
  find(".add", home).addEventListener("submit", event => {
    event.preventDefault();
    miss(scan, all("input", event.target).map(field => Number(field.value)));
    event.target.reset();
  });
  if (scan.view) addTools(scan, home);
}
find("#reader").addEventListener("change", event => { review.reader = event.target.value.trim(); keep(); });
find("#save").addEventListener("click", save);
find("#load").addEventListener("change", async event => {
  const [file] = event.target.files;
  if (file) load(file.name, await file.text());
  event.target.value = "";
});
find("#clear").addEventListener("click", () => {
  if (!confirm("Forget all verdicts, comments and places of this page?")) return;
  review = {reader: review.reader, lesions: {}, missed: {}, complete: {}};
  keep();
  say("Forgotten.");
});
recall();
show();
for (const row of all(".lesion"))
  if (row.dataset.verdict && row.closest("details")) row.closest("details").open = true;
