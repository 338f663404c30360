import { DEFAULTS, type Attempt, type End, type Options, type Receive, type SendMessage, type TransportPlugin } from "./attempt.js";
import { watchEnvironment, type EnvironmentListener } from "./environment.js";
import { Consequence, PushError } from "./error.js";
import { ListenerSet } from "./listeners.js";
import { ItemQueues } from "./queue.js";
import { payloadOf, type PushRecord } from "./record.js";
import { rememberedTransport, transportsOf } from "./transports.js";
import type { ConnectOptions, PushConnection, PushEvent, PushGap, State } from "./types.js";

/** The shortest interval of heartbeats that is learned from a stream, in milliseconds: what the HTML standard advises. */
const MIN_LEARNED_HEARTBEAT = 15_000;

/** The number of heartbeats that may be missing. */
const MISSED_HEARTBEATS = 2.5;

/** After this time an open connection counts as a success, even without an event, in milliseconds. */
const STABLE_AFTER = 5000;

/** How long a poll may take, in milliseconds: more than twice its wait time, which a server may extend. */
const POLL_TIMEOUT = 60_000;

/** The longest delay, in milliseconds: 23 days. A timer in JavaScript ends at once if its delay is 2 ** 31 or more. */
const MAX_DELAY = 2e9;

/** Why the client itself ends an attempt. */
const enum AbortReason {
  Restart = 1,
  Upgrade,
  Pause,
  Silent,
  Close,
}

/** What an attempt came to. */
interface Outcome extends End {
  hasWorked: boolean;
  error?: PushError | undefined;
  abortReason?: AbortReason | undefined;
}

/**
 * One connection: a loop of attempts, one after another.
 *
 * Invariants: at most one attempt is under way, and an attempt that was aborted reports nothing. The cursor moves before the event is passed on,
 * and each attempt begins at the cursor, so a server that resumes after the cursor passes on each event once.
 */
export class Connection implements PushConnection {
  state: State = "connecting";
  declare transport: string | undefined;
  declare cursor: string | undefined;

  /** The address of the next attempt. Only other modules of this package change it. */
  declare streamUrl: URL;

  /** Called when an attempt is open, also if the state was `open` before. Only other modules of this package set it. */
  declare onOpen?: () => void;

  /** Called each time that the client has read an open stream for some milliseconds. Only other modules of this package set it. */
  declare onTick?: (elapsed: number) => void;

  #options: Options;
  #transports: TransportPlugin[];
  #listeners = new ListenerSet();
  #queues = new ItemQueues(() => this.#onRead());
  #stopWatching: () => void;
  #controller = new AbortController();
  #send: SendMessage | undefined;
  #wake = () => {};
  #whenRoom: Promise<void> | undefined;
  #makeRoom = () => {};

  #isSuspended = false;
  /** Whether events may be missing if the connection comes back without a cursor. */
  #hasBegun = false;
  /** Whether an open transport may be silent: no other one is better. */
  #isPatient: boolean;
  /** The transport of the last attempt, if the attempt has received something. */
  #workingTransport: string | undefined;
  #hasRenewed = false;
  #failures = 0;
  #upgrades = 0;
  /** The shortest next delay that the server allows. */
  #minDelay = 0;
  /** The longest silence of the open stream, or 0 if it may be silent for ever. */
  #maxSilence = 0;
  #silence = 0;
  #openFor = 0;
  #worseFor = 0;

  #environment: EnvironmentListener = {
    close: () => this.close(),
    suspend: (isSuspended) => {
      this.#isSuspended = isSuspended;
      if (isSuspended) this.#abort(AbortReason.Pause);
      this.#wake();
    },
    // A connection that seems open may be dead, and one that waits need not wait.
    restart: () => {
      if (this.state === "open" && this.cursor != null) this.#abort(AbortReason.Restart);
      this.#wake();
    },
    tick: (elapsed) => {
      if (this.state !== "open" || this.#whenRoom) return;
      // A late tick alone, as in a page that was not run for a while, does not make a connection dead.
      this.#silence += Math.min(elapsed, this.#maxSilence / 2 || elapsed);
      if (this.#maxSilence && this.#silence > this.#maxSilence) return this.#abort(AbortReason.Silent);
      // After a late tick alone, the page may not yet have read what has come.
      const readFor = Math.min(elapsed, STABLE_AFTER / 2);
      this.onTick?.(readFor);
      this.#openFor += readFor;
      if (this.#openFor > STABLE_AFTER) {
        this.#failures = 0;
        // A body without an event is sent again, and misses nothing.
        this.#hasBegun ||= !this.#options.body;
      }
      if (this.transport === this.#transports[0]!.name || this.cursor == null) return;
      this.#worseFor += elapsed;
      if (this.#worseFor < this.#options.upgradeAfter * 2 ** Math.min(this.#upgrades, 5)) return;
      this.#worseFor = 0;
      this.#upgrades++;
      this.#abort(AbortReason.Upgrade);
    },
  };

  constructor(url: string | URL, options: ConnectOptions) {
    this.streamUrl = new URL(url, globalThis.location?.href);
    this.#options = { ...DEFAULTS, ...options };
    const { since, signal, heartbeat = 1000 } = options;
    if (since && since !== "now") this.cursor = since;
    this.#transports = transportsOf(options);
    this.#isPatient = !this.#transports[1];
    this.#stopWatching = watchEnvironment(this.#environment, Math.min(1000, heartbeat), options);
    if (signal?.aborted) this.close();
    // Listeners that are added after the call of `connect` hear everything.
    queueMicrotask(() => this.#run());
  }

  on(name: string, listener: (value: any) => void): () => void {
    return this.#listeners.add(name, listener);
  }

  send(message: unknown): boolean {
    const isRaw = typeof message === "string" || (message as ArrayBuffer)?.byteLength != null;
    this.#send?.(isRaw ? (message as string) : JSON.stringify(message));
    return !!this.#send;
  }

  /** Ends the attempt that is under way. The next one follows at once, at the cursor. */
  reconnect(): void {
    this.#abort(AbortReason.Restart);
  }

  close(): void {
    this.#close();
  }

  [Symbol.asyncIterator](): AsyncIterator<PushEvent | PushGap, undefined> {
    return this.#queues.read();
  }

  async #run(): Promise<void> {
    const working = rememberedTransport(this.streamUrl);
    let preferred = Math.max(0, this.#transports.findIndex(({ name }) => name === working));
    let current = preferred;
    /** The transports that have failed since the last delay, and how. */
    const failed = new Map<number, PushError | undefined>();
    while (this.state !== "closed") {
      if (this.#isSuspended || this.#whenRoom) {
        this.#setState("paused");
        await (this.#whenRoom ?? this.#sleep());
        continue;
      }
      const { again, finished, hasWorked, error, abortReason } = await this.#attempt(this.#transports[current]!);
      if ((this.state as State) === "closed") return;
      this.#send = undefined;
      if (finished || (!error && !abortReason && this.#options.body && !(this.#options.resume && this.#minDelay))) {
        return this.#close(undefined, true);
      }
      if (error) {
        if (this.#isFinal(error)) return this.#close(error);
        this.#listeners.emit("error", error);
      }
      if (hasWorked) {
        preferred = current;
        failed.clear();
        // Without a choice, there is nothing to remember.
        if (this.#transports[1]) rememberedTransport(this.streamUrl, this.transport);
      }
      if (abortReason === AbortReason.Upgrade) {
        current = 0;
        this.#isPatient = false;
      }
      if (again || error?.consequence === Consequence.Unauthorized || (abortReason && abortReason !== AbortReason.Silent)) continue;
      if (!hasWorked && error?.consequence !== Consequence.Retry) {
        failed.set(current, error);
        current = this.#transports.findIndex((_, index) => !failed.has(index));
        if (current >= 0) continue;
        const errors = [...failed.values()];
        const refusals = errors.filter((error) => error?.consequence === Consequence.Unsuitable);
        // A browser does not say why a WebSocket has failed. Before the first event, this counts as a refusal, unless the server answers other
        // requests with 426: it has only WebSockets.
        const mayWorkLater = !refusals[errors.length - 1] && (this.#hasBegun || errors.some((error) => !error || error.status === 426));
        if (refusals[0] && !mayWorkLater) return this.#close(refusals[0]);
        // What is open and silent may be so by right, since no other transport is better.
        this.#isPatient = true;
      }
      failed.clear();
      current = preferred;
      this.#setState("waiting");
      await this.#sleep(this.#nextDelay());
    }
  }

  /** Full jitter above the server's shortest delay, which is widened so that clients with the same one do not come back together. */
  #nextDelay(): number {
    const { minDelay, maxDelay } = this.#options;
    const backoff = Math.min(maxDelay, minDelay * 2 ** this.#failures++);
    const delay = this.#minDelay + Math.random() * Math.max(backoff, this.#minDelay / 2);
    return Math.min(delay, MAX_DELAY);
  }

  #isFinal(error: PushError): boolean {
    const { body, resume, headers } = this.#options;
    if (error.consequence === Consequence.Unauthorized) {
      const canRenew = !this.#hasRenewed && typeof headers === "function";
      this.#hasRenewed = true;
      return !canRenew;
    }
    return error.consequence === Consequence.Final || (!!body && !(resume && (this.cursor || !this.#hasBegun)));
  }

  async #attempt({ name: transport, receive }: TransportPlugin): Promise<Outcome> {
    const controller = (this.#controller = new AbortController());
    const { signal } = controller;
    this.transport = transport;
    const outcome: Outcome = { hasWorked: false };
    // Read for each event: the signal's getter is slow.
    let isOver = false;
    const attempt = {
      options: this.#options,
      url: this.streamUrl,
      cursor: this.cursor,
      isProbe: this.#workingTransport !== transport,
      signal,
      onOpen: (send?: SendMessage) => {
        if (!isOver) this.#onOpen(send);
      },
      onRecord: (record: PushRecord, isHeartbeat?: boolean) => {
        if (isOver) return;
        clearTimeout(timer);
        if (isHeartbeat) this.#learnHeartbeat();
        this.#silence = 0;
        outcome.hasWorked = true;
        this.#hasRenewed = false;
        this.#take(record);
      },
      onRetry: (milliseconds: number) => (this.#minDelay = milliseconds),
      whenReady: () => this.#whenRoom,
    };
    const aborted = new Promise<End>((resolve) => {
      signal.addEventListener("abort", () => {
        isOver = true;
        resolve({});
      });
    });
    const isPoll = transport === "long-poll";
    const { openTimeout } = this.#options;
    const timer = setTimeout(
      () => {
        if (isPoll || this.state !== "open" || !this.#isPatient) this.#abort(AbortReason.Silent);
      },
      // The first byte of a poll may take the poll's wait time. On a slow network, every opening takes long.
      isPoll ? POLL_TIMEOUT : Math.min(openTimeout * (1 + this.#failures), Math.max(openTimeout, 30_000)),
    );
    try {
      Object.assign(outcome, await Promise.race([this.#receive(receive, attempt), aborted]));
    } catch (error) {
      outcome.error = this.#asPushError(error);
    }
    clearTimeout(timer);
    outcome.abortReason = signal.reason;
    this.#workingTransport = outcome.hasWorked ? transport : undefined;
    // Stops what still runs, such as a response that was not read to its end.
    controller.abort(AbortReason.Close);
    return outcome;
  }

  async #receive(receive: Receive, attempt: Omit<Attempt, "headers">): Promise<End> {
    // Between two polls the connection is open.
    if (this.transport !== "long-poll" || this.state !== "open") this.#setState("connecting");
    const { headers } = this.#options;
    return receive({ ...attempt, headers: typeof headers === "function" ? await headers() : headers });
  }

  #asPushError(error: unknown): PushError {
    const failure = error instanceof PushError ? error : new PushError(String(error), Consequence.Retry);
    failure.transport = this.transport;
    if (failure.retryAfter! > 0) this.#minDelay = +failure.retryAfter!;
    return failure;
  }

  #onOpen(send: SendMessage | undefined): void {
    this.#send = send;
    this.#minDelay = this.#silence = 0;
    this.onOpen?.();
    if (this.state === "open") return;
    this.#setState("open");
    this.#openFor = 0;
    this.#maxSilence = this.transport === "sse" ? (this.#options.heartbeat ?? 0) * MISSED_HEARTBEATS : 0;
    // Events may be lost that no cursor can bring back.
    if (this.#hasBegun && this.cursor == null) this.#take({ gap: { reason: "unknown" } });
  }

  #learnHeartbeat(): void {
    // What comes together with the opening is no heartbeat.
    if (this.#silence < 1000 || this.#options.heartbeat) return;
    this.#maxSilence = Math.max(this.#maxSilence, MISSED_HEARTBEATS * this.#silence, MISSED_HEARTBEATS * MIN_LEARNED_HEARTBEAT);
  }

  #abort(reason: AbortReason): void {
    this.#controller.abort(reason);
    this.#stopHoldingBack();
  }

  /** Reads on. The next event holds back again if there is no room. */
  #stopHoldingBack(): void {
    this.#whenRoom = undefined;
    this.#makeRoom();
  }

  /** Moves the cursor, and passes on an event or a gap. */
  #take(record: PushRecord): void {
    const cursor = record.cursor ?? record.id;
    if (typeof cursor === "string" && cursor !== this.cursor) {
      this.cursor = cursor || undefined;
      this.#listeners.emit("cursor", this.cursor);
    }
    const { gap, end } = record;
    const id = (record.event_id ?? record.id) || undefined;
    if (end?.finished) return this.#close(undefined, true);
    if (end) {
      if (end.retry! > 0) this.#minDelay = +end.retry!;
    } else if (gap) {
      this.#queue({ type: "gap", gap, id });
      this.#listeners.emit("gap", gap);
    } else if (record.data !== undefined || record.data_base64 != null) {
      const type = record.event || "message";
      const event: PushEvent = { type, data: payloadOf(record, this.#options), id, topic: record.topic, topics: record.topics };
      this.#queue(event);
      this.#listeners.emitEvent(event);
    }
  }

  #queue(item: PushEvent | PushGap): void {
    this.#failures = 0;
    this.#hasBegun = true;
    this.#queues.push(item);
    if (this.#queues.length >= this.#options.maxBuffered) this.#holdBack();
  }

  /** Until there is room, a response is not read on, and no attempt begins. A WebSocket would be read on, so it is closed. */
  #holdBack(): void {
    if (this.transport !== "sse" && this.transport !== "long-poll") this.#abort(AbortReason.Pause);
    this.#whenRoom ??= new Promise((resolve) => (this.#makeRoom = resolve));
  }

  #onRead(): void {
    if (this.#queues.length <= this.#options.maxBuffered / 2) this.#stopHoldingBack();
  }

  #setState(state: State): void {
    if (state === this.state) return;
    this.state = state;
    this.#listeners.emit("state", state);
  }

  /** Waits for `wake`, or for a time. */
  async #sleep(milliseconds?: number): Promise<void> {
    let timer;
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
      if (milliseconds != null) timer = setTimeout(resolve, milliseconds);
    });
    clearTimeout(timer);
  }

  #close(error?: PushError, isFinished?: boolean): void {
    if (this.state === "closed") return;
    this.#stopWatching();
    this.#send = undefined;
    this.#setState("closed");
    this.#abort(AbortReason.Close);
    this.#wake();
    if (isFinished) this.#listeners.emit("finished");
    if (error) {
      error.final = true;
      // Without a listener and a loop, nobody would learn of it.
      this.#listeners.emit("error", error) || this.#queues.hasLoop || console.error(error);
    }
    this.#queues.end(error);
  }
}
