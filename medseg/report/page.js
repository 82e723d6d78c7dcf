"use strict";
// Sorting, searching and hiding outlines; the report reads well without any of it.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.v;
      const numeric = head.dataset.kind === "number";
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === ""); // blanks last, either way
        const order = numeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true });
        return up ? order : -order;
      });
      body.append(...rows);
    });
  });
}
const search = document.getElementById("search");
if (search) {
  const rows = [...document.querySelectorAll("table.sortable tbody tr")];
  const count = document.getElementById("count");
  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = shown + " of " + rows.length + " rows";
  };
  search.addEventListener("input", show);
  show();
}
const outlines = document.getElementById("outlines");
if (outlines) {
  outlines.addEventListener("change", () => document.body.classList.toggle("plain", !outlines.checked));
}
// A chart's dot may lead to a card inside closed details.
const open = () => {
  const target = location.hash.startsWith("#case-") ? document.getElementById(location.hash.slice(1)) : null;
  const fold = target && target.closest("details");
  if (fold && !fold.open) { fold.open = true; target.scrollIntoView(); }
};
addEventListener("hashchange", open);
open();
