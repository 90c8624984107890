// Geometry: where lines run and where the pictures of heads stand. Lengths are CSS pixels.

export const ROW = 26; // the height of a token
const GAP = 3; // between two pictures
const LABELS = 18; // the numbers of layers and heads beside the map
const LARGEST = 34;
const SMALLEST = 15;
const TALLEST = 680;
const ROOMY = 20; // heads that fit beside the texts; more get the whole width

/** @param {number} heads */
export const needsWidth = (heads) => heads > ROOMY;

/**
 * A line from a query to a key in a box 100 wide, level at both ends.
 * @param {number} query @param {number} key
 */
export function curve(query, key) {
  const from = (query + 0.5) * ROW;
  const to = (key + 0.5) * ROW;
  return `M0 ${from}C45 ${from} 55 ${to} 100 ${to}`;
}

/**
 * @typedef {{layers: number, heads: number, pitch: number, side: number, left: number, top: number, width: number, height: number}} Grid
 */

/**
 * The map of all heads in the room that there is: layers run down, heads across. Where the room is too small it will scroll.
 * @param {number} layers @param {number} heads @param {number} room
 * @returns {Grid}
 */
export function grid(layers, heads, room) {
  const fits = Math.min(LARGEST + GAP, Math.floor((room - LABELS) / heads), Math.max(24, Math.floor(TALLEST / layers)));
  const pitch = Math.max(SMALLEST, fits);
  return {
    layers,
    heads,
    pitch,
    side: pitch - (pitch > 20 ? GAP : 2),
    left: LABELS,
    top: LABELS,
    width: LABELS + heads * pitch,
    height: LABELS + layers * pitch,
  };
}

/**
 * @param {Grid} map @param {number} layer @param {number} head
 */
export const corner = (map, layer, head) => ({ x: map.left + head * map.pitch, y: map.top + layer * map.pitch });

/**
 * The head at a point of the map, if there is one.
 * @param {Grid} map @param {number} x @param {number} y
 */
export function headAt(map, x, y) {
  const layer = Math.floor((y - map.top) / map.pitch);
  const head = Math.floor((x - map.left) / map.pitch);
  return layer < 0 || head < 0 || layer >= map.layers || head >= map.heads ? null : { layer, head };
}

/**
 * Which of so many numbers get a label so that labels do not touch.
 * @param {number} pitch
 */
export const labelEvery = (pitch) => (pitch >= 18 ? 1 : 2);
