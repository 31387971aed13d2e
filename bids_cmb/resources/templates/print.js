"use strict";
// A printed page is whole: its folds are open, and it says who reviewed it, when and how far.
const folds = ".excluded, .look-too, .over-time > details:not(.soft)";
let opened = [];
function sign() {
  const given = [...Object.values(review.lesions), ...Object.values(review.missed).flat()];
  const dates = given.map(said => said.date).concat(Object.values(review.complete)).filter(Boolean).sort();
  const write = (name, text) => document.querySelectorAll(name).forEach(place => { place.textContent = text; });
  write(".reader-name", review.reader || "____________________");
  write(".reader-date", dates.length ? dates.at(-1).slice(0, 10) : "____________");
  write(".reader-progress", dates.length ? `(${find("#progress").textContent})` : "");
}
window.addEventListener("beforeprint", () => {
  sign();
  opened = all(folds).filter(fold => !fold.open);
  opened.forEach(fold => { fold.open = true; });
});
window.addEventListener("afterprint", () => { opened.forEach(fold => { fold.open = false; }); });
