import { spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { tmpdir } from "node:os";
import { join } from "node:path";
import WebSocket from "ws";

const PREFERENCES = `
user_pref("app.update.enabled", false);
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("remote.prefs.recommended", true);
`;

/** A headless Firefox with a profile of its own, driven by WebDriver BiDi. It accepts any certificate. */
export class Firefox {
  #profile;
  #process;
  #socket;
  #context;
  #nextId = 0;
  #pending = new Map();

  static async start() {
    const firefox = new Firefox();
    try {
      await firefox.#start();
    } catch (error) {
      await firefox.close();
      throw error;
    }
    return firefox;
  }

  async #start() {
    this.#profile = await mkdtemp(join(tmpdir(), "firefox-"));
    await writeFile(join(this.#profile, "user.js"), PREFERENCES);
    const options = ["--headless", "--no-remote", "--remote-debugging-port=0", "--profile", this.#profile, "about:blank"];
    this.#process = spawn("firefox-esr", options, { stdio: ["ignore", "ignore", "pipe"] });
    this.#socket = new WebSocket(`${await this.#debuggingAddress()}/session`);
    await new Promise((resolve, reject) => this.#socket.on("open", resolve).on("error", reject));
    this.#socket.on("message", (data) => this.#onMessage(JSON.parse(data)));
    await this.#send("session.new", { capabilities: { alwaysMatch: { acceptInsecureCerts: true } } });
    const { contexts } = await this.#send("browsingContext.getTree", {});
    this.#context = contexts[0].context;
  }

  async #debuggingAddress() {
    for await (const line of createInterface({ input: this.#process.stderr })) {
      const address = /WebDriver BiDi listening on (\S+)/.exec(line);
      if (address) return address[1];
    }
    throw new Error("Firefox has exited");
  }

  #onMessage({ id, type, result, error, message }) {
    const request = this.#pending.get(id);
    this.#pending.delete(id);
    if (type === "success") request?.resolve(result);
    else request?.reject(new Error(`${error}: ${message}`));
  }

  #send(method, params) {
    const id = this.#nextId++;
    this.#socket.send(JSON.stringify({ id, method, params }));
    return new Promise((resolve, reject) => this.#pending.set(id, { resolve, reject }));
  }

  async get(url) {
    await this.#send("browsingContext.navigate", { context: this.#context, url, wait: "complete" });
  }

  /** Evaluates an expression in the page, awaits it, and returns its value, which must be a string. */
  async evaluate(expression) {
    const evaluated = await this.#send("script.evaluate", {
      expression,
      target: { context: this.#context },
      awaitPromise: true,
    });
    if (evaluated.type !== "success") throw new Error(JSON.stringify(evaluated.exceptionDetails));
    return evaluated.result.value;
  }

  async close() {
    this.#socket?.terminate();
    if (this.#process?.exitCode === null) {
      const exited = new Promise((resolve) => this.#process.on("exit", resolve));
      this.#process.kill("SIGKILL");
      await exited;
    }
    if (this.#profile) await rm(this.#profile, { recursive: true, force: true, maxRetries: 5 });
  }
}
