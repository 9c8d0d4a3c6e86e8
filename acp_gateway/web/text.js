// Text of an agent as elements: code, headings, lists stay text, bold, links. Never as HTML.

/** An element; properties by name, `class`, `data-*` and `aria-*` as attributes. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined) continue;
    if (name.includes("-") || name === "class" || name === "role") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter(Boolean));
  return node;
}

const INLINE = /`([^`\n]+)`|\*\*([^*\n]+)\*\*|\[([^\]\n]+)\]\((https?:[^)\s]+)\)|(https?:\/\/[^\s<>"')\]]+)/g;

function inline(text) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(INLINE)) {
    nodes.push(text.slice(from, match.index));
    const [whole, code, bold, label, target, bare] = match;
    if (code) nodes.push(el("code", {}, code));
    else if (bold) nodes.push(el("strong", {}, bold));
    else nodes.push(link(target ?? bare, label ?? bare));
    from = match.index + whole.length;
  }
  nodes.push(text.slice(from));
  return nodes;
}

export function link(href, label) {
  if (!/^https?:/i.test(href)) return el("span", {}, label);
  return el("a", { href, target: "_blank", rel: "noreferrer noopener" }, label);
}

/** `text` with fenced code blocks and headings set apart. */
export function prose(text) {
  const parts = [];
  text.split(/^ {0,3}```/m).forEach((part, index, all) => {
    if (index % 2) {
      const body = part.replace(/^[^\n]*\n?/, "").replace(/\n$/, "");
      const language = part.split("\n", 1)[0].trim();
      parts.push(el("pre", { tabIndex: 0, "aria-label": `Code ${language}` }, el("code", {}, body)));
      return;
    }
    let plain = index ? part.replace(/^[^\S\n]*\n/, "") : part;
    if (index < all.length - 1) plain = plain.replace(/\n+$/, "");
    for (const piece of plain.split(/^(#{1,4} .+)$/m)) {
      const heading = /^#{1,4} (.+)$/.exec(piece);
      if (heading) parts.push(el("h3", {}, ...inline(heading[1])));
      else if (piece.trim()) parts.push(el("p", {}, ...inline(piece.replace(/^\n+|\n+$/g, ""))));
    }
  });
  return parts;
}

const CONTEXT = 3;

/** Lines of a change with a little of what stands around them: [sign, text]. */
export function diffLines(before, after) {
  const [old, now] = [before, after].map((text) => (text ? text.replace(/\n$/, "").split("\n") : []));
  let start = 0;
  while (start < old.length && start < now.length && old[start] === now[start]) start++;
  let end = 0;
  const room = Math.min(old.length, now.length) - start;
  while (end < room && old[old.length - 1 - end] === now[now.length - 1 - end]) end++;
  const lines = [];
  if (start > CONTEXT) lines.push(["@", `… ${start - CONTEXT} lines`]);
  for (const line of old.slice(Math.max(0, start - CONTEXT), start)) lines.push([" ", line]);
  for (const line of old.slice(start, old.length - end)) lines.push(["-", line]);
  for (const line of now.slice(start, now.length - end)) lines.push(["+", line]);
  for (const line of now.slice(now.length - end, now.length - end + CONTEXT)) lines.push([" ", line]);
  if (end > CONTEXT) lines.push(["@", `… ${end - CONTEXT} lines`]);
  return lines;
}
