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
export declare const isBefore: (one: Position | undefined, other: Position | undefined) => boolean;
/** Returns the term of `tab` that follows `term`. Terms are compared as texts. Two tabs never have the same term. */
export declare const nextTerm: (term: string, tab: string) => string;
/** How long a new leader waits for the positions of the other tabs, in milliseconds. */
export declare const CENSUS_TIME = 200;
/**
 * A tab's membership in a group: the tabs of a browser with the same name. The tabs send each other messages, and one of them is the leader. The
 * leader holds a Web Lock. A tab that gets no message of the leader for some time, because the leader is frozen, takes the lock away from it.
 */
export declare class TabGroup<M> {
    #private;
    /** Joins no group yet. The tab will send `ping` to ask whether there is a leader. `lease` is how long a leader may be silent, in milliseconds. */
    constructor(name: string, lease: number, ping: M, member: TabGroupMember<M>);
    /**
     * Whether a leader is there: one has sent a message, and has answered the last ping within a lease. A leader that has nothing to say sends none.
     */
    get hasLeader(): boolean;
    /** Aborted when this tab leaves for good: see `stop`. */
    get stopped(): AbortSignal;
    /** Joins the group, and requests the lock, with which this tab becomes the leader. */
    join(): void;
    /** Leaves for good. The other tabs get the messages that this tab has sent before the lock is free. */
    stop(): void;
    /** Records that a message of the leader has arrived. */
    hearLeader(): void;
    /** Sends a message to the other tabs. A report that cannot be sent is a hole in the reports, which the other tabs notice. */
    post(message: M): void;
}
