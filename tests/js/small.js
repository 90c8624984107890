// A record small enough to be known by heart, as the page receives it.
import { decode } from "../../src/regard/view/static/data.js";

export const base64 = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("base64");
export const sixteen = (numbers) => base64(Uint16Array.from(numbers, (number) => Math.round(number * 65535)));

/** One text of one layer; heads are dense matrices, rows of weights by key. */
export function text(pieces, heads, special = []) {
  const n = pieces.length;
  const rows = heads.flat();
  return {
    text: pieces.join(" "),
    pieces,
    spans: pieces.map((piece, i) => {
      const start = pieces.slice(0, i).join(" ").length + (i > 0 ? 1 : 0);
      return [start, start + piece.length];
    }),
    special: pieces.map((_, i) => (special.includes(i) ? 1 : 0)),
    kept: n,
    weights: sixteen(rows.flat()),
    indices: null,
    bytes: 1,
    bins: [n, n],
    pictures: base64(Uint8Array.from(rows.flat(), (weight) => Math.round(255 * weight))),
    rows: { special: sixteen(rows.map(() => 0.25)), self: sixteen(rows.map((row, i) => row[i % n])) },
    means: { entropy: base64(Float32Array.from(heads, (_, i) => i + 0.5)) },
  };
}

export function raw(texts, heads, wanted = null) {
  const kinds = [{ kind: "self", mask: "full", scale: 0.5, kv_heads: heads }];
  return { model: "small", revision: null, versions: {}, layers: 1, heads, kinds, texts, wanted };
}

export const small = (texts, heads, wanted = null) => decode(raw(texts, heads, wanted));

// [CLS] a dog ran: "ran" looks at "dog" in head 1 of the first text, less so in the second; in head 0 at its neighbour only.
const rest = [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.5, 0]];
export const first = text(["[CLS]", "a", "dog", "ran"], [[...rest, [0.1, 0, 0.9, 0]], [...rest, [0.2, 0.7, 0.1, 0]]], [0]);
export const second = text(["[CLS]", "a", "dog", "ran"], [[...rest, [0.1, 0, 0.9, 0]], [...rest, [0.5, 0.3, 0.1, 0.1]]], [0]);
