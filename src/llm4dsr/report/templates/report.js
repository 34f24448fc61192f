const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

// η: counts, stated precision and examples follow the slider
const slider = byId("eta"), split = byId("split"), bars = byId("bars");
function drawBars() {
  const n = data.histogram[split.value].n;
  // Square roots, so that the few suspicious interactions can be seen beside the many others
  const most = Math.sqrt(Math.max(1, ...n));
  bars.replaceChildren(...n.map((count) => el("span", { style: `height:${(100 * Math.sqrt(count)) / most}%` })));
}
function moveEta() {
  const from = Number(slider.value), h = data.histogram[split.value];
  const sum = (name) => h[name].slice(from).reduce((a, b) => a + b, 0);
  const flagged = sum("n");
  const stated = flagged ? `${percent(sum("p") / flagged, 0)} (${percent(sum("low") / flagged, 0)} to ${percent(sum("high") / flagged, 0)})` : "–";
  byId("flagged").textContent = `${flagged.toLocaleString("en")} of ${h.total.toLocaleString("en")} (${percent(flagged / Math.max(1, h.total))})`;
  byId("stated").textContent = stated;
  byId("noise").textContent = Math.round(sum("p")).toLocaleString("en");
  byId("eta-value").textContent = (from / 100).toFixed(2);
  slider.setAttribute("aria-valuetext", `${(from / 100).toFixed(2)}: ${flagged} flagged, stated precision ${stated}`);
  [...bars.children].forEach((bar, i) => bar.classList.toggle("on", i >= from));
  showExamples();
}

// Examples
const PAGE = 20;
let shown = PAGE;
function example(e, eta) {
  const out = el("li", {}, headline(e), strip(e, (item) => item.p !== undefined && item.p !== null && item.p >= eta));
  const explained = e.items[e.explained];
  if (explained.why)
    out.append(el("details", {}, el("summary", {}, `Why ${percent(explained.p, 0)} for “${explained.title}”?`), reasons(explained.why)));
  return out;
}
function showExamples() {
  const eta = Number(slider.value) / 100, words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const every = byId("all").checked;
  const found = data.examples.filter((e) => {
    if (!every && !(e.p >= eta)) return false;
    const text = `${e.user} ${e.window} ${e.items.map((i) => `${i.id} ${i.title} ${i.edit ? i.edit.title || "" : ""}`).join(" ")}`.toLowerCase();
    return words.every((w) => text.includes(w));
  });
  byId("examples").replaceChildren(...found.slice(0, shown).map((e) => example(e, eta)));
  byId("count").textContent = `${found.length} of ${data.examples.length} examples`;
  byId("more").hidden = found.length <= shown;
}

// Downloads. A text that a spreadsheet would take for a formula gets a quote before it.
const safe = (value) => {
  if (value === null || value === undefined) return "";
  let text = String(value);
  if (typeof value !== "number" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};
function download(name, rows) {
  const url = URL.createObjectURL(new Blob(["\ufeff", rows.map((row) => row.map(safe).join(",")).join("\r\n"), "\r\n"], { type: "text/csv" }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
document.querySelectorAll("button[data-csv]").forEach((button) =>
  button.addEventListener("click", () => {
    const name = `${button.dataset.csv}.csv`;
    if (button.dataset.csv === "edits") return download(name, [data.edits.columns, ...data.edits.rows]);
    const cells = (row) => [...row.cells].map((cell) => cell.dataset.value ? Number(cell.dataset.value) : cell.textContent.trim());
    download(name, [...byId(button.dataset.csv).rows].map(cells));
  }));

slider.addEventListener("input", () => { shown = PAGE; moveEta(); });
split.addEventListener("change", () => { drawBars(); moveEta(); });
byId("search").addEventListener("input", () => { shown = PAGE; showExamples(); });
byId("all").addEventListener("change", showExamples);
byId("more").addEventListener("click", () => { shown += PAGE; showExamples(); });
byId("all").checked = !data.examples.some((e) => e.p >= Number(slider.value) / 100);
drawBars();
moveEta();
