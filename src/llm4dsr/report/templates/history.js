"use strict";
// Shared by the report and the review page: a history as a strip of items, and why one of them looks like noise
const el = (name, attributes = {}, ...children) => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};
const percent = (value, digits = 1) => (Number.isFinite(value) ? `${(100 * value).toFixed(digits)} %` : "–");
function whyText(why) {
  const lines = [];
  if (why.users !== null)
    lines.push(`${why.users.toLocaleString("en")} other users have it. Some of them also have ${why.together} of the ${why.others} other items.`);
  for (const other of why.without) {
    if (other.change === null || other.p === null) continue;
    const way = other.change > 0 ? "makes it look like noise" : "speaks for it";
    const users = other.users === null ? "" : `, ${other.users} users have both`;
    lines.push(`“${other.title}” ${way}: without it, noise probability ${percent(other.p, 0)}${users}.`);
  }
  lines.push(why.similarity > 0 ? `Most similar title: “${why.alike}” (${why.similarity.toFixed(2)}).` : "No other title shares a word with it.");
  return lines;
}
const done = (edit) =>
  edit.action === "replace" ? `replaced by: ${edit.title}` : { drop: "dropped", downweight: "lower weight", keep: "kept" }[edit.action];
function strip(e, isMarked) {
  const list = el("ol", { class: "strip", tabindex: "0", "aria-label": `History of ${e.items.length} items, oldest first` });
  e.items.forEach((item, i) => {
    const marked = isMarked(item, i);
    const cell = el("li", marked ? { class: "flagged" } : {}, item.title);
    const p = item.p === undefined ? "target" : item.p === null ? "not scored" : `${marked ? "noise " : ""}${percent(item.p, 0)}`;
    cell.append(el("span", { class: "p" }, p));
    if (item.edit) cell.append(el("span", { class: "new" }, done(item.edit)));
    list.append(cell);
  });
  return list;
}
function headline(e) {
  const part = e.of > e.items.length ? `, ${e.items.length} of ${e.of} items` : "";
  return el("div", { class: "muted" }, `${e.split}, user ${e.user || "unknown"}, window ${e.window}${part}`);
}
const reasons = (why) => el("ul", { class: "why" }, ...whyText(why).map((line) => el("li", {}, line)));
