// The flag list and a flag's page: dialogs instead of pages, keys, the slider, and rows that follow what changes.
// Without it every form and link here works as a page of its own.
"use strict";

(() => {
  const dialog = document.getElementById("change-dialog");
  const change = document.getElementById("change");
  const said = document.getElementById("said");
  const list = document.getElementById("flag-list");
  const ownPage = () => document.getElementById("flag-state");
  const rows = () => [...(list?.querySelectorAll("tr[data-flag]") ?? [])];
  let opener = null;

  // --- changes ---

  const open = (url, from) => {
    opener = from;
    htmx.ajax("GET", url, { target: change, swap: "innerHTML" });
  };

  // off is one click: why, and for how long, is asked when it is off
  const turnOff = (path, from) => {
    opener = from;
    htmx.ajax("POST", path, { target: change, swap: "innerHTML", values: { action: "disable" } });
  };

  document.addEventListener("submit", (event) => {
    const form = event.target.closest("form[data-change]");
    if (!form) return;
    event.preventDefault();
    const path = event.submitter?.getAttribute("formaction") ?? form.getAttribute("action");
    if (event.submitter?.value === "disable") {
      turnOff(path, document.activeElement);
      return;
    }
    open(`${path}?${new URLSearchParams(new FormData(form, event.submitter))}`, document.activeElement);
  });

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-change]");
    if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      open(link.getAttribute("href"), link);
    }
    if (event.target.closest("[data-dismiss]") && dialog.open) {
      event.preventDefault();
      dialog.close();
    }
  });

  // what a change needs yet, or why it was refused, is shown in the dialog too
  change.addEventListener("htmx:beforeSwap", (event) => {
    const type = event.detail.xhr.getResponseHeader("content-type") ?? "";
    if (event.detail.xhr.status >= 400 && type.startsWith("text/html")) {
      event.detail.shouldSwap = true;
      event.detail.isError = false;
    }
  });

  change.addEventListener("htmx:afterSwap", () => {
    const outcome = change.querySelector("[data-outcome]");
    if (outcome) {
      change.replaceChildren();
      dialog.close();
      say(outcome);
      return;
    }
    const told = change.querySelector("[data-told]");
    if (told) {
      said.replaceChildren();
      refresh([told.dataset.flag], false);
    }
    const whole = change.querySelector("main");
    if (whole) change.replaceChildren(...whole.childNodes);
    if (!dialog.open) dialog.showModal();
    (change.querySelector("[autofocus]") ?? change.querySelector("input:not([type=hidden]), button, a"))?.focus();
  });

  const say = (outcome) => {
    said.replaceChildren(...outcome.childNodes);
    refresh([outcome.dataset.flag], outcome.dataset.flag === "");
  };

  dialog.addEventListener("close", () => {
    const told = change.querySelector("[data-told]");
    if (told) said.replaceChildren(...told.childNodes);
    change.replaceChildren();
    if (opener?.isConnected) opener.focus();
    opener = null;
  });

  // --- what changed elsewhere ---

  const parse = async (url) => {
    const answer = await fetch(url, { headers: { accept: "text/html" } });
    return answer.ok ? new DOMParser().parseFromString(await answer.text(), "text/html") : null;
  };

  const renew = async () => {
    const page = await parse(location.href);
    for (const id of ["flag-state", "flag-history"]) {
      const fresh = page?.getElementById(id);
      const old = document.getElementById(id);
      if (!fresh || !old || fresh.isEqualNode(old)) continue;
      old.replaceWith(fresh);
      htmx.process(fresh);
    }
    const moves = document.getElementById("rollout-preview");
    if (moves?.hasChildNodes()) htmx.trigger(moves, "renew");
  };

  const places = (row) => [...row.querySelectorAll("a, button")];

  const renewRow = async (row) => {
    const page = await parse(`${row.querySelector("td.name a").getAttribute("href")}/row`);
    // a row alone is no document: the parser wants its table around it
    const fresh = page?.querySelector("tr");
    if (!fresh || !row.isConnected) return;
    const [at, from] = [document.activeElement, opener].map((one) => places(fresh)[places(row).indexOf(one)]);
    row.replaceWith(fresh);
    at?.focus();
    if (from) opener = from;
  };

  let waiting = null;
  const renewList = () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      const query = new URLSearchParams(new FormData(document.getElementById("flag-filters")));
      const page = new URLSearchParams(location.search).get("page");
      if (page) query.set("page", page);
      htmx.ajax("GET", `/flags?${query}`, { target: list, swap: "innerHTML" });
    }, 200);
  };

  // While the filters ask for another list, no key may act on the one that is about to go.
  const filters = document.getElementById("flag-filters");
  const toFirst = () => rows()[0]?.querySelector("td.name a").focus();
  const isListed = () => filters.elements.q.value === list.querySelector("[data-q]").dataset.q;
  let isAsking = false;
  let goesToFirst = false;
  filters?.addEventListener("input", () => (isAsking = true));
  let focused = null;
  list?.addEventListener("htmx:beforeSwap", (event) => {
    const asked = new URL(event.detail.xhr.responseURL).searchParams.get("q") ?? "";
    if (asked !== filters.elements.q.value) {
      event.detail.shouldSwap = false; // the answer to the letters typed since is on its way
      return;
    }
    const row = document.activeElement.closest("tr[data-flag]");
    focused = row && [row.dataset.flag, places(row).indexOf(document.activeElement)];
  });
  list?.addEventListener("htmx:afterSwap", () => {
    isAsking = !isListed();
    if (isAsking) return;
    if (goesToFirst) toFirst();
    else if (focused) {
      // a list that renews itself takes nobody's place away
      const row = rows().find((one) => one.dataset.flag === focused[0]);
      if (row) places(row)[focused[1]]?.focus();
    }
    goesToFirst = false;
  });
  for (const failure of ["htmx:responseError", "htmx:sendError"]) {
    filters?.addEventListener(failure, () => (isAsking = goesToFirst = false));
  }

  const refresh = (flags, all) => {
    if (ownPage()) {
      if (all || flags.includes(ownPage().dataset.flagPage)) renew();
      return;
    }
    if (!list) return;
    const concerned = rows().filter((row) => flags.includes(row.dataset.flag));
    // one that is not there may have come in by the filter, or be new
    if (all || concerned.length > 10 || concerned.length < flags.length) renewList();
    else concerned.forEach(renewRow);
  };

  document.addEventListener("jarvis:flags", (event) => refresh(event.detail.flags, event.detail.all));

  // --- the slider ---

  document.addEventListener("input", (event) => {
    const form = event.target.closest("#rollout");
    if (!form) return;
    const slider = form.querySelector("[data-slider]");
    const number = form.querySelector("[name=percent]");
    if (event.target === slider) number.value = slider.value;
    else slider.value = number.value;
  });

  // --- keys ---

  const step = (by) => {
    const links = rows().map((row) => row.querySelector("td.name a"));
    const row = document.activeElement.closest("tr[data-flag]");
    const at = row ? rows().indexOf(row) + by : 0;
    links[Math.max(0, Math.min(links.length - 1, at))]?.focus();
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.closest("input, textarea, select")) {
      // Escape, and Enter in the search, go to the first flag that is found
      const isSearch = event.target.type === "search";
      const isEnter = event.key === "Enter" && isSearch;
      if (!list || (event.key !== "Escape" && !isEnter)) return;
      const isThere = !isAsking && isListed();
      // by itself Escape would empty the search; Enter is to ask at once for what is not there yet
      if (isSearch && (isThere || !isEnter)) event.preventDefault();
      if (isThere) toFirst();
      else goesToFirst = true;
      if (!isEnter) event.target.blur();
      return;
    }
    const near = document.activeElement.closest("tr[data-flag]") ?? ownPage();
    if (isAsking && "jkt".includes(event.key)) event.preventDefault();
    else if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
    else if (event.key === "t") near?.querySelector("[role=switch]")?.click();
    else if (event.key === "?") document.getElementById("keys-dialog").showModal();
    else return;
    event.preventDefault();
  });
})();
