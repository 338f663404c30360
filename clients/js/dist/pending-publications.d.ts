import { PushError } from "./index.js";
import type { Publication, PublicationResult } from "./shared-hub-messages.js";
/** The publications of one tab that have no result yet, by their numbers. */
export declare class PendingPublications {
    #private;
    /** `send` gives a publication to the leader. */
    constructor(send: (ref: number, publication: Publication) => void);
    publish(publication: Publication): Promise<string>;
    /** Sends all publications to a new leader. Their keys say which of them the server has already. */
    sendAll(): void;
    settle(ref: number, result: PublicationResult): void;
    rejectAll(error: PushError): void;
}
