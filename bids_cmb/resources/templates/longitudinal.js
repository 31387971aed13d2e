// Lesions over time: verdicts on them are those on their lesion of one scan.
const followed = all(".followed[data-filename]").flatMap(row => {
  const scan = scans.get(row.dataset.filename);
  const lesion = scan?.lesions.find(each => String(each.index) === row.dataset.lesion);
  return lesion ? [{row, scan, lesion}] : [];
});

function showFollowed() {
  for (const {row, scan, lesion} of followed) {
    const verdict = review.lesions[keyOf(scan, lesion)]?.verdict || "";
    row.dataset.verdict = verdict;
    for (const radio of all("input[type=radio]", row)) radio.checked = radio.value === verdict;
  }
  for (const section of all(".over-time")) {
    const rows = all('.followed[data-course="new"]', section);
    const judged = rows.filter(row => row.dataset.verdict).length;
    const left = rows.filter(row => !["reject", "unsure"].includes(row.dataset.verdict)).length;
    find(".new-after", section).textContent = judged ? `After your review: ${left} new.` : "";
  }
}

followed.forEach(({row, scan, lesion}, number) => {
  for (const radio of all("input[type=radio]", row))
    radio.addEventListener("change", () => judge(scan, lesion, {verdict: radio.value}));
  row.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const verdict = {a: "accept", r: "reject", u: "unsure", x: ""}[event.key];
    const step = {j: 1, n: 1, k: -1, p: -1}[event.key];
    if (verdict !== undefined) judge(scan, lesion, {verdict});
    else if (step) {
      const next = followed[number + step]?.row;
      if (next) { const fold = next.closest("details"); if (fold) fold.open = true; next.focus(); next.scrollIntoView({block: "nearest"}); }
    }
    else return;
    event.preventDefault();
  });
});
document.addEventListener("reviewed", showFollowed);
showFollowed();
