// Keeps the moving parts of a page fresh: the same page is fetched again and what is marked data-live is put in place.
// Without script a page stays as it was loaded, with a link to reload it.
"use strict";
(() => {
  const note = document.querySelector("[data-fresh]");
  const grid = () => document.getElementById("grid-scroll");
  if (grid()) { // the open round, or the last one, at the right edge
    const open = grid().querySelector("th.open");
    grid().scrollLeft = open ? open.offsetLeft + open.offsetWidth + 8 - grid().clientWidth : grid().scrollWidth;
  }
  if (!note) return;
  const every = 1000 * Number(note.dataset.every);
  let paused = false, said = document.querySelector("[data-now]")?.textContent;
  const words = document.createElement("span");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "plain";
  const tell = (text) => { if (words.textContent !== text) words.textContent = text; };
  const show = () => {
    button.textContent = paused ? "Follow again" : "Hold still";
    tell(paused ? "This page holds still." : "This page keeps itself fresh.");
  };
  button.addEventListener("click", () => { paused = !paused; show(); });
  note.replaceChildren(words, " ", button);
  show();

  const place = (fresh) => {
    for (const old of document.querySelectorAll("[data-live]")) {
      const found = fresh.getElementById(old.id);
      if (!found || old.innerHTML === found.innerHTML) continue;
      const focused = old.contains(document.activeElement) ? document.activeElement : null;
      if (focused && !focused.id) continue; // whoever reads there is not disturbed
      const scrolled = old.querySelector("#grid-scroll")?.scrollLeft;
      const open = old.querySelector("details")?.open;
      old.replaceChildren(...document.importNode(found, true).childNodes);
      if (scrolled !== undefined && grid()) grid().scrollLeft = scrolled;
      if (open) old.querySelector("details").open = true;
      if (focused) document.getElementById(focused.id)?.focus({ preventScroll: true });
    }
    const now = document.querySelector("[data-now]")?.textContent;
    if (now && now !== said) tell(now);
    said = now;
  };

  const refresh = async () => {
    if (!paused && !document.hidden) {
      try {
        const answer = await fetch(location.href, { headers: { "X-Fedward-Refresh": "1" }, redirect: "manual", cache: "no-store" });
        if (!answer.ok) { location.reload(); return; }
        place(new DOMParser().parseFromString(await answer.text(), "text/html"));
        if (words.textContent.startsWith("The centre")) show();
      } catch { tell("The centre does not answer; what you see may be old."); }
    }
    setTimeout(refresh, every);
  };
  setTimeout(refresh, every);
})();
