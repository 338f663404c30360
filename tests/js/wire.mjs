import { connect, createServer } from "node:net";

/** Stands between browser and server, so that the network can fail. */
export class Wire {
  #server;
  #sockets = new Set();
  #isCut = false;
  #target;

  static async to(target) {
    const wire = new Wire();
    wire.#target = new URL(target);
    wire.#server = createServer((client) => {
      if (wire.#isCut) return client.destroy();
      const server = connect(Number(wire.#target.port), wire.#target.hostname);
      for (const [from, to] of [[client, server], [server, client]]) {
        wire.#sockets.add(from);
        from.setNoDelay(true);
        from.on("error", () => to.destroy());
        from.on("close", () => {
          wire.#sockets.delete(from);
          to.destroy();
        });
        from.pipe(to);
      }
    });
    await new Promise((listening) => wire.#server.listen(0, "127.0.0.1", listening));
    return wire;
  }

  get address() {
    return `http://127.0.0.1:${this.#server.address().port}`;
  }

  cut() {
    this.#isCut = true;
    for (const socket of this.#sockets) socket.destroy();
  }

  mend() {
    this.#isCut = false;
  }

  /** The server is another one from now on, as after a restart. Open connections are cut. */
  moveTo(target) {
    this.cut();
    this.#target = new URL(target);
    this.mend();
  }

  close() {
    this.#server.close();
    this.cut();
  }
}
