import type { ConnectionOutput } from "./connection-output.js";
import type { PushEvent, State } from "./index.js";
import { RecentEvents, topicsOf } from "./recent-events.js";
import type { HubReport, LeaderMessage, ReportMessage } from "./shared-hub-messages.js";
import { isBefore, type Position } from "./tab-group.js";
import { hasBegunBefore, isFollowed, repetitionUpTo, type TopicLoad, type TopicProgress } from "./topic-progress.js";
import { readTopics, type SnapshotListener } from "./topic-snapshot.js";
import type { TopicOptions } from "./topics.js";

/** The maximum number of events that a tab drops as repetitions of one topic, or holds back for one load. */
const MAX_CATCH_UP = 1000;

/**
 * Follows the stream of the leader for the topics of one tab, and passes on their events.
 *
 * Invariants:
 * - The tab handles the reports of the highest term that it knows, in their order and without a hole. It passes on the events of the topics that it
 *   follows.
 * - The tab's cursor is the cursor of the leader's connection at the tab's position. If the tab misses events, or reads a topic from the server, the
 *   cursor stays before the missing events. So a page can begin after the cursor later, with the topics of which it has got events.
 * - The cursor of the leader's connection goes back when a topic begins in its stream with old events. So the stream may have passed events of the
 *   other topics that are after this cursor, and it does not repeat them.
 *
 * A tab misses events if its reports have a hole, or if it begins to follow a topic. The tab reads the missing events from the server. It also reads
 * the events after the cursor at which the leader's stream was. Events that both reads have will come in the leader's stream, too, and the tab drops
 * them there.
 */
export class TopicFollower {
  #url: URL;
  #options: TopicOptions;
  #output: ConnectionOutput;

  #topics = new Map<string, TopicProgress>();
  /** The last events that this tab has got. */
  #recentEvents = new RecentEvents();
  #position: Position | undefined;
  /** The cursor of the leader's connection at `#position`. */
  #leaderCursor: string | undefined;
  #leaderTopics = new Set<string>();
  /** The topics that begin anew in the leader's stream, and for which the cursor is not yet valid. */
  #begunTopics = new Set<string>();

  constructor(url: URL, options: TopicOptions, output: ConnectionOutput) {
    this.#url = url;
    this.#options = options;
    this.#output = output;
    for (const topic of options.topics) this.#want(topic, output.cursor);
  }

  get topics(): string[] {
    return [...this.#topics.keys()];
  }

  /** Where the tab is in the stream of the leader. `undefined` if the tab has not heard of a leader. */
  get position(): Position | undefined {
    return this.#position;
  }

  /** The term of the leader that the tab follows. */
  get term(): string | undefined {
    return this.#position?.[0];
  }

  /** The topics that the tab continues after a cursor. Its other topics begin as for a new client. */
  get resumedTopics(): string[] {
    return this.topics.filter((topic) => {
      const { step, since } = this.#topics.get(topic)!;
      return step === "followed" || since != null;
    });
  }

  /** Whether the leader's stream lacks a topic of the tab. */
  get lacksTopic(): boolean {
    return this.topics.some((topic) => !this.#leaderTopics.has(topic));
  }

  /** Whether the tab has all events of its topics up to `position`. Topics that begin as for a new client do not count. */
  get isComplete(): boolean {
    for (const { step, since } of this.#topics.values()) if (step !== "followed" && since != null) return false;
    return true;
  }

  /** The cursor after which the topics continue that the tab follows. While the tab reads a topic, the cursor of the output is older. */
  get cursor(): string | undefined {
    return (this.isComplete ? this.#leaderCursor : undefined) ?? this.#output.cursor;
  }

  has(topic: string): boolean {
    return this.#topics.has(topic);
  }

  /** Adds topics, which begin as for a new client. Call `begin` when the leader knows them. */
  add(topics: Set<string>): void {
    for (const topic of topics) this.#want(topic, undefined);
    this.#recentEvents.forget(topics);
  }

  delete(topic: string): boolean {
    return this.#topics.delete(topic);
  }

  /** Handles what the leader says about its stream, at a position that is not before the tab's. */
  handleLeader({ position, from, cursor, topics, begun }: LeaderMessage): void {
    const own = this.#position;
    const isNewTerm = own?.[0] !== position[0];
    let isLost = false;
    // Topics that the stream no longer has, or that begin anew in it, continue after the tab's cursor.
    for (const [topic, progress] of this.#topics) {
      if (progress.step === "wanted") continue;
      if (topics.includes(topic) && (!begun.includes(topic) || (progress.step === "begun" && !isNewTerm))) continue;
      isLost ||= progress.step === "begun" && hasBegunBefore(progress);
      if (progress.step === "followed") progress.since = this.#cursorOf(progress);
      this.#abortLoad(progress.load);
      Object.assign(progress, { step: "wanted", repetition: undefined });
    }
    if (isLost) this.#output.emitUnknownGap();
    if (own && isNewTerm) this.#continue(own, position, from);
    else if (own && isBefore(own, position)) this.#lose(true);
    this.#position = position;
    this.#leaderCursor = cursor;
    this.#leaderTopics = new Set(topics);
    this.#setBegunTopics(begun);
  }

  /** Handles what the leader's connection reports, at a position after the tab's. */
  handleReport(message: ReportMessage): void {
    const { position, cursor, begun } = message;
    const [term, sequence] = this.#position!;
    const isNewTerm = position[0] !== term;
    const isHole = isNewTerm || position[1] !== sequence + 1;
    if (isHole) this.#lose(true);
    if (isNewTerm) this.#forgetStream();
    this.#position = position;
    this.#leaderCursor = cursor;
    if (isHole) this.begin();
    else this.#holdOrHandle(message);
    this.#updateCursor();
    if (this.#begunTopics.size !== (begun?.length ?? 0)) this.#setBegunTopics(begun);
  }

  /** Handles that the tab leaves the group: its topics continue after the cursor when it is back. */
  leave(): void {
    this.#lose();
    this.#position = undefined;
    this.#forgetStream();
  }

  /** Leaves a stream of which the tab misses events, because the tab is to be the leader. */
  loseUnlessComplete(): void {
    if (this.isComplete) return;
    this.#lose();
    this.#position = undefined;
    this.#forgetStream();
  }

  /** Handles that the leader's connection gets this state. A topic begins only while the connection is open. */
  handleState(state: State): void {
    for (const progress of this.#topics.values()) {
      if (hasBegunBefore(progress)) progress.begunAt = -Infinity;
      else if (state !== "open") progress.begunAt = Infinity;
      else if (progress.begunAt === Infinity) progress.begunAt = performance.now();
    }
  }

  /** Begins to follow, or to load, the waiting topics that the leader's stream has. */
  begin(): void {
    const loads = new Map<string | undefined, string[]>();
    for (const [topic, progress] of this.#topics) {
      if (progress.step !== "wanted" || !this.#leaderTopics.has(topic)) continue;
      const { since } = progress;
      const isBegun = this.#begunTopics.has(topic);
      // The first events of the topic in the stream may be older than the tab's cursor, so the topic waits until the leader's cursor is valid for it.
      if (isBegun && since != null) continue;
      // If the leader has no cursor, its stream has not begun yet, or the hub has no history. Later, the stream may have passed events after its
      // cursor.
      const isAtStart = since == null ? isBegun || this.#leaderCursor == null : since === this.#leaderCursor && this.#position![1] === 0;
      if (isAtStart) {
        const begunAt = this.#output.state === "open" ? performance.now() : Infinity;
        Object.assign(progress, { step: since == null ? "begun" : "followed", since: undefined, begunAt });
      } else loads.set(since, [...(loads.get(since) ?? []), topic]);
    }
    for (const [since, topics] of loads) this.#load(topics, since);
    this.#updateCursor();
  }

  #want(topic: string, since: string | undefined): void {
    this.#topics.set(topic, { step: "wanted", since, begunAt: Infinity, load: undefined, last: undefined, repetition: undefined });
  }

  /** Forgets the topics of the last leader's stream. The next leader says which topics its stream has. */
  #forgetStream(): void {
    this.#leaderTopics.clear();
    this.#begunTopics.clear();
  }

  /** Continues with the stream of a new leader, which repeats the events that were reported after `from`. */
  #continue(own: Position, position: Position, from: Position | undefined): void {
    if (position[1] > 0 || !from || isBefore(own, from)) return this.#lose();
    let isLost = false;
    for (const progress of this.#topics.values()) {
      if (progress.step === "loading") this.#abortLoad(progress.load);
      else if (progress.step === "begun") {
        progress.step = "wanted";
        isLost ||= hasBegunBefore(progress);
      } else if (progress.repetition) progress.repetition = repetitionUpTo(progress.repetition.upTo);
      else if (progress.step === "followed" && isBefore(from, progress.last?.position)) {
        // If the last event was read from the server, the stream may not repeat this event, so the topic continues after it.
        if (progress.last!.isRead) Object.assign(progress, { step: "wanted", since: progress.last!.id });
        else progress.repetition = repetitionUpTo(progress.last!.id);
      }
    }
    if (isLost) this.#output.emitUnknownGap();
  }

  /**
   * Handles that the tab has left the stream of the leader, or has missed reports: its topics continue after the cursor. A topic without a cursor
   * begins again, which is a gap, unless it has just begun and no report is missing.
   */
  #lose(missesReports = false): void {
    let isLost = false;
    for (const progress of this.#topics.values()) {
      if (progress.step === "begun") isLost ||= missesReports || hasBegunBefore(progress);
      if (progress.step === "followed") {
        progress.since = this.#cursorOf(progress);
        isLost ||= progress.since == null;
      }
      progress.repetition = undefined;
    }
    for (const progress of this.#topics.values()) {
      this.#abortLoad(progress.load);
      progress.step = "wanted";
    }
    if (isLost) this.#output.emitUnknownGap();
  }

  /**
   * The cursor after which a topic continues that the tab follows. The tab's cursor may be older or newer, if the tab misses events of another topic.
   */
  #cursorOf({ repetition }: TopicProgress): string | undefined {
    return repetition?.upTo ?? this.#leaderCursor ?? this.#output.cursor;
  }

  #updateCursor(): void {
    for (const { load } of this.#topics.values()) if (load) return;
    if (this.#leaderCursor != null && this.isComplete) this.#output.setCursor(this.#leaderCursor);
  }

  /** Sets the topics for which the leader's cursor is not yet valid. The other topics that have begun are followed from now on. */
  #setBegunTopics(topics: string[] = []): void {
    this.#begunTopics = new Set(topics);
    for (const [topic, progress] of this.#topics) if (progress.step === "begun" && !this.#begunTopics.has(topic)) progress.step = "followed";
    this.begin();
  }

  // Loads.

  /** Aborts a load, and makes its topics wait for the leader's stream again. */
  #abortLoad(load: TopicLoad | undefined): void {
    if (!load) return;
    load.aborted.abort();
    for (const progress of this.#topics.values()) if (progress.load === load) Object.assign(progress, { step: "wanted", load: undefined });
  }

  /** Reads the events of topics after a cursor, or from where a new client begins. The load ends where the leader's stream has the later events. */
  async #load(topics: string[], since: string | undefined): Promise<void> {
    const aborted = new AbortController();
    const load: TopicLoad = { aborted, position: this.#position!, cursor: this.#leaderCursor, held: [] };
    for (const topic of topics) Object.assign(this.#topics.get(topic)!, { step: "loading", load });
    const current = (event: PushEvent) => topicsOf(event).filter((topic) => this.#topics.get(topic)?.load === load);
    const read = (since: string | undefined, listener: SnapshotListener) =>
      readTopics(this.#url, { ...this.#options, topics, since: since ?? "now" }, aborted.signal, listener);
    /** The ids of the events of each topic that the leader's stream may have after the beginning of the load. */
    const coming = new Map(topics.map((topic) => [topic, new Set<string>()]));
    /** For each topic, the id of the last event that the tab reads from the server and that the leader's stream may repeat. */
    const repeated = new Map<string, string>();
    const last = new Map<string, string>();
    let isKnown = true;
    const readComing = async () => {
      if (load.cursor == null) return;
      const onEvent = (event: PushEvent) => {
        for (const topic of current(event)) {
          if (event.id == null) continue;
          coming.get(topic)!.add(event.id);
          if (since != null) repeated.set(topic, event.id);
        }
      };
      if (aborted.signal.aborted) return;
      isKnown = (await read(load.cursor, { onEvent, onGap: () => (isKnown = false) })) && isKnown;
    };
    // A read after a cursor has all events up to its end, and so also the events of `coming` if these were read before. The events of a new client
    // may begin later, so then `coming` is read afterwards and compared.
    if (since != null) await readComing();
    if (aborted.signal.aborted) return;
    // No cursor says that a tab has a part of a topic's first events, so these are passed on together.
    const firstEvents: (() => void)[] = [];
    const passOn = (pass: () => void) => (since == null ? firstEvents.push(pass) : pass());
    let end = since;
    const setSince = () => {
      for (const progress of this.#topics.values()) if (progress.load === load) progress.since = end;
    };
    const isRead = await read(since, {
      onEvent: (event) =>
        passOn(() => {
          const taken = current(event).filter((topic) => {
            if (event.id != null) last.set(topic, event.id);
            return this.#recentEvents.add(event.id, topic);
          });
          this.#pass(event, taken);
        }),
      onGap: (gap) => passOn(() => this.#output.emitGap(gap)),
      // If the load is interrupted, its topics continue after this cursor.
      onCursor: (cursor) => {
        end = cursor;
        passOn(setSince);
      },
    });
    if (aborted.signal.aborted) return;
    for (const pass of firstEvents) pass();
    isKnown &&= isRead;
    if (since == null && isKnown) await readComing();
    if (aborted.signal.aborted) return;
    for (const topic of topics) {
      const progress = this.#topics.get(topic);
      if (progress?.load !== load) continue;
      const id = last.get(topic);
      const ids = [...coming.get(topic)!];
      if (id != null && ids.includes(id)) repeated.set(topic, id);
      const upTo = repeated.get(topic);
      // The later events were published after the tab has read the topic.
      const repetition = repetitionUpTo(upTo, new Set(ids.slice(0, ids.indexOf(upTo!) + 1)));
      Object.assign(progress, { step: "followed", since: undefined, load: undefined, repetition });
      if (id != null) progress.last = { id, position: load.position, isRead: true };
      if (!isKnown) this.#output.emitGap({ reason: "unknown", topic });
    }
    for (const held of load.held) this.#handle(held, (topic) => topics.includes(topic));
    this.#updateCursor();
  }

  // The events of the stream.

  /** Handles an event or a gap of the stream for the topics that the tab follows, and holds it back for the topics that the tab loads. */
  #holdOrHandle(message: ReportMessage): void {
    const loads = new Set(topicsOfReport(message.report).map((topic) => this.#topics.get(topic)?.load));
    for (const load of loads) load?.held.push(message);
    this.#handle(message);
    for (const load of loads) {
      if (!load || load.held.length <= MAX_CATCH_UP) continue;
      // The load held back too many events, so it begins again at the present position of the stream.
      this.#abortLoad(load);
      this.begin();
    }
  }

  /** Handles an event or a gap of the leader's stream, for the topics of the tab that `isFor` accepts. Without `isFor`, for all of its topics. */
  #handle({ position, report: [name, value] }: ReportMessage, isFor?: (topic: string) => boolean): void {
    if (name === "event") {
      const topics = topicsOf(value);
      const taken = topics.filter((topic) => {
        const progress = this.#topics.get(topic);
        if (!progress || !isFollowed(progress) || isFor?.(topic) === false) return false;
        return this.#takes(topic, progress, value.id, position);
      });
      this.#pass(value, topics[0] == null ? undefined : taken);
    } else if (name === "gap") {
      const { topic } = value;
      for (const [own, progress] of this.#topics) if (topic == null || own === topic) progress.repetition = undefined;
      if (topic == null || (isFor?.(topic) !== false && this.#topics.has(topic) && isFollowed(this.#topics.get(topic)!))) this.#output.emitGap(value);
    }
  }

  /** Returns whether the tab passes on an event of the stream for a topic that it follows. */
  #takes(topic: string, progress: TopicProgress, id: string | undefined, position: Position): boolean {
    if (id == null) {
      progress.begunAt = -Infinity;
      return true;
    }
    const { ids } = progress.repetition ?? {};
    // The stream has passed the events that it might have repeated.
    if (ids && !ids.has(id)) progress.repetition = undefined;
    const { repetition } = progress;
    if (repetition && id !== repetition.upTo && ++repetition.dropped <= MAX_CATCH_UP) return false;
    progress.last = { id, position };
    progress.repetition = undefined;
    if (id === repetition?.upTo) return false;
    // The last repeated event has not come, so the tab cannot tell which events are new.
    if (repetition) this.#output.emitGap({ reason: "unknown", topic });
    return this.#recentEvents.add(id, topic);
  }

  /** Passes on an event for these topics of the tab. `undefined` stands for an event without a topic. */
  #pass(event: PushEvent, topics: string[] | undefined): void {
    if (!topics) this.#output.emitEvent(event);
    else if (topics[0] != null) this.#output.emitEvent({ ...event, topic: topics[0], topics: topics[1] == null ? undefined : topics });
  }
}

function topicsOfReport([name, value]: HubReport): string[] {
  if (name === "event") return topicsOf(value);
  return name === "gap" && value.topic != null ? [value.topic] : [];
}
