// Web Locks for Node.js, which has none.

/** Web Locks that are requested with a signal. */
class Locks {
  #lines = new Map();

  async request(name, { signal }, task) {
    const line = this.#lines.get(name) ?? [];
    this.#lines.set(name, line);
    await new Promise((resolve, reject) => {
      line.push(resolve);
      if (line.length === 1) resolve();
      signal.addEventListener("abort", () => {
        const index = line.indexOf(resolve);
        if (index > 0) line.splice(index, 1);
        if (index !== 0) reject(signal.reason);
      });
    });
    try {
      await task();
    } finally {
      line.shift();
      line[0]?.();
    }
  }
}

Object.defineProperty(globalThis, "navigator", { value: { locks: new Locks() } });
