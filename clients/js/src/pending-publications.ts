import { Consequence } from "./error.js";
import { PushError } from "./index.js";
import type { Publication, PublicationResult } from "./shared-hub-messages.js";

/** The maximum number of publications that wait for their results. */
const MAX_PENDING = 1024;

interface PendingPublication {
  publication: Publication;
  resolve(id: string): void;
  reject(error: PushError): void;
}

/** The publications of one tab that have no result yet, by their numbers. */
export class PendingPublications {
  #pending = new Map<number, PendingPublication>();
  #lastRef = 0;
  #send: (ref: number, publication: Publication) => void;

  /** `send` gives a publication to the leader. */
  constructor(send: (ref: number, publication: Publication) => void) {
    this.#send = send;
  }

  publish(publication: Publication): Promise<string> {
    return new Promise((resolve, reject) => {
      if (this.#pending.size >= MAX_PENDING) return reject(new PushError("too many publications have no answer", Consequence.Final));
      const ref = ++this.#lastRef;
      this.#pending.set(ref, { publication, resolve, reject });
      this.#send(ref, publication);
    });
  }

  /** Sends all publications to a new leader. Their keys say which of them the server has already. */
  sendAll(): void {
    for (const [ref, { publication }] of this.#pending) this.#send(ref, publication);
  }

  settle(ref: number, result: PublicationResult): void {
    const pending = this.#pending.get(ref);
    this.#pending.delete(ref);
    if ("id" in result) pending?.resolve(result.id);
    else pending?.reject(new PushError(result.error.message, Consequence.Final, result.error));
  }

  rejectAll(error: PushError): void {
    for (const { reject } of this.#pending.values()) reject(error);
    this.#pending.clear();
  }
}
