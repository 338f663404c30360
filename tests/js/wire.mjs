import { connect, createServer } from "node:net";

/** Stands between browser and server, so that the network can fail. */
export class Wire {
  #server;
  #sockets = new Set();
  #isCut = false;

  static async to(target) {
    const { hostname, port } = new URL(target);
    const wire = new Wire();
    wire.#server = createServer((client) => {
      if (wire.#isCut) return client.destroy();
      const server = connect(Number(port), hostname);
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

  close() {
    this.#server.close();
    this.cut();
  }
}
