// The library: posters and ribbons of all videos, filtered and sorted; only the rows in sight are in the document.

import { request } from "./api.js";
import { button, choice, clock, el, lateImage } from "./dom.js";
import { bindKeys } from "./keys.js";

const NARROWEST = 150; // px of a card
const GAP = 14;
const TEXT_HEIGHT = 88; // px below the poster
const ROWS_AROUND = 3;
const MOST_CHOICES = 60; // values of a column; above, only the search box finds them

export function show({ main, corpus, selected, params, signal, setParams, announce }) {
  for (const number of (params.get("select") ?? "").split(",").filter(Boolean)) {
    if (corpus.videos[Number(number)]) selected.add(Number(number));
  }
  const columns = filterColumns(corpus);
  const cards = new Map(); // video number → element
  let videos = [];
  let perRow = 1;
  let rowHeight = 1;

  const search = el("input", {
    id: "search",
    type: "search",
    placeholder: "Search names and columns",
    "aria-label": "Search names and columns",
    value: params.get("q") ?? "",
    oninput: () => change({ q: search.value }),
  });
  const filters = columns.map(([key, title, values]) =>
    choice(title, [["", "all"], ...values.map((value) => [value, value])], params.get(key) ?? "", (value) => change({ [key]: value })),
  );
  const sorts = [["", "name"], ["label", "label"], ["seconds", "length"], ["labelled", "labelled"], ...corpus.columns.map((c) => [c, c])];
  const order = choice("Sort by", sorts, (params.get("sort") ?? "").replace(/^-/, ""), (value) =>
    change({ sort: (params.get("sort") ?? "").startsWith("-") ? `-${value}` : value }),
  );
  const direction = button("↑", () => {
    const sort = params.get("sort") ?? "";
    change({ sort: sort.startsWith("-") ? sort.slice(1) : `-${sort}` });
  });
  const count = el("p.note", { role: "status" });
  const progress = el("p.note");
  const chosen = el("div.selection", { role: "status" });
  const grid = el("ol.grid", { role: "list", "aria-label": "Videos" });
  main.replaceChildren(
    el("h1.hidden", {}, "Library"),
    el("div.controls", { role: "search" }, search, filters, order, direction),
    el("div.counts", {}, count, progress),
    grid,
    chosen,
  );

  function change(changes) {
    setParams(changes);
    update();
  }

  function update() {
    videos = arranged(corpus, params, columns);
    const descending = (params.get("sort") ?? "").startsWith("-");
    direction.textContent = descending ? "↓" : "↑";
    direction.setAttribute("aria-label", descending ? "Descending; change to ascending" : "Ascending; change to descending");
    count.textContent = emptiness(corpus, videos) ?? `${videos.length} of ${corpus.videos.length} videos`;
    for (const card of cards.values()) card.remove();
    cards.clear();
    measure();
  }

  function measure() {
    perRow = Math.max(1, Math.floor((grid.clientWidth + GAP) / (NARROWEST + GAP)));
    const width = (grid.clientWidth - GAP * (perRow - 1)) / perRow;
    rowHeight = Math.round((width * 9) / 16 + TEXT_HEIGHT) + GAP;
    grid.style.setProperty("grid-template-columns", `repeat(${perRow}, minmax(0, 1fr))`);
    grid.style.setProperty("grid-auto-rows", `${rowHeight - GAP}px`);
    draw();
  }

  function draw() {
    const rows = Math.ceil(videos.length / perRow);
    const top = grid.getBoundingClientRect().top;
    const first = Math.min(rows, Math.max(0, Math.floor(-top / rowHeight) - ROWS_AROUND));
    const stop = Math.min(rows, Math.max(0, Math.ceil((innerHeight - top) / rowHeight) + ROWS_AROUND));
    const wanted = videos.slice(first * perRow, stop * perRow);
    const numbers = new Set(wanted.map((video) => video.number));
    for (const [number, card] of cards) {
      if (!numbers.has(number) && !card.contains(document.activeElement)) {
        card.remove();
        cards.delete(number);
      }
    }
    wanted.forEach((video, offset) => {
      if (cards.has(video.number)) return;
      const card = makeCard(video, first * perRow + offset, videos.length, selected, toggle);
      cards.set(video.number, card);
    });
    // Cards are placed by their row and column, so that their order in the document matters to readers only.
    const present = [...cards.values()].sort((a, b) => a.ariaPosInSet - b.ariaPosInSet);
    for (const card of present) {
      const index = card.ariaPosInSet - 1;
      card.style.setProperty("grid-row", String(Math.floor(index / perRow) - first + 1));
      card.style.setProperty("grid-column", String((index % perRow) + 1));
    }
    present.forEach((card, index) => grid.children[index] !== card && grid.insertBefore(card, grid.children[index] ?? null));
    grid.style.setProperty("padding-top", `${first * rowHeight}px`);
    grid.style.setProperty("height", `${Math.max(0, rows * rowHeight - GAP)}px`);
  }

  function toggle(number, isSelected = !selected.has(number)) {
    if (isSelected) selected.add(number);
    else selected.delete(number);
    const box = cards.get(number)?.querySelector("input");
    if (box) box.checked = isSelected;
    setParams({ select: [...selected].join(",") });
    showSelection();
  }

  function showSelection() {
    const numbers = [...selected];
    const canAlign = numbers.length >= 2 && numbers.length <= 6;
    chosen.hidden = numbers.length === 0;
    chosen.replaceChildren(
      el("span", {}, `${numbers.length} selected`),
      el("a.action", canAlign ? { href: `#/align?videos=${numbers.join(",")}` } : { "aria-disabled": "true", title: "Two to six videos" }, "Align"),
      el("a.action", { href: `#/propagate?targets=${numbers.join(",")}` }, "Propagate to these"),
      button("Clear", () => [...selected].forEach((number) => toggle(number, false))),
    );
  }

  function move(step) {
    const card = document.activeElement.closest?.(".card");
    const present = card ? card.ariaPosInSet - 1 : -step;
    const index = Math.min(videos.length - 1, Math.max(0, present + step));
    if (!videos[index]) return;
    const top = grid.getBoundingClientRect().top + Math.floor(index / perRow) * rowHeight;
    if (top < 80 || top + rowHeight > innerHeight) scrollBy({ top: top - innerHeight / 3, behavior: "instant" });
    draw();
    cards.get(videos[index].number).querySelector("a").focus({ preventScroll: true });
  }

  bindKeys(
    {
      ArrowLeft: () => move(-1),
      ArrowRight: () => move(1),
      ArrowUp: () => move(-perRow),
      ArrowDown: () => move(perRow),
      x: () => {
        const card = document.activeElement.closest(".card");
        if (card) toggle(Number(card.dataset.number));
      },
      a: () => {
        if (selected.size >= 2 && selected.size <= 6) location.hash = `#/align?videos=${[...selected].join(",")}`;
        else announce("Select two to six videos to align them.");
      },
    },
    signal,
  );
  addEventListener("scroll", draw, { signal, passive: true });
  const observer = new ResizeObserver(measure);
  observer.observe(grid.parentElement);
  signal.addEventListener("abort", () => observer.disconnect());
  update();
  showSelection();
  if (params.get("focus") === "search") {
    setParams({ focus: null });
    search.focus();
  }
  showProgress(progress, grid, signal);
}

/** Columns to filter by: [key, title, values]; those with one value or very many are left out. */
function filterColumns(corpus) {
  const all = [["label", (v) => v.label], ["labelled", (v) => (v.labelled ? "yes" : "no")]];
  all.push(...corpus.columns.map((column) => [column, (v) => v.fields[column]]));
  return all
    .map(([key, read]) => [key, key, [...new Set(corpus.videos.map(read).filter((x) => x !== null && x !== undefined).map(String))].sort(), read])
    .filter(([, , values]) => values.length > 1 && values.length <= MOST_CHOICES);
}

/** Videos that pass the filters of the address, in its order. */
function arranged(corpus, params, columns) {
  const words = (params.get("q") ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  const filters = columns.map(([key, , , read]) => [params.get(key), read]).filter(([value]) => value);
  const videos = corpus.videos.filter((video) => {
    if (!filters.every(([value, read]) => String(read(video) ?? "") === value)) return false;
    const text = [video.id, video.label ?? "", ...Object.values(video.fields)].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  });
  const sort = params.get("sort") ?? "";
  const key = sort.replace(/^-/, "");
  const read = { "": (v) => v.id, label: (v) => v.label, seconds: (v) => v.seconds ?? v.frames, labelled: (v) => Number(v.labelled) }[key] ?? ((v) => v.fields[key]);
  const sign = sort.startsWith("-") ? -1 : 1;
  return videos.sort((a, b) => sign * compare(read(a), read(b)) || a.number - b.number);
}

const collator = new Intl.Collator(undefined, { numeric: true });

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return collator.compare(String(a ?? "\uffff"), String(b ?? "\uffff"));
}

function emptiness(corpus, videos) {
  if (corpus.videos.length === 0) return "These embeddings have no videos.";
  return videos.length === 0 ? "No video passes these filters." : null;
}

function makeCard(video, index, total, selected, toggle) {
  const facts = [video.label, video.seconds === null ? `${video.frames} frames` : clock(video.seconds)];
  if (video.labelled) facts.push("✓ labelled");
  if (!video.available) facts.push("⚠ no file");
  return el(
    "li.card",
    { "aria-setsize": total, "aria-posinset": index + 1, "data-number": video.number },
    el(
      "a",
      { href: `#/video/${video.number}`, title: video.id },
      el("div.poster", {}, video.available && lateImage(`/api/videos/${video.number}/poster`)),
      lateImage(`/api/videos/${video.number}/ribbon`, { className: "stripe" }),
      el("span.name", {}, video.id),
      el("span.facts", {}, facts.filter(Boolean).join(" · ")),
    ),
    el(
      "label.check",
      {},
      el("input", {
        type: "checkbox",
        checked: selected.has(video.number),
        "aria-label": `Select ${video.id}`,
        onchange: (event) => toggle(video.number, event.target.checked),
      }),
    ),
  );
}

/** State of the posters that the server makes, while one in sight is not there yet. */
function showProgress(note, grid, signal) {
  const timer = setInterval(async () => {
    const posters = grid.querySelector(".missing") ? (await request("/api/progress", { signal }).catch(() => null))?.posters : null;
    note.textContent = posters && posters.done < posters.total ? `Posters: ${posters.done} of ${posters.total}` : "";
  }, 2000);
  signal.addEventListener("abort", () => clearInterval(timer));
}
