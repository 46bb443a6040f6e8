"use strict";
{
  const items = Array.from(document.querySelectorAll("li[data-score]"), (element) => ({
    element,
    list: element.parentElement,
    box: element.querySelector("input"),
    path: element.querySelector(".path").textContent,
    home: element.dataset.home,
    number: Number(element.dataset.class),
    score: Number(element.dataset.score),
    text: element.textContent.toLowerCase(),
  }));
  const byId = (name) => document.getElementById(name);
  const byPath = (one, other) => (one.path < other.path ? -1 : one.path > other.path ? 1 : 0);
  const orders = {
    score: (one, other) => other.score - one.score || byPath(one, other),
    path: byPath,
    class: (one, other) => one.number - other.number || byPath(one, other),
  };

  const isWanted = (item) => {
    const chosen = byId("class").value;
    const low = byId("low").valueAsNumber;
    const high = byId("high").valueAsNumber;
    return (
      (chosen === "" || item.number === Number(chosen)) &&
      item.text.includes(byId("text").value.trim().toLowerCase()) &&
      !(item.score < low) && // an empty field is NaN and excludes nothing
      !(item.score > high)
    );
  };

  const count = () => {
    const shown = items.filter((item) => !item.element.hidden).length;
    const ticked = items.filter((item) => item.box.checked).length;
    byId("count").textContent = `${shown} of ${items.length} shown, ${ticked} ticked`;
    byId("save").disabled = ticked === 0;
  };

  const filter = () => {
    for (const item of items) item.element.hidden = !isWanted(item);
    count();
  };

  const sort = () => {
    items.sort(orders[byId("order").value]);
    for (const list of new Set(items.map((item) => item.list))) {
      list.append(...items.filter((item) => item.list === list).map((item) => item.element));
    }
  };

  const tickShown = () => {
    const shown = items.filter((item) => !item.element.hidden);
    const ticked = !shown.every((item) => item.box.checked);
    for (const item of shown) item.box.checked = ticked;
    count();
  };

  // sha256sum puts a backslash before the line of a name that holds escapes
  const line = (item) => {
    const path = item.home ?? item.path;
    return `${path.includes("\\") ? "\\" : ""}${item.box.value}  ${path}\n`;
  };

  const save = () => {
    const lines = items.filter((item) => item.box.checked).sort(byPath).map(line);
    const address = URL.createObjectURL(new Blob(lines, { type: "text/plain;charset=utf-8" }));
    const link = document.createElement("a");
    link.href = address;
    link.download = "advrbd-ignore.txt";
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  };

  if (items.length) {
    for (const name of ["class", "text", "low", "high"]) byId(name).addEventListener("input", filter);
    byId("order").addEventListener("input", sort);
    byId("tick").addEventListener("click", tickShown);
    byId("save").addEventListener("click", save);
    byId("suspects").addEventListener("change", count);
    document.documentElement.classList.add("scripted");
    sort();
    filter();
  }
}
