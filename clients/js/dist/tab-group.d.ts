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
export declare const isBefore: (one: Position | undefined, other: Position | undefined) => boolean;
/** Returns the term after `term`. Terms are compared as texts, and differ among tabs. */
export declare const nextTerm: (term: string, tab: string) => string;
/** The fields of an error that a leader passes on. */
export interface ErrorFields {
    message: string;
    final: boolean;
    status?: number | undefined;
    code?: number | undefined;
}
/** How long a new leader waits for the positions of the others, in milliseconds. */
export declare const CENSUS_TIME = 200;
/**
 * The tabs of a browser under one name: they send each other messages, and one of them leads. The leader holds a Web Lock. A leader that is frozen
 * loses the lock to a tab that has not heard it for some time.
 */
export declare class TabGroup<M> {
    #private;
    /** Sends `ping` to ask whether there is a leader. `lease` is how long a leader may be silent, in milliseconds. */
    constructor(name: string, lease: number, ping: M, member: TabGroupMember<M>);
    /** Whether the leader was heard within the lease. */
    get hasLeader(): boolean;
    /** Identifies the current time of leading. `undefined` if this tab does not lead. */
    get lead(): object | undefined;
    /** Is aborted when this tab leaves for good. */
    get stopped(): AbortSignal;
    /** Becomes a follower, and stands in line for the lock. */
    join(): void;
    /** Leaves for good. The other tabs get what is on its way before the lock is free. */
    stop(): void;
    /** The leader is there. */
    hearLeader(): void;
    post(message: M): void;
}
