// Builds dist/ from src/.
//
//     node build.mjs            writes dist/, and the sizes into docs/clients.md
//     node build.mjs --check    fails if dist/ is not what src/ builds, if the sizes are others, or if the core is larger than 5 KiB gzipped

import { execFileSync } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { minify } from "terser";

/** The largest gzipped size of the core, in bytes. */
const MAX_CORE_LEN = 5 * 1024;

/** The files whose sizes docs/clients.md names, each with the entry points that a page loads with it. */
const SIZED_FILES = {
  "index.js": ["`tower-push`", ""],
  "topics.js": ["`tower-push/topics`", "`tower-push`"],
  "shared.js": ["`tower-push/shared`", "`tower-push`"],
  "shared-topics.js": ["`tower-push/shared-topics`", "`tower-push`, `tower-push/topics`"],
  "event-source.js": ["`tower-push/event-source`", "`tower-push`"],
  "tower-push.iife.js": ["`dist/tower-push.iife.js`", ""],
};

/** Names of properties that no user of the package sees, and that nothing but the package has. */
const INTERNAL_NAMES = new RegExp(
  "^(abortReason|again|consequence|emit|emitEvent|emitOfType|freshTopics|hasLoop|hasWorked|isBetweenEvents|isProbe|items|options|url|onBlock|onOpen|onQuiet|onRead|onRecord|onRetry|onTick|queues|receive|" +
    "reconnect|restart|streamUrl|suspend|tick|wake|whenReady)$",
);

const root = dirname(fileURLToPath(import.meta.url));
const dist = join(root, "dist");
const docs = join(root, "../../docs/clients.md");
const isCheck = process.argv.includes("--check");
const output = mkdtempSync(join(tmpdir(), "tower-push-"));
try {
  await buildInto(output);
  const sizes = measureSizes(output);
  if (isCheck) {
    assertSameFiles(output, dist);
    assertDocumented(sizes);
  } else {
    document(sizes);
    rmSync(dist, { recursive: true, force: true });
    cpSync(output, dist, { recursive: true });
  }
} finally {
  rmSync(output, { recursive: true, force: true });
}

async function buildInto(directory) {
  execFileSync(process.execPath, [join(root, "node_modules/typescript/bin/tsc"), "--project", root, "--outDir", directory], {
    stdio: "inherit",
  });
  const options = {
    absWorkingDir: root,
    bundle: true,
    minify: true,
    write: false,
    target: "es2022",
    legalComments: "none",
    charset: "utf8",
    mangleProps: INTERNAL_NAMES,
    logLevel: "warning",
  };
  // The modules know each other's internal names.
  let mangleCache = {};
  const esm = async (entry, external) => {
    const built = await build({ ...options, format: "esm", entryPoints: [`src/${entry}.ts`], external, mangleCache, outfile: join(directory, `${entry}.js`) });
    mangleCache = built.mangleCache;
    await writeMinified(built, true);
  };
  await esm("index", []);
  // The core is a module of its own, so that a page that uses both loads it once.
  for (const entry of ["event-source", "shared", "topics"]) await esm(entry, ["./index.js"]);
  await esm("shared-topics", ["./index.js", "./topics.js"]);
  const iife = await build({
    ...options,
    format: "iife",
    globalName: "towerPush",
    entryPoints: ["src/iife.ts"],
    outfile: join(directory, "tower-push.iife.js"),
  });
  await writeMinified(iife, false);
}

/** esbuild bundles and mangles names; terser makes the result 2 % smaller. */
async function writeMinified({ outputFiles: [file] }, isModule) {
  // Unsafe for programs that convert symbols to texts, or that use arrow functions as constructors.
  const compress = { ecma: 2022, passes: 3, unsafe: true, unsafe_arrows: true, hoist_funs: true };
  const { code } = await minify(file.text, { module: isModule, ecma: 2022, compress, format: { comments: false } });
  writeFileSync(file.path, `${code}\n`);
}

/** Prints the sizes. Returns the table of docs/clients.md. */
function measureSizes(directory) {
  let table = "| entry point | gzipped | needs also |\n|---|---|---|\n";
  for (const [file, [entry, others]] of Object.entries(SIZED_FILES)) {
    const content = readFileSync(join(directory, file));
    const gzipped = gzipSync(content, { level: 9 }).length;
    console.log(`${file}: ${content.length} bytes, ${gzipped} gzipped`);
    if (file === "index.js" && gzipped > MAX_CORE_LEN) {
      throw new Error(`the core has ${gzipped} bytes gzipped, and at most ${MAX_CORE_LEN} are allowed`);
    }
    // Another version of zlib makes a few bytes more or less.
    table += `| ${entry} | ${(gzipped / 1000).toFixed(1)} kB | ${others} |\n`.replace("|  |", "| |");
  }
  return table;
}

/** Replaces the table of sizes. */
function document(table) {
  const text = readFileSync(docs, "utf8");
  const documented = text.replace(/\| entry point \|.*\n(\|.*\n)*/, table);
  if (documented !== text) writeFileSync(docs, documented);
}

function assertDocumented(table) {
  if (!readFileSync(docs, "utf8").includes(table)) throw new Error("docs/clients.md names other sizes: run npm run build in clients/js");
}

function assertSameFiles(built, committed) {
  const names = (directory) => readdirSync(directory).sort().join(" ");
  if (names(built) !== names(committed)) throw new Error(`dist/ has other files than the build: ${names(built)}`);
  for (const name of readdirSync(built)) {
    if (!readFileSync(join(built, name)).equals(readFileSync(join(committed, name)))) {
      throw new Error(`dist/${name} is not what src/ builds: run npm run build in clients/js`);
    }
  }
  console.log("dist/ is what src/ builds");
}
