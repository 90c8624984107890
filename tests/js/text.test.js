import assert from "node:assert/strict";
import { test } from "node:test";
import { counterpart, excerpt, names, short, two, visible } from "../../src/regard/view/static/text.js";

test("what a browser would obey or hide is written as its number", () => {
  assert.equal(visible("\u202eabc"), "⟨U+202E⟩abc");
  assert.equal(visible("a\u2066b\u2069"), "a⟨U+2066⟩b⟨U+2069⟩");
  assert.equal(visible("a\tb\u0000"), "a⟨U+0009⟩b⟨U+0000⟩");
  assert.equal(visible("a\u2028b"), "a⟨U+2028⟩b");
  assert.equal(visible("\ud800"), "U+D800");
});

test("a token that the eye would not find is written as its number", () => {
  assert.equal(visible("\u200b"), "U+200B");
  assert.equal(visible(" "), "U+0020");
  assert.equal(visible("\u0301"), "U+0301");
  assert.equal(visible("\u200d"), "U+200D");
});

test("letters, marks, joiners and markup stay as they are", () => {
  for (const text of ["<img src=x onerror=alert(1)>", "</script>", "é", "e\u0301", "👩\u200d👩\u200d👧", "می\u200cخواهم", "שלום", "漢"]) {
    assert.equal(visible(text), text);
  }
});

test("a long text is cut between characters", () => {
  assert.equal(short("abcdef", 6), "abcdef");
  assert.equal(short("abcdefg", 6), "abcdef…");
  assert.equal(short("😀".repeat(10), 3), "😀😀😀…");
  assert.equal(short("😀".repeat(3), 4), "😀😀😀");
});

test("a token that stands twice is called by its place", () => {
  assert.deepEqual(names(["The", "dog", "the"]), ["The #0", "dog", "the #2"]);
});

test("the same token elsewhere is the one that was as often there before", () => {
  assert.equal(counterpart(["it", "is", "it"], 2, ["is", "it", "or", "it"]), 3);
  assert.equal(counterpart(["it", "is", "it"], 2, ["is", "it"]), -1);
  assert.equal(counterpart(["it"], 0, []), -1);
});

test("an excerpt has the token in it, whatever it costs the rest", () => {
  const characters = Array.from("0123456789".repeat(10));
  assert.deepEqual(excerpt(Array.from("a dog ran"), [2, 5], 20), ["a ", "dog", " ran"]);
  const [before, part, after] = excerpt(characters, [50, 52], 20);
  assert.equal(part, "01");
  assert.equal(before, "…0123456789");
  assert.equal(after, "23456789…");
  assert.deepEqual(excerpt(characters, [0, 100], 20), ["", "01234567890123456789", "…"]);
  assert.deepEqual(excerpt(Array.from("ab"), [0, 0], 20), ["", "", "ab"]);
  assert.deepEqual(excerpt(Array.from("a\u202eb\nc"), [4, 5], 20), ["a⟨U+202E⟩b ", "c", ""]);
});

test("weights have two digits", () => {
  assert.equal(two(0.6768), "0.68");
  assert.equal(two(0), "0.00");
});
