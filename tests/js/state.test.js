import assert from "node:assert/strict";
import { test } from "node:test";
import { shown, start, step, strongest } from "../../src/regard/view/static/state.js";
import { first, second, small, text } from "./small.js";

test("two texts open where the same key has the most different weights", () => {
  const found = start(small([first, second], 2));
  assert.deepEqual([found.layer, found.head, found.queries, found.why], [0, 1, [3, 3], "differs"]);
});

test("one text opens at the strongest look beyond neighbours", () => {
  const found = start(small([first], 2));
  assert.deepEqual([found.head, found.queries, found.why], [1, [3], "strongest"]);
});

test("the token that was asked for is the one, wherever it stands", () => {
  assert.deepEqual(start(small([first, second], 2, [[3], [3]])).queries, [3, 3]);
  assert.deepEqual(start(small([first, second], 2, [[2], [2]])).queries, [2, 2]);
  const other = text(["[CLS]", "x"], [[[1, 0], [1, 0]], [[1, 0], [1, 0]]], [0]);
  const found = start(small([other, first], 2, [[], [3]]));
  assert.deepEqual([found.queries, found.active], [[0, 3], 1]);
  const several = start(small([first], 2, [[1, 3]]));
  assert.deepEqual(several.queries, [3]);
});

test("a text in which nothing is to be seen opens at its beginning", () => {
  const found = start(small([text(["one"], [[[1]]])], 1));
  assert.deepEqual([found.queries, found.layer, found.head, found.why], [[0], 0, 0, "first"]);
  assert.equal(start(small([text(["[CLS]"], [[[1]]], [0])], 1)).why, "first");
});

test("a token that is chosen is chosen in every text that has it", () => {
  const other = text(["ran", "x"], [[[1, 0], [0, 1]], [[1, 0], [0, 1]]]);
  const data = small([first, other], 2);
  let state = start(data);
  state = step(data, state, { kind: "token", text: 0, query: 3 });
  assert.deepEqual(state.queries, [3, 0]);
  state = step(data, state, { kind: "token", text: 1, query: 1 });
  assert.deepEqual([state.queries, state.active], [[3, 1], 1]);
  assert.deepEqual(step(data, state, { kind: "token", text: 1, query: 99 }).queries, [3, 1]);
});

test("heads end where the model ends", () => {
  const data = small([first], 2);
  const far = step(data, start(data), { kind: "head", layer: 7, head: -1 });
  assert.deepEqual([far.layer, far.head], [0, 0]);
});

test("hovering shows and does not choose", () => {
  const data = small([first, second], 2);
  const state = start(data);
  const token = step(data, state, { kind: "hover", at: { text: 0, query: 1 } });
  assert.deepEqual(shown(data, token).queries, [1, 1]);
  assert.deepEqual(token.queries, state.queries);
  const key = shown(data, step(data, state, { kind: "hover", at: { text: 1, key: 2 } }));
  assert.deepEqual(key.keys, [2, 2]);
  const head = shown(data, step(data, state, { kind: "hover", at: { layer: 0, head: 0 } }));
  assert.deepEqual([head.head, head.keys], [0, [-1, -1]]);
  assert.equal(shown(data, step(data, token, { kind: "hover", at: null })).head, state.head);
});

test("the strongest heads are those of any text, and the switch changes what counts", () => {
  const data = small([first, second], 2);
  assert.deepEqual(strongest(data, [3, 3], true).map(({ head, key }) => [head, key]), [[0, 2]]);
  const [{ key, weight }] = strongest(data, [2, 2], false);
  assert.deepEqual([key, weight.toFixed(2)], [0, "0.25"]);
  const state = start(data);
  assert.equal(step(data, state, { kind: "dim" }).dimmed, false);
  assert.equal(step(data, state, { kind: "table" }).table, true);
});
