// What the page was given: numbers as base64, read into typed arrays once.

/**
 * @typedef {object} RawText
 * @property {string} text
 * @property {string[]} pieces
 * @property {[number, number][]} spans
 * @property {(0 | 1)[]} special
 * @property {number} kept how many keys of each query are here; all of them where indices is null
 * @property {string} weights
 * @property {string | null} indices
 * @property {1 | 2} bytes of one index
 * @property {[number, number]} bins
 * @property {string} pictures
 * @property {Record<string, string>} rows masses per layer, head and query
 * @property {Record<string, string>} means per layer and head
 *
 * @typedef {object} Raw
 * @property {string} model
 * @property {string | null} revision
 * @property {Record<string, string>} versions
 * @property {number} layers
 * @property {number} heads
 * @property {{kind: string, mask: string, scale: number, kv_heads: number}[]} kinds
 * @property {RawText[]} texts
 * @property {number[][] | null} wanted the places of the token that was asked for, in each text
 *
 * @typedef {object} Text
 * @property {string[]} characters
 * @property {string[]} pieces
 * @property {string[]} names
 * @property {[number, number][]} spans
 * @property {boolean[]} special
 * @property {boolean[]} aside separators and the first token
 * @property {number} kept
 * @property {Uint16Array} weights (layers, heads, queries, kept)
 * @property {Uint8Array | Uint16Array | null} indices of the keys, where not all are kept
 * @property {[number, number]} bins
 * @property {Uint8Array} pictures (layers, heads, ...bins), as dark as they are drawn
 * @property {Record<string, Uint16Array>} rows
 * @property {Record<string, Float32Array>} means
 *
 * @typedef {Omit<Raw, "texts"> & {texts: Text[]}} Data
 * @typedef {{key: number, weight: number}} Look
 */
import { names } from "./text.js";

const FULL = 65535; // stands for 1

/** @param {string} text */
export function bytes(text) {
  const binary = atob(text);
  const found = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) found[i] = binary.charCodeAt(i);
  return found;
}

/** What stands for no key, where a query sees fewer than are kept. @param {Text} text */
const noKey = (text) => (text.indices instanceof Uint8Array ? 255 : 65535);

/** @param {string} text */
const words = (text) => new Uint16Array(bytes(text).buffer);

/**
 * @param {Raw} raw
 * @returns {Data}
 */
export function decode(raw) {
  return { ...raw, texts: raw.texts.map(decodeText) };
}

/**
 * @param {RawText} raw
 * @returns {Text}
 */
function decodeText(raw) {
  const special = raw.special.map(Boolean);
  return {
    characters: Array.from(raw.text),
    pieces: raw.pieces,
    names: names(raw.pieces),
    spans: raw.spans,
    special,
    aside: special.map((is, place) => is || place === 0),
    kept: raw.kept,
    weights: words(raw.weights),
    indices: raw.indices === null ? null : raw.bytes === 1 ? bytes(raw.indices) : words(raw.indices),
    bins: raw.bins,
    pictures: bytes(raw.pictures),
    rows: Object.fromEntries(Object.entries(raw.rows).map(([name, numbers]) => [name, words(numbers)])),
    means: Object.fromEntries(
      Object.entries(raw.means).map(([name, numbers]) => [name, new Float32Array(bytes(numbers).buffer)]),
    ),
  };
}

/**
 * The weights of one query in one head, as far as they are kept: strongest first.
 * @param {Data} data @param {Text} text @param {number} layer @param {number} head @param {number} query
 * @returns {Look[]}
 */
export function row(data, text, layer, head, query) {
  const found = [];
  const start = ((layer * data.heads + head) * text.pieces.length + query) * text.kept;
  const none = noKey(text);
  for (let i = 0; i < text.kept; i++) {
    const key = text.indices === null ? i : text.indices[start + i];
    if (text.indices !== null && key === none) continue;
    found.push({ key, weight: text.weights[start + i] / FULL });
  }
  return found.sort((a, b) => b.weight - a.weight || a.key - b.key);
}

/**
 * The strongest weight of one query beyond itself and, where dimmed, beyond separators and the first token.
 * near leaves out that many neighbours on either side as well.
 * @param {Data} data @param {Text} text @param {number} layer @param {number} head @param {number} query
 * @param {boolean} dimmed @param {number} [near]
 * @returns {Look | null}
 */
export function look(data, text, layer, head, query, dimmed, near = 0) {
  const start = ((layer * data.heads + head) * text.pieces.length + query) * text.kept;
  const none = noKey(text);
  let best = 0;
  let found = -1;
  for (let i = 0; i < text.kept; i++) {
    const number = text.weights[start + i];
    if (number <= best) continue;
    const key = text.indices === null ? i : text.indices[start + i];
    if ((text.indices !== null && key === none) || Math.abs(key - query) <= near || (dimmed && text.aside[key])) continue;
    best = number;
    found = key;
  }
  return found < 0 ? null : { key: found, weight: best / FULL };
}

/**
 * A mass that was read out for one query.
 * @param {Data} data @param {Text} text @param {string} name @param {number} layer @param {number} head @param {number} query
 */
export const rowMass = (data, text, name, layer, head, query) =>
  text.rows[name][(layer * data.heads + head) * text.pieces.length + query] / FULL;
