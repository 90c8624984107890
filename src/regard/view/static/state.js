// What is chosen, and how choices change; nothing here touches the page.

/**
 * @typedef {import("./data.js").Data} Data
 * @typedef {import("./data.js").Look} Look
 *
 * @typedef {object} State
 * @property {number} active the text that was touched last
 * @property {number[]} queries the chosen token of each text
 * @property {number} layer
 * @property {number} head
 * @property {boolean} dimmed separators and the first token step back
 * @property {boolean} table
 * @property {{text: number, query: number} | {text: number, key: number} | {layer: number, head: number} | null} hover
 *
 * @typedef {{kind: "token", text: number, query: number} | {kind: "head", layer: number, head: number}
 *   | {kind: "hover", at: State["hover"]} | {kind: "dim"} | {kind: "table"}} Action
 */
import { look } from "./data.js";
import { counterpart } from "./text.js";

const MARKED = 8; // heads with the strongest look that are marked, or a quarter of a few

/**
 * @param {Data} data @param {State} state @param {Action} action
 * @returns {State}
 */
export function step(data, state, action) {
  switch (action.kind) {
    case "token":
      return { ...state, active: action.text, queries: linked(data, state, action.text, action.query), hover: null };
    case "head":
      return { ...state, layer: within(action.layer, data.layers), head: within(action.head, data.heads), hover: null };
    case "hover":
      return { ...state, hover: action.at };
    case "dim":
      return { ...state, dimmed: !state.dimmed };
    case "table":
      return { ...state, table: !state.table };
  }
}

/** @param {number} index @param {number} count */
const within = (index, count) => Math.max(0, Math.min(count - 1, index));

/**
 * The same token in every text that has it; the others keep theirs.
 * @param {Data} data @param {State} state @param {number} text @param {number} query
 */
function linked(data, state, text, query) {
  const { pieces } = data.texts[text];
  const chosen = within(query, pieces.length);
  return data.texts.map((other, i) => {
    const place = i === text ? chosen : counterpart(pieces, chosen, other.pieces);
    return place < 0 ? state.queries[i] : place;
  });
}

/**
 * What is shown: what is hovered over if anything is, else what is chosen. keys are those pointed at, -1 where none is.
 * @param {Data} data @param {State} state
 */
export function shown(data, state) {
  const { hover, queries, layer, head } = state;
  const keys = data.texts.map(() => -1);
  if (hover === null) return { queries, keys, layer, head };
  if ("layer" in hover) return { queries, keys, layer: hover.layer, head: hover.head };
  if ("query" in hover) return { queries: linked(data, state, hover.text, hover.query), keys, layer, head };
  const { pieces } = data.texts[hover.text];
  const pointed = data.texts.map((other, i) => (i === hover.text ? hover.key : counterpart(pieces, hover.key, other.pieces)));
  return { queries, keys: pointed, layer, head };
}

/**
 * The heads with the strongest look of the chosen tokens in any of the texts, strongest first.
 * @param {Data} data @param {readonly number[]} queries @param {boolean} dimmed
 */
export function strongest(data, queries, dimmed) {
  const most = Math.min(MARKED, Math.ceil((data.layers * data.heads) / 4));
  /** @type {{layer: number, head: number, weight: number, text: number, key: number}[]} */
  const found = [];
  for (let layer = 0; layer < data.layers; layer++) {
    for (let head = 0; head < data.heads; head++) {
      let best = null;
      for (const [i, text] of data.texts.entries()) {
        const here = look(data, text, layer, head, queries[i], dimmed);
        if (here !== null && (best === null || here.weight > best.weight)) best = { ...here, text: i };
      }
      if (best !== null) found.push({ layer, head, ...best });
    }
  }
  return found.sort((a, b) => b.weight - a.weight || a.layer - b.layer || a.head - b.head).slice(0, most);
}

/**
 * Where the page opens. With several texts: the head whose strongest look from the token has the same key in all of them and
 * differs most in weight. Otherwise the strongest look beyond separators, the first token and the token's neighbours.
 * @param {Data} data
 * @returns {State & {why: "differs" | "strongest" | "first"}}
 */
export function start(data) {
  const state = { active: 0, layer: 0, head: 0, dimmed: true, table: false, hover: null };
  const candidates = data.wanted === null ? shared(data) : asked(data.wanted);
  const compared = candidates.filter((queries) => queries.filter((query) => query >= 0).length > 1);
  const far = best(data, compared, difference);
  if (far.score > 0.005) return { ...state, ...filled(far), why: "differs" };
  const near = best(data, candidates, strength);
  const active = Math.max(0, near.queries.findIndex((query) => query >= 0));
  return { ...state, ...filled(near), active, why: near.score > 0 ? "strongest" : "first" };
}

/** @param {{queries: number[], layer: number, head: number}} found */
const filled = ({ queries, layer, head }) => ({ queries: queries.map((query) => Math.max(0, query)), layer, head });

/** @param {number[][]} places */
const asked = (places) =>
  Array.from({ length: Math.max(...places.map((here) => here.length)) }, (_, i) => places.map((here) => here[i] ?? -1));

/**
 * Every token that is not special, in every text that has it.
 * @param {Data} data
 */
function shared(data) {
  const found = data.texts.flatMap((text, t) =>
    text.pieces.flatMap((_piece, query) => {
      if (text.special[query]) return [];
      const queries = data.texts.map((other, i) => (i === t ? query : counterpart(text.pieces, query, other.pieces)));
      return queries.findIndex((place) => place >= 0) < t ? [] : [queries]; // found from an earlier text
    }),
  );
  return found.length ? found : [data.texts.map(() => 0)];
}

/**
 * @param {Data} data @param {number[][]} candidates
 * @param {(data: Data, queries: number[], layer: number, head: number) => number} score
 */
function best(data, candidates, score) {
  let found = { score: 0, queries: candidates[0] ?? data.texts.map(() => 0), layer: 0, head: 0 };
  for (const queries of candidates) {
    for (let layer = 0; layer < data.layers; layer++) {
      for (let head = 0; head < data.heads; head++) {
        const here = score(data, queries, layer, head);
        if (here > found.score) found = { score: here, queries, layer, head };
      }
    }
  }
  return found;
}

/** @type {(data: Data, queries: number[], layer: number, head: number) => number} */
function difference(data, queries, layer, head) {
  let low = Infinity;
  let high = 0;
  let piece = null;
  for (const [i, text] of data.texts.entries()) {
    if (queries[i] < 0) continue;
    const here = look(data, text, layer, head, queries[i], true);
    if (here === null || (piece !== null && text.pieces[here.key] !== piece)) return 0;
    piece = text.pieces[here.key];
    low = Math.min(low, here.weight);
    high = Math.max(high, here.weight);
  }
  return high - low;
}

/** @type {(data: Data, queries: number[], layer: number, head: number) => number} */
const strength = (data, queries, layer, head) =>
  Math.max(
    ...data.texts.map((text, i) => (queries[i] < 0 ? 0 : (look(data, text, layer, head, queries[i], true, 1)?.weight ?? 0))),
  );
