// Opens the page of `examples/tls.rs` in Chromium, and checks that ten event streams and a WebSocket work at once over HTTP/2.
//
//     node tls.mjs URL
import assert from "node:assert/strict";
import { By } from "selenium-webdriver";
import { Browser } from "./browser.mjs";

const browser = await Browser.start({ flags: ["--ignore-certificate-errors"] });
try {
  await browser.driver.get(process.argv[2]);
  const output = async (id) => browser.driver.findElement(By.id(id)).getText();
  await browser.driver.wait(async () => await output("streams") === "10", 20_000, "ten streams have events");
  await browser.driver.wait(async () => await output("websocket") === "tick", 20_000, "the WebSocket has a message");
  assert.equal(await output("protocol"), "h2");
  assert.deepEqual(await browser.errors(), []);
} finally {
  await browser.close();
}
