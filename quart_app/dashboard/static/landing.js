// The landing page. Numbers are text or BigInt everywhere: JSON.parse alone would round long ones.

const byId = (id) => document.getElementById(id);

/** Longest number that is asked for directly; the factors of a longer one may take minutes, so it becomes a job. */
const DIRECT_DIGITS = 40;
/** Seconds that a job may take before the server answers 202 and the page shows its progress. */
const WAIT_S = 1;
const LOOK_MS = 500;
/** A tree of more primes than this is too wide to read. */
const MOST_LEAVES = 48;
const FOUND_LIMIT = 12;

/** Parse JSON with each number kept as its text. */
export function exact(text) {
  return JSON.parse(text.replace(/"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*/g, (token) => (token[0] === '"' ? token : `"${token}"`)));
}

const grouped = (digits) => digits.replace(/\B(?=(\d{3})+$)/g, "\u202f");
const shortened = (digits) => (digits.length > 18 ? `${digits.slice(0, 6)}…${digits.slice(-4)}` : grouped(digits));

function element(name, attributes = {}, ...children) {
  const svg = ["g", "path", "rect", "text", "title"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** Return the factors in power notation, 2⁴ · 3² · 5: each prime is a link that finds the numbers with this factor. */
function powers(factors) {
  const times = new Map();
  for (const prime of factors) times.set(prime, (times.get(prime) ?? 0) + 1);
  const parts = [];
  for (const [prime, count] of times) {
    if (parts.length) parts.push(" · ");
    parts.push(element("a", { href: "#find", "data-prime": prime }, grouped(prime)));
    if (count > 1) parts.push(element("sup", {}, element("span", { class: "hidden" }, " to the power "), String(count)));
  }
  return parts;
}

// The factor tree: each node halves the list of primes and stands over the middle of its children.

const LEVEL_HEIGHT = 58;

function grow(factors, depth) {
  const half = Math.ceil(factors.length / 2);
  const children = factors.length > 1 ? [grow(factors.slice(0, half), depth + 1), grow(factors.slice(half), depth + 1)] : [];
  const number = String(factors.reduce((product, prime) => product * BigInt(prime), 1n));
  const width = Math.max(32, shortened(number).length * 8.2 + 16);
  const below = children.reduce((sum, child) => sum + child.span, 0);
  return { number, children, width, below, span: Math.max(width + 12, below), y: depth * LEVEL_HEIGHT + 16 };
}

function place(node, left, draw) {
  node.x = left + node.span / 2;
  let at = left + (node.span - node.below) / 2;
  for (const child of node.children) {
    place(child, at, draw);
    at += child.span;
    draw.lines.push(element("path", { d: `M${node.x} ${node.y}C${node.x} ${node.y + 30} ${child.x} ${child.y - 30} ${child.x} ${child.y}` }));
  }
  draw.height = Math.max(draw.height, node.y + 18);
  const box = { x: node.x - node.width / 2, y: node.y - 14, width: node.width, height: 28, rx: 14 };
  draw.nodes.push(
    element("g", node.children.length ? {} : { class: "prime" }, element("title", {}, node.number), element("rect", box), element("text", { x: node.x, y: node.y }, shortened(node.number))),
  );
}

function drawTree(factors) {
  byId("figure").hidden = factors.length < 2 || factors.length > MOST_LEAVES;
  if (byId("figure").hidden) return;
  const root = grow(factors, 0);
  const draw = { lines: [], nodes: [], height: 0 };
  place(root, 0, draw);
  const tree = byId("tree");
  tree.setAttribute("viewBox", `0 0 ${root.span} ${draw.height}`);
  tree.setAttribute("width", root.span);
  tree.setAttribute("aria-label", `Factor tree: ${factors.join(" times ")}`);
  tree.replaceChildren(...draw.lines, ...draw.nodes);
}

// What the server says

/** Return the body of a response. Throws the sentence of a problem document. */
async function read(response) {
  const text = await response.text();
  if (response.ok) return text ? exact(text) : null;
  let problem = {};
  try { problem = JSON.parse(text); } catch { /* not a problem document: the status has to do */ }
  const first = problem.errors?.[0]?.message;
  throw new Error(first ?? problem.detail ?? `the server answered ${response.status}`);
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("the server cannot be reached; try again in a moment");
  }
  return [response, await read(response)];
}

/** Make a sentence of an error's words, which begin small and end without a full stop. */
function sentence(words) {
  return `${words.charAt(0).toUpperCase()}${words.slice(1).replace(/\.$/, "")}.`;
}

/** Return who answered, as the server says in `Mesh-Place: <replica>; db=5; class=A`; "" where it does not. */
function placeOf(response) {
  const [replica, ...facts] = (response.headers.get("Mesh-Place") ?? "").split(";").map((part) => part.trim());
  const database = facts.find((fact) => fact.startsWith("db="));
  return replica ? `${replica}${database ? ` stored it in database ${database.slice(3)}` : " did the work"}` : "";
}

function show(result, facts) {
  const [{ value, prime_factors: factors }] = result;
  byId("power").replaceChildren(grouped(value), " = ", ...(factors.length ? powers(factors) : ["1"]));
  const kinds = new Set(factors).size;
  const what = !factors.length ? "1 has no prime factors." : factors.length === 1 ? "It is a prime number." : `${factors.length} prime factors, ${kinds} of them different.`;
  byId("facts").textContent = [what, ...facts].filter(Boolean).join(" ");
  drawTree(factors);
  byId("answer").hidden = false;
}

// Factorise a number

let running = null;

function typed() {
  return byId("value").value.replace(/[\s,_\u202f]/g, "");
}

function describe() {
  const number = typed(), digits = number.length;
  byId("size").textContent = /^\d+$/.test(number) ? `${digits} digit${digits === 1 ? "" : "s"}` : "";
  const body = `[{"value": ${number || 0}, "ttl": ${byId("ttl").value}, "cls": "${chosenClass()}"}]`;
  byId("curl").textContent = `curl ${location.origin}/values -H 'Content-Type: application/json' \\\n  -d '${body}'\n\ncurl ${location.origin}/values/${byId("prime").value.trim() || 2}`;
  return [number, body];
}

function chosenClass() {
  return new FormData(byId("give")).get("cls") ?? "A";
}

function busy(yes) {
  byId("split").disabled = yes;
  byId("split").textContent = yes ? "Factorising…" : "Factorise";
  byId("working").hidden = true;
}

/** Follow a job until it ends; returns its result. */
async function follow(address, stop) {
  byId("working").hidden = false;
  for (;;) {
    const [, job] = await ask(address, { signal: stop.signal });
    if (job.state === "done") return job.result;
    if (job.state === "failed") throw new Error(job.errors?.[0]?.detail ?? "the factorisation failed");
    tell(job);
    await new Promise((wake) => setTimeout(wake, LOOK_MS));
    stop.signal.throwIfAborted();
  }
}

function tell(job) {
  const [work = {}] = job.working_on ?? [];
  const estimate = Number(work.estimate_s ?? 0), elapsed = Number(work.elapsed_s ?? job.elapsed_s);
  const found = work.factors?.length ? `; found so far: ${work.factors.map(shortened).join(", ")}` : "";
  const left = estimate ? `, about ${Math.ceil(estimate)} s expected` : "";
  byId("stage").textContent = `${work.replica ?? "The queue"}: ${work.stage ?? job.state}, ${Math.round(elapsed)} s${left}${found}`;
  if (estimate) byId("progress").value = Math.min(elapsed / (elapsed + estimate), 1);
  else byId("progress").removeAttribute("value");
}

async function factorise(event) {
  event?.preventDefault();
  const [number, body] = describe();
  const wrong = /^0*[1-9]\d*$/.test(number) ? "" : "Enter a whole number from 1 up.";
  byId("problem").textContent = wrong;
  if (wrong) return void byId("value").focus();
  running?.stop.abort();
  const mine = (running = { stop: new AbortController(), job: "" });
  busy(true);
  const began = performance.now();
  try {
    const prefer = number.length > DIRECT_DIGITS ? { Prefer: `respond-async, wait=${WAIT_S}` } : {};
    const [response, first] = await ask("/values", {
      method: "POST", headers: { "Content-Type": "application/json", ...prefer }, body, signal: mine.stop.signal,
    });
    mine.job = response.status === 202 ? response.headers.get("Location") : "";
    const result = mine.job ? await follow(mine.job, mine.stop) : first;
    if (running === mine) show(result, [`Answered in ${Math.round(performance.now() - began)} ms.`, placeOf(response)]);
  } catch (error) {
    if (running === mine && error.name !== "AbortError") byId("problem").textContent = sentence(error.message);
  }
  if (running === mine) busy(false);
}

async function cancel() {
  const { stop, job } = running;
  running = null;
  stop.abort();
  busy(false);
  byId("problem").textContent = "Cancelled.";
  byId("value").focus();
  if (job) await fetch(job, { method: "DELETE", keepalive: true });
}

// Find numbers

async function find(event) {
  event?.preventDefault();
  describe();
  const prime = byId("prime").value.replace(/\s/g, "");
  const asked = byId("asked"), table = byId("found");
  table.hidden = true;
  if (!/^\d+$/.test(prime)) return void (asked.textContent = "Enter a prime number.");
  const began = performance.now();
  try {
    const [, list] = await ask(`/values/${prime}?limit=${FOUND_LIMIT}`);
    const took = `every live database answered in ${Math.round(performance.now() - began)} ms`;
    const count = list.length === FOUND_LIMIT ? `The first ${FOUND_LIMIT} numbers` : list.length === 1 ? "One number" : `${list.length || "No"} numbers`;
    asked.textContent = `${count}; ${took}.`;
    table.tBodies[0].replaceChildren(
      ...list.map((each) => element("tr", {}, element("td", {}, grouped(each.value)), element("td", {}, ...powers(each.prime_factors)))),
    );
    table.hidden = !list.length;
  } catch (error) {
    asked.textContent = sentence(error.message);
  }
}

async function showClasses() {
  let classes = [];
  try { [, classes] = await ask("/classes"); } catch (error) { byId("problem").textContent = sentence(error.message); }
  byId("classes").replaceChildren(
    ...classes.map((name, at) => element("label", {}, element("input", { type: "radio", name: "cls", value: name, ...(at ? {} : { checked: "" }) }), element("span", {}, name))),
  );
  describe();
}

byId("give").addEventListener("submit", factorise);
byId("give").addEventListener("input", describe);
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
