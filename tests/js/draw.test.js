import assert from "node:assert/strict";
import { test } from "node:test";
import { asideColumns, drawFrame, drawMarks, lines, shade } from "../../src/regard/view/static/draw.js";
import { corner, curve, grid, headAt, needsWidth } from "../../src/regard/view/static/layout.js";

test("a line runs from the middle of its query to the middle of its key", () => {
  assert.equal(curve(0, 2), "M0 13C45 13 55 65 100 65");
});

test("lines are as dark and wide as their weights, the strongest on top, the set aside broken", () => {
  const weights = [{ key: 2, weight: 0.5 }, { key: 0, weight: 0.3 }, { key: 1, weight: 0.196 }, { key: 3, weight: 0.004 }];
  assert.deepEqual(lines(weights, 1, [true, false, false, false], 2), [
    { path: curve(1, 0), width: 1.3, opacity: 0.6, kind: "aside", key: 0 },
    { path: curve(1, 1), width: 2.37, opacity: 0.34, kind: "plain", key: 1 },
    { path: curve(1, 2), width: 4.5, opacity: 0.59, kind: "strongest", key: 2 },
  ]);
});

test("every point of a picture belongs to its head, and no other does", () => {
  for (const [layers, heads, room] of [[6, 12, 465], [48, 64, 1224], [48, 64, 350], [1, 1, 300], [32, 32, 1224]]) {
    const map = grid(layers, heads, room);
    for (let layer = 0; layer < layers; layer++) {
      for (let head = 0; head < heads; head++) {
        const { x, y } = corner(map, layer, head);
        assert.deepEqual(headAt(map, x + map.side / 2, y + map.side / 2), { layer, head });
      }
    }
    assert.equal(headAt(map, map.left - 1, map.top + 1), null);
    assert.equal(headAt(map, map.width + 1, map.top + 1), null);
    assert.equal(headAt(map, map.left + 1, map.height + 1), null);
  }
});

test("the map fits into its room unless pictures would be too small to be met", () => {
  assert.ok(grid(6, 12, 465).width <= 465);
  assert.ok(grid(6, 12, 350).width <= 350);
  assert.equal(grid(48, 64, 350).pitch, 15);
  assert.equal(grid(2, 2, 1200).pitch, 37);
  assert.deepEqual([12, 20, 32].map(needsWidth), [false, false, true]);
});

test("columns that hold a separator or the first token", () => {
  assert.deepEqual(asideColumns([true, false, false, true], 4), [true, false, false, true]);
  assert.deepEqual(asideColumns([true, false, false, false, false, false], 3), [true, false, false]);
  assert.deepEqual(asideColumns([true, false, false, false, true], 2), [true, true]); // bins of 2 and 3
});

test("pixels are ink as dark as given, and pale where set aside", () => {
  const pixels = new Uint8ClampedArray(8);
  shade(Uint8Array.of(9, 9, 200, 100), 2, [true, false], 1, 2, [1, 2, 3], pixels);
  assert.deepEqual([...pixels], [1, 2, 3, 60, 1, 2, 3, 100]);
});

/** A context that writes down what is asked of it. */
function recorder() {
  const calls = [];
  const target = {};
  const context = new Proxy(target, {
    get: (_, name) => (...values) => calls.push([name, ...values]),
    set: (_, name, value) => (calls.push([name, value]), true),
  });
  return { calls, context };
}
const colours = { ink: "ink", paper: "paper", text: "text", mark: "mark", frame: "frame" };

test("the frame has a number per layer and head and paper for every picture", () => {
  const { calls, context } = recorder();
  drawFrame(context, grid(2, 3, 200), colours, "11px x");
  assert.deepEqual(calls.filter(([name]) => name === "fillText").map(([, text]) => text), ["0", "1", "2", "0", "1"]);
  assert.equal(calls.filter(([name]) => name === "fillRect").length, 6);
});

test("marks are frames with a filled corner; the head that is shown has a heavy frame", () => {
  const { calls, context } = recorder();
  const map = grid(2, 3, 200);
  drawMarks(context, map, [{ layer: 1, head: 2 }], { layer: 0, head: 0 }, colours);
  assert.deepEqual(calls, [
    ["clearRect", 0, 0, 129, 92],
    ["strokeStyle", "mark"],
    ["fillStyle", "mark"],
    ["lineWidth", 1.5],
    ["strokeRect", 92.25, 55.25, 33.5, 33.5],
    ["beginPath"],
    ["moveTo", 92, 55],
    ["lineTo", 102.2, 55],
    ["lineTo", 92, 65.2],
    ["fill"],
    ["strokeStyle", "frame"],
    ["lineWidth", 2.5],
    ["strokeRect", 16.75, 16.75, 36.5, 36.5],
  ]);
});
