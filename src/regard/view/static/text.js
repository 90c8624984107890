// Text from elsewhere as a person can see it: nothing in it is obeyed, and nothing in it is invisible.

// Joiners (U+200C, U+200D) shape the letters and emoji beside them, so they stay where something visible is.
const OBEYED = /[\p{Cc}\p{Cs}\p{Co}\p{Cn}\u2028\u2029]|(?![\u200c\u200d])\p{Cf}/gu;
const EMPTY_TO_THE_EYE = /^[\p{C}\p{Z}\p{M}]*$/u;

/** @param {string} character */
const codePoint = (character) =>
  `U+${/** @type {number} */ (character.codePointAt(0)).toString(16).toUpperCase().padStart(4, "0")}`;

/**
 * The characters that would reorder, hide or break what stands around them, by their numbers.
 * @param {string} text
 */
export function visible(text) {
  return EMPTY_TO_THE_EYE.test(text)
    ? Array.from(text, codePoint).slice(0, 8).join(" ")
    : text.replace(OBEYED, (character) => `⟨${codePoint(character)}⟩`);
}

/**
 * The beginning of a text, cut between characters.
 * @param {string} text @param {number} most
 */
export function short(text, most) {
  if (text.length <= most) return text;
  const characters = Array.from(text.slice(0, 2 * most + 2));
  return characters.length <= most ? text : characters.slice(0, most).join("") + "…";
}

/**
 * What a token is called where it stands: #n marks token n where the same one stands more than once.
 * @param {readonly string[]} pieces
 */
export function names(pieces) {
  /** @type {Map<string, number>} */
  const count = new Map();
  const key = (/** @type {string} */ piece) => piece.toLowerCase();
  for (const piece of pieces) count.set(key(piece), (count.get(key(piece)) ?? 0) + 1);
  return pieces.map((piece, place) => short(visible(piece), 40) + ((count.get(key(piece)) ?? 0) > 1 ? ` #${place}` : ""));
}

/**
 * The place in another text of the same token: the same piece, as often seen before; -1 if there is none.
 * @param {readonly string[]} pieces @param {number} place @param {readonly string[]} others
 */
export function counterpart(pieces, place, others) {
  const piece = pieces[place];
  let before = 0;
  for (let i = 0; i < place; i++) if (pieces[i] === piece) before++;
  for (let i = 0; i < others.length; i++) if (others[i] === piece && before-- === 0) return i;
  return -1;
}

/**
 * What stands around a part of a text, as [before, part, after]; offsets count code points.
 * @param {readonly string[]} characters @param {readonly [number, number]} span @param {number} most
 * @returns {[string, string, string]}
 */
export function excerpt(characters, [start, end], most) {
  const left = characters.length <= most ? 0 : Math.max(0, Math.min(start - (most >> 1), characters.length - most));
  const right = Math.min(characters.length, Math.max(Math.min(end, start + most), left + most));
  const part = (/** @type {number} */ a, /** @type {number} */ b) => visibleIn(characters.slice(a, b).join(""));
  return [
    (left > 0 ? "…" : "") + part(left, start),
    part(start, Math.min(end, right)),
    part(Math.min(end, right), right) + (right < characters.length ? "…" : ""),
  ];
}

/** @param {string} text */
const visibleIn = (text) => (EMPTY_TO_THE_EYE.test(text) && /^\s*$/.test(text) ? text : visible(text.replace(/\s/g, " ")));

/** @param {number} weight */
export const two = (weight) => weight.toFixed(2);
