// Filters and sorts the flipped items. It reads text and data attributes and changes `hidden` and the order, no more:
// what a model wrote stays text.
"use strict";
(() => {
  const box = document.getElementById("all-flips");
  const bar = box.querySelector(".filter");
  const items = [...box.querySelectorAll("details")];
  const search = bar.querySelector("input");
  const selects = [...bar.querySelectorAll("select[data-key]")];
  const sort = bar.querySelector("select[data-sort]");
  const said = bar.querySelector("output");
  const words = new Map(items.map((item) => [item, item.textContent.toLowerCase()]));
  const keys = {
    order: (item) => Number(item.dataset.order),
    item: (item) => item.dataset.item,
    way: (item) => item.dataset.way,
  };
  function apply() {
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const item of items) {
      const fits =
        selects.every((select) => !select.value || item.getAttribute("data-" + select.dataset.key) === select.value) &&
        wanted.every((word) => words.get(item).includes(word));
      item.hidden = !fits;
      shown += fits;
    }
    said.textContent = shown + " of " + items.length + " shown";
  }
  function reorder() {
    const key = keys[sort.value];
    const sorted = items.slice().sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : keys.order(a) - keys.order(b)));
    box.append(...sorted);
  }
  bar.hidden = false;
  search.addEventListener("input", apply);
  for (const select of selects) select.addEventListener("change", apply);
  sort.addEventListener("change", reorder);
  apply();
})();
