// Shared by all pages: dialogs, dismissing them, live changes of flags, shortcuts. Every page works without it.
"use strict";

// A [data-dialog="ID"] opens that <dialog>; a [data-close] within one closes it.
document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-dialog]");
  if (opener) {
    const dialog = document.getElementById(opener.dataset.dialog);
    if (dialog) {
      event.preventDefault();
      dialog.showModal();
    }
  }
  const closer = event.target.closest("[data-close]");
  if (closer) closer.closest("dialog")?.close();
  const copier = event.target.closest("[data-copy]");
  if (copier) navigator.clipboard?.writeText(copier.dataset.copy).then(() => notice("Copied"));
});

// A form with [data-auto] is sent when one of its fields changes.
document.addEventListener("change", (event) => {
  const form = event.target.closest("form[data-auto]");
  if (form) form.requestSubmit();
});

// `/` goes to the search of a page.
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, textarea, select, [contenteditable]")) return;
  const search = document.querySelector("input[type=search]");
  if (search) {
    event.preventDefault();
    search.focus();
  }
});

/** Says something for a moment, also to a screen reader. */
function notice(text) {
  const place = document.getElementById("notices");
  place.textContent = text;
  setTimeout(() => {
    if (place.textContent === text) place.textContent = "";
  }, 4000);
}

// Whoever listens for `jarvis:flags` on the document hears of changes: {flags: [...], all, version, revision}.
// One connection a page, only on pages with [data-live], none while the page is hidden.
if (document.querySelector("[data-live]")) {
  let stream = null;
  const tell = (event) => document.dispatchEvent(new CustomEvent("jarvis:flags", { detail: JSON.parse(event.data) }));
  const follow = () => {
    if (document.hidden) {
      stream?.close();
      stream = null;
    } else if (stream === null) {
      stream = new EventSource("/events");
      stream.addEventListener("flags", tell);
    }
  };
  let hidden = document.hidden;
  document.addEventListener("visibilitychange", () => {
    follow();
    // what changed while it was hidden is not known
    if (hidden && !document.hidden) {
      document.dispatchEvent(new CustomEvent("jarvis:flags", { detail: { flags: [], all: true } }));
    }
    hidden = document.hidden;
  });
  follow();
}

window.jarvis = { notice };
