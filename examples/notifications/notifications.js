// The notifications of one user. All tabs of the user get the same events in the same order: also that one tab has marked all as read.

import { connect } from "/tower-push/index.js";

const part = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const user = new URLSearchParams(location.search).get("user") ?? "ada";
part.user.textContent = part.to.value = user;

function add(text, className) {
  const line = document.createElement("li");
  line.textContent = text;
  line.className = className;
  part.list.prepend(line);
  showCount();
}

function showCount() {
  const unread = document.querySelectorAll(".unread").length;
  document.title = unread ? `(${unread}) Notifications` : "Notifications";
}

// Texts stay texts, also if they look like JSON.
const push = connect(`/notifications/${encodeURIComponent(user)}`, { parse: String, maxDelay: 5000 });
push.on("state", (state) => (part.state.textContent = state));
push.on("message", ({ data }) => add(data, "unread"));
push.on("read", () => {
  for (const line of document.querySelectorAll(".unread")) line.classList.remove("unread");
  showCount();
});
push.on("gap", ({ missed }) => add(missed ? `${missed} notifications are missing here` : "Notifications may be missing here", "note"));

/** Publishes an event to a user, and tells if that has failed. */
async function notify(user, event, body) {
  const request = { method: "POST", headers: { "content-type": "text/plain" }, body };
  const response = await fetch(`/topics/user/${encodeURIComponent(user)}${event}`, request).catch(() => undefined);
  const isSent = response?.ok === true;
  part.failed.textContent = isSent ? "" : "Not sent. Try again.";
  return isSent;
}

part.read.addEventListener("click", () => notify(user, "?event=read", ""));

part.form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (await notify(part.to.value, "", part.text.value)) part.text.value = "";
});
