/** What a tab does when it joins or leaves its group, and when it leads the group. */
export interface TabGroupMember<M> {
  /** The tab is in the group: it hears the messages, and may lead. */
  onJoin(): void;
  /** The page is closed, frozen or kept for the back button, or the tab leaves for good. */
  onLeave(): void;
  /** The tab leads the group. */
  onElect(): void;
  /** The tab leads the group no longer. Also called when it has not led. */
  onDepose(): void;
  onMessage(message: M): void;
}

/** A position in the stream that the leaders of a group pass on: the leader's term, and the number of its message. Ordered. */
export type Position = [term: string, sequence: number];

export const isBefore = (one: Position | undefined, other: Position | undefined) =>
  !!other && (!one || one[0] < other[0] || (one[0] === other[0] && one[1] < other[1]));

/** Returns the term after `term`. Terms are compared as texts, and differ among tabs. */
export const nextTerm = (term: string, tab: string) => `${String(parseInt(term || "0", 10) + 1).padStart(10, "0")} ${tab}`;

/** The fields of an error that a leader passes on. */
export interface ErrorFields {
  message: string;
  final: boolean;
  status?: number | undefined;
  code?: number | undefined;
}

/** How long a new leader waits for the positions of the others, in milliseconds. */
export const CENSUS_TIME = 200;

/**
 * The tabs of a browser under one name: they send each other messages, and one of them leads. The leader holds a Web Lock. A leader that is frozen
 * loses the lock to a tab that has not heard it for some time.
 */
export class TabGroup<M> {
  #name: string;
  #lease: number;
  #member: TabGroupMember<M>;
  #channel: BroadcastChannel | undefined;
  #stopped = new AbortController();
  #hasLeader = false;
  #release: (() => void) | undefined;
  /** Ends when this tab leaves. */
  #session: AbortController | undefined;
  #leaseTimer: ReturnType<typeof setTimeout> | undefined;
  /** Ends this tab's place in the line for the lock. */
  #waiting = new AbortController();
  #ping: M;

  /** Sends `ping` to ask whether there is a leader. `lease` is how long a leader may be silent, in milliseconds. */
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

  /** Whether the leader was heard within the lease. */
  get hasLeader(): boolean {
    return this.#hasLeader;
  }

  /** Identifies the current time of leading. `undefined` if this tab does not lead. */
  get lead(): object | undefined {
    return this.#release;
  }

  /** Is aborted when this tab leaves for good. */
  get stopped(): AbortSignal {
    return this.#stopped.signal;
  }

  /** Becomes a follower, and stands in line for the lock. */
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

  /** Leaves for good. The other tabs get what is on its way before the lock is free. */
  stop(): void {
    this.#stopped.abort();
    this.#leave();
  }

  /** The leader is there. */
  hearLeader(): void {
    this.#hasLeader = true;
  }

  post(message: M): void {
    try {
      this.#channel?.postMessage(message);
    } catch {
      // The channel is closed: this tab has left.
    }
  }

  /** Gives the lock to another tab. */
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
        // A request that takes the lock away cannot have a signal.
        await navigator.locks.request(this.#name, steal ? { steal } : { signal }, async () => {
          if (signal.aborted) return;
          await new Promise<void>((release) => {
            this.#release = release;
            this.#member.onElect();
          });
        });
      } catch {
        // The lock was taken away, because this page did not answer, or this tab is no longer in line.
      }
      if (!signal.aborted) this.#resign();
      steal = false;
    }
  }

  /** Takes the lock away from a leader that has not answered for the time of two leases. */
  async #watchLease(signal: AbortSignal): Promise<void> {
    let silences = 0;
    while (!signal.aborted) {
      this.#hasLeader = false;
      await new Promise((resolve) => (this.#leaseTimer = setTimeout(resolve, this.#lease * (1 + Math.random() / 2))));
      silences = this.#hasLeader || this.#release ? 0 : silences + 1;
      if (signal.aborted || silences === 0) continue;
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
