// What the Qwen daemon's own SDK makes of events.
//
//   node event_names.mjs < FRAMES.json
//
// FRAMES is a list of envelopes. Prints {known: [type…], taken: [true|false…]}: the types that the
// SDK lists, and for each envelope whether asKnownDaemonEvent accepts it.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const here = path.dirname(fileURLToPath(import.meta.url));
const modules = process.env.ACP_GATEWAY_PEERS || path.join(here, "node_modules");
const require = createRequire(path.join(modules, "_.js"));
const sdk = await import(pathToFileURL(require.resolve("@qwen-code/sdk/daemon")));

const frames = JSON.parse(readFileSync(0, "utf8"));
const taken = frames.map((frame) => sdk.asKnownDaemonEvent(frame) !== undefined);
process.stdout.write(JSON.stringify({ known: sdk.DAEMON_KNOWN_EVENT_TYPE_VALUES, taken }));
