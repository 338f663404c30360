import { ConnectionOutput } from "./connection-output.js";
import { Consequence } from "./error.js";
import { PushError, type PushEvent, type PushGap, type State } from "./index.js";
import { plainJson, sendable } from "./json.js";
import { PendingPublications } from "./pending-publications.js";
import { randomKey } from "./random-key.js";
import type { CountMessage, LeaderMessage, Message, Publication, PublicationResult, ReportMessage } from "./shared-hub-messages.js";
import { isBefore, nextTerm, TabGroup } from "./tab-group.js";
import { TopicFollower } from "./topic-follower.js";
import { TopicLeader, type LeaderTab } from "./topic-leader.js";
import type { PublicationOptions, TopicConnection, TopicOptions } from "./topics.js";

/**
 * One tab's part of a connection to topics that the tabs of a browser share. One tab has a `TopicLeader`, which has a connection with the topics of
 * all tabs. Each tab, also that of the leader, has a `TopicFollower`, which passes on the events of the tab's own topics. The tabs send each other
 * the messages of `shared-hub-messages.ts`.
 */
export class SharedHubConnection implements TopicConnection {
  #url: URL;
  #options: TopicOptions;
  #name: string;
  #group: TabGroup<Message>;
  /** The name of this tab while it is in the group. Each time that the tab joins, it gets another name. */
  #tab = "";
  /** Aborted when this tab leaves the group. */
  #session = new AbortController();
  #output: ConnectionOutput;
  #follower: TopicFollower;
  #publications = new PendingPublications((ref, publication) => this.#sendPublication(ref, publication));
  /** `undefined` if this tab is not the leader. */
  #leader: TopicLeader | undefined;
  /** The highest term of all messages that this tab has heard. */
  #highestTerm = "";

  constructor(url: URL, key: string, lease: number, options: TopicOptions) {
    const { topics, since, signal } = options;
    if (!topics[0]) throw noTopic();
    this.#url = url;
    this.#options = options;
    this.#output = new ConnectionOutput(options, () => this.#onEnd());
    if (since && since !== "now") this.#output.cursor = since;
    this.#follower = new TopicFollower(url, options, this.#output);
    this.#name = `tower-push topics ${JSON.stringify([url.href, key])}`;
    this.#group = new TabGroup<Message>(this.#name, lease, { kind: "ping" }, {
      onJoin: () => this.#onJoin(),
      onLeave: () => this.#onLeave(),
      onElect: () => this.#onElect(),
      onDepose: () => this.#onDepose(),
      onMessage: (message) => this.#onMessage(message),
    });
    signal?.addEventListener("abort", () => this.close(), { signal: this.#group.stopped });
    if (signal?.aborted) this.close();
    this.#group.join();
  }

  get state(): State {
    return this.#output.state;
  }

  get cursor(): string | undefined {
    return this.#output.cursor;
  }

  get transport(): string | undefined {
    return this.#leader?.connection?.transport;
  }

  get topics(): string[] {
    return this.#follower.topics;
  }

  on(name: string, listener: (value: any) => void): () => void {
    return this.#output.on(name, listener);
  }

  [Symbol.asyncIterator](): AsyncIterator<PushEvent | PushGap, undefined> {
    return this.#output.read();
  }

  send(message: unknown): boolean {
    if (this.#leader) return !!this.#leader.connection?.send(message);
    const isSent = this.#group.hasLeader && this.state === "open";
    if (isSent) this.#group.post({ kind: "send", message: sendable(message) });
    return isSent;
  }

  subscribe(...topics: string[]): void {
    const added = new Set(topics.filter((topic) => !this.#follower.has(topic)));
    this.#follower.add(added);
    if (added.size) this.#onTopicsChanged();
  }

  unsubscribe(...topics: string[]): void {
    const removed = new Set(topics.filter((topic) => this.#follower.has(topic)));
    if (removed.size === this.topics.length) throw noTopic();
    for (const topic of removed) this.#follower.delete(topic);
    if (removed.size) this.#onTopicsChanged();
  }

  async publish(topic: string, data: unknown, { key = randomKey(), ...rest }: PublicationOptions = {}): Promise<string> {
    if (this.state === "closed") throw closedError();
    return this.#publications.publish([topic, plainJson(data), { key, ...rest }]);
  }

  close(): void {
    this.#output.close();
  }

  // The group of tabs.

  #onJoin(): void {
    this.#tab = Math.random().toString(36).slice(2);
    const { signal } = (this.#session = new AbortController());
    // The leader requests this lock, too: it gets the lock when this tab is gone.
    this.#requestLock(this.#tab, signal, () => new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve())));
  }

  #onLeave(): void {
    this.#session.abort();
    this.#setState("paused");
    this.#follower.leave();
  }

  #onElect(): void {
    this.#follower.loseUnlessComplete();
    const tab: LeaderTab = {
      count: () => this.#count(),
      newTerm: () => (this.#highestTerm = nextTerm(this.#highestTerm, this.#tab)),
      broadcast: (message) => this.#broadcast(message),
      post: (message) => this.#group.post(message),
      whenGone: (tab, resigned, onGone) => this.#requestLock(tab, resigned, onGone),
    };
    this.#leader = new TopicLeader(this.#url, this.#options, tab);
  }

  #onDepose(): void {
    const leader = this.#leader;
    this.#leader = undefined;
    leader?.resign();
  }

  #onEnd(): void {
    this.#group.stop();
    this.#publications.rejectAll(closedError());
  }

  #requestLock(tab: string, signal: AbortSignal, task: () => unknown): void {
    navigator.locks.request(`${this.#name} ${tab}`, { signal }, async () => task()).catch(() => {});
  }

  // Messages.

  #onMessage(message: Message): void {
    if ("position" in message && message.position && message.position[0] > this.#highestTerm) this.#highestTerm = message.position[0];
    switch (message.kind) {
      case "ping":
        this.#leader?.announce();
        break;
      case "census":
        this.#group.post(this.#count());
        break;
      case "count":
        this.#leader?.handleCount(message);
        break;
      case "topics":
        this.#leader?.handleTopics(message);
        break;
      case "send":
        this.#leader?.connection?.send(message.message);
        break;
      case "publish":
        this.#leader?.publish(message.publication, (result) => {
          this.#group.post({ kind: "published", tab: message.tab, ref: message.ref, result });
        });
        break;
      case "published":
        if (message.tab === this.#tab) this.#publications.settle(message.ref, message.result);
        break;
      case "leader":
        this.#onLeader(message);
        break;
      case "report":
        this.#group.hearLeader();
        this.#onReport(message);
    }
  }

  /** Sends a message to the other tabs, and then handles it in this tab. */
  #broadcast(message: LeaderMessage | ReportMessage): void {
    this.#group.post(message);
    if (message.kind === "leader") this.#onLeader(message);
    else this.#onReport(message);
  }

  #onLeader(message: LeaderMessage): void {
    const { term } = this.#follower;
    if (isBefore(message.position, this.#follower.position)) return;
    this.#group.hearLeader();
    this.#setState(message.state);
    // A listener has closed this connection.
    if (this.state === "closed") return;
    this.#follower.handleLeader(message);
    if (this.#follower.term !== term) this.#enterTerm();
    else if (this.#follower.lacksTopic) this.#postTopics();
  }

  #onReport(message: ReportMessage): void {
    const { term, position } = this.#follower;
    if (!position || !isBefore(position, message.position)) return;
    const [name, value] = message.report;
    // First the state: a gap waits for an open connection.
    if (name === "state") this.#setState(value);
    if (this.state === "closed") return;
    this.#follower.handleReport(message);
    if (this.#follower.term !== term) {
      this.#enterTerm();
      // The leader answers with the topics of its stream.
      this.#group.post({ kind: "ping" });
    }
    if (name === "refused") this.#onRefused(value);
    else if (name === "finished") this.#output.finish();
    else if (name === "error") this.#output.emitError(value);
  }

  /** Tells a leader that the tab has not followed before what it does not know. */
  #enterTerm(): void {
    this.#postTopics();
    this.#publications.sendAll();
  }

  #setState(state: State): void {
    this.#follower.handleState(state);
    this.#output.setState(state);
  }

  #onRefused(event: PushEvent): void {
    this.#leader?.handleRefusal(event.topic!);
    if (this.#follower.delete(event.topic!)) this.#output.emitOfType(event);
  }

  #onTopicsChanged(): void {
    this.#postTopics();
    this.#leader?.updateConnection(this.#follower.resumedTopics);
    this.#follower.begin();
  }

  #postTopics(): void {
    const { topics, resumedTopics: resumed } = this.#follower;
    this.#group.post({ kind: "topics", tab: this.#tab, topics, resumed });
  }

  #count(): CountMessage {
    const { topics, resumedTopics: resumed, isComplete, position, cursor } = this.#follower;
    return { kind: "count", tab: this.#tab, topics, resumed, position: isComplete ? position : undefined, cursor };
  }

  #sendPublication(ref: number, publication: Publication): void {
    const settle = (result: PublicationResult) => this.#publications.settle(ref, result);
    if (this.#leader) this.#leader.publish(publication, settle);
    else if (this.#follower.position) this.#group.post({ kind: "publish", tab: this.#tab, ref, publication });
  }
}

const noTopic = () => new TypeError("a shared connection needs a topic in each tab");

const closedError = () => new PushError("the connection is closed", Consequence.Final);
