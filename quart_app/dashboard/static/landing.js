// The landing page. Numbers are text or BigInt everywhere: JSON.parse alone would round long ones.

const byId = (id) => document.getElementById(id);

/** Most digits of a number that is asked for directly; the factors of a longer one may take minutes: it may become a job. */
const DIRECT_DIGITS = 40;
/** Seconds that a job may take before the server answers 202 and the page shows its progress. */
const WAIT_S = 1;
/** Pause between two looks at a job: a longer one shows the result later, a shorter one makes more requests. */
const LOOK_PAUSE_MS = 500;
/** A tree of more primes than this is too wide to read. */
const MOST_LEAVES = 48;
/** Most numbers in the table of found ones, so that the table stays short. */
const MOST_FOUND = 12;

/** Parse JSON with each number kept as its text: a number outside of a string literal gets quotes. */
export function parseExactly(text) {
  return JSON.parse(text.replace(/"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*/g, (token) => (token[0] === '"' ? token : `"${token}"`)));
}

const grouped = (digits) => digits.replace(/\B(?=(\d{3})+$)/g, "\u202f");
const shortened = (digits) => (digits.length > 18 ? `${digits.slice(0, 6)}…${digits.slice(-4)}` : grouped(digits));

/** Return a new element, or an SVG element if its name is one of those that this page uses in its tree. */
function element(name, attributes = {}, ...children) {
  const isSvg = ["g", "path", "rect", "text", "title"].includes(name);
  const node = isSvg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** Return the factors in power notation, 2⁴ · 3² · 5: each prime is a link that finds the numbers with this factor. */
function powerNotation(factors) {
  const countOf = new Map();
  for (const prime of factors) countOf.set(prime, (countOf.get(prime) ?? 0) + 1);
  const parts = [];
  for (const [prime, count] of countOf) {
    if (parts.length) parts.push(" · ");
    parts.push(element("a", { href: "#find", "data-prime": prime }, grouped(prime)));
    if (count > 1) parts.push(element("sup", {}, element("span", { class: "hidden" }, " to the power "), String(count)));
  }
  return parts;
}

// The factor tree: each node halves the list of primes and stands over the middle of its children.

/** Pixels between the middles of two levels. The other lengths here are pixels, too; a digit takes about 8.2 of them. */
const LEVEL_HEIGHT = 58;

/** Return the node of these primes with its children. Each level halves the list, so MOST_LEAVES bounds the depth. */
function treeOf(factors, depth) {
  const half = Math.ceil(factors.length / 2);
  const children = factors.length > 1 ? [treeOf(factors.slice(0, half), depth + 1), treeOf(factors.slice(half), depth + 1)] : [];
  const number = String(factors.reduce((product, prime) => product * BigInt(prime), 1n));
  const width = Math.max(32, shortened(number).length * 8.2 + 16);
  const childrenWidth = children.reduce((sum, child) => sum + child.subtreeWidth, 0);
  return { number, children, width, childrenWidth, subtreeWidth: Math.max(width + 12, childrenWidth), y: depth * LEVEL_HEIGHT + 16 };
}

/** Place a node and its children from the pixel `left` on; add their elements to `drawing`. */
function layOut(node, left, drawing) {
  node.x = left + node.subtreeWidth / 2;
  let childLeft = left + (node.subtreeWidth - node.childrenWidth) / 2;
  for (const child of node.children) {
    layOut(child, childLeft, drawing);
    childLeft += child.subtreeWidth;
    drawing.lines.push(element("path", { d: `M${node.x} ${node.y}C${node.x} ${node.y + 30} ${child.x} ${child.y - 30} ${child.x} ${child.y}` }));
  }
  drawing.height = Math.max(drawing.height, node.y + 18);
  const box = { x: node.x - node.width / 2, y: node.y - 14, width: node.width, height: 28, rx: 14 };
  drawing.nodes.push(
    element("g", node.children.length ? {} : { class: "prime" }, element("title", {}, node.number), element("rect", box), element("text", { x: node.x, y: node.y }, shortened(node.number))),
  );
}

function drawTree(factors) {
  byId("figure").hidden = factors.length < 2 || factors.length > MOST_LEAVES;
  if (byId("figure").hidden) return;
  const root = treeOf(factors, 0);
  const drawing = { lines: [], nodes: [], height: 0 };
  layOut(root, 0, drawing);
  const tree = byId("tree");
  tree.setAttribute("viewBox", `0 0 ${root.subtreeWidth} ${drawing.height}`);
  tree.setAttribute("width", root.subtreeWidth);
  tree.setAttribute("aria-label", `Factor tree: ${factors.join(" times ")}`);
  tree.replaceChildren(...drawing.lines, ...drawing.nodes);
}

// What the server says

/** Return the body of a response. Throws the sentence of a problem document. */
async function bodyOf(response) {
  const text = await response.text();
  if (response.ok) return text ? parseExactly(text) : null;
  let problem = {};
  try { problem = JSON.parse(text); } catch { /* not a problem document: the status has to do */ }
  const firstMessage = problem.errors?.[0]?.message;
  throw new Error(firstMessage ?? problem.detail ?? `the server answered ${response.status}`);
}

/** Make a request; return the response and its body. Throws an error whose message is for the visitor. */
async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("the server cannot be reached; try again in a moment");
  }
  return [response, await bodyOf(response)];
}

/** Make a sentence of an error's words, which begin small and end without a full stop. */
function sentence(words) {
  return `${words.charAt(0).toUpperCase()}${words.slice(1).replace(/\.$/, "")}.`;
}

/** Return who answered, as the server says in `Mesh-Place: <replica>; db=5; class=A`; "" where it does not. */
function whoAnswered(response) {
  const [replica, ...facts] = (response.headers.get("Mesh-Place") ?? "").split(";").map((part) => part.trim());
  const database = facts.find((fact) => fact.startsWith("db="));
  return replica ? `${replica}${database ? ` stored it in database ${database.slice(3)}` : " did the work"}` : "";
}

function show(result, facts) {
  const [{ value, prime_factors: factors }] = result;
  byId("power").replaceChildren(grouped(value), " = ", ...(factors.length ? powerNotation(factors) : ["1"]));
  const distinctCount = new Set(factors).size;
  const factorsText = !factors.length ? "1 has no prime factors." : factors.length === 1 ? "It is a prime number." : `${factors.length} prime factors, ${distinctCount} of them different.`;
  byId("facts").textContent = [factorsText, ...facts].filter(Boolean).join(" ");
  drawTree(factors);
  byId("answer").hidden = false;
}

// Factorise a number

/** The factorisation under way, and null if there is none: what aborts its requests, and the address of its job or "". */
let currentRun = null;

function typedNumber() {
  return byId("value").value.replace(/[\s,_\u202f]/g, "");
}

/** Show how long the typed number is, and the commands; return the number, and the body that asks for its factors. */
function describeInput() {
  const number = typedNumber(), digits = number.length;
  byId("size").textContent = /^\d+$/.test(number) ? `${digits} digit${digits === 1 ? "" : "s"}` : "";
  const body = `[{"value": ${number || 0}, "ttl": ${byId("ttl").value}, "cls": "${chosenClass()}"}]`;
  byId("curl").textContent = `curl ${location.origin}/values -H 'Content-Type: application/json' \\\n  -d '${body}'\n\ncurl ${location.origin}/values/${byId("prime").value.trim() || 2}`;
  return [number, body];
}

function chosenClass() {
  return new FormData(byId("give")).get("cls") ?? "A";
}

/** Say on the button whether a factorisation is under way. The progress is shown only once its job is followed. */
function setBusy(isBusy) {
  byId("split").disabled = isBusy;
  byId("split").textContent = isBusy ? "Factorising…" : "Factorise";
  byId("working").hidden = true;
}

/** Follow a job until it ends; returns its result. */
async function followJob(address, aborter) {
  byId("working").hidden = false;
  for (;;) {
    const [, job] = await ask(address, { signal: aborter.signal });
    if (job.state === "done") return job.result;
    if (job.state === "failed") throw new Error(job.errors?.[0]?.detail ?? "the factorisation failed");
    showProgress(job);
    await new Promise((wake) => setTimeout(wake, LOOK_PAUSE_MS));
    aborter.signal.throwIfAborted();
  }
}

/** Show how far a job is. `estimate_s` is the time that is still expected. */
function showProgress(job) {
  const [work = {}] = job.working_on ?? [];
  const leftS = Number(work.estimate_s ?? 0), elapsedS = Number(work.elapsed_s ?? job.elapsed_s);
  const foundText = work.factors?.length ? `; found so far: ${work.factors.map(shortened).join(", ")}` : "";
  const leftText = leftS ? `, about ${Math.ceil(leftS)} s expected` : "";
  byId("stage").textContent = `${work.replica ?? "The queue"}: ${work.stage ?? job.state}, ${Math.round(elapsedS)} s${leftText}${foundText}`;
  if (leftS) byId("progress").value = Math.min(elapsedS / (elapsedS + leftS), 1);
  else byId("progress").removeAttribute("value");
}

async function factorise(event) {
  event?.preventDefault();
  const [number, body] = describeInput();
  const complaint = /^0*[1-9]\d*$/.test(number) ? "" : "Enter a whole number from 1 up.";
  byId("problem").textContent = complaint;
  if (complaint) return void byId("value").focus();
  currentRun?.aborter.abort();
  const thisRun = (currentRun = { aborter: new AbortController(), job: "" });
  setBusy(true);
  const beganAt = performance.now();
  try {
    const preferHeader = number.length > DIRECT_DIGITS ? { Prefer: `respond-async, wait=${WAIT_S}` } : {};
    const [response, answer] = await ask("/values", {
      method: "POST", headers: { "Content-Type": "application/json", ...preferHeader }, body, signal: thisRun.aborter.signal,
    });
    thisRun.job = response.status === 202 ? response.headers.get("Location") : "";
    const result = thisRun.job ? await followJob(thisRun.job, thisRun.aborter) : answer;
    if (currentRun === thisRun) show(result, [`Answered in ${Math.round(performance.now() - beganAt)} ms.`, whoAnswered(response)]);
  } catch (error) {
    if (currentRun === thisRun && error.name !== "AbortError") byId("problem").textContent = sentence(error.message);
  }
  if (currentRun === thisRun) setBusy(false);
}

async function cancel() {
  const { aborter, job } = currentRun;
  currentRun = null;
  aborter.abort();
  setBusy(false);
  byId("problem").textContent = "Cancelled.";
  byId("value").focus();
  // `keepalive`: the job is cancelled even if the visitor leaves the page at once.
  if (job) await fetch(job, { method: "DELETE", keepalive: true });
}

// Find numbers

async function find(event) {
  event?.preventDefault();
  describeInput();
  const prime = byId("prime").value.replace(/\s/g, "");
  const status = byId("asked"), table = byId("found");
  table.hidden = true;
  if (!/^\d+$/.test(prime)) return void (status.textContent = "Enter a prime number.");
  const beganAt = performance.now();
  try {
    const [, records] = await ask(`/values/${prime}?limit=${MOST_FOUND}`);
    const tookText = `every live database answered in ${Math.round(performance.now() - beganAt)} ms`;
    const countText = records.length === MOST_FOUND ? `The first ${MOST_FOUND} numbers` : records.length === 1 ? "One number" : `${records.length || "No"} numbers`;
    status.textContent = `${countText}; ${tookText}.`;
    table.tBodies[0].replaceChildren(
      ...records.map((record) => element("tr", {}, element("td", {}, grouped(record.value)), element("td", {}, ...powerNotation(record.prime_factors)))),
    );
    table.hidden = !records.length;
  } catch (error) {
    status.textContent = sentence(error.message);
  }
}

async function showClasses() {
  let classes = [];
  try { [, classes] = await ask("/classes"); } catch (error) { byId("problem").textContent = sentence(error.message); }
  byId("classes").replaceChildren(
    ...classes.map((name, index) => element("label", {}, element("input", { type: "radio", name: "cls", value: name, ...(index ? {} : { checked: "" }) }), element("span", {}, name))),
  );
  describeInput();
}

byId("give").addEventListener("submit", factorise);
byId("give").addEventListener("input", describeInput);
byId("look").addEventListener("submit", find);
byId("cancel").addEventListener("click", cancel);
document.addEventListener("click", (event) => {
  const { number, prime } = event.target.closest("[data-number], [data-prime]")?.dataset ?? {};
  if (number) {
    byId("value").value = number;
    factorise();
  }
  if (prime) {
    byId("prime").value = prime;
    find();
  }
});
byId("no-script").hidden = true;
showClasses();
