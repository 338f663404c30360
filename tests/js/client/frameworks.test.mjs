// The bindings that docs/clients.md shows, as they stand there. tests/js/client_browser.mjs runs the one for htmx.

import assert from "node:assert/strict";
import { test } from "node:test";
import { effectScope, onScopeDispose, ref } from "@vue/reactivity";
import { createElement, useEffect, useRef } from "react";
import { act, create } from "react-test-renderer";
import { readable } from "svelte/store";
import { codeOf } from "./docs.mjs";
import { SERVER, open, until } from "./support.mjs";

const publish = (text) => fetch(new URL("/publish", SERVER), { method: "POST", body: text });
const subscribers = async () => Number(await (await fetch(new URL("/subscribers", SERVER))).text());

/** Returns what the code of a section of the docs defines under `name`. `scope` is what the code imports. */
function definitionOf(section, name, scope) {
  const code = codeOf(section).replaceAll("export ", "");
  const connect = (url) => open(url, { transports: ["sse"] });
  return new Function("connect", ...Object.keys(scope), `${code}\nreturn ${name};`)(connect, ...Object.values(scope));
}

test("React", async () => {
  globalThis.IS_REACT_ACT_ENVIRONMENT = true;
  const usePush = definitionOf("React:", "usePush", { useEffect, useRef });
  const seen = [];
  function Page({ label }) {
    usePush("/channel", "message", ({ data }) => seen.push(`${label} ${data}`));
    return null;
  }
  let page;
  await act(async () => (page = create(createElement(Page, { label: "first" }))));
  await until(async () => (await subscribers()) === 1);
  await publish("react 1");
  await until(() => seen.includes("first react 1"));
  // Another handler does not open another connection.
  await act(async () => page.update(createElement(Page, { label: "second" })));
  await publish("react 2");
  await until(() => seen.includes("second react 2"));
  assert.equal(await subscribers(), 1);
  await act(async () => page.unmount());
  await until(async () => (await subscribers()) === 0);
});

test("Vue", async () => {
  const usePush = definitionOf("Vue:", "usePush", { ref, onScopeDispose });
  const scope = effectScope();
  const data = scope.run(() => usePush("/channel", "message"));
  await until(async () => (await subscribers()) === 1);
  await publish("vue 1");
  await until(() => data.value === "vue 1");
  scope.stop();
  await until(async () => (await subscribers()) === 0);
});

test("Svelte", async () => {
  const pushed = definitionOf("Svelte, as a store:", "pushed", { readable });
  const seen = [];
  const unsubscribe = pushed("/channel", "message").subscribe((value) => seen.push(value));
  await until(async () => (await subscribers()) === 1);
  await publish("svelte 1");
  await until(() => seen.includes("svelte 1"));
  assert.equal(seen[0], undefined);
  unsubscribe();
  await until(async () => (await subscribers()) === 0);
});
