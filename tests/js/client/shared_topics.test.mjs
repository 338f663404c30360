// Tabs with topics of their own that share a connection, in one process. tests/js/client_browser.mjs has real tabs, which freeze.

import assert from "node:assert/strict";
import { test } from "node:test";
import { WebSocket } from "ws";
import { connect } from "../../../clients/js/dist/shared-topics.js";
import "./locks.mjs";
import { serveSockets } from "./servers.mjs";
import { CuttingProxy, SERVER, namesOf, next, range, until, wait } from "./support.mjs";

const TRANSPORTS = ["websocket", "sse", "long-poll"];

/** The numbers of the events of each topic. */
const published = new Map();

/** Publishes the next event of these topics: its data says which event of each topic it is. */
const publish = (...topics) => publishTo("/topics", ...topics);

async function publishTo(path, ...topics) {
  const numbers = {};
  for (const topic of topics) {
    numbers[topic] = (published.get(topic) ?? 0) + 1;
    published.set(topic, numbers[topic]);
  }
  const response = await fetch(new URL(`${path}/${topics}`, SERVER), { method: "POST", body: JSON.stringify({ numbers }) });
  return response.text();
}

const subscribers = async (topic, path = "/topics") => Number(await (await fetch(new URL(`${path}/${topic}`, SERVER))).text());

let count = 0;
const newName = () => `name ${++count}`;

class Tab {
  /** The numbers of the events of each topic, and `gap`. */
  seen = new Map();
  events = [];

  constructor(name, topics, transport, { url = new URL("/topics", SERVER), ...options } = {}) {
    this.push = connect(url, {
      shared: name,
      topics,
      transports: [transport],
      WebSocket,
      minDelay: 1,
      maxDelay: 20,
      lease: 600_000,
      ...options,
    });
    this.push.on("message", (event) => {
      this.events.push(event);
      for (const topic of event.topics ?? [event.topic]) {
        assert.ok(this.push.topics.includes(topic), `an event of ${topic}, which the tab does not have`);
        this.numbers(topic).push(event.data.numbers[topic]);
      }
    });
    this.push.on("gap", ({ reason, topic }) => {
      for (const own of topic ? [topic] : this.push.topics) this.numbers(own).push(reason);
    });
  }

  numbers(topic) {
    if (!this.seen.has(topic)) this.seen.set(topic, []);
    return this.seen.get(topic);
  }

  async hasSeen(topic, number = published.get(topic)) {
    while (!this.numbers(topic).includes(number)) await next(this.push, "event");
  }

  /** The tab has seen each event of the topic after its first one, once and in order. */
  check(topic, first = this.numbers(topic)[0]) {
    const numbers = this.numbers(topic);
    assert.deepEqual(numbers, range(first, first + numbers.length - 1), topic);
  }
}

test("a slow loop in a tab gets a gap, and no other tab waits for it", async (context) => {
  const [topic] = namesOf("slow");
  const name = newName();
  const tabs = [10, 1, 1000].map((maxBuffered) => new Tab(name, [topic], "sse", { maxBuffered }));
  context.after(() => tabs.forEach(({ push }) => push.close()));
  const loops = tabs.map(({ push }) => push[Symbol.asyncIterator]());
  const firsts = loops.map((loop) => loop.next());
  const [first] = tabs;
  await publish(topic);
  for (const tab of tabs) await tab.hasSeen(topic);
  await Promise.all(firsts);
  for (let n = 0; n < 100; n++) await publish(topic);
  for (const tab of tabs) await tab.hasSeen(topic);
  await wait(10);
  for (const [index, most] of [10, 2, 100].entries()) {
    const numbers = [];
    let missed = 0;
    do {
      const { value } = await loops[index].next();
      if (value.gap) {
        assert.deepEqual([value.type, value.gap.reason, numbers], ["gap", "lagged", []]);
        missed = value.gap.missed;
      } else numbers.push(value.data.numbers[topic]);
    } while (numbers.at(-1) !== 101);
    assert.deepEqual(numbers, range(101 - numbers.length + 1, 101));
    assert.equal(numbers.length + missed, 100);
    assert.ok(numbers.length <= most, `${numbers.length} of at most ${most}`);
  }
  // Its listeners have had each event.
  first.check(topic, 1);
});

for (const transport of TRANSPORTS) {
  test(`${transport}: each tab gets its topics over one connection`, async () => {
    const [a, b, c] = namesOf("a", "b", "c");
    await publish(a);
    const name = newName();
    const tabs = [[a, b], [b, c], [c]].map((topics) => new Tab(name, topics, transport));
    const [first, second, third] = tabs;
    await first.hasSeen(a);
    await until(async () => (await subscribers(c)) === 1);
    await publish(a, b, c);
    await publish(b, c);
    await publish(c);
    for (const tab of tabs) for (const topic of tab.push.topics) await tab.hasSeen(topic);
    assert.deepEqual(first.numbers(a), [1, 2]);
    for (const tab of tabs) for (const topic of tab.push.topics) tab.check(topic, 1);
    assert.deepEqual(first.events.map(({ topic, topics }) => [topic, topics]), [[a, undefined], [a, [a, b]], [b, undefined]]);
    assert.deepEqual(second.events.map(({ topic, topics }) => [topic, topics]), [[b, [b, c]], [b, [b, c]], [c, undefined]]);
    assert.deepEqual(third.events.map(({ topic }) => topic), [c, c, c]);
    for (const topic of [a, b, c]) await until(async () => (await subscribers(topic)) === 1);
    // The connection has a topic as long as a tab has it.
    third.push.close();
    second.push.unsubscribe(c);
    await until(async () => (await subscribers(c)) === 0);
    await until(async () => (await subscribers(b)) === 1);
    second.push.close();
    first.push.unsubscribe(b);
    await until(async () => (await subscribers(b)) === 0);
    first.push.close();
    await until(async () => (await subscribers(a)) === 0);
  });

  test(`${transport}: a topic that another tab has begins with its last value`, async () => {
    const [a, b, empty] = namesOf("a", "b", "empty");
    for (let n = 0; n < 3; n++) await publish(b);
    const name = newName();
    const first = new Tab(name, [a, b, empty], transport);
    await first.hasSeen(b);
    const second = new Tab(name, [a], transport);
    await next(second.push, "state", (state) => state === "open");
    second.push.subscribe(b, empty);
    await second.hasSeen(b);
    assert.deepEqual(second.numbers(b), [3]);
    // The tab needs no connection of its own any more.
    for (const topic of [a, b, empty]) await until(async () => (await subscribers(topic)) === 1);
    for (let n = 0; n < 5; n++) await publish(b, empty);
    for (const tab of [first, second]) {
      for (const topic of [b, empty]) await tab.hasSeen(topic);
      tab.check(b, 3);
      tab.check(empty, 1);
    }
    // A topic that was removed begins anew.
    second.push.unsubscribe(b);
    await publish(b);
    second.push.subscribe(b);
    await second.hasSeen(b);
    assert.deepEqual(second.numbers(b), [...range(3, 8), 9]);
    for (const { push } of [first, second]) push.close();
  });

  test(`${transport}: a tab with a cursor gets what follows it`, async () => {
    const [a, b, c] = namesOf("a", "b", "c");
    const ids = [];
    for (let n = 0; n < 10; n++) ids.push(await publish(a, b));
    await publish(c);
    const name = newName();
    const tabs = [
      new Tab(name, [a], transport, { since: ids[4] }),
      new Tab(name, [a, b], transport, { since: ids[1] }),
      new Tab(name, [b, c], transport),
      new Tab(name, [b, c], transport, { since: ids[9] }),
    ];
    for (let n = 0; n < 3; n++) await publish(a, b, c);
    await until(() => tabs.every((tab) => tab.push.topics.every((topic) => tab.numbers(topic).includes(published.get(topic)))));
    tabs[0].check(a, 6);
    for (const topic of [a, b]) tabs[1].check(topic, 3);
    for (const topic of [b, c]) tabs[2].check(topic);
    tabs[3].check(b, 11);
    tabs[3].check(c, 1);
    for (const { push } of tabs) push.close();
  });

  test(`${transport}: the next leader goes on where the tabs are`, async () => {
    const [a, b, c] = namesOf("a", "b", "c");
    const name = newName();
    const tabs = [[a, c], [b], [a, b], [c, b]].map((topics) => new Tab(name, topics, transport));
    await until(() => tabs.every(({ push }) => push.state === "open"));
    for (const topic of [a, b, c]) await publish(topic);
    while (tabs.length) {
      for (let n = 0; n < 5; n++) {
        await publish(a, b);
        await publish(c);
      }
      // The first tab of the line leads.
      const [leader] = tabs;
      if (tabs.length > 1) leader.push.close();
      for (let n = 0; n < 5; n++) await publish(a, b, c);
      if (tabs.length > 1) tabs.shift();
      for (const tab of tabs) {
        for (const topic of tab.push.topics) {
          await tab.hasSeen(topic);
          tab.check(topic, 1);
        }
      }
      if (tabs.length === 1) tabs.shift().push.close();
    }
  });

  // Where the topics begin for a new client.
  for (const path of ["/topics", "/topics-last-3", "/topics-now", "/topics-oldest"]) {
    test(`${transport}, ${path}: tabs and topics that come and go at random miss and repeat nothing`, async (context) => {
      const proxy = await CuttingProxy.to(SERVER);
      context.after(() => proxy.close());
      const options = { url: proxy.url(path) };
      const random = (max) => Math.floor(Math.random() * max);
      const [noise, ...names] = namesOf("noise", "r1", "r2", "r3", "r4");
      const choose = () => names.filter(() => random(2));
      const name = newName();
      const all = [];
      const open = [];
      for (let step = 0; step < 50; step++) {
        const topics = choose();
        if (topics.length && random(2)) await publishTo(path, ...topics);
        // The cursor moves on without an event of the tabs.
        if (!random(3)) await publishTo(path, noise);
        if (!random(8)) proxy.cut();
        if (open.length < 5 && random(2)) {
          const own = choose();
          const tab = new Tab(name, own.length ? own : names, transport, options);
          all.push(tab);
          open.push(tab);
        } else if (open.length > 1 && !random(3)) open.splice(random(2) ? 0 : random(open.length), 1)[0].push.close();
        else if (open.length) {
          const tab = open[random(open.length)];
          const added = names.find((topic) => !tab.seen.has(topic) && !tab.push.topics.includes(topic));
          if (added && random(2)) tab.push.subscribe(added);
          else if (tab.push.topics.length > 1) tab.push.unsubscribe(tab.push.topics[0]);
        }
        await wait(random(4) ? random(20) : 300);
      }
      await wait(500);
      await publishTo(path, ...names);
      for (const tab of open) for (const topic of tab.push.topics) await tab.hasSeen(topic);
      for (const tab of open) tab.push.close();
      for (const tab of all) {
        for (const [topic, numbers] of tab.seen) {
          // After a cut, the server may send events that are older than those with which the topic began.
          tab.seen.set(topic, numbers.filter((number) => !(number < numbers[0])));
          tab.check(topic, path === "/topics-oldest" ? 1 : undefined);
        }
      }
      for (const topic of names) await until(async () => (await subscribers(topic, path)) === 0);
    });
  }
}

for (const transport of TRANSPORTS) {
  test(`${transport}: an event that is published while a tab adds its topic comes once`, async () => {
    const [a, ...others] = namesOf("a", ...range(1, 20));
    const name = newName();
    const tabs = [0, 1].map(() => new Tab(name, [a], transport));
    const [first, second] = tabs;
    await publish(a);
    for (const tab of tabs) await tab.hasSeen(a);
    for (const [n, topic] of others.entries()) {
      first.push.subscribe(topic);
      // Either the stream has the topic already, and the second tab reads the topic from the server, or the topic begins in the stream.
      if (n % 2) await until(async () => (await subscribers(topic)) > 0);
      const published = publish(topic);
      second.push.subscribe(topic);
      await published;
      await publish(topic);
      for (const tab of tabs) {
        await tab.hasSeen(topic, 2);
        tab.check(topic);
        tab.push.unsubscribe(topic);
      }
    }
    for (const { push } of tabs) push.close();
  });
}

test("publications of all tabs go over the leader's connection", async () => {
  const [room, other] = namesOf("room", "other");
  const name = newName();
  const tabs = [[room], [room], [other]].map((topics) => new Tab(name, topics, "websocket"));
  await until(() => tabs.every(({ push }) => push.state === "open"));
  const ids = await Promise.all(tabs.map(({ push }, number) => push.publish(room, { numbers: { [room]: number + 1 } })));
  assert.equal(new Set(ids).size, 3);
  await until(() => tabs.slice(0, 2).every((tab) => tab.numbers(room).length === 3));
  assert.deepEqual(tabs[2].events, []);
  await assert.rejects(tabs[1].push.publish(other, 1), (error) => error.status === 403);
  // A publication survives the leader.
  const publication = tabs[1].push.publish(room, { numbers: { [room]: 4 } });
  tabs[0].push.close();
  assert.ok(await publication);
  await tabs[1].hasSeen(room, 4);
  const pending = tabs[2].push.publish(room, 5);
  tabs[2].push.close();
  await assert.rejects(pending, /closed/);
  await assert.rejects(tabs[2].push.publish(room, 5), /closed/);
  tabs[1].push.close();
});

test("a refused topic is given up by all tabs that have it", async () => {
  const [a, hidden] = namesOf("a", "hidden");
  const name = newName();
  const tabs = [[a], [a, hidden], [hidden]].map((topics) => new Tab(name, topics, "websocket"));
  const refused = tabs.slice(1).map(({ push }) => next(push, "hub.refused"));
  for (const event of await Promise.all(refused)) assert.deepEqual([event.topic, event.data.status], [hidden, 403]);
  assert.deepEqual(tabs.map(({ push }) => push.topics), [[a], [a], []]);
  await publish(a);
  for (const tab of tabs.slice(0, 2)) await tab.hasSeen(a);
  for (const { push } of tabs) push.close();
});

test("a server without long-polls costs a gap, and no event in silence", async () => {
  const [a, b] = namesOf("a", "b");
  await publish(b);
  const name = newName();
  const options = { fetch: async () => new Response("", { status: 406 }) };
  const first = new Tab(name, [a, b], "websocket", options);
  await first.hasSeen(b);
  const second = new Tab(name, [b], "websocket", options);
  await next(second.push, "gap");
  await publish(b);
  await second.hasSeen(b);
  assert.deepEqual(second.numbers(b), ["unknown", 2]);
  for (const { push } of [first, second]) push.close();
});

for (const since of [undefined, "0"]) {
  const what = since ? "with the cursor of the leader" : "without a cursor";
  test(`a tab ${what} misses nothing while the first events of another topic have set this cursor back`, async () => {
    const records = [1, 2, 3].map((n) => ({ id: `${n}`, topic: "a", data: { numbers: { a: n } } }));
    let leader;
    const url = await serveSockets((socket) => {
      leader = (...records) => records.forEach((record) => socket.send(JSON.stringify(record)));
      leader(...records);
      socket.on("message", (text) => {
        const { ref } = JSON.parse(text);
        leader({ topic: "b", event: "hub.subscribed", data: { ref } }, { id: "0", topic: "b", data: { numbers: { b: 1 } } });
      });
    }, { handleProtocols: () => "json.tower-push" });
    const fetch = async (_, { headers }) => {
      const cursor = headers.get("last-event-id") ?? "0";
      const batch = records.filter(({ id }) => id > cursor);
      return Response.json(batch, { headers: { "last-event-id": batch.at(-1)?.id ?? cursor } });
    };
    const name = newName();
    const first = new Tab(name, ["a"], "websocket", { url: new URL(url), fetch });
    await first.hasSeen("a", 3);
    first.push.subscribe("b");
    await first.hasSeen("b", 1);
    const second = new Tab(name, ["a"], "websocket", { url: new URL(url), fetch, since });
    await second.hasSeen("a", 3);
    leader({ id: "4", topic: "a", data: { numbers: { a: 4 } } });
    for (const tab of [first, second]) {
      await tab.hasSeen("a", 4);
      assert.deepEqual(tab.numbers("a"), [1, 2, 3, 4]);
      tab.push.close();
    }
  });
}

test("a tab that reads the first events of a topic shows no cursor after events of the topic that it has not got", async () => {
  const log = [];
  const leaders = [];
  const publish = () => {
    const id = log.length + 1;
    const topic = id % 2 ? "a" : "b";
    const record = { id: String(id), topic, data: { numbers: { [topic]: id } } };
    log.push(record);
    for (const socket of leaders) socket.send(JSON.stringify(record));
  };
  range(1, 6).forEach(publish);
  const url = await serveSockets((socket) => {
    leaders.push(socket);
    for (const record of log) socket.send(JSON.stringify(record));
  }, { handleProtocols: () => "json.tower-push" });
  // Each poll has one event, and other events are published meanwhile.
  const fetch = async (address, { headers }) => {
    const topics = new URL(address).searchParams.getAll("topic");
    const cursor = headers.get("last-event-id") ?? "0";
    const record = log.find(({ id, topic }) => Number(id) > Number(cursor) && topics.includes(topic));
    if (log.length < 40) publish();
    await wait(5);
    return Response.json(record ? [record] : [], { headers: { "last-event-id": record?.id ?? log.at(-1).id } });
  };
  const name = newName();
  const first = new Tab(name, ["a", "b"], "websocket", { url: new URL(url), fetch });
  await first.hasSeen("a", 5);
  const second = new Tab(name, ["a"], "websocket", { url: new URL(url), fetch });
  await second.hasSeen("a", 5);
  const missing = [];
  /** Notes the events that a page would miss if it were closed now, and began after the cursor later, with the topics of which it has events. */
  const check = () => {
    const { cursor } = second.push;
    for (const { id, topic } of log) {
      const numbers = second.numbers(topic);
      if (Number(id) <= Number(cursor) && numbers[0] && !numbers.includes(Number(id))) missing.push(`${id} at ${cursor}`);
    }
  };
  for (const type of ["event", "cursor"]) second.push.on(type, () => queueMicrotask(check));
  second.push.subscribe("b");
  await second.hasSeen("b", 40);
  await until(() => second.push.cursor === "40");
  assert.deepEqual(missing, []);
  for (const topic of ["a", "b"]) assert.deepEqual(second.numbers(topic), log.filter((record) => record.topic === topic).map(({ id }) => Number(id)));
  for (const { push } of [first, second]) push.close();
});

test("a shared connection needs a topic in each tab, and has no patterns", () => {
  assert.throws(() => new Tab("none", [], "websocket"), TypeError);
  assert.throws(() => new Tab("none", ["a"], "websocket", { patterns: [{ prefix: "a" }] }), TypeError);
  const tab = new Tab("none", ["a"], "websocket");
  assert.throws(() => tab.push.unsubscribe("a"), TypeError);
  tab.push.close();
  assert.equal(tab.push.state, "closed");
});
