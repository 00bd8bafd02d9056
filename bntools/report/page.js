"use strict";
// What needs a script: the search, the count, the keys. The page says all it has to say without it.
(() => {
  const find = (id) => document.getElementById(id);
  const search = find("search"), count = find("count"), nothing = find("nothing"), all = find("all");
  const sites = [...document.querySelectorAll(".site")];
  if (!search) return;
  const texts = new Map();
  const said = (site) => {
    if (!texts.has(site)) texts.set(site, site.textContent.toLowerCase());
    return texts.get(site);
  };
  // What the style sheet does about the two rows of buttons, without asking for the layout of a thousand rows.
  const visible = () => {
    const chosen = [...document.querySelectorAll(".filters :checked")].map((radio) => radio.id.split("-")[1]);
    const kinds = chosen.filter((kind) => kind !== "all");
    return sites.filter((site) => !site.hidden && kinds.every((kind) => site.classList.contains(kind)));
  };

  const update = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const site of sites) site.hidden = !words.every((word) => said(site).includes(word));
    const left = visible().length;
    count.textContent = left === sites.length ? `${left} sites` : `${left} of ${sites.length} sites`;
    nothing.hidden = left > 0;
  };

  const reset = () => {
    search.value = "";
    for (const radio of document.querySelectorAll(".filters input[type=radio]")) radio.checked = radio.id.endsWith("-all");
    update();
  };

  // A link to a site opens it, and shows it if a filter hides it.
  const open = () => {
    const inside = find(decodeURIComponent(location.hash.slice(1)));
    const site = inside && inside.closest(".site");
    if (!site) return;
    site.querySelector("details").open = true;
    if (!visible().includes(site)) reset();
    site.scrollIntoView({ block: "start" });
    site.querySelector("summary").focus({ preventScroll: true });
  };

  search.closest("label").hidden = false;
  all.hidden = false;
  count.setAttribute("role", "status");
  search.addEventListener("input", update);
  search.form.addEventListener("change", update);
  search.form.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", open);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#s']");
    if (link && link.getAttribute("href") === location.hash) open();
  });
  all.addEventListener("click", () => {
    const opened = all.textContent === "open all";
    for (const site of visible()) site.querySelector("details").open = opened;
    all.textContent = opened ? "close all" : "open all";
  });

  // Arrow keys walk through the rows and through the map; / leads to the search, Escape empties it.
  const step = (event, items, by) => {
    const at = items.indexOf(document.activeElement.closest(".strip a, summary"));
    const next = items[at + by];
    if (at < 0 || !next) return;
    next.focus();
    event.preventDefault();
  };
  const by = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const at = document.activeElement;
    if (event.key === "/" && at !== search) {
      event.preventDefault();
      search.focus();
      search.scrollIntoView({ block: "nearest" });
    } else if (event.key === "Escape" && at === search) {
      reset();
    } else if (by[event.key] && at.matches(".strip a")) {
      step(event, [...document.querySelectorAll(".strip a")], by[event.key]);
    } else if (by[event.key] && /Down|Up/.test(event.key) && at.matches(".site summary")) {
      step(event, visible().map((site) => site.querySelector("summary")), by[event.key]);
    }
  });
  update();
  open();
})();
