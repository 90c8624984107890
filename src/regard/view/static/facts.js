// Numbers as tables: the means of the head, the keys of the chosen tokens, the heads with the strongest looks.
import { row } from "./data.js";
import { foreign, make } from "./dom.js";
import { two } from "./text.js";

/**
 * @typedef {import("./data.js").Data} Data
 * @typedef {import("./state.js").State} State
 */

/** @type {readonly (readonly [name: string, label: string, unit: string])[]} */
const MEANS = [
  ["entropy", "entropy", "nats"],
  ["distance", "distance", "tokens"],
  ["maximum", "strongest key", ""],
  ["self", "itself", ""],
  ["previous", "previous token", ""],
  ["next", "next token", ""],
  ["first", "first token", ""],
  ["special", "separators", ""],
];

/** @param {Data} data @param {number} index */
const titled = (data, index) => (data.texts.length > 1 ? `text ${index + 1}` : "text");

/**
 * @param {Data} data @param {number} layer @param {number} head
 */
export function headFacts(data, layer, head) {
  const { kind, mask, scale, kv_heads } = data.kinds[layer];
  const rows = MEANS.map(([name, label, unit]) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, label, ...(unit ? [make("span", { class: "unit" }, ` ${unit}`)] : [])),
      ...data.texts.map((text) => make("td", {}, two(text.means[name][layer * data.heads + head]))),
    ),
  );
  const shared = kv_heads === data.heads ? "" : `, key head ${Math.floor((head * kv_heads) / data.heads)} of ${kv_heads}`;
  return make(
    "table",
    { class: "facts" },
    make("caption", {}, make("b", {}, `Layer ${layer} head ${head}`), ", mean over all tokens"),
    make("thead", {}, make("tr", {}, make("td", {}), ...data.texts.map((_, i) => make("th", { scope: "col" }, titled(data, i))))),
    make("tbody", {}, ...rows),
    make("tfoot", {}, make("tr", {}, make("td", { colspan: String(data.texts.length + 1) }, `${kind}-attention, mask ${mask}, scale ${+scale.toPrecision(4)}${shared}`))),
  );
}

/**
 * @param {Data} data @param {State} state
 * @param {readonly {layer: number, head: number, weight: number, text: number, key: number}[]} marked
 */
export function tables(data, state, marked) {
  const { layer, head, queries } = state;
  const keys = data.texts.map((text, i) =>
    table(
      ["Where ", foreign(text.names[queries[i]]), ` looks in layer ${layer} head ${head}, ${titled(data, i)}`],
      ["token", "key", "weight", "remark"],
      row(data, text, layer, head, queries[i]).map(({ key, weight }) => [
        String(key),
        foreign(text.names[key]),
        weight.toFixed(3),
        [text.special[key] ? "separator" : "", key === 0 ? "first token" : "", key === queries[i] ? "itself" : ""].filter(Boolean).join(", "),
      ]),
    ),
  );
  const heads = table(
    ["The heads with the strongest looks of the chosen tokens"],
    ["layer", "head", "from", "to", "weight", ...(data.texts.length > 1 ? ["text"] : [])],
    marked.map((found) => [
      String(found.layer),
      String(found.head),
      foreign(data.texts[found.text].names[queries[found.text]]),
      foreign(data.texts[found.text].names[found.key]),
      found.weight.toFixed(3),
      ...(data.texts.length > 1 ? [String(found.text + 1)] : []),
    ]),
  );
  return [...keys, heads];
}

/**
 * @param {(Node | string)[]} caption @param {string[]} columns @param {(Node | string)[][]} rows
 */
function table(caption, columns, rows) {
  return make(
    "div",
    { class: "table", tabindex: "0", role: "group", "aria-label": "Table, scrolls" },
    make(
      "table",
      {},
      make("caption", {}, ...caption),
      make("thead", {}, make("tr", {}, ...columns.map((name) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, ...rows.map((cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, cell))))),
    ),
  );
}
