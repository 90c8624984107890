// One text: its sentence, its measured claim, and the sentence twice with lines from the chosen token.
import { look, row, rowMass } from "./data.js";
import { foreign, make, makeSvg } from "./dom.js";
import { lines } from "./draw.js";
import { ROW } from "./layout.js";
import { excerpt, short, two, visible } from "./text.js";

/**
 * @typedef {import("./data.js").Data} Data
 * @typedef {{query: number, key: number, layer: number, head: number, dimmed: boolean}} View
 * @typedef {{root: HTMLElement, options: HTMLElement[], update: (view: View, chosen: number) => void,
 *   reveal: (query: number) => void}} Panel
 */

const EXCERPT = 110; // characters of a text above its picture
const LONG = 40; // tokens; a longer text scrolls in its place

/**
 * @param {Data} data @param {number} index
 * @returns {Panel}
 */
export function makePanel(data, index) {
  const text = data.texts[index];
  const count = text.pieces.length;
  const title = data.texts.length > 1 ? `Text ${index + 1}` : "Text";
  const sentence = make("p", { class: "sentence", dir: "auto" });
  const claim = make("h2", { class: "claim" });
  const masses = make("p", { class: "masses" });
  const options = text.pieces.map((piece, place) =>
    make("li", { role: "option", "data-query": String(place), "aria-label": text.names[place], tabindex: "-1" }, token(piece)),
  );
  const list = make("ul", { class: "queries", role: "listbox", "aria-label": `Queries, ${title.toLowerCase()}` }, ...options);
  const svg = makeSvg("svg", { class: "lines", "aria-hidden": "true", viewBox: `0 0 100 ${count * ROW}`, preserveAspectRatio: "none" });
  svg.style.height = `${count * ROW}px`;
  const bars = text.pieces.map(() => make("span", { class: "bar" }));
  const values = text.pieces.map(() => make("span", { class: "value" }));
  const keys = text.pieces.map((piece, place) =>
    make("li", { "data-key": String(place) }, token(piece), make("span", { class: "track", "aria-hidden": "true" }, bars[place]), values[place]),
  );
  for (const [place, is] of text.aside.entries()) if (is) keys[place].classList.add("set-aside");
  const figure = make("div", { class: "figure" }, list, svg, make("ol", { class: "keys", "aria-label": `Keys, ${title.toLowerCase()}` }, ...keys));
  const scroll = make("div", { class: "scroll" }, figure);
  const head = make(
    "div",
    { class: "head", "aria-hidden": "true" },
    make("span", {}, "query"),
    make("span", {}, "looks at"),
    make("span", {}, "key"),
    make("span", {}, "weight"),
  );
  const kept =
    text.indices === null
      ? []
      : [make("p", { class: "kept" }, `A text of this length keeps the ${text.kept} strongest keys of each token.`)];
  const root = make("section", { class: "panel", "aria-label": title }, sentence, claim, masses, head, scroll, ...kept);

  root.classList.toggle("long", count > LONG);

  return {
    root,
    options,
    update(view, chosen) {
      const { query, layer, head: number, dimmed } = view;
      const weights = row(data, text, layer, number, query);
      const strongest = look(data, text, layer, number, query, dimmed);
      const setAside = text.aside.map((is, key) => dimmed && is && key !== view.key);
      const named = view.key >= 0 ? view.key : (strongest?.key ?? -1);
      const [before, part, after] = excerpt(text.characters, text.spans[query], EXCERPT);
      sentence.replaceChildren(before, ...(part ? [make("mark", {}, part)] : []), after);
      const weight = weights.find(({ key }) => key === named)?.weight;
      claim.replaceChildren(...claimOf(text.names[query], named < 0 ? null : text.names[named], weight));
      masses.textContent = [
        `layer ${layer} head ${number}`,
        `separators ${two(rowMass(data, text, "special", layer, number, query))}`,
        `itself ${two(rowMass(data, text, "self", layer, number, query))}`,
      ].join(" · ");
      for (const [place, option] of options.entries()) {
        option.setAttribute("aria-selected", String(place === chosen));
        option.tabIndex = place === chosen ? 0 : -1;
        option.classList.toggle("shown", place === query);
      }
      svg.replaceChildren(...lines(weights, query, setAside, named).map(path));
      for (const [place, key] of keys.entries()) {
        key.classList.toggle("dim", setAside[place]);
        key.classList.toggle("strongest", place === named);
        values[place].textContent = "";
        bars[place].style.width = "0";
      }
      for (const { key, weight: here } of weights) {
        values[key].textContent = here < 0.005 ? "·" : two(here);
        values[key].title = here.toFixed(4);
        bars[key].style.width = `${100 * here}%`;
      }
    },
    reveal(query) {
      const top = query * ROW;
      if (top < scroll.scrollTop || top + ROW > scroll.scrollTop + scroll.clientHeight) scroll.scrollTop = top - scroll.clientHeight / 2;
    },
  };
}

/**
 * A token as it stands in its column; one that is too long for it shows its beginning and says how long it is.
 * @param {string} piece
 */
function token(piece) {
  const shown = visible(piece);
  const element = foreign(short(shown, 80), "token");
  element.title = piece.length > 300 ? `${short(shown, 280)} (${Array.from(piece).length} characters)` : shown;
  if (shown !== piece) element.classList.add("code");
  return element;
}

/**
 * @param {string} query @param {string | null} key @param {number | undefined} weight
 * @returns {(Node | string)[]}
 */
export function claimOf(query, key, weight) {
  const arrow = make("span", { class: "arrow" }, " → ");
  if (key === null) return [foreign(query, "token"), arrow, make("span", { class: "nothing" }, "nothing else in sight")];
  return [foreign(query, "token"), arrow, foreign(key, "token"), " ", make("strong", {}, weight === undefined ? "–" : two(weight))];
}

/** @param {import("./draw.js").Line} line */
const path = ({ path: d, width, opacity, kind }) =>
  makeSvg("path", {
    d,
    class: kind,
    "stroke-width": String(width),
    "stroke-opacity": String(opacity),
    "vector-effect": "non-scaling-stroke",
  });
