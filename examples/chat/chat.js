// A chat over one WebSocket. A connection that was lost comes back after the last id it has seen, so that nothing is missed
// or shown twice. What this tab has said, it says again until it hears it; the room knows it by its key.

/**
 * The room. Calls onstate with "connecting", "live", "reconnecting", "unplugged" or "closed"; onmessage with each
 * {key, name, text, at} in the order of the room; onhere with how many are here; onrefused with {key, reason}; and ongap where
 * messages are missing.
 */
class Room {
  #url;
  #socket;
  #lastId;
  #attempts = 0;
  #timer;
  /** What this tab has said and not heard yet, by key. */
  #unheard = new Map();

  onstate = () => {};
  onmessage = () => {};
  onhere = () => {};
  onrefused = () => {};
  ongap = () => {};

  constructor(url) {
    this.#url = new URL(url, location.href);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
  }

  /** At once, or when the room is open again. */
  say(message) {
    this.#unheard.set(message.key, JSON.stringify(message));
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(this.#unheard.get(message.key));
  }

  open() {
    this.onstate(this.#attempts === 0 ? "connecting" : "reconnecting");
    if (this.#lastId) this.#url.searchParams.set("last_event_id", this.#lastId);
    const socket = (this.#socket = new WebSocket(this.#url, "json.tower-push"));
    socket.onopen = () => {
      this.onstate("live");
      for (const said of this.#unheard.values()) socket.send(said);
    };
    socket.onmessage = ({ data }) => this.#take(JSON.parse(data));
    socket.onclose = ({ code }) => this.#closed(code);
  }

  /** Closes the connection. `open` opens a new one. */
  leave() {
    clearTimeout(this.#timer);
    const socket = this.#socket;
    socket.onmessage = socket.onclose = null;
    // Not before it is open: that would be an error in the console.
    if (socket.readyState === WebSocket.CONNECTING) socket.onopen = () => socket.close();
    else socket.close();
  }

  /** Drops the connection for a while. */
  unplug(milliseconds) {
    this.leave();
    this.onstate("unplugged");
    this.#timer = setTimeout(() => this.open(), milliseconds);
  }

  #take({ id, event, data, gap }) {
    this.#attempts = 0;
    if (id) this.#lastId = id;
    if (gap) this.ongap(gap);
    if (event === "here") this.onhere(Number(data));
    if (event === "refused") {
      const { key } = JSON.parse(data.said);
      this.#unheard.delete(key);
      this.onrefused({ key, reason: data.reason });
    }
    if (event === "message") {
      this.#unheard.delete(data.key);
      this.onmessage(data);
    }
  }

  /** Tries again, later and later, and not at the same time as everyone else; unless it is of no use. */
  #closed(code) {
    const isFinal = [1000, 1002, 1003, 1007, 1008, 1009].includes(code) || (code >= 3500 && code <= 3999);
    if (isFinal) return this.onstate("closed");
    this.onstate("reconnecting");
    const longest = Math.min(15_000, 500 * 2 ** this.#attempts++);
    this.#timer = setTimeout(() => this.open(), longest * (0.5 + Math.random() / 2));
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// The page
// ---------------------------------------------------------------------------------------------------------------------

const part = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const room = new Room("/chat");

/** What this tab's keys begin with, also when it is loaded again. */
const me = (sessionStorage.me ??= random());

/** 64 random bits. `crypto.randomUUID` would want HTTPS. */
function random() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
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

const unheard = (key) => [...part.unheard.children].find((line) => line.dataset.key === key);

let here = 0;
let state = "connecting";

function showState() {
  part.state.textContent = state === "live" && here > 0 ? `live · ${here} here` : state;
  document.body.dataset.state = state;
  part.plug.setAttribute("aria-disabled", state !== "live");
}

room.onstate = (now) => {
  state = now;
  showState();
};

room.onhere = (now) => {
  here = now;
  showState();
};

room.onmessage = (message) => {
  unheard(message.key)?.remove();
  add(part.heard, lineOf(message));
};

room.onrefused = ({ key, reason }) => {
  const line = unheard(key);
  // Nothing that was typed is lost.
  if (line && !part.text.value) part.text.value = line.querySelector("[data-show=text]").textContent;
  line?.remove();
  part.refused.textContent = `Not sent: ${reason}.`;
};

room.ongap = ({ reason, missed }) => {
  if (reason === "epoch") note("The room was opened anew. What was said before is gone.");
  else note(missed ? `${missed} messages are missing here` : "Messages are missing here");
};

part.form.addEventListener("submit", (event) => {
  event.preventDefault();
  part.refused.textContent = "";
  const message = { key: me + random(), name: part.name.value.trim(), text: part.text.value.trim() };
  part.text.value = "";
  part.text.focus();
  add(part.unheard, lineOf(message));
  part.scroll.scrollTop = part.scroll.scrollHeight;
  room.say(message);
});

part.plug.addEventListener("click", () => {
  if (state === "live") room.unplug(4000);
});

// A tab keeps its name; another tab has another one.
part.name.value = sessionStorage.name ??= `Guest ${100 + Math.floor(Math.random() * 900)}`;
part.name.addEventListener("input", () => (sessionStorage.name = part.name.value));

// A browser may keep a page that the user has left, and its connection, for the back button. The room must not count such a page.
addEventListener("pagehide", () => room.leave());
addEventListener("pageshow", ({ persisted }) => {
  if (persisted) room.open();
});

room.open();
