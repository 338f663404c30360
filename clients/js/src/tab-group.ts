/** The handlers of a tab: called when the tab joins or leaves its group, and when it becomes the leader of the group or ends leading it. */
export interface TabGroupMember<M> {
  /** The tab has joined the group: from now on it gets the messages of the other tabs, and may become the leader. */
  onJoin(): void;
  /** The tab has left the group: the page is closed, frozen or in the back/forward cache, or the tab has called `stop`. */
  onLeave(): void;
  /** The tab has become the leader. */
  onElect(): void;
  /** The tab is not the leader any more. Also called when the tab has not been the leader. */
  onDepose(): void;
  onMessage(message: M): void;
}

/** A position in the messages that a group gets from its leaders: the leader's term, and the number of its message. Positions have an order. */
export type Position = [term: string, sequence: number];

export const isBefore = (one: Position | undefined, other: Position | undefined) =>
  !!other && (!one || one[0] < other[0] || (one[0] === other[0] && one[1] < other[1]));

/** Returns the term of `tab` that follows `term`. Terms are compared as texts. Two tabs never have the same term. */
export const nextTerm = (term: string, tab: string) => `${String(parseInt(term || "0", 10) + 1).padStart(10, "0")} ${tab}`;

/** How long a new leader waits for the positions of the other tabs, in milliseconds. */
export const CENSUS_TIME = 200;

/**
 * A tab's membership in a group: the tabs of a browser with the same name. The tabs send each other messages, and one of them is the leader. The
 * leader holds a Web Lock. A tab that gets no message of the leader for some time, because the leader is frozen, takes the lock away from it.
 */
export class TabGroup<M> {
  #name: string;
  #lease: number;
  #member: TabGroupMember<M>;
  #channel: BroadcastChannel | undefined;
  #stopped = new AbortController();
  #hasLeader = false;
  /** Whether a message of the leader has arrived in this lease. */
  #hasHeardLeader = false;
  #release: (() => void) | undefined;
  /** Aborted when this tab leaves. `undefined` while the tab is not in the group. */
  #session: AbortController | undefined;
  #leaseTimer: ReturnType<typeof setTimeout> | undefined;
  /** Ends this tab's request for the lock. */
  #waiting = new AbortController();
  #ping: M;

  /** Joins no group yet. The tab will send `ping` to ask whether there is a leader. `lease` is how long a leader may be silent, in milliseconds. */
  constructor(name: string, lease: number, ping: M, member: TabGroupMember<M>) {
    this.#name = name;
    this.#lease = lease;
    this.#ping = ping;
    this.#member = member;
    const listen = (target: any, type: string, listener: (event: any) => void) =>
      target?.addEventListener?.(type, listener, { signal: this.#stopped.signal });
    listen(globalThis, "pagehide", () => this.#leave());
    listen(globalThis, "pageshow", ({ persisted }) => persisted && this.join());
    listen(globalThis.document, "freeze", () => this.#leave());
    listen(globalThis.document, "resume", () => this.join());
  }

  /**
   * Whether a leader is there: one has sent a message, and has answered the last ping within a lease. A leader that has nothing to say sends none.
   */
  get hasLeader(): boolean {
    return this.#hasLeader;
  }

  /** Aborted when this tab leaves for good: see `stop`. */
  get stopped(): AbortSignal {
    return this.#stopped.signal;
  }

  /** Joins the group, and requests the lock, with which this tab becomes the leader. */
  join(): void {
    if (this.#stopped.signal.aborted || this.#session) return;
    this.#session = new AbortController();
    this.#channel = new BroadcastChannel(this.#name);
    this.#channel.onmessage = ({ data }) => this.#member.onMessage(data);
    this.#member.onJoin();
    this.post(this.#ping);
    this.#standInLine();
    this.#watchLease(this.#session.signal);
  }

  /** Leaves for good. The other tabs get the messages that this tab has sent before the lock is free. */
  stop(): void {
    this.#stopped.abort();
    this.#leave();
  }

  /** Records that a message of the leader has arrived. */
  hearLeader(): void {
    this.#hasLeader = this.#hasHeardLeader = true;
  }

  /** Sends a message to the other tabs. A report that cannot be sent is a hole in the reports, which the other tabs notice. */
  post(message: M): void {
    try {
      this.#channel?.postMessage(message);
    } catch {
      // The channel is closed, because this tab has left, or the option `parse` has returned something that has no clone.
    }
  }

  /** Leaves the group, and releases the lock. */
  #leave(): void {
    if (!this.#session) return;
    this.#session.abort();
    this.#session = undefined;
    clearTimeout(this.#leaseTimer);
    this.#hasLeader = false;
    this.#waiting.abort();
    this.#resign();
    this.#member.onLeave();
    this.#channel?.close();
  }

  async #standInLine(steal = false): Promise<void> {
    this.#waiting.abort();
    const { signal } = (this.#waiting = new AbortController());
    while (!signal.aborted) {
      try {
        // A request that steals the lock cannot have a signal.
        await navigator.locks.request(this.#name, steal ? { steal } : { signal }, async () => {
          if (signal.aborted) return;
          await new Promise<void>((release) => {
            this.#release = release;
            this.#member.onElect();
          });
        });
      } catch {
        // Another tab has stolen the lock, because this page did not answer, or this tab's request was ended.
      }
      if (!signal.aborted) this.#resign();
      steal = false;
    }
  }

  /** Steals the lock from a leader of which no message has arrived for the time of three leases. Asks for an answer after each of them. */
  async #watchLease(signal: AbortSignal): Promise<void> {
    let silences = 0;
    while (!signal.aborted) {
      this.#hasHeardLeader = false;
      await new Promise((resolve) => (this.#leaseTimer = setTimeout(resolve, this.#lease * (1 + Math.random() / 2))));
      silences = this.#hasHeardLeader || this.#release ? 0 : silences + 1;
      if (signal.aborted || silences === 0) continue;
      if (silences > 1) this.#hasLeader = false;
      this.post(this.#ping);
      if (silences > 2) {
        silences = 0;
        this.#standInLine(true);
      }
    }
  }

  #resign(): void {
    this.#member.onDepose();
    this.#release?.();
    this.#release = undefined;
  }
}
