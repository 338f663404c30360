import assert from "node:assert/strict";
import { setTimeout } from "node:timers/promises";

/** What any one condition may take, in milliseconds: far above what it needs on a busy machine. */
const PATIENCE = 30_000;

/** A tab of a browser that shows one page. */
export class PageTab {
  #driver;
  #handle;

  static async open(browser, url, isFirst) {
    const tab = new PageTab();
    tab.#driver = browser.driver;
    if (!isFirst) await browser.driver.switchTo().newWindow("tab");
    tab.#handle = await browser.driver.getWindowHandle();
    await browser.driver.get(url);
    return tab;
  }

  /** Runs a function in the page. */
  async run(script, ...parameters) {
    await this.#driver.switchTo().window(this.#handle);
    return this.#driver.executeScript(script, ...parameters);
  }

  async find(css) {
    await this.#driver.switchTo().window(this.#handle);
    return this.#driver.findElement({ css });
  }

  async click(css) {
    await (await this.find(css)).click();
  }

  async type(css, text) {
    await (await this.find(css)).sendKeys(text);
  }

  async reload() {
    await this.#driver.switchTo().window(this.#handle);
    await this.#driver.navigate().refresh();
  }

  /** Waits until `condition` is true for what `look` returns in the page. */
  async until(what, look, condition) {
    const end = Date.now() + PATIENCE;
    for (;;) {
      const seen = await this.run(look);
      if (condition(seen)) return seen;
      assert.ok(Date.now() < end, `${what}: not within ${PATIENCE} ms\n${JSON.stringify(seen, null, 1)}`);
      await setTimeout(50);
    }
  }
}
