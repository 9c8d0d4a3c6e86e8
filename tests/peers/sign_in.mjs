// A sign-in by the Qwen daemon's own client: `node sign_in.mjs --base URL --token T`. One JSON line
// for each thing that it learns.
import { options, sdk } from "./daemon_lib.mjs";

const say = (what, value) => console.log(JSON.stringify({ what, value }));
const client = new sdk.DaemonClient({ baseUrl: options.base, token: options.token });

const flow = await client.auth.start({ providerId: "local" });
const { awaitCompletion, cancel, ...told } = flow;
say("started", told);
say("status", await client.getAuthStatus());
say("again", await client.startDeviceFlow({ providerId: "local", clientId: "client_other" }));
say("pending", await client.getDeviceFlow(flow.deviceFlowId));
say("ended", await flow.awaitCompletion({ timeoutMs: 20_000 }));
await flow.cancel(); // over already: no error

const second = await client.auth.start({ providerId: "local" });
await second.cancel();
say("cancelled", await second.awaitCompletion({ timeoutMs: 5_000 }));
await client.cancelDeviceFlow("unknown"); // resolves too
for (const providerId of ["nope", ""]) {
  try {
    await client.startDeviceFlow({ providerId });
  } catch (error) {
    say("refused", { status: error.status, code: error.body.code });
  }
}
