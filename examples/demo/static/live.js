// Keeps an open page true: a device that is signed out elsewhere goes to the sign-in
// page at once, and the list of devices follows what happens to the others. Without
// this script both happen on the next request.
"use strict";

const body = document.body;
let stream;

function listen() {
  if (stream || document.hidden) return;
  stream = new EventSource(body.dataset.live);
  stream.addEventListener("ended", again); // the server says where to
  stream.addEventListener("changed", refresh);
  stream.addEventListener("error", () => {
    if (stream.readyState !== EventSource.CLOSED) return; // it tries again by itself
    mute();
    // The answer was no stream. Only a clear "not signed in" is one: a server that
    // is down signs nobody out.
    fetch("/api/me", { headers: { Accept: "application/json" } })
      .then((answer) => { if (answer.status === 401) again(); })
      .catch(() => {})
      .finally(() => setTimeout(listen, 5000));
  });
}

// Opens the page anew. A reload would send the form again that the page answers.
function again() {
  location.replace(location.pathname + location.search);
}

function mute() {
  if (stream) stream.close();
  stream = undefined;
}

// Pages in the background let go: a browser opens few connections to one site.
document.addEventListener("visibilitychange", () => (document.hidden ? mute() : (refresh(), listen())));
addEventListener("pagehide", mute);
addEventListener("submit", mute); // the answer to it says more than the event would
addEventListener("pageshow", (event) => { if (event.persisted) again(); });

async function refresh() {
  const old = document.querySelector("[data-refresh]");
  if (!old || old.querySelector("details[open]") || old.contains(document.activeElement)) return; // somebody is at it
  try {
    const answer = await fetch(location.pathname, { headers: { Accept: "text/html" } });
    if (answer.redirected || answer.status === 401) return again();
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById(old.id);
    if (fresh) old.replaceWith(fresh);
  } catch {
    // the next change, or the next request, will do
  }
}

for (const button of document.querySelectorAll("[data-copy]")) {
  const text = document.getElementById(button.dataset.copy);
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text.textContent);
      document.getElementById("copied").textContent = "Copied.";
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(text); // and Ctrl+C
    }
  });
}

if (body.dataset.live) listen();
