// The page: from what the user does to what is shown.
import { decode, look } from "./data.js";
import { byId, foreign, make } from "./dom.js";
import { headFacts, tables } from "./facts.js";
import { claimOf, makePanel } from "./panel.js";
import { makeOverview } from "./overview.js";
import { shown, start, step, strongest } from "./state.js";
import { short, two, visible } from "./text.js";

/**
 * @typedef {import("./state.js").State} State
 * @typedef {import("./state.js").Action} Action
 */

const data = decode(JSON.parse(byId("data").textContent ?? ""));
const opened = start(data);
/** @type {State} */
let state = opened;
const panels = data.texts.map((_, index) => makePanel(data, index));
const map = byId("map");
const keysHelp = /** @type {HTMLDialogElement} */ (byId("keys"));
byId("texts").append(...panels.map(({ root }) => root));
const overview = makeOverview(data, map);
header();
overview.pictures(state.active, state.dimmed);
render(true);
overview.reveal(state);
explain();
listen();
document.documentElement.dataset.ready = "true";
performance.mark("interactive");

function header() {
  byId("model").replaceChildren(foreign(visible(data.model)));
  const lengths = data.texts.map((text) => text.pieces.length);
  const counts = `${lengths.join(" and ")} ${lengths.join() === "1" ? "token" : "tokens"}`;
  const revision = data.revision === null ? [] : [" · revision ", make("span", { title: data.revision }, short(data.revision, 18))];
  byId("about").replaceChildren(`${data.layers} layers × ${data.heads} heads, counted from 0 · ${counts}`, ...revision);
  byId("versions").textContent = Object.entries(data.versions).map((pair) => pair.join(" ")).join(", ");
  document.title = `${visible(data.model)} · regard`;
}

/** @param {Action} action */
function act(action) {
  const before = state;
  state = step(data, state, action);
  if (state.active !== before.active || state.dimmed !== before.dimmed) overview.pictures(state.active, state.dimmed);
  render(action.kind !== "hover");
  if (action.kind === "token" || action.kind === "head") announce(sentence(state.layer, state.head, state.queries));
  if (action.kind === "dim") announce(`Separators and the first token ${state.dimmed ? "step back" : "count like all others"}.`);
  if (action.kind === "table") announce(state.table ? "Tables are below." : "No tables.");
}

/** @param {boolean} committed whether the choice itself has changed, and not only what is hovered over */
function render(committed) {
  const { dimmed, active } = state;
  const now = shown(data, state);
  const marked = strongest(data, now.queries, dimmed);
  for (const [i, panel] of panels.entries()) {
    panel.update({ query: now.queries[i], key: now.keys[i], layer: now.layer, head: now.head, dimmed }, state.queries[i]);
    if (i !== active || committed) panel.reveal(now.queries[i]);
  }
  overview.update(now, state, marked, sentence(state.layer, state.head, state.queries));
  if (committed || state.hover === null || "layer" in state.hover) {
    byId("facts").replaceChildren(headFacts(data, now.layer, now.head));
  }
  const text = data.texts[active];
  const there = look(data, text, now.layer, now.head, now.queries[active], dimmed);
  byId("readout").replaceChildren(
    make("span", { class: "where" }, `layer ${now.layer} head ${now.head}`),
    ...claimOf(text.names[now.queries[active]], there && text.names[there.key], there?.weight),
  );
  byId("pictured").textContent = data.texts.length > 1 ? `Pictures of text ${active + 1}. ` : "";
  if (!committed) return;
  byId("tables").hidden = !state.table;
  byId("table").setAttribute("aria-expanded", String(state.table));
  /** @type {HTMLInputElement} */ (byId("dim")).checked = dimmed;
  if (state.table) byId("tables").replaceChildren(...tables(data, state, marked));
}

/** @param {number} layer @param {number} head @param {readonly number[]} queries */
function sentence(layer, head, queries) {
  const looks = data.texts.map((text, i) => {
    const there = look(data, text, layer, head, queries[i], state.dimmed);
    const found = there === null ? "nothing else in sight" : `${text.names[there.key]} ${two(there.weight)}`;
    return `${data.texts.length > 1 ? `text ${i + 1}, ` : ""}${text.names[queries[i]]} looks at ${found}`;
  });
  return `Layer ${layer} head ${head}: ${looks.join("; ")}`;
}

/** @type {ReturnType<typeof setTimeout> | undefined} */
let soon;
/** @param {string} what */
function announce(what) {
  clearTimeout(soon); // whoever holds an arrow key hears where it ended
  soon = setTimeout(() => (byId("live").textContent = what), 150);
}

function explain() {
  const { layer, head, queries, why } = opened;
  const token = [foreign(data.texts[opened.active].names[queries[opened.active]])];
  const reason = {
    differs: [" of all heads, it is the one in which the strongest key of “", ...token, "” is the same in every text and its weight differs most."],
    strongest: [" there “", ...token, "” has its strongest look beyond separators, the first token and its own neighbours."],
    first: [" no token looks at anything but itself, separators and its neighbours."],
  }[why];
  byId("why").replaceChildren(`The page opened at layer ${layer} head ${head}:`, ...reason);
}

function listen() {
  for (const [text, panel] of panels.entries()) {
    const from = (/** @type {Event} */ event, /** @type {string} */ name) => {
      const found = event.target instanceof Element ? event.target.closest(`[data-${name}]`) : null;
      return found instanceof HTMLElement ? Number(found.dataset[name]) : -1;
    };
    panel.root.addEventListener("pointerover", (event) => {
      if (event.pointerType !== "mouse") return;
      const query = from(event, "query");
      const key = from(event, "key");
      if (query >= 0) act({ kind: "hover", at: { text, query } });
      else if (key >= 0) act({ kind: "hover", at: { text, key } });
      else if (state.hover) act({ kind: "hover", at: null });
    });
    panel.root.addEventListener("pointerleave", () => state.hover && act({ kind: "hover", at: null }));
    panel.root.addEventListener("click", (event) => {
      const query = Math.max(from(event, "query"), from(event, "key"));
      if (query < 0) return;
      act({ kind: "token", text, query });
      panel.options[state.queries[text]].focus({ preventScroll: true });
    });
    panel.root.addEventListener("focusin", () => text !== state.active && act({ kind: "token", text, query: state.queries[text] }));
    panel.root.addEventListener("keydown", (event) => onToken(event, text));
  }
  map.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "mouse") return;
    const at = overview.at(event);
    const before = state.hover;
    if (at === null ? before !== null : !(before && "layer" in before && before.layer === at.layer && before.head === at.head)) {
      act({ kind: "hover", at });
    }
  });
  map.addEventListener("pointerleave", () => state.hover && act({ kind: "hover", at: null }));
  map.addEventListener("click", (event) => {
    const at = overview.at(event);
    if (at === null) return;
    act({ kind: "head", ...at });
    overview.cell.focus({ preventScroll: true });
  });
  overview.cell.addEventListener("keydown", onHead);
  byId("dim").addEventListener("change", () => act({ kind: "dim" }));
  byId("table").addEventListener("click", () => act({ kind: "table" }));
  byId("help").addEventListener("click", () => keysHelp.showModal());
  document.addEventListener("keydown", (event) => {
    if (plain(event) && event.key === "?" && !keysHelp.open) keysHelp.showModal();
    else if (event.key === "Escape" && state.hover) act({ kind: "hover", at: null });
    else return;
    event.preventDefault();
  });
  const redraw = () => {
    overview.pictures(state.active, state.dimmed);
    render(false);
  };
  let width = byId("heads").clientWidth;
  new ResizeObserver(() => {
    if (byId("heads").clientWidth === width) return; // only its height: other numbers
    width = byId("heads").clientWidth;
    redraw();
  }).observe(byId("heads"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

/** @param {KeyboardEvent} event */
const plain = (event) => !event.ctrlKey && !event.metaKey && !event.altKey;

/**
 * The keys that work on tokens and on heads alike.
 * @param {KeyboardEvent} event
 */
function onEither(event) {
  if (event.key === "m" || event.key === "M") {
    const marked = strongest(data, state.queries, state.dimmed);
    const at = marked.findIndex(({ layer, head }) => layer === state.layer && head === state.head);
    const next = marked.at(event.key === "m" ? (at + 1) % marked.length : Math.max(at, 0) - 1);
    if (next) act({ kind: "head", layer: next.layer, head: next.head });
    overview.reveal(state);
  } else if (event.key === "s") act({ kind: "dim" });
  else if (event.key === "t") act({ kind: "table" });
  else return;
  event.preventDefault();
}

/** @param {KeyboardEvent} event @param {number} text */
function onToken(event, text) {
  if (!plain(event)) return;
  const query = state.queries[text];
  const last = data.texts[text].pieces.length - 1;
  /** @type {Record<string, [number, number]>} */
  const moves = {
    ArrowUp: [text, query - 1],
    ArrowDown: [text, query + 1],
    Home: [text, 0],
    End: [text, last],
    PageUp: [text, query - 10],
    PageDown: [text, query + 10],
    ArrowLeft: [Math.max(0, text - 1), -1],
    ArrowRight: [Math.min(panels.length - 1, text + 1), -1],
  };
  const move = moves[event.key];
  if (move === undefined) return onEither(event);
  event.preventDefault();
  const [there, place] = move;
  const sideways = event.key === "ArrowLeft" || event.key === "ArrowRight";
  act({ kind: "token", text: there, query: sideways ? state.queries[there] : Math.max(0, place) });
  panels[there].options[state.queries[there]].focus({ preventScroll: true });
}

/** @param {KeyboardEvent} event */
function onHead(event) {
  if (event.altKey || event.metaKey) return;
  const { layer, head } = state;
  /** @type {Record<string, [number, number]>} */
  const moves = {
    ArrowUp: [layer - 1, head],
    ArrowDown: [layer + 1, head],
    ArrowLeft: [layer, head - 1],
    ArrowRight: [layer, head + 1],
    Home: [event.ctrlKey ? 0 : layer, 0],
    End: [event.ctrlKey ? data.layers - 1 : layer, data.heads - 1],
    PageUp: [0, head],
    PageDown: [data.layers - 1, head],
  };
  const move = moves[event.key];
  if (move === undefined) return plain(event) ? onEither(event) : undefined;
  event.preventDefault();
  act({ kind: "head", layer: move[0], head: move[1] });
  overview.reveal(state);
}
