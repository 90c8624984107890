import assert from "node:assert/strict";
import { test } from "node:test";
import { decode, look, row, rowMass } from "../../src/regard/view/static/data.js";
import { base64, first, raw, sixteen, small, text } from "./small.js";

test("weights come back to four digits, strongest first", () => {
  const data = small([text(["a", "b", "c"], [[[1, 0, 0], [0.25, 0.75, 0], [0.1234, 0.6768, 0.1998]]])], 1);
  const found = row(data, data.texts[0], 0, 0, 2);
  assert.deepEqual(found.map(({ key }) => key), [1, 2, 0]);
  assert.deepEqual(found.map(({ weight }) => weight.toFixed(4)), ["0.6768", "0.1998", "0.1234"]);
});

test("the strongest look is beyond the token itself and, where dimmed, beyond separators and the first token", () => {
  const data = small([text(["a", "b", "c", "d"], [[[1, 0, 0, 0], [0, 1, 0, 0], [0.4, 0, 0.2, 0.4], [0.5, 0.1, 0.15, 0.25]]], [2])], 1);
  const [only] = data.texts;
  assert.deepEqual(only.aside, [true, false, true, false]);
  const key = (...rest) => look(data, only, 0, 0, ...rest)?.key ?? null;
  assert.equal(key(3, false), 0);
  assert.equal(key(3, true), 1);
  assert.equal(key(3, true, 2), null); // its neighbours left out as well
  assert.equal(key(2, true), 3);
  assert.equal(key(1, true), null);
});

test("long texts keep the strongest keys; where a query sees fewer, the rest stands for nothing", () => {
  for (const [bytes, indices] of [[1, Uint8Array.of(2, 255, 1, 0, 0, 2)], [2, Uint16Array.of(2, 65535, 1, 0, 0, 2)]]) {
    const kept = { ...text(["a", "b", "c"], [[]]), kept: 2, weights: sixteen([0.9, 0, 0.6, 0.4, 0.7, 0.2]), indices: base64(indices), bytes };
    const data = decode(raw([kept], 1));
    const [only] = data.texts;
    assert.deepEqual(row(data, only, 0, 0, 0).map(({ key }) => key), [2]);
    assert.deepEqual(row(data, only, 0, 0, 2).map(({ key }) => key), [0, 2]);
    assert.equal(look(data, only, 0, 0, 1, false)?.key, 0);
    assert.equal(look(data, only, 0, 0, 2, true), null);
  }
});

test("masses of a query and means of a head", () => {
  const data = small([first], 2);
  assert.equal(rowMass(data, data.texts[0], "special", 0, 1, 3).toFixed(2), "0.25");
  assert.equal(rowMass(data, data.texts[0], "self", 0, 0, 2).toFixed(2), "0.50");
  assert.deepEqual([...data.texts[0].means.entropy], [0.5, 1.5]);
});
