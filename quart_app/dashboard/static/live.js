// The live page: one EventSource brings sections as HTML, which replace the old ones in place.

const QUIET_MS = 3000, TELL_MS = 500;
const link = document.getElementById("link"), linkText = document.getElementById("link-text");
const address = document.body.dataset.events;
let source = null, heardAt = 0, paused = false, held = {};

/** Make an element like a new one, and touch only what differs: focus, selection and open details stay. */
function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) return void old.replaceWith(fresh.cloneNode(true));
  if (old.nodeType !== Node.ELEMENT_NODE) return void (old.nodeValue = fresh.nodeValue);
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  const known = new Map([...old.children].filter((child) => child.id).map((child) => [child.id, child]));
  [...fresh.childNodes].forEach((wanted, at) => {
    const there = old.childNodes[at], same = wanted.id && known.get(wanted.id);
    if (same) {
      if (same !== there) old.insertBefore(same, there ?? null);
      morph(same, wanted);
    } else if (there && !there.id && !wanted.id) morph(there, wanted);
    else old.insertBefore(wanted.cloneNode(true), there ?? null);
  });
  while (old.childNodes.length > fresh.childNodes.length) old.lastChild.remove();
}

function show(sections) {
  const focused = document.activeElement;
  for (const [id, html] of Object.entries(sections)) {
    const box = document.createElement("template"), old = document.getElementById(id);
    box.innerHTML = html; // escaped by the replica, and the policy of the page runs no script in it
    if (old && box.content.firstElementChild) morph(old, box.content.firstElementChild);
  }
  // An element that moves within the page loses the focus.
  if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
  const title = document.querySelector("#answer h1");
  if (title && location.pathname === "/mesh") document.title = `${title.textContent.replace(/\.$/, "")} · quart-mesh`;
}

function connect() {
  if (source || document.hidden || !address) return;
  source = new EventSource(address);
  source.addEventListener("open", () => (heardAt = Date.now()));
  source.addEventListener("sections", (event) => {
    heardAt = Date.now();
    const sections = JSON.parse(event.data);
    if (paused) Object.assign(held, sections);
    else show(sections);
  });
  // The replica drains: the balancer gives the next connection another one.
  source.addEventListener("bye", () => reconnect(200));
  source.addEventListener("error", () => source?.readyState === EventSource.CLOSED && reconnect(2000));
}

function disconnect() {
  source?.close();
  source = null;
}

function reconnect(pauseMs) {
  disconnect();
  setTimeout(connect, pauseMs * (1 + Math.random()));
}

function tellState() {
  if (document.hidden || !address) return;
  const silentMs = Date.now() - heardAt, stale = silentMs > QUIET_MS;
  link.className = paused || stale ? "stale" : "live";
  if (paused) linkText.textContent = "paused";
  else if (!stale) linkText.textContent = "live";
  else linkText.textContent = heardAt ? `no news for ${Math.round(silentMs / 1000)} s, reconnecting` : "connecting";
}

function pause() {
  paused = !paused;
  if (!paused) {
    show(held);
    held = {};
  }
  tellState();
}

// After the question that an act asks, the focus returns to the link that led there.
document.addEventListener("click", (event) => {
  const way = event.target.closest('a[href^="/mesh/confirm/"]');
  if (way) sessionStorage.setItem("asked", way.getAttribute("href"));
});

function returnFocus() {
  const asked = address && sessionStorage.getItem("asked");
  if (!asked) return;
  sessionStorage.removeItem("asked");
  const way = [...document.querySelectorAll("a")].find((link) => link.getAttribute("href") === asked);
  way?.closest("details")?.setAttribute("open", "");
  way?.focus();
}

// A hidden page needs no figures, and a browser allows few connections to one host.
document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.getElementById("keep")?.click();
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input")) return;
  if (event.key === "p") pause();
  if (event.key === "/" && document.getElementById("request")) {
    event.preventDefault(); // or the browser types the key into the field
    document.getElementById("request").focus();
  }
  document.querySelectorAll("#menu a")[event.key - 1]?.click();
});
setInterval(tellState, TELL_MS);
returnFocus();
connect();
