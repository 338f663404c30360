import type { Connection } from "./connection.js";
import { Consequence } from "./error.js";
import { connect, PushError, type PushConnection, type PushEvent, type PushGap, type State } from "./index.js";
import { plainJson } from "./json.js";
import { randomKey } from "./random-key.js";
import { RecentEvents, topicsOf } from "./recent-events.js";
import type { PublicationOptions, TopicConnection, TopicOptions, TopicPattern } from "./topics.js";

/** The number of commands that may wait for their answers. */
const MAX_UNANSWERED_COMMANDS = 1024;

/** The types of the events that answer a command, or refuse a topic. */
const ANSWERS = ["hub.subscribed", "hub.unsubscribed", "hub.published", "hub.refused"];

/** How long a client that has sent too many commands waits, in milliseconds. */
const RATE_LIMIT_PERIOD = 1000;

/**
 * How long a stream that is read has a topic before the cursor counts as valid for it, in milliseconds. The first events of the topic would have come
 * before, so there are none.
 */
const QUIET_TOPIC_PERIOD = 5000;

/** How far a topic is. */
interface TopicProgress {
  /** No answer says that the stream has the topic; the stream has it, but the cursor is older; or the cursor is valid for the topic. */
  step: "requested" | "streaming" | "resumable";
  /** The number of the `subscribe` command that has no answer. */
  ref?: number | undefined;
  /** How long the client has read the stream since it has the topic, in milliseconds. */
  streamedFor: number;
}

/** A command without an answer. */
interface Command {
  message: { ref: number };
  /** The topic that the command adds or removes. */
  changedTopic?: string;
  /** Whether an earlier command about the topic had no answer. */
  isAgain?: boolean;
  /** What `publish` has returned. */
  promise?: { resolve(id: string): void; reject(error: PushError): void };
}

/** The data of an answer of the hub. */
interface AnswerData {
  ref?: number;
  id?: string;
  status?: number;
  message?: string;
}

/**
 * A connection to topics of a hub, as `docs/hub-protocol.md` describes them.
 *
 * Invariants: the address of the next attempt names all topics, and names a topic as new until the cursor has moved while the stream had the topic.
 * So a topic's first events are not lost with a connection.
 */
export class HubConnection implements TopicConnection {
  #baseUrl: URL;
  #connection: Connection;
  #topicParameter: string;
  #patterns: TopicPattern[];
  #acceptsCommands: boolean;
  #mayHaveNoTopic: boolean;
  #progress = new Map<string, TopicProgress>();
  /** The commands without an answer, by their numbers, in the order of the numbers. */
  #commands = new Map<number, Command>();
  #lastRef = 0;
  #resendTimer: ReturnType<typeof setTimeout> | undefined;
  #recentEvents = new RecentEvents();
  /** The answers of the hub, which only listeners of their type get. */
  #answers = new WeakSet<object>();
  /** The events that the client has passed on before. */
  #repeated = new WeakSet<object>();

  /** Called when the cursor has become valid for quiet topics. Only other modules of this package set it. */
  onQuiet = () => {};

  constructor(url: URL, options: TopicOptions) {
    const { topics, patterns = [], topicParameter = "topic", commands = true, ...rest } = options;
    this.#baseUrl = url;
    this.#topicParameter = topicParameter;
    this.#patterns = patterns;
    this.#acceptsCommands = commands;
    this.#mayHaveNoTopic = patterns.length > 0 || String(rest.transports) === "websocket";
    if (!topics[0] && !this.#mayHaveNoTopic) throw noTopic();
    for (const topic of topics) this.#progress.set(topic, { step: "resumable", streamedFor: 0 });
    this.#connection = connect(url, rest) as PushConnection as Connection;
    this.#updateUrl();
    this.#connection.onOpen = () => this.#onOpen();
    this.#connection.onTick = (elapsed) => this.#onTick(elapsed);
    this.#connection.on("state", (state) => this.#onState(state));
    this.#connection.on("cursor", () => this.#onCursor());
    this.#connection.on("event", (event) => this.#onEvent(event));
  }

  get cursor(): string | undefined {
    return this.#connection.cursor;
  }

  get state(): State {
    return this.#connection.state;
  }

  get transport(): string | undefined {
    return this.#connection.transport;
  }

  get topics(): string[] {
    return [...this.#progress.keys()];
  }

  /** The topics for which the cursor is not valid: they begin in the stream as for a new client. Only other modules of this package read it. */
  get freshTopics(): string[] {
    return this.topics.filter((topic) => this.cursor == null || this.#progress.get(topic)!.step !== "resumable");
  }

  on(name: string, listener: (value: any) => void): () => void {
    return this.#connection.on(name, (value) => this.#isPassedOn(name, value) && listener(value));
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<PushEvent | PushGap, undefined> {
    for await (const item of this.#connection) if (this.#isPassedOn("event", item)) yield item;
  }

  #isPassedOn(name: string, value: any): boolean {
    return !this.#repeated.has(value) && (name !== "event" || !this.#answers.has(value));
  }

  send(message: unknown): boolean {
    return this.#connection.send(message);
  }

  close(): void {
    this.#connection.close();
  }

  subscribe(...topics: string[]): void {
    const added = new Set(topics.filter((topic) => !this.#progress.has(topic)));
    for (const topic of added) this.#progress.set(topic, { step: "requested", streamedFor: 0 });
    this.#recentEvents.forget(added);
    this.#changeTopics(added, "subscribe");
  }

  unsubscribe(...topics: string[]): void {
    const removed = new Set(topics.filter((topic) => this.#progress.has(topic)));
    if (removed.size === this.#progress.size && !this.#mayHaveNoTopic) throw noTopic();
    for (const topic of removed) this.#progress.delete(topic);
    this.#changeTopics(removed, "unsubscribe");
  }

  publish(topic: string, data: unknown, { event, key = randomKey(), echo }: PublicationOptions = {}): Promise<string> {
    return new Promise((resolve, reject) => {
      if (this.state === "closed") return reject(new PushError("the connection is closed", Consequence.Final));
      if (this.#commands.size >= MAX_UNANSWERED_COMMANDS) return reject(new PushError("too many commands have no answer", Consequence.Final));
      const ref = ++this.#lastRef;
      // Made JSON now, so that no command is kept that cannot be sent.
      const message = { publish: { topic, event, data: plainJson(data), key, echo }, ref };
      this.#commands.set(ref, { message, promise: { resolve, reject } });
      if (this.#acceptsCommands) this.#connection.send(message);
      this.#checkTransport();
    });
  }

  /** Tells the server by commands which topics were added or removed, or else by a new request. */
  #changeTopics(topics: Set<string>, action: "subscribe" | "unsubscribe"): void {
    if (!topics.size) return;
    this.#updateUrl();
    for (const topic of topics) {
      const ref = ++this.#lastRef;
      const message = { [action]: { topic }, ref };
      if (!this.#acceptsCommands || this.transport !== "websocket" || !this.#connection.send(message)) return this.#connection.reconnect();
      // If an earlier command is repeated after this one, the topic has the wrong state.
      let isAgain = false;
      for (const [earlier, { changedTopic }] of this.#commands) if (changedTopic === topic) isAgain = this.#commands.delete(earlier);
      this.#commands.set(ref, { message, changedTopic: topic, isAgain });
      if (action === "subscribe") this.#progress.get(topic)!.ref = ref;
    }
  }

  /** Sets the address of the next attempt. */
  #updateUrl(): void {
    const url = new URL(this.#baseUrl);
    for (const { prefix, suffix } of this.#patterns) {
      if (suffix == null) url.searchParams.append("pattern_prefix", prefix);
      // No topic has a line feed, which stands for the segment.
      else url.searchParams.append("pattern_segment", `${prefix}\n${suffix}`);
    }
    for (const [topic, { step }] of this.#progress) {
      url.searchParams.append(this.#topicParameter, topic);
      if (step !== "resumable") url.searchParams.append("fresh", topic);
    }
    this.#connection.streamUrl = url;
  }

  #onState(state: State): void {
    if (state === "closed") {
      clearTimeout(this.#resendTimer);
      this.#rejectPublications("the connection is closed");
    }
    if (state === "open" && this.transport === "websocket" && this.#acceptsCommands) this.#sendCommands();
    this.#checkTransport();
  }

  /** Sends all commands without an answer. */
  #sendCommands(): void {
    for (const { message } of this.#commands.values()) this.#connection.send(message);
  }

  /**
   * An attempt, whose address had all topics, is open, or its poll was answered. Between two polls, the state stays `open`, and a topic stays in the
   * stream.
   */
  #onOpen(): void {
    for (const [ref, { changedTopic }] of this.#commands) if (changedTopic != null) this.#commands.delete(ref);
    for (const progress of this.#progress.values()) {
      if (progress.step === "requested" || (progress.step === "streaming" && this.state !== "open"))
        Object.assign(progress, { step: "streaming", ref: undefined, streamedFor: 0 });
    }
    this.#checkTransport();
  }

  /** Only a WebSocket answers commands. */
  #checkTransport(): void {
    if (this.state !== "open" || (this.transport === "websocket" && this.#acceptsCommands)) return;
    this.#rejectPublications("no WebSocket that accepts commands is open");
  }

  #rejectPublications(reason: string): void {
    for (const [ref, { promise }] of this.#commands) {
      if (promise) this.#commands.delete(ref);
      promise?.reject(new PushError(reason, Consequence.Final));
    }
  }

  /** The client has read the open stream for some time. The cursor becomes valid for the topics that have been in the stream for long enough. */
  #onTick(elapsed: number): void {
    const isQuiet = (progress: TopicProgress) => {
      progress.streamedFor += elapsed;
      return progress.streamedFor > QUIET_TOPIC_PERIOD && this.cursor != null;
    };
    if (this.#makeResumable(isQuiet)) this.onQuiet();
  }

  /** The server has sent a cursor, which may be the same as before. The cursor is valid for the topics that the stream has. */
  #onCursor(): void {
    this.#makeResumable(() => true);
  }

  /** Makes the topics of the stream that `isValid` accepts resumable. Returns whether there are any. */
  #makeResumable(isValid: (progress: TopicProgress) => boolean): boolean {
    let isChanged = false;
    for (const progress of this.#progress.values()) {
      if (progress.step !== "streaming" || !isValid(progress)) continue;
      progress.step = "resumable";
      isChanged = true;
    }
    if (isChanged) this.#updateUrl();
    return isChanged;
  }

  #onEvent(event: PushEvent): void {
    const { id, topic, type } = event;
    if (ANSWERS.includes(type)) {
      this.#answers.add(event);
      return this.#onAnswer(type, topic, event.data);
    }
    // An event without an id of its own does not say that the cursor is valid for new topics.
    if (id != null) this.#onCursor();
    this.#dropRepetition(event);
  }

  /**
   * Returns whether an event of the topic was sent before the server has removed the topic, which the client has added again. The topic begins anew
   * with the answer. An event that a pattern may select is not taken for such an event.
   */
  #isOutdated(topic: string): boolean {
    for (const { changedTopic, isAgain } of this.#commands.values()) {
      if (!isAgain || changedTopic !== topic || !this.#progress.has(topic)) continue;
      return !this.#patterns.some(({ prefix, suffix = "" }) => topic.startsWith(prefix) && topic.endsWith(suffix));
    }
    return false;
  }

  /** Takes the topics from an event for which the client has had it, or which begin anew later. If none is left, the event is not passed on. */
  #dropRepetition(event: PushEvent): void {
    const topics = topicsOf(event);
    // An event without a topic is remembered without one.
    const isNew = (topic?: string) => !(topic != null && this.#isOutdated(topic)) && this.#recentEvents.add(event.id, topic);
    const left = (topics[0] == null ? [undefined] : topics).filter(isNew);
    if (!left.length) this.#repeated.add(event);
    else if (left.length < topics.length) Object.assign(event, { topic: left[0], topics: left[1] && left });
  }

  #onAnswer(type: string, topic: string | undefined, data: unknown): void {
    const { ref, id, status, message } = answerData(data);
    if (type === "hub.refused" && status === 429) {
      // The refusal does not say which command it refuses. If a topic was not removed before it is added again, it does not begin anew.
      for (const { isAgain } of this.#commands.values()) if (isAgain) return this.#connection.reconnect();
      this.#resendTimer ??= setTimeout(() => {
        this.#resendTimer = undefined;
        this.#sendCommands();
      }, RATE_LIMIT_PERIOD);
      return;
    }
    const promise = this.#commands.get(ref!)?.promise;
    this.#commands.delete(ref!);
    const progress = this.#progress.get(topic!);
    const isCurrent = progress && (ref == null || progress.ref === ref);
    if (type === "hub.published") promise?.resolve(id!);
    else if (type === "hub.subscribed" && isCurrent) Object.assign(progress, { step: "streaming", ref: undefined, streamedFor: 0 });
    else if (type === "hub.refused") {
      promise?.reject(new PushError(`refused: ${status} ${message}`, Consequence.Final, { status }));
      if (!isCurrent) return;
      this.#progress.delete(topic!);
      this.#updateUrl();
    }
  }
}

const noTopic = () => new TypeError("a connection needs a topic or a pattern, unless its only transport is a WebSocket");

/** Reads the data of an answer, which the option `parse` may have left as a text. */
function answerData(data: unknown): AnswerData {
  try {
    return (typeof data === "string" ? JSON.parse(data) : data) ?? {};
  } catch {
    return {};
  }
}
