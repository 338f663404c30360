// Builds dist/ from src/.
//
//     node build.mjs            writes dist/
//     node build.mjs --check    fails if dist/ is not what src/ builds, or if the core is larger than 5 KiB gzipped

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

/** Names of properties that no user of the package sees, and that nothing but the package has. */
const INTERNAL_NAMES = new RegExp(
  "^(abortReason|again|consequence|emit|freshTopics|hasItsId|hasWorked|isBetweenEvents|isProbe|items|onBlock|onOpen|onRead|onRecord|onRetry|receive|" +
    "reconnect|restart|streamUrl|suspend|tick|whenReady)$",
);

const root = dirname(fileURLToPath(import.meta.url));
const dist = join(root, "dist");
const isCheck = process.argv.includes("--check");
const output = mkdtempSync(join(tmpdir(), "tower-push-"));
try {
  await buildInto(output);
  printSizes(output);
  if (isCheck) assertSameFiles(output, dist);
  else {
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
  const compress = { ecma: 2022, passes: 3, unsafe: true, unsafe_arrows: true };
  const { code } = await minify(file.text, { module: isModule, ecma: 2022, compress, format: { comments: false } });
  writeFileSync(file.path, `${code}\n`);
}

function printSizes(directory) {
  for (const file of ["index.js", "shared.js", "topics.js", "shared-topics.js", "event-source.js", "tower-push.iife.js"]) {
    const content = readFileSync(join(directory, file));
    const gzipped = gzipSync(content, { level: 9 }).length;
    console.log(`${file}: ${content.length} bytes, ${gzipped} gzipped`);
    if (file === "index.js" && gzipped > MAX_CORE_LEN) {
      throw new Error(`the core has ${gzipped} bytes gzipped, and at most ${MAX_CORE_LEN} are allowed`);
    }
  }
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
