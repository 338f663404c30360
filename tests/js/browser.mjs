import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Builder, logging } from "selenium-webdriver";
import chrome from "selenium-webdriver/chrome.js";

/** A headless Chromium with a profile of its own. */
export class Browser {
  #profile;
  driver;

  static async start({ flags = [], pageLoadStrategy = "normal" } = {}) {
    const browser = new Browser();
    browser.#profile = await mkdtemp(join(tmpdir(), "browser-"));
    const options = new chrome.Options().setChromeBinaryPath("/usr/bin/chromium").addArguments(
      "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
      "--disable-background-networking", "--disable-component-update", "--disable-sync",
      `--user-data-dir=${browser.#profile}`, ...flags,
    );
    options.setPageLoadStrategy(pageLoadStrategy);
    const severe = new logging.Preferences();
    severe.setLevel(logging.Type.BROWSER, logging.Level.SEVERE);
    options.setLoggingPrefs(severe);
    try {
      browser.driver = await new Builder()
        .forBrowser("chrome")
        .setChromeOptions(options)
        .setChromeService(new chrome.ServiceBuilder("/usr/bin/chromedriver"))
        .build();
      await browser.viewport({ width: 1280, height: 900, deviceScaleFactor: 1, mobile: false });
    } catch (error) {
      await browser.close();
      throw error;
    }
    return browser;
  }

  viewport(metrics) {
    return this.driver.sendDevToolsCommand("Emulation.setDeviceMetricsOverride", metrics);
  }

  /** "light" or "dark". */
  prefers(scheme) {
    const features = [{ name: "prefers-color-scheme", value: scheme }];
    return this.driver.sendDevToolsCommand("Emulation.setEmulatedMedia", { features });
  }

  /** The whole page, as a PNG. */
  async screenshot() {
    const { data } = await this.driver.sendAndGetDevToolsCommand("Page.captureScreenshot", { captureBeyondViewport: true });
    return Buffer.from(data, "base64");
  }

  /** What the console had to complain of since it was last asked. */
  async errors() {
    const entries = await this.driver.manage().logs().get(logging.Type.BROWSER);
    return entries.map((entry) => entry.message);
  }

  async close() {
    await this.driver?.quit();
    await rm(this.#profile, { recursive: true, force: true, maxRetries: 5 });
  }
}
