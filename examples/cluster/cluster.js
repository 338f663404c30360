// The events of all nodes, the newest first, from the node of this page.

import { connect } from "/tower-push/index.js";

/** The number of events that the page shows. */
const MAX_LINES = 100;

const part = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
part.node.textContent = location.host;

function add(text, className) {
  const line = document.createElement("li");
  line.textContent = text;
  line.className = className;
  part.list.prepend(line);
  if (part.list.children.length > MAX_LINES) part.list.lastElementChild.remove();
}

// Texts stay texts, also if they look like JSON.
const push = connect("/feed", { parse: String, maxDelay: 5000 });
push.on("state", (state) => (part.state.textContent = state));
push.on("message", ({ data }) => add(data, ""));
push.on("gap", ({ missed }) => add(missed ? `${missed} events are missing here` : "Events may be missing here", "note"));

part.form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const response = await fetch("/feed", { method: "POST", body: part.text.value }).catch(() => undefined);
  part.failed.textContent = response?.ok ? "" : "Not published. Try again.";
  if (response?.ok) part.text.value = "";
});
