// The live page: one EventSource brings sections as HTML, which replace the old ones in place.

const
  // Events come once a second. If none comes for this long, the page says so. With a smaller number, it would say so
  // whenever one event is late.
  STALE_MS = 3000,
  // How often the page says how old its news is.
  STATE_EVERY_MS = 500;
const stateBox = document.getElementById("link"), stateText = document.getElementById("link-text");
const address = document.body.dataset.events;
// `heldSections` are the newest sections that came while the page was paused.
let source = null, heardAt = 0, paused = false, heldSections = {};

/**
 * Make an element like a new one, and touch only what differs: focus, selection and open details stay.
 * An element with an id keeps its identity even if it moves. All others are compared by their place among the children.
 */
function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) return void old.replaceWith(fresh.cloneNode(true));
  if (old.nodeType !== Node.ELEMENT_NODE) return void (old.nodeValue = fresh.nodeValue);
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  const childOfId = new Map([...old.children].filter((child) => child.id).map((child) => [child.id, child]));
  [...fresh.childNodes].forEach((freshChild, index) => {
    const oldChild = old.childNodes[index], keptChild = freshChild.id && childOfId.get(freshChild.id);
    if (keptChild) {
      if (keptChild !== oldChild) old.insertBefore(keptChild, oldChild ?? null);
      morph(keptChild, freshChild);
    } else if (oldChild && !oldChild.id && !freshChild.id) morph(oldChild, freshChild);
    else old.insertBefore(freshChild.cloneNode(true), oldChild ?? null);
  });
  while (old.childNodes.length > fresh.childNodes.length) old.lastChild.remove();
}

/** Put new sections in place of the old ones, by the ids of their elements. */
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
    if (paused) Object.assign(heldSections, sections);
    else show(sections);
  });
  // The replica drains: the balancer gives the next connection another one. After an error the pause is longer, because
  // the next attempt probably fails, too. A connection that breaks is not closed: the browser connects again by itself.
  source.addEventListener("bye", () => reconnect(200));
  source.addEventListener("error", () => source?.readyState === EventSource.CLOSED && reconnect(2000));
}

function disconnect() {
  source?.close();
  source = null;
}

/** Connect again after a random pause, so that the viewers of one replica do not all come at the same moment. */
function reconnect(pauseMs) {
  disconnect();
  setTimeout(connect, pauseMs * (1 + Math.random()));
}

/** Say whether the page is live, paused, or without news. */
function showState() {
  if (document.hidden || !address) return;
  const silentMs = Date.now() - heardAt, stale = silentMs > STALE_MS;
  stateBox.className = paused || stale ? "stale" : "live";
  if (paused) stateText.textContent = "paused";
  else if (!stale) stateText.textContent = "live";
  else stateText.textContent = heardAt ? `no news for ${Math.round(silentMs / 1000)} s, reconnecting` : "connecting";
}

/** Pause the page, or let it go on with the sections that came meanwhile. */
function togglePause() {
  paused = !paused;
  if (!paused) {
    show(heldSections);
    heldSections = {};
  }
  showState();
}

// After the question that an act asks, the focus returns to the link that led there.
document.addEventListener("click", (event) => {
  const actLink = event.target.closest('a[href^="/mesh/confirm/"]');
  if (actLink) sessionStorage.setItem("asked", actLink.getAttribute("href"));
});

function returnFocus() {
  const askedHref = address && sessionStorage.getItem("asked");
  if (!askedHref) return;
  sessionStorage.removeItem("asked");
  const actLink = [...document.querySelectorAll("a")].find((candidate) => candidate.getAttribute("href") === askedHref);
  actLink?.closest("details")?.setAttribute("open", "");
  actLink?.focus();
}

// A hidden page needs no figures, and a browser allows few connections to one host.
document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.getElementById("keep")?.click();
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input")) return;
  if (event.key === "p") togglePause();
  if (event.key === "/" && document.getElementById("request")) {
    event.preventDefault(); // or the browser types the key into the field
    document.getElementById("request").focus();
  }
  document.querySelectorAll("#menu a")[event.key - 1]?.click(); // the keys 1 to 5; any other key is no index
});
setInterval(showState, STATE_EVERY_MS);
returnFocus();
connect();
