// The map of all heads: pictures on one canvas, marks on a second, and a grid of one cell that carries the focus.
import { byId, make, sized } from "./dom.js";
import { asideColumns, drawFrame, drawMarks, shade } from "./draw.js";
import { corner, grid, headAt, needsWidth } from "./layout.js";

/**
 * @typedef {import("./data.js").Data} Data
 * @typedef {{layer: number, head: number}} Head
 * @typedef {{cell: HTMLElement, pictures: (text: number, dimmed: boolean) => void,
 *   update: (shown: Head, chosen: Head, marked: readonly Head[], label: string) => void, at: (event: MouseEvent) => Head | null,
 *   reveal: (head: Head) => void}} Overview
 */

/**
 * @param {Data} data @param {HTMLElement} root
 * @returns {Overview}
 */
export function makeOverview(data, root) {
  const below = make("canvas", { "aria-hidden": "true" });
  const above = make("canvas", { "aria-hidden": "true" });
  const cell = make("div", { role: "gridcell", tabindex: "0", "aria-selected": "true", class: "cell" });
  const line = make("div", { role: "row" }, cell);
  const table = make(
    "div",
    { role: "grid", "aria-label": "Heads", "aria-rowcount": String(data.layers), "aria-colcount": String(data.heads) },
    line,
  );
  root.append(below, above, table);
  document.body.classList.toggle("many", needsWidth(data.heads));

  let map = grid(data.layers, data.heads, room());
  let marks = sized(above, map.width, map.height);

  function room() {
    return byId("atlas").clientWidth - 4;
  }

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const of = (/** @type {string} */ name) => style.getPropertyValue(name).trim();
    return { ink: of("--ink-line"), paper: of("--picture"), text: of("--soft"), mark: of("--mark"), frame: of("--text") };
  }

  return {
    cell,
    pictures(number, dimmed) {
      const text = data.texts[number];
      const [rows, columns] = text.bins;
      map = grid(data.layers, data.heads, room());
      const context = sized(below, map.width, map.height);
      marks = sized(above, map.width, map.height);
      const { fontFamily } = getComputedStyle(document.body);
      drawFrame(context, map, colours(), `${map.pitch < 22 ? 9 : 11}px ${fontFamily}`);
      // One small canvas holds all pictures a pixel per bin; each is then drawn at its size.
      const source = make("canvas", { width: String(columns * data.heads), height: String(rows) });
      const small = source.getContext("2d");
      if (small === null) return;
      const pale = dimmed ? asideColumns(text.aside, columns) : [];
      const ink = rgb(colours().ink);
      const image = small.createImageData(columns, rows);
      const factor = map.side * (window.devicePixelRatio || 1);
      context.imageSmoothingEnabled = columns > factor; // shrunk pictures are averaged, enlarged ones keep their edges
      for (let layer = 0; layer < data.layers; layer++) {
        for (let head = 0; head < data.heads; head++) {
          shade(text.pictures, (layer * data.heads + head) * rows * columns, pale, rows, columns, ink, image.data);
          small.putImageData(image, head * columns, 0);
        }
        for (let head = 0; head < data.heads; head++) {
          const { x, y } = corner(map, layer, head);
          context.drawImage(source, head * columns, 0, columns, rows, x, y, map.side, map.side);
        }
      }
    },
    update(shown, chosen, marked, label) {
      drawMarks(marks, map, marked, shown, colours());
      const { x, y } = corner(map, chosen.layer, chosen.head);
      cell.style.transform = `translate(${x}px, ${y}px)`;
      cell.style.width = cell.style.height = `${map.side}px`;
      cell.setAttribute("aria-colindex", String(chosen.head + 1));
      cell.setAttribute("aria-label", label);
      line.setAttribute("aria-rowindex", String(chosen.layer + 1));
    },
    at(event) {
      const box = below.getBoundingClientRect();
      return headAt(map, event.clientX - box.left, event.clientY - box.top);
    },
    reveal({ layer, head }) {
      const { x, y } = corner(map, layer, head);
      const { scrollLeft, scrollTop, clientWidth, clientHeight } = root;
      root.scrollLeft = Math.max(x + 2 * map.pitch - clientWidth, Math.min(scrollLeft, x - 2 * map.left));
      root.scrollTop = Math.max(y + 2 * map.pitch - clientHeight, Math.min(scrollTop, y - 2 * map.top));
    },
  };
}

/**
 * @param {string} colour as #rrggbb
 * @returns {[number, number, number]}
 */
function rgb(colour) {
  const of = (/** @type {number} */ i) => parseInt(colour.slice(i, i + 2), 16);
  return [of(1), of(3), of(5)];
}
