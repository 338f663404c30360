// The chosen topics over one connection. The client names the topics when it comes back, and changes them by commands meanwhile.

import { connect } from "/tower-push/topics.js";

const part = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const MACHINES = Array.from({ length: 24 }, (_, index) => `machine/${index + 1}`);
const tiles = new Map();

const push = connect("/loads", { topics: MACHINES.slice(0, 3), maxDelay: 5000 });
push.on("state", (state) => (part.state.textContent = state));
push.on("message", ({ topic, data }) => {
  const tile = tiles.get(topic);
  if (!tile) return; // The topic was left a moment ago.
  tile.querySelector("b").textContent = `${data.load} %`;
  tile.querySelector("meter").value = data.load;
  tile.dataset.second = data.second;
});

function showTile(topic) {
  const tile = part.tile.content.cloneNode(true).firstElementChild;
  tile.querySelector("span").textContent = topic;
  tile.dataset.topic = topic;
  tiles.set(topic, tile);
  part.tiles.append(tile);
}

function hideTile(topic) {
  tiles.get(topic).remove();
  tiles.delete(topic);
}

for (const topic of MACHINES) {
  const box = Object.assign(document.createElement("input"), { type: "checkbox", value: topic, checked: push.topics.includes(topic) });
  const label = document.createElement("label");
  label.append(box, ` ${topic}`);
  part.choice.append(label);
  if (box.checked) showTile(topic);
  box.addEventListener("change", () => {
    if (!box.checked && push.topics.length === 1) return (box.checked = true); // A connection has at least one topic.
    box.checked ? showTile(topic) : hideTile(topic);
    box.checked ? push.subscribe(topic) : push.unsubscribe(topic);
  });
}
