// A chat over one WebSocket. The client of tower-push comes back after the last message that it has got, so that nothing is missed or shown
// twice. This page sends each of its messages again until the message comes back; the server knows a message by its key.

import { connect } from "/tower-push/index.js";

const part = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));

/** 64 random bits. `crypto.randomUUID` needs HTTPS. */
function random() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The member that this tab is, and the beginning of its messages' keys. */
const me = (sessionStorage.me ??= random());
const room = new URLSearchParams(location.search).get("room") ?? "lobby";

// A tab keeps its name; another tab has another one.
part.name.value = sessionStorage.name ??= `Guest ${100 + Math.floor(Math.random() * 900)}`;
part.name.addEventListener("input", () => (sessionStorage.name = part.name.value));

let push;
/** The names of those who are here, by their keys. */
const members = new Map();
/** The messages of this tab that have not come back, by their keys. */
const unheardMessages = new Map();

/** Connects, after the message with the id `since` if there is one. */
function open(since) {
  const query = new URLSearchParams({ room, me, name: part.name.value });
  push = connect(`/chat?${query}`, { transports: ["websocket"], maxDelay: 5000, since });
  push.on("state", (state) => {
    showState(state);
    if (state === "open") for (const message of unheardMessages.values()) push.send(message);
  });
  push.on("message", ({ data }) => {
    unheardMessages.delete(data.key);
    unheardLine(data.key)?.remove();
    add(part.heard, lineOf(data));
  });
  push.on("refused", ({ data }) => {
    const { key, text } = JSON.parse(data.said);
    unheardMessages.delete(key);
    unheardLine(key)?.remove();
    // Nothing that was typed is lost.
    part.text.value ||= text;
    part.refused.textContent = `Not sent: ${data.reason}.`;
  });
  push.on("gap", ({ reason, missed, topic }) => {
    if (topic === `${room}/members`) return; // A new list comes with it.
    if (reason === "epoch") note("The room was opened anew. What was said before is gone.");
    else note(missed ? `${missed} messages are missing here` : "Messages are missing here");
  });
  push.on("hub.members", ({ data }) => {
    members.clear();
    for (const { member, value } of data.members) members.set(member, value);
    showMembers();
  });
  for (const type of ["hub.join", "hub.update"]) push.on(type, ({ data }) => showMembers(members.set(data.member, data.value)));
  push.on("hub.leave", ({ data }) => showMembers(members.delete(data.member)));
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });

function lineOf({ key, name, text, at }) {
  const line = part.message.content.cloneNode(true).firstElementChild;
  const show = (name, value) => (line.querySelector(`[data-show=${name}]`).textContent = value);
  show("name", name);
  show("text", text);
  show("time", at ? clock.format(at) : "on the way");
  line.dataset.key = key;
  line.classList.toggle("own", key.startsWith(me));
  return line;
}

/** Adds to a list; who reads the end of it stays there. */
function add(list, line) {
  const isAtEnd = part.scroll.scrollHeight - part.scroll.scrollTop - part.scroll.clientHeight < 48;
  list.append(line);
  part.empty.hidden = true;
  if (isAtEnd) part.scroll.scrollTop = part.scroll.scrollHeight;
}

function note(text) {
  const line = document.createElement("li");
  line.className = "note";
  line.textContent = text;
  add(part.heard, line);
}

const unheardLine = (key) => [...part.unheard.children].find((line) => line.dataset.key === key);

const STATES = { connecting: "connecting", open: "live", waiting: "reconnecting", paused: "reconnecting", closed: "closed" };

function showState(state) {
  const text = STATES[state] ?? state;
  document.body.dataset.state = text;
  part.state.textContent = text === "live" && members.size ? `live · ${members.size} here` : text;
  part.plug.setAttribute("aria-disabled", text !== "live");
}

function showMembers() {
  part.members.textContent = [...members.values()].sort().join(", ");
  if (push.state === "open") showState("open");
}

part.form.addEventListener("submit", (event) => {
  event.preventDefault();
  part.refused.textContent = "";
  const message = { key: me + random(), name: part.name.value.trim(), text: part.text.value.trim() };
  part.text.value = "";
  part.text.focus();
  add(part.unheard, lineOf(message));
  part.scroll.scrollTop = part.scroll.scrollHeight;
  unheardMessages.set(message.key, message);
  push.send(message);
});

part.plug.addEventListener("click", () => {
  if (push.state !== "open") return;
  push.close();
  showState("unplugged");
  setTimeout(open, 4000, push.cursor);
});

open();
