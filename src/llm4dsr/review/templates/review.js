const byId = (id) => document.getElementById(id);
const buttons = [...document.querySelectorAll("[data-answer]")];
let question = null, replacement = null, busy = false;

async function ask(path, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, options);
  const found = await response.json();
  if (!response.ok) throw new Error(found.error || `The server answered ${response.status}.`);
  return found;
}
function show({ question: next, state }) {
  question = next;
  replacement = null;
  byId("whole").checked = false;
  byId("replace").open = false;
  byId("title").value = "";
  byId("found").replaceChildren();
  byId("chosen").textContent = "";
  buttons.forEach((button) => { button.disabled = !question; });
  if (question) {
    const item = question.items[question.explained];
    byId("asked").textContent = item.title;
    const parts = [headline(question), strip(question, (_, i) => i === question.explained)];
    parts.push(el("p", {}, `Noise probability ${percent(item.p, 0)}.` + (item.edit && item.edit.title ? ` Suggestion: ${item.edit.title}.` : "")));
    if (item.why) parts.push(el("details", {}, el("summary", {}, "Why?"), reasons(item.why)));
    byId("question").replaceChildren(...parts);
    document.querySelector("ol.strip .flagged").scrollIntoView({ inline: "center", block: "nearest" });
  } else {
    byId("asked").textContent = "No question is left in this order.";
    byId("question").replaceChildren();
  }
  const precision = state.precision === null
    ? "Answer some of the random sample to measure the precision of the flags."
    : `By ${state.sampled} sampled answers, ${percent(state.precision[0], 0)} of the ${state.flags.toLocaleString("en")} flags are noise (95 %: ${percent(state.precision[1], 0)} to ${percent(state.precision[2], 0)}).`;
  const { noise, fits, atypical, skip, accepted } = state.counts;
  byId("accept").disabled = order() === "sample"; // the sample measures precision: one by one
  byId("state").textContent = `${state.answers} answers: ${noise} noise, ${fits} belong, ${atypical} not their taste, ${skip} unclear${accepted ? `, ${accepted} accepted without a look` : ""}. ${precision} ${state.left[byId("order").value]} questions left.`;
}
async function act(path, body) {
  if (busy) return;
  busy = true;
  try {
    show(await ask(path, body));
    byId("asked").focus();
  } catch (error) {
    byId("state").textContent = `Not saved: ${error.message}`;
  } finally {
    busy = false;
  }
}
const order = () => byId("order").value;
const answer = (name) => question && act("/api/answers", {
  split: question.split, window: question.window, position: question.position, answer: name,
  replacement: name === "noise" ? replacement : null, whole_window: byId("whole").checked, order: order(),
});
buttons.forEach((button) => button.addEventListener("click", () => answer(button.dataset.answer)));
byId("accept").addEventListener("click", () => act("/api/accept", { count: Number(byId("count").value), order: order() }));
byId("undo").addEventListener("click", () => act("/api/undo", { order: order() }));
byId("order").addEventListener("change", () => act(`/api/next?order=${order()}`));
byId("title").addEventListener("input", async () => {
  const text = byId("title").value.trim();
  const found = text ? await ask(`/api/items?q=${encodeURIComponent(text)}`) : [];
  if (text !== byId("title").value.trim()) return; // a later search is under way
  byId("found").replaceChildren(...found.map((item) => {
    const button = el("button", { type: "button" }, item.title);
    button.addEventListener("click", () => {
      replacement = item.id;
      byId("chosen").textContent = `With “noise”, it is replaced by: ${item.title}`;
    });
    return el("li", {}, button);
  }));
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName)) return;
  const names = { n: "noise", b: "fits", t: "atypical", s: "skip" };
  if (names[event.key]) answer(names[event.key]);
  else if (event.key === "u") act("/api/undo", { order: order() });
});
act(`/api/next?order=${order()}`);
