import type { PushEvent } from "./index.js";

/** The number of events that are remembered: enough for what a hub repeats. */
const MAX_EVENTS = 256;

export const topicsOf = ({ topic, topics }: PushEvent): string[] => (Array.isArray(topics) ? topics : topic == null ? [] : [topic]);

/** The ids of the last events, each with a topic: an event of several topics may come again for one of them. */
export class RecentEvents {
  #topics = new Map<string, string | undefined>();

  /** Remembers an event. Returns whether the event is not among the last ones. An event without an id is always new. */
  add(id: string | undefined, topic: string | undefined): boolean {
    if (id == null) return true;
    // No id has a space.
    const key = `${id} ${topic}`;
    if (this.#topics.has(key)) return false;
    this.#topics.set(key, topic);
    if (this.#topics.size > MAX_EVENTS) this.#topics.delete(this.#topics.keys().next().value!);
    return true;
  }

  /** Forgets the events of topics that begin anew, and so may repeat events. */
  forget(topics: Set<string>): void {
    for (const [key, topic] of this.#topics) if (topics.has(topic!)) this.#topics.delete(key);
  }
}
