// What the relays on Node share: a child for each room, its lines given to the room's clients.
import { spawn } from "node:child_process";

const rooms = new Map();

// `deliver(line, clients)` gets each line as a Buffer without its end.
export function openRoom(name, [command, ...args], deliver) {
  const known = rooms.get(name);
  if (known) return known;
  const child = spawn(command, args, { stdio: ["pipe", "pipe", "inherit"] });
  const room = { child, clients: new Set() };
  rooms.set(name, room);
  let rest = [];
  child.stdout.on("data", (data) => {
    let start = 0;
    for (let end; (end = data.indexOf(10, start)) >= 0; start = end + 1) {
      const line = rest.length ? Buffer.concat([...rest, data.subarray(start, end)]) : data.subarray(start, end);
      rest = [];
      deliver(line, room.clients);
    }
    if (start < data.length) rest.push(data.subarray(start));
  });
  return room;
}

export function stopRooms() {
  for (const { child } of rooms.values()) child.kill();
  process.exit(0);
}
