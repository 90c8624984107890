// Drawing: weights as descriptions of lines, pictures as pixels, the map of heads on a given context. No page, no state.
import { corner, curve, labelEvery } from "./layout.js";

/**
 * @typedef {import("./data.js").Look} Look
 * @typedef {import("./layout.js").Grid} Grid
 * @typedef {{path: string, width: number, opacity: number, kind: "strongest" | "plain" | "aside", key: number}} Line
 * @typedef {{ink: string, paper: string, text: string, mark: string, frame: string}} Colours
 * @typedef {readonly [number, number, number]} Rgb
 */

const LEAST = 0.005; // what two digits would write as 0.00 has no line

/**
 * The lines of one query: as dark and as wide as their weights, those to set-aside keys thin and broken. The strongest is last,
 * above the others.
 * @param {readonly Look[]} weights @param {number} query @param {readonly boolean[]} aside @param {number} strongest
 * @returns {Line[]}
 */
export function lines(weights, query, aside, strongest) {
  return weights
    .filter(({ weight }) => weight >= LEAST)
    .map(({ key, weight }) => {
      const kind = /** @type {Line["kind"]} */ (aside[key] ? "aside" : key === strongest ? "strongest" : "plain");
      return {
        path: curve(query, key),
        width: kind === "aside" ? 1 + weight : round(1 + 7 * weight),
        opacity: kind === "aside" ? 0.6 : round(0.18 + 0.82 * weight),
        kind,
        key,
      };
    })
    .sort((a, b) => ORDER[a.kind] - ORDER[b.kind] || a.opacity - b.opacity);
}

const ORDER = { aside: 0, plain: 1, strongest: 2 };

/** @param {number} value */
const round = (value) => Math.round(value * 100) / 100;

/**
 * Which columns of a picture hold a token that is set aside.
 * @param {readonly boolean[]} aside @param {number} columns
 */
export function asideColumns(aside, columns) {
  const found = new Array(columns).fill(false);
  for (let column = 0; column < columns; column++) {
    const start = Math.floor((column * aside.length) / columns);
    const stop = Math.floor(((column + 1) * aside.length) / columns);
    found[column] = aside.slice(start, stop).some(Boolean);
  }
  return found;
}

/**
 * The pixels of one head: ink as dark as given, columns that are set aside at a third of it.
 * @param {Uint8Array} picture @param {number} offset @param {readonly boolean[]} pale one per column, no column where none is
 * @param {number} rows @param {number} columns @param {Rgb} ink
 * @param {Uint8ClampedArray} pixels
 */
export function shade(picture, offset, pale, rows, columns, ink, pixels) {
  for (let i = 0, at = 0; i < rows * columns; i++, at += 4) {
    const dark = picture[offset + i];
    pixels[at] = ink[0];
    pixels[at + 1] = ink[1];
    pixels[at + 2] = ink[2];
    pixels[at + 3] = pale[i % columns] ? dark * 0.3 : dark;
  }
}

/**
 * The frame of the map: the paper of every picture, and the numbers of layers and heads.
 * @param {CanvasRenderingContext2D} context @param {Grid} map @param {Colours} colours @param {string} font
 */
export function drawFrame(context, map, colours, font) {
  context.font = font;
  context.fillStyle = colours.text;
  context.textBaseline = "middle";
  context.textAlign = "center";
  const every = labelEvery(map.pitch);
  for (let head = 0; head < map.heads; head += every) {
    context.fillText(String(head), corner(map, 0, head).x + map.side / 2, map.top / 2 - 1);
  }
  context.textAlign = "right";
  for (let layer = 0; layer < map.layers; layer += every) {
    context.fillText(String(layer), map.left - 6, corner(map, layer, 0).y + map.side / 2 + 0.5);
  }
  context.fillStyle = colours.paper;
  for (let layer = 0; layer < map.layers; layer++) {
    for (let head = 0; head < map.heads; head++) {
      const { x, y } = corner(map, layer, head);
      context.fillRect(x, y, map.side, map.side);
    }
  }
}

/**
 * The marks on the map: a frame with a filled corner for each head with a strong look, a heavy frame for the head that is shown.
 * @param {CanvasRenderingContext2D} context @param {Grid} map @param {readonly {layer: number, head: number}[]} marked
 * @param {{layer: number, head: number}} chosen @param {Colours} colours
 */
export function drawMarks(context, map, marked, chosen, colours) {
  const size = Math.max(5, map.side * 0.3);
  context.clearRect(0, 0, map.width, map.height);
  context.fillStyle = context.strokeStyle = colours.mark;
  context.lineWidth = 1.5;
  for (const { layer, head } of marked) {
    const { x, y } = corner(map, layer, head);
    context.strokeRect(x + 0.25, y + 0.25, map.side - 0.5, map.side - 0.5);
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x + size, y);
    context.lineTo(x, y + size);
    context.fill();
  }
  const { x, y } = corner(map, chosen.layer, chosen.head);
  context.strokeStyle = colours.frame;
  context.lineWidth = 2.5;
  context.strokeRect(x - 1.25, y - 1.25, map.side + 2.5, map.side + 2.5);
}
