// Gives the code of `acp-gateway pair` back for a token, keeps that, and goes on to the page.

const TOKEN = "acp-gateway.token"; // the page's own name for it, see app.js
const $ = (id) => document.getElementById(id);

/** A name that this device can be recognised by in a list of tokens. */
function device() {
  const agent = navigator.userAgent;
  const known = ["iPhone", "iPad", "Android", "Macintosh", "Windows", "Linux"];
  return (known.find((word) => agent.includes(word)) ?? "device").toLowerCase();
}

function say(text, bad = false) {
  $("told").textContent = text;
  $("told").classList.toggle("bad", bad);
}

async function pair() {
  $("send").disabled = true;
  say("Pairing…");
  try {
    const answer = await fetch("pair", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ code: $("code").value.replace(/\D/g, ""), name: $("name").value.trim() }),
    });
    const body = await answer.json();
    if (!answer.ok) throw new Error([body.error, body.remedy].filter(Boolean).join(": "));
    sessionStorage.setItem(TOKEN, body.token);
    say(`Paired as ${body.name}.`);
    location.replace("demo");
  } catch (error) {
    say(error instanceof TypeError ? "The gateway does not answer." : error.message, true);
    $("code").value = "";
    $("code").focus();
    $("send").disabled = false;
  }
}

$("pair").onsubmit = (event) => {
  event.preventDefault();
  pair();
};
$("name").value = device();

// Behind the # the code is sent to nobody, and from here on it is in no history either.
const given = /^#(\d{6})$/.exec(location.hash)?.[1];
if (location.hash) history.replaceState(null, "", location.pathname);
if (given) {
  $("code").value = given;
  pair();
} else {
  $("code").focus();
}
