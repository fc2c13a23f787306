"use strict";

// ---- a table sorts by the column whose head is pressed, and the other way when pressed again

function value(row, column) {
  return row.cells[column].textContent.trim();
}

function number(text) {
  const plain = text.replaceAll(",", "").replaceAll("−", "-");
  const found = /^-?\d+(\.\d+)?(e-?\d+)?(?= |$)/.exec(plain); // of "3.1 ± 0.2" the mean; "10k" is a word
  return found ? Number(found[0]) : null;
}

function isMissing(text) {
  return text === "" || text === "–";
}

// Numbers before words, and what is missing last, in both directions.
function compare(a, b, sign) {
  if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b);
  const [x, y] = [number(a), number(b)];
  if (x === null || y === null) {
    const words = (x === null) - (y === null);
    return words || sign * a.localeCompare(b, "en", { numeric: true });
  }
  return sign * (x - y);
}

for (const head of document.querySelectorAll("thead th")) {
  head.querySelector("button").addEventListener("click", () => {
    const body = head.closest("table").tBodies[0];
    const descending = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const [column, sign] = [head.cellIndex, descending ? -1 : 1];
    const rows = [...body.rows];
    rows.sort((a, b) => compare(value(a, column), value(b, column), sign));
    body.append(...rows);
  });
}

// ---- light, dark, or as the system; remembered where the browser lets a page from disk remember

const THEMES = { "": "as the system", light: "light", dark: "dark" };
const button = document.getElementById("theme");

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  button.textContent = `Theme: ${THEMES[theme]}`;
}

function remembered() {
  try {
    return localStorage.getItem("theme") ?? "";
  } catch {
    return "";
  }
}

button.hidden = false;
setTheme(remembered() in THEMES ? remembered() : "");
button.addEventListener("click", () => {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(document.documentElement.dataset.theme ?? "") + 1) % names.length];
  setTheme(next);
  try {
    localStorage.setItem("theme", next);
  } catch {
    // It is then forgotten.
  }
});

// ---- the numbers are in the page, packed: they can be saved even where the files beside it are gone

const numbers = JSON.parse(document.getElementById("numbers").textContent);

async function unpacked(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Blob([await new Response(stream).arrayBuffer()], { type: "text/csv" });
}

for (const link of document.querySelectorAll("a[data-csv]")) {
  link.addEventListener("click", async (event) => {
    if (link.href.startsWith("blob:")) return;
    event.preventDefault();
    const path = link.getAttribute("href");
    link.download = path.split("/").pop();
    link.href = URL.createObjectURL(await unpacked(numbers[path]));
    link.click();
  });
}
