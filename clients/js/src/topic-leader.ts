import type { HubConnection } from "./hub-connection.js";
import { errorFields, listenToReports } from "./reports.js";
import type {
  CountMessage,
  HubReport,
  LeaderMessage,
  Message,
  Publication,
  PublicationResult,
  ReportMessage,
  TopicsMessage,
} from "./shared-hub-messages.js";
import { CENSUS_TIME, isBefore, type Position } from "./tab-group.js";
import { connect, type TopicOptions } from "./topics.js";

/** The tab that is the leader, as its `TopicLeader` sees it. */
export interface LeaderTab {
  /** What the tab itself has. */
  count(): CountMessage;
  /** Returns a term above all that the tab has heard. */
  newTerm(): string;
  /** Sends a message to the other tabs, and then handles it in this tab. */
  broadcast(message: LeaderMessage | ReportMessage): void;
  post(message: Message): void;
  /** Calls `onGone` when another tab is gone, and no more when the leader has resigned. */
  whenGone(tab: string, resigned: AbortSignal, onGone: () => void): void;
}

/** The connection of a leader, and where its stream is. */
interface Stream {
  connection: HubConnection;
  term: string;
  /** The number of the last report. Counts on when the connection is replaced by one that has other topics. */
  sequence: number;
  /** The position from which the stream continues, if it continues that of an earlier leader. */
  from: Position | undefined;
}

/**
 * The leader of the tabs that share a connection to topics: from the election of its tab until the tab resigns. The connection has the topics of all
 * tabs. The leader broadcasts everything that the connection reports: these reports are the leader's stream.
 */
export class TopicLeader {
  #url: URL;
  #options: TopicOptions;
  #tab: LeaderTab;
  /** The topics of each other tab, by the tab's name. */
  #others = new Map<string, string[]>();
  /** `undefined` while the leader asks the other tabs for their positions, and while no tab has a topic. */
  #stream: Stream | undefined;
  /** The answers of the other tabs, while the leader asks them. */
  #counts: CountMessage[] | undefined = [];
  #resigned = new AbortController();

  /** Asks the other tabs for their positions, and then opens a connection that resumes at the oldest position. */
  constructor(url: URL, options: TopicOptions, tab: LeaderTab) {
    this.#url = url;
    this.#options = options;
    this.#tab = tab;
    tab.post({ kind: "census" });
    setTimeout(() => this.#evaluateCounts(), CENSUS_TIME);
  }

  get connection(): HubConnection | undefined {
    return this.#stream?.connection;
  }

  resign(): void {
    const { connection } = this;
    this.#stream = undefined;
    this.#counts = undefined;
    this.#resigned.abort();
    connection?.close();
  }

  /** Sends where the stream is, and which topics it has. */
  announce(): void {
    if (!this.#stream) return;
    const { connection, term, sequence, from } = this.#stream;
    const { cursor, state, topics, freshTopics } = connection;
    this.#tab.broadcast({ kind: "leader", position: [term, sequence], from, cursor, state, topics, begun: freshTopics });
  }

  handleCount(message: CountMessage): void {
    this.#counts?.push(message);
  }

  /** Handles that another tab has these topics. */
  handleTopics({ tab, topics, resumed }: Omit<TopicsMessage, "kind">): void {
    const isNew = !this.#others.has(tab);
    this.#others.set(tab, topics);
    if (isNew) this.#tab.whenGone(tab, this.#resigned.signal, () => this.#others.delete(tab) && this.updateConnection([]));
    this.updateConnection(resumed);
  }

  /** Handles that the server has refused a topic. */
  handleRefusal(topic: string): void {
    for (const [tab, topics] of this.#others) this.#others.set(tab, topics.filter((other) => other !== topic));
  }

  /**
   * Publishes for a tab. Calls `answer` with the result. Does not call it if the leader resigns before: the next leader gets the publication again.
   */
  publish(publication: Publication, answer: (result: PublicationResult) => void): void {
    const { connection } = this;
    if (!connection) return;
    const settle = (result: PublicationResult) => {
      // The connection was replaced, so the next one gets the publication.
      if (connection !== this.connection) this.publish(publication, answer);
      else answer(result);
    };
    connection.publish(...publication).then(
      (id) => settle({ id }),
      (error) => settle({ error: errorFields(error) }),
    );
  }

  /** Sets the topics of the connection to those of all tabs. The topics `resumed` continue after the cursor of a tab. */
  updateConnection(resumed: string[]): void {
    if (this.#counts || this.#resigned.signal.aborted) return;
    // All topics of all tabs were refused before, and now a tab has a topic again.
    if (!this.#stream) return this.#start(undefined, undefined, []);
    const { connection } = this.#stream;
    const { topics, cursor, freshTopics } = connection;
    const all = this.#allTopics();
    const added = all.filter((topic) => !topics.includes(topic));
    const removed = topics.filter((topic) => !all.includes(topic));
    // A connection needs a topic, so it keeps its topics if no tab has one.
    if (all[0] == null || (added[0] == null && removed[0] == null)) return;
    const isFresh = (topic: string) => (topics.includes(topic) ? freshTopics.includes(topic) : cursor == null || !resumed.includes(topic));
    if (added.every(isFresh)) {
      connection.subscribe(...added);
      if (removed[0] != null) connection.unsubscribe(...removed);
    } else {
      // A topic that a tab continues after a cursor must also continue after the connection's cursor, which needs a new request.
      this.#stream.connection = this.#connect(all, all.filter(isFresh), cursor);
      connection.close();
    }
    this.announce();
  }

  /** Begins a stream at the oldest of the positions that the tabs have. */
  #evaluateCounts(): void {
    if (!this.#counts) return;
    for (const count of this.#counts) this.handleTopics(count);
    const counts = [this.#tab.count(), ...this.#counts];
    this.#counts = undefined;
    // Cursors have no order, but positions have. A tab with a cursor and without a position reads its missing events from the server itself.
    const known = counts.filter(({ position, resumed }) => position && resumed[0] != null);
    const [first = counts.find(({ cursor }) => cursor != null)] = known;
    const oldest = known.reduce((one, other) => (isBefore(other.position, one?.position) ? other : one), first);
    this.#start(oldest?.cursor, known[0] && oldest?.position, counts.flatMap(({ resumed }) => resumed));
  }

  /** Opens a connection under a new term. The topics `resumed` continue after the cursor, and all other topics begin as for a new client. */
  #start(cursor: string | undefined, from: Position | undefined, resumed: string[]): void {
    const all = this.#allTopics();
    if (all[0] == null) return;
    const fresh = all.filter((topic) => cursor == null || !resumed.includes(topic));
    this.#stream = { connection: this.#connect(all, fresh, cursor), term: this.#tab.newTerm(), sequence: 0, from };
    this.announce();
  }

  /** Opens a connection to all topics. The topics `fresh` begin as for a new client, and the others continue after the cursor. */
  #connect(all: string[], fresh: string[], cursor: string | undefined): HubConnection {
    const continued = all.filter((topic) => !fresh.includes(topic));
    const isNew = continued[0] == null;
    const options = { ...this.#options, topics: isNew ? all : continued, since: (isNew ? undefined : cursor) ?? "now" };
    const connection = connect(this.#url, options) as HubConnection;
    connection.subscribe(...fresh);
    listenToReports(connection, (...report) => this.#report(connection, report));
    connection.onQuiet = () => this.#report(connection, ["cursor", connection.cursor]);
    connection.on("hub.refused", (event) => event.topic != null && this.#report(connection, ["refused", event]));
    return connection;
  }

  #report(connection: HubConnection, report: HubReport): void {
    const stream = this.#stream;
    if (connection !== stream?.connection) return;
    const { cursor, freshTopics } = connection;
    const begun = freshTopics[0] == null ? undefined : freshTopics;
    // The other tabs get the report first: if this tab is frozen now, no other tab has got less than this one.
    this.#tab.broadcast({ kind: "report", position: [stream.term, ++stream.sequence], cursor, begun, report });
  }

  #allTopics(): string[] {
    return [...new Set([this.#tab.count().topics, ...this.#others.values()].flat())];
  }
}
