import { PushError, type Gap, type PushEvent, type PushGap, type State } from "./index.js";
import { ListenerSet, RESERVED } from "./listeners.js";
import { ItemQueues } from "./queue.js";
import { randomKey } from "./random-key.js";
import { CENSUS_TIME, isBefore, nextTerm, TabGroup, type ErrorFields, type Position } from "./tab-group.js";
import type { CountMessage, LeaderMessage, Message, Publication, Report, ReportMessage } from "./shared-hub-messages.js";
import { isFollowed, topicsOf, type TopicLoad, type TopicProgress } from "./topic-progress.js";
import { readTopics } from "./topic-snapshot.js";
import { connect, type PublicationOptions, type TopicConnection, type TopicOptions } from "./topics.js";

/** The maximum number of events that a tab drops as repetitions of one topic, or holds back for one load. */
const MAX_CATCH_UP = 1000;

/** The number of the last events that a tab remembers, so that it drops their repetitions. */
const MAX_RECENT_EVENTS = 256;

/** The maximum number of publications that wait for their answers. */
const MAX_PUBLICATIONS = 1024;

/**
 * One tab's part of a connection to topics that the tabs of a browser share. One tab, the leader, has a connection with the topics of all tabs. The
 * leader broadcasts everything that its connection reports: these reports are the leader's stream.
 *
 * Invariants:
 * - A tab handles the reports of the highest term that it knows, in their order and without a hole. It passes on the events of the topics that it
 *   follows.
 * - `cursor` is the cursor of the leader's connection at the tab's position. If the tab misses events, `cursor` stays before the missing events.
 *
 * A tab misses events if its reports have a hole, or if it begins to follow a topic. The tab reads the missing events from the server. It also reads
 * the events after the cursor at which the leader's stream was. Events that both reads have will come in the leader's stream, too, and the tab drops
 * them there.
 */
export class SharedHubConnection implements TopicConnection {
  state: State = "connecting";
  cursor: string | undefined;

  #url: URL;
  #options: TopicOptions;
  #name: string;
  #group: TabGroup<Message>;
  #listeners = new ListenerSet();
  #queues = new ItemQueues(() => {});
  /** The name of this tab while it is in the group. Each time that the tab joins, it gets another name. */
  #tab = "";
  /** Aborted when this tab leaves the group. */
  #session = new AbortController();

  #topics = new Map<string, TopicProgress>();
  /** The ids and topics of the last events that this tab has got, for dropping repetitions. */
  #recentEvents = new Set<string>();
  #position: Position | undefined;
  #highestTerm = "";
  /** The cursor of the leader's connection at `#position`. */
  #leaderCursor: string | undefined;
  #leaderTopics = new Set<string>();
  /** The topics that begin anew in the leader's stream, until its cursor moves. */
  #begunTopics = new Set<string>();
  /** Whether the last report of the leader was a cursor. */
  #hasMoved = false;
  #publications = new Map<number, { publication: Publication; resolve(id: string): void; reject(error: PushError): void }>();
  #lastRef = 0;

  /** The connection, if this tab is the leader. */
  #connection: TopicConnection | undefined;
  #sequence = 0;
  /** The position from which this tab's stream as the leader continues, if it continues the stream of an earlier leader. */
  #from: Position | undefined;
  /** The answers to a new leader's question. `undefined` when this tab does not wait for answers. */
  #counts: CountMessage[] | undefined;
  /** The topics of each other tab, by the tab's name. */
  #others = new Map<string, string[]>();

  constructor(url: URL, key: string, lease: number, options: TopicOptions) {
    const { topics, since, signal } = options;
    if (!topics[0]) throw noTopic();
    this.#url = url;
    this.#options = options;
    if (since && since !== "now") this.cursor = since;
    for (const topic of topics) this.#want(topic, this.cursor);
    this.#name = `tower-push topics ${JSON.stringify([url.href, key])}`;
    this.#group = new TabGroup<Message>(this.#name, lease, { kind: "ping" }, {
      onJoin: () => this.#onJoin(),
      onLeave: () => this.#onLeave(),
      onElect: () => this.#takeOver(),
      onDepose: () => this.#resign(),
      onMessage: (message) => this.#onMessage(message),
    });
    signal?.addEventListener("abort", () => this.close(), { signal: this.#group.stopped });
    if (signal?.aborted) this.state = "closed";
    else this.#group.join();
  }

  get transport(): string | undefined {
    return this.#connection?.transport;
  }

  get topics(): string[] {
    return [...this.#topics.keys()];
  }

  on(name: string, listener: (value: any) => void): () => void {
    return this.#listeners.add(name, listener);
  }

  [Symbol.asyncIterator](): AsyncIterator<PushEvent | PushGap, undefined> {
    return this.#queues.read();
  }

  send(message: unknown): boolean {
    if (this.#connection) return this.#connection.send(message);
    const isSent = this.#group.hasLeader && this.state === "open";
    if (isSent) this.#group.post({ kind: "send", message });
    return isSent;
  }

  subscribe(...topics: string[]): void {
    const added = topics.filter((topic) => !this.#topics.has(topic));
    for (const topic of added) {
      this.#want(topic, undefined);
      // A topic that was removed before begins anew, and its first events may be ones that the tab has had before.
      for (const key of this.#recentEvents) if (key.slice(key.indexOf(" ") + 1) === topic) this.#recentEvents.delete(key);
    }
    if (added.length) this.#onTopicsChanged();
  }

  unsubscribe(...topics: string[]): void {
    const removed = new Set(topics.filter((topic) => this.#topics.has(topic)));
    if (removed.size === this.#topics.size) throw noTopic();
    for (const topic of removed) this.#topics.delete(topic);
    if (removed.size) this.#onTopicsChanged();
  }

  publish(topic: string, data: unknown, { key = randomKey(), ...rest }: PublicationOptions = {}): Promise<string> {
    return new Promise((resolve, reject) => {
      if (this.state === "closed") return reject(new PushError("the connection is closed", "final"));
      if (this.#publications.size >= MAX_PUBLICATIONS) return reject(new PushError("too many publications have no answer", "final"));
      const ref = ++this.#lastRef;
      this.#publications.set(ref, { publication: [topic, data ?? null, { key, ...rest }], resolve, reject });
      this.#sendPublication(ref);
    });
  }

  close(): void {
    this.#end("closed");
  }

  // The tab's own topics.

  #want(topic: string, since: string | undefined): void {
    this.#topics.set(topic, { step: "wanted", since, load: undefined, last: undefined, repeatedUpTo: undefined, repeated: 0 });
  }

  #postTopics(): void {
    this.#group.post({ kind: "topics", tab: this.#tab, topics: this.topics, resumed: this.#resumedTopics() });
  }

  /** Returns the topics that the tab continues after a cursor. Its other topics begin as for a new client. */
  #resumedTopics(): string[] {
    return this.topics.filter((topic) => {
      const { step, since } = this.#topics.get(topic)!;
      return step === "followed" || since != null;
    });
  }

  #onTopicsChanged(): void {
    this.#postTopics();
    this.#updateConnection();
    this.#begin();
  }

  /** Returns whether the tab has all events of its topics up to `#position`. Topics that begin as for a new client do not count. */
  #isComplete(): boolean {
    for (const { step, since } of this.#topics.values()) if (step !== "followed" && since != null) return false;
    return true;
  }

  /** Handles that the tab has missed reports of the leader: its topics continue after the cursor. */
  #lose(): void {
    let isLost = false;
    for (const progress of this.#topics.values()) {
      if (progress.step === "followed") {
        progress.since = progress.repeatedUpTo ?? this.cursor;
        isLost ||= progress.since == null;
      }
      progress.repeatedUpTo = undefined;
    }
    this.#stopFollowing();
    if (isLost && this.state !== "closed") this.#emit("gap", { reason: "unknown" });
  }

  /** Makes all topics wait for the leader's stream. */
  #stopFollowing(): void {
    for (const progress of this.#topics.values()) {
      this.#abortLoad(progress.load);
      progress.step = "wanted";
    }
  }

  /** Aborts a load, and makes its topics wait for the leader's stream again. */
  #abortLoad(load: TopicLoad | undefined): void {
    if (!load) return;
    load.aborted.abort();
    for (const progress of this.#topics.values()) if (progress.load === load) Object.assign(progress, { step: "wanted", load: undefined });
  }

  /** Begins to follow, or to load, the waiting topics that the leader's stream has. */
  #begin(): void {
    const loads = new Map<string | undefined, string[]>();
    for (const [topic, progress] of this.#topics) {
      if (progress.step !== "wanted" || !this.#leaderTopics.has(topic)) continue;
      const { since } = progress;
      const isBegun = this.#begunTopics.has(topic);
      // The first events of the topic in the stream may be older than the tab's cursor, so the topic waits until the leader's cursor
      // has moved.
      if (isBegun && since != null) continue;
      // If the leader has no cursor, its stream has not begun yet, or the hub has no history.
      const isAtStart = since == null ? isBegun || this.#leaderCursor == null : since === this.#leaderCursor;
      if (isAtStart) Object.assign(progress, { step: since == null ? "begun" : "followed", since: undefined });
      else loads.set(since, [...(loads.get(since) ?? []), topic]);
    }
    for (const [since, topics] of loads) this.#load(topics, since);
    this.#updateCursor();
  }

  /** Reads the events of topics after a cursor, or from where a new client begins. The load ends where the leader's stream has the later events. */
  async #load(topics: string[], since: string | undefined): Promise<void> {
    const aborted = new AbortController();
    const load: TopicLoad = { aborted, position: this.#position!, cursor: this.#leaderCursor, held: [] };
    for (const topic of topics) Object.assign(this.#topics.get(topic)!, { step: "loading", load });
    const current = (event: PushEvent) => topicsOf(event).filter((topic) => this.#topics.get(topic)?.load === load);
    const read = (topics: string[], since: string | undefined, onEvent: (event: PushEvent) => void, onGap: (gap: Gap) => void, onCursor = (_: string) => {}) => {
      const options: TopicOptions = { ...this.#options, topics, since: since ?? "now" };
      return readTopics(this.#url, options, aborted.signal, { onEvent, onGap, onCursor });
    };
    /** The events that the leader's stream will have after the beginning of the load: their ids and topics. */
    const coming = new Set<string>();
    /** For each topic, the id of the last event that the tab reads from the server and that the leader's stream repeats. */
    const repeated = new Map<string, string>();
    const last = new Map<string, string>();
    let isKnown = true;
    const readComing = async () => {
      if (load.cursor == null) return;
      const onEvent = (event: PushEvent) => {
        for (const topic of current(event)) {
          coming.add(`${event.id} ${topic}`);
          if (since != null && event.id != null) repeated.set(topic, event.id);
        }
      };
      if (aborted.signal.aborted) return;
      isKnown = (await read(topics, load.cursor, onEvent, () => (isKnown = false))) && isKnown;
    };
    // A read after a cursor has all events up to its end, and so also the events of `coming` if these were read before. The events of a new client
    // may begin later, so then `coming` is read afterwards and compared.
    if (since != null) await readComing();
    if (aborted.signal.aborted) return;
    const isRead = await read(
      topics,
      since,
      (event) => {
        const taken = current(event).filter((topic) => {
          if (event.id != null) last.set(topic, event.id);
          return this.#isNew(topic, event.id);
        });
        this.#pass(event, taken);
      },
      (gap) => this.#emit("gap", gap),
      // If the load is interrupted, its topics continue after this cursor.
      (cursor) => {
        for (const progress of this.#topics.values()) if (progress.load === load) progress.since = cursor;
      },
    );
    isKnown &&= isRead;
    if (since == null && isKnown) await readComing();
    if (aborted.signal.aborted) return;
    for (const topic of topics) {
      const progress = this.#topics.get(topic);
      if (progress?.load !== load) continue;
      const id = last.get(topic);
      if (id != null && coming.has(`${id} ${topic}`)) repeated.set(topic, id);
      Object.assign(progress, { step: "followed", since: undefined, load: undefined, repeatedUpTo: repeated.get(topic), repeated: 0 });
      if (id != null) progress.last = { id, position: load.position, isRead: true };
      if (!isKnown) this.#emit("gap", { reason: "unknown", topic });
    }
    for (const held of load.held) this.#handle(held, (topic) => topics.includes(topic));
    this.#updateCursor();
  }

  /** Returns whether the event is not among the last events of the topic, and remembers the event. */
  #isNew(topic: string, id: string | undefined): boolean {
    if (id == null) return true;
    const key = `${id} ${topic}`;
    if (this.#recentEvents.has(key)) return false;
    this.#recentEvents.add(key);
    if (this.#recentEvents.size > MAX_RECENT_EVENTS) this.#recentEvents.delete(this.#recentEvents.values().next().value!);
    return true;
  }

  /** Returns whether the tab passes on an event of the stream for a topic that it follows. */
  #takes(topic: string, progress: TopicProgress, id: string | undefined, position: Position): boolean {
    if (id == null) return true;
    if (progress.repeatedUpTo != null) {
      if (id === progress.repeatedUpTo) progress.last = { id, position };
      else if (++progress.repeated <= MAX_CATCH_UP) return false;
      // The last repeated event has not come, so the tab cannot tell which events are new.
      else this.#emit("gap", { reason: "unknown", topic });
      progress.repeated = 0;
      const isLast = id === progress.repeatedUpTo;
      progress.repeatedUpTo = undefined;
      if (isLast) return false;
    }
    progress.last = { id, position };
    return this.#isNew(topic, id);
  }

  /** Handles an event or a gap of the leader's stream, for the topics of the tab that `isFor` accepts. Without `isFor`, for all of its topics. */
  #handle({ position, hasOwnId, report: [name, value] }: ReportMessage, isFor?: (topic: string) => boolean): void {
    if (name === "event") {
      const id = hasOwnId ? value.id : undefined;
      // An event whose id is only the cursor of the connection is not newer than this cursor, so a load has read the event.
      const isOld = !hasOwnId && value.id != null;
      const topics = topicsOf(value);
      const taken = topics.filter((topic) => {
        const progress = this.#topics.get(topic);
        if (!progress || !isFollowed(progress) || isFor?.(topic) === false) return false;
        if (isOld && (isFor || progress.repeatedUpTo != null)) return false;
        return this.#takes(topic, progress, id, position);
      });
      this.#pass(value, topics[0] == null ? undefined : taken);
    } else if (name === "gap") {
      const { topic } = value;
      for (const [own, progress] of this.#topics) if (topic == null || own === topic) progress.repeatedUpTo = undefined;
      if (topic == null || (isFor?.(topic) !== false && this.#topics.has(topic) && isFollowed(this.#topics.get(topic)!))) this.#emit("gap", value);
    }
  }

  /** Passes on an event for these topics of the tab. `undefined` stands for an event without a topic. */
  #pass(event: PushEvent, topics: string[] | undefined): void {
    if (!topics) this.#emit("event", event);
    else if (topics[0] != null) this.#emit("event", { ...event, topic: topics[0], topics: topics[1] == null ? undefined : topics });
  }

  #emit(name: "event" | "gap", value: PushEvent | Gap): void {
    this.#queues.push(name === "gap" ? { type: "gap", gap: value as Gap } : (value as PushEvent));
    this.#listeners.emit(name, value);
    const { type } = value as PushEvent;
    if (name === "event" && !RESERVED.includes(type)) this.#listeners.emit(type, value);
  }

  #updateCursor(): void {
    if (!this.#isComplete() || this.#leaderCursor == null || this.cursor === this.#leaderCursor) return;
    this.cursor = this.#leaderCursor;
    this.#listeners.emit("cursor", this.cursor);
  }

  // The stream of the leader.

  #onMessage(message: Message): void {
    if ("position" in message && message.position && message.position[0] > this.#highestTerm) this.#highestTerm = message.position[0];
    switch (message.kind) {
      case "ping":
        if (this.#connection) this.#announce([]);
        break;
      case "census":
        this.#group.post(this.#count());
        break;
      case "count":
        this.#counts?.push(message);
        break;
      case "topics":
        this.#onTabTopics(message.tab, message.topics, message.resumed);
        break;
      case "send":
        this.#connection?.send(message.message);
        break;
      case "publish":
        this.#onPublish(message.tab, message.ref, message.publication);
        break;
      case "published":
        if (message.tab === this.#tab) this.#onPublished(message.ref, message.id, message.error);
        break;
      case "leader":
        this.#onLeader(message);
        break;
      case "report":
        this.#group.hearLeader();
        if (this.#position) this.#onReport(message);
    }
  }

  #count(): CountMessage {
    const isComplete = this.#isComplete();
    return { kind: "count", tab: this.#tab, topics: this.topics, resumed: this.#resumedTopics(), position: isComplete ? this.#position : undefined, cursor: this.cursor };
  }

  #onLeader({ position, from, cursor, state, topics, begun }: LeaderMessage): void {
    const own = this.#position;
    if (own && position[0] < own[0]) return;
    this.#group.hearLeader();
    this.#setState(state);
    const isNewTerm = own?.[0] !== position[0];
    if (own && !isNewTerm && isBefore(position, own)) return;
    this.#leaderTopics = new Set(topics);
    // Topics that the stream no longer has, or that begin anew in it, continue after the tab's cursor.
    for (const [topic, progress] of this.#topics) {
      if (progress.step === "wanted" || (this.#leaderTopics.has(topic) && !begun.includes(topic))) continue;
      if (progress.step === "followed") progress.since = progress.repeatedUpTo ?? this.cursor;
      this.#abortLoad(progress.load);
      Object.assign(progress, { step: "wanted", repeatedUpTo: undefined });
    }
    if (own && isNewTerm) this.#continue(own, position, from);
    else if (own && isBefore(own, position)) this.#lose();
    this.#position = position;
    this.#leaderCursor = cursor;
    if (isNewTerm) this.#begunTopics.clear();
    for (const topic of begun) this.#begunTopics.add(topic);
    this.#begin();
    if (isNewTerm || this.topics.some((topic) => !this.#leaderTopics.has(topic))) this.#postTopics();
    if (!isNewTerm) return;
    for (const ref of this.#publications.keys()) this.#sendPublication(ref);
  }

  /** Continues with the stream of a new leader, which repeats the events that were reported after `from`. */
  #continue(own: Position, position: Position, from: Position | undefined): void {
    if (position[1] > 0 || !from || isBefore(own, from)) return this.#lose();
    for (const progress of this.#topics.values()) {
      if (progress.step === "loading") this.#abortLoad(progress.load);
      else if (progress.step === "begun") progress.step = "wanted";
      else if (progress.step === "followed" && progress.repeatedUpTo == null && isBefore(from, progress.last?.position)) {
        // If the last event was read from the server, the stream may not repeat this event, so the topic continues after it.
        if (progress.last!.isRead) Object.assign(progress, { step: "wanted", since: progress.last!.id });
        else progress.repeatedUpTo = progress.last!.id;
      }
    }
  }

  #onReport(message: ReportMessage): void {
    const { position, cursor, report } = message;
    const [term, sequence] = this.#position!;
    if (position[0] < term || (position[0] === term && position[1] <= sequence)) return;
    const isNewTerm = position[0] !== term;
    const isHole = isNewTerm || position[1] !== sequence + 1;
    if (isHole) this.#lose();
    this.#position = position;
    this.#leaderCursor = cursor;
    const [name, value] = report;
    if (isNewTerm) {
      // The leader answers the ping with the topics of its stream.
      this.#leaderTopics.clear();
      this.#postTopics();
      this.#group.post({ kind: "ping" });
    } else if (isHole) this.#begin();
    else if (name === "event" || name === "gap") this.#holdOrHandle(message);
    this.#updateCursor();
    // Once the cursor has moved, it is valid for the topics that begin in the stream. A cursor is reported before its event, and an event may have the
    // same cursor as the event before it.
    const isMoved = name === "event" ? value.id != null && value.type !== "hub.members" : name !== "cursor" && this.#hasMoved;
    this.#hasMoved = name === "cursor";
    if (isMoved) {
      this.#begunTopics.clear();
      for (const progress of this.#topics.values()) if (progress.step === "begun") progress.step = "followed";
      this.#begin();
    }
    if (name === "state") this.#setState(value);
    else if (name === "refused") this.#onRefused(value);
    else if (name === "finished") this.#end("finished");
    else if (name === "error") this.#onError(value);
  }

  /** Handles an event or a gap of the stream for the topics that the tab follows, and holds it back for the topics that the tab loads. */
  #holdOrHandle(message: ReportMessage): void {
    const [name, value] = message.report;
    const topics = name === "event" ? topicsOf(value) : name === "gap" && value.topic != null ? [value.topic] : [];
    const loads = new Set(topics.map((topic) => this.#topics.get(topic)?.load));
    for (const load of loads) load?.held.push(message);
    this.#handle(message);
    for (const load of loads) {
      if (!load || load.held.length <= MAX_CATCH_UP) continue;
      // The load held back too many events, so it begins again at the present position of the stream.
      this.#abortLoad(load);
      this.#begin();
    }
  }

  #onRefused(event: PushEvent): void {
    for (const topics of this.#others.values()) if (topics.includes(event.topic!)) topics.splice(topics.indexOf(event.topic!), 1);
    if (!this.#topics.delete(event.topic!)) return;
    this.#listeners.emit("hub.refused", event);
  }

  #onError({ message, ...fields }: ErrorFields): void {
    const error = new PushError(message, "final", fields);
    this.#listeners.emit("error", error);
    if (fields.final) this.#end("failed", error);
  }

  #setState(state: State): void {
    if (state === this.state || this.state === "closed") return;
    this.state = state;
    this.#listeners.emit("state", state);
  }

  #end(reason: "closed" | "finished" | "failed", error?: PushError): void {
    if (this.state === "closed") return;
    this.#setState("closed");
    this.#group.stop();
    for (const { reject } of this.#publications.values()) reject(new PushError("the connection is closed", "final"));
    this.#publications.clear();
    if (reason === "finished") this.#listeners.emit("finished");
    this.#queues.end(error);
  }

  // Joining and leading.

  #onJoin(): void {
    this.#tab = Math.random().toString(36).slice(2);
    const { signal } = (this.#session = new AbortController());
    // The leader requests this lock, too: it gets the lock when this tab is gone.
    const untilLeave = () => new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve()));
    navigator.locks.request(`${this.#name} ${this.#tab}`, { signal }, untilLeave).catch(() => {});
  }

  #onLeave(): void {
    this.#session.abort();
    this.#lose();
    this.#position = undefined;
    this.#leaderTopics.clear();
  }

  #resign(): void {
    const connection = this.#connection;
    this.#connection = undefined;
    connection?.close();
    this.#counts = undefined;
    this.#others.clear();
  }

  /** Asks the other tabs for their positions, and opens a connection that resumes at the oldest position. */
  async #takeOver(): Promise<void> {
    const { lead } = this.#group;
    if (!this.#isComplete()) {
      this.#lose();
      this.#position = undefined;
    }
    this.#others.clear();
    this.#counts = [this.#count()];
    this.#group.post({ kind: "census" });
    await new Promise((resolve) => setTimeout(resolve, CENSUS_TIME));
    if (this.#group.lead !== lead || !this.#counts) return;
    const [, ...others] = this.#counts;
    // The state of this tab may have changed during the wait.
    const counts = [this.#count(), ...others];
    for (const { tab, topics, resumed } of others) this.#onTabTopics(tab, topics, resumed);
    this.#counts = undefined;
    // Cursors have no order, but positions have. A tab with a cursor and without a position reads its missing events from the server itself.
    const known = counts.filter(({ position, resumed }) => position && resumed[0] != null);
    const [first = counts.find(({ cursor }) => cursor != null)] = known;
    const oldest = known.reduce((one, other) => (isBefore(other.position, one?.position) ? other : one), first);
    this.#lead(oldest?.cursor, known[0] && oldest?.position, [...new Set(counts.flatMap(({ resumed }) => resumed))]);
  }

  /** Opens a connection under a new term. The topics `resumed` continue after the cursor, and all other topics begin as for a new client. */
  #lead(cursor: string | undefined, from: Position | undefined, resumed: string[]): void {
    const all = this.#allTopics();
    if (all[0] == null) return;
    const begun = cursor == null ? all : all.filter((topic) => !resumed.includes(topic));
    const term = nextTerm(this.#highestTerm, this.#tab);
    this.#highestTerm = term;
    this.#from = from;
    this.#sequence = 0;
    this.#begunTopics.clear();
    this.#open(term, cursor == null || resumed[0] == null ? all : resumed, cursor);
    if (begun[0] != null && cursor != null) this.#connection!.subscribe(...begun);
    this.#announce(begun, [term, 0], cursor, "connecting");
    this.#updateConnection();
  }

  /** Opens a connection to topics that continue after a cursor, and broadcasts everything that the connection reports. */
  #open(term: string, topics: string[], since: string | undefined): void {
    const connection = connect(this.#url, { ...this.#options, topics, since: since ?? "now" });
    this.#connection?.close();
    this.#connection = connection;
    let requested = since;
    const pass = (...report: Report) => {
      if (connection !== this.#connection) return;
      // On an event stream (SSE), an event that has no id of its own gets the cursor with which the stream began as its id.
      const hasOwnId = report[0] === "event" && (connection.transport !== "sse" || report[1].id !== requested);
      const message: ReportMessage = { kind: "report", position: [term, ++this.#sequence], cursor: connection.cursor, hasOwnId, report };
      // The other tabs get the report first: if this tab is frozen now, no other tab has got less than this one.
      this.#group.post(message);
      this.#onReport(message);
    };
    connection.on("event", (event) => pass("event", event));
    connection.on("gap", (gap) => pass("gap", gap));
    connection.on("cursor", (cursor) => pass("cursor", cursor));
    connection.on("hub.refused", (event) => event.topic != null && pass("refused", event));
    connection.on("state", (state) => {
      if (state === "connecting") requested = connection.cursor;
      if (state !== "closed") pass("state", state);
    });
    connection.on("finished", () => pass("finished", undefined));
    connection.on("error", ({ message, final, status, code }) => pass("error", { message, final, status, code }));
  }

  #allTopics(): string[] {
    return [...new Set([this.topics, ...this.#others.values()].flat())];
  }

  #announce(begun: string[], position = this.#position!, cursor = this.#connection?.cursor, state = this.state): void {
    const { topics } = this.#connection!;
    const message: LeaderMessage = { kind: "leader", position, from: this.#from, cursor, state, topics, begun: [...begun, ...this.#begunTopics] };
    this.#group.post(message);
    this.#onLeader(message);
  }

  /** Sets the topics of the connection to those of all tabs. The topics `resumed` continue after the cursor of a tab. */
  #updateConnection(resumed = this.#resumedTopics()): void {
    const all = this.#allTopics();
    if (!this.#connection) {
      // All topics of all tabs were refused before, and now a tab has a topic again.
      if (this.#group.lead && !this.#counts && all[0] != null) this.#lead(undefined, undefined, []);
      return;
    }
    const { topics } = this.#connection;
    const added = all.filter((topic) => !topics.includes(topic));
    const removed = topics.filter((topic) => !all.includes(topic));
    // A topic that a tab continues after a cursor must also continue after the connection's cursor, which needs a new request.
    const { cursor } = this.#connection;
    const begun = added.filter((topic) => cursor == null || !resumed.includes(topic));
    if (begun.length < added.length) this.#open(this.#position![0], [...topics, ...added.filter((topic) => !begun.includes(topic))], cursor);
    if (begun[0] != null) this.#connection.subscribe(...begun);
    // A connection needs a topic, so it keeps its topics if no tab has one.
    if (removed[0] != null && all[0] != null) this.#connection.unsubscribe(...removed);
    if (added[0] != null || removed[0] != null) this.#announce(begun);
  }

  #onTabTopics(tab: string, topics: string[], resumed: string[]): void {
    if (!this.#group.lead) return;
    const isNew = !this.#others.has(tab);
    this.#others.set(tab, topics);
    if (isNew) {
      const { signal } = this.#session;
      const onGone = async () => {
        if (this.#others.delete(tab)) this.#updateConnection();
      };
      navigator.locks.request(`${this.#name} ${tab}`, { signal }, onGone).catch(() => {});
    }
    this.#updateConnection(resumed);
  }

  // Publications.

  #sendPublication(ref: number): void {
    const { publication } = this.#publications.get(ref)!;
    if (this.#connection) this.#onPublish(this.#tab, ref, publication);
    else if (this.#position) this.#group.post({ kind: "publish", tab: this.#tab, ref, publication });
  }

  #onPublish(tab: string, ref: number, publication: Publication): void {
    const connection = this.#connection;
    if (!connection) return;
    const answer = (id: string | undefined, error: ErrorFields | undefined) => {
      // The connection was replaced: the next connection, or the next leader, gets the publication again.
      if (connection !== this.#connection) return this.#onPublish(tab, ref, publication);
      if (tab === this.#tab) this.#onPublished(ref, id, error);
      else this.#group.post({ kind: "published", tab, ref, ...(id != null && { id }), ...(error && { error }) });
    };
    connection.publish(...publication).then(
      (id) => answer(id, undefined),
      ({ message, final, status, code }) => answer(undefined, { message, final, status, code }),
    );
  }

  #onPublished(ref: number, id: string | undefined, error: ErrorFields | undefined): void {
    const waiting = this.#publications.get(ref);
    this.#publications.delete(ref);
    if (error) waiting?.reject(new PushError(error.message, "final", error));
    else waiting?.resolve(id!);
  }
}

const noTopic = () => new TypeError("a shared connection needs a topic in each tab");
