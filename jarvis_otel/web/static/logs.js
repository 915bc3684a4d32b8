// Logs and traces: open a record in place, the histogram with a brush, records as they come. The pages work without it.
"use strict";

(() => {
  const KEPT_ROWS = 240;
  const LEVELS = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "OTHER"];

  // --- a record in full, below its row ---
  async function open(link) {
    const row = link.closest("tr");
    const below = row.nextElementSibling;
    if (below?.classList.contains("detail")) {
      below.hidden = !below.hidden;
      link.setAttribute("aria-expanded", String(!below.hidden));
      return;
    }
    const detail = document.createElement("tr");
    detail.className = "detail";
    const cell = detail.insertCell();
    cell.colSpan = row.cells.length;
    cell.textContent = "…";
    row.after(detail);
    link.setAttribute("aria-expanded", "true");
    try {
      const answer = await fetch(link.href, { headers: { "HX-Request": "true" } });
      const text = await answer.text();
      if (answer.ok) cell.innerHTML = text; // a template of the server, which escaped what is not its own
      else cell.textContent = "This record cannot be shown: " + answer.status;
    } catch {
      cell.textContent = "The server does not answer.";
    }
  }

  document.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    const link = event.target.closest("a.expand");
    if (link) {
      event.preventDefault();
      open(link);
    }
    const copier = event.target.closest("[data-copy-text]");
    if (copier) {
      const place = copier.closest(".record-full, .copied-from") || document;
      const text = place.querySelector(copier.dataset.copyText)?.textContent ?? "";
      navigator.clipboard?.writeText(text).then(() => window.jarvis.notice("Copied"));
    }
  });

  // `j` and `k` go from record to record.
  document.addEventListener("keydown", (event) => {
    if (!["j", "k"].includes(event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, textarea, select, [contenteditable]")) return;
    const links = [...document.querySelectorAll("#rows a.expand")];
    const at = links.indexOf(document.activeElement);
    const next = links[at < 0 ? 0 : at + (event.key === "j" ? 1 : -1)];
    if (next) {
      event.preventDefault();
      next.focus();
    }
  });

  // --- the histogram ---
  function color(name) {
    const probe = document.createElement("span");
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  }

  /** A moment as the table has it: the day where a step is one, else the time. */
  function clock(seconds, step) {
    const moment = new Date(seconds * 1000);
    const two = (number) => String(number).padStart(2, "0");
    if (step >= 86400) return `${moment.getFullYear()}-${two(moment.getMonth() + 1)}-${two(moment.getDate())}`;
    const time = `${two(moment.getHours())}:${two(moment.getMinutes())}`;
    return step >= 60 ? time : `${time}:${two(moment.getSeconds())}`;
  }

  function draw(place, told) {
    place.textContent = "";
    const levels = LEVELS.filter((level) => told.counts[level].some((count) => count > 0));
    const words = levels.map((level) => `${told.levels[level]} ${level}`).join(", ");
    const text = document.createElement("p");
    text.className = "dim";
    text.textContent = `${told.records} records${words ? ": " + words : ""}`;
    if (told.counted_from) text.textContent += `; older ones than ${told.counted_from} were not counted`;
    place.append(text);
    if (!told.start.length) return;
    let sums = told.start.map(() => 0);
    const stacked = levels.map((level) => (sums = sums.map((sum, at) => sum + told.counts[level][at])));
    const tint = (level) => color(`--level-${level === "OTHER" ? "debug" : level.toLowerCase()}`);
    const text_color = color("--dim");
    const line = color("--line");
    const axis = { stroke: text_color, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
    const labels = (_, moments, __, ___, step) => moments.map((at) => (Number.isInteger(at) ? clock(at, step) : ""));
    const bars = uPlot.paths.bars({ size: [0.9, 60], align: 1 });
    const chart = new uPlot(
      {
        width: place.clientWidth,
        height: 130,
        cursor: { drag: { x: true, y: false, setScale: false }, points: { show: false } },
        select: { show: true },
        scales: {
          x: { range: () => [told.start[0], told.start.at(-1) + told.bucket_s] },
          y: { range: (_, __, high) => [0, high * 1.05] },
        },
        axes: [{ ...axis, values: labels }, { ...axis, size: 55 }],
        // the highest is drawn first, and the others over it
        series: [
          { label: "from", value: (_, at) => (at === null ? "" : `${clock(at, 86400)} ${clock(at, 1)}`) },
          ...levels
            .map((level) => ({
              label: level,
              fill: tint(level),
              stroke: tint(level),
              width: 0,
              paths: bars,
              points: { show: false },
              value: (_, __, ___, at) => (at === null ? "" : told.counts[level][at]),
            }))
            .reverse(),
        ],
        hooks: {
          setSelect: [
            (plot) => {
              if (plot.select.width < 3) return;
              const moment = (left) => new Date(plot.posToVal(left, "x") * 1000).toISOString();
              const target = new URL(place.dataset.page, location.href);
              target.searchParams.set("since", moment(plot.select.left));
              target.searchParams.set("until", moment(plot.select.left + plot.select.width));
              location.assign(target);
            },
          ],
        },
      },
      [told.start, ...stacked.reverse()],
      place,
    );
    new ResizeObserver(() => chart.setSize({ width: place.clientWidth, height: 130 })).observe(place);
  }

  const histogram = document.getElementById("histogram");
  if (histogram && window.uPlot) {
    histogram.textContent = "Counting …";
    fetch(histogram.dataset.source)
      .then(async (answer) => {
        if (!answer.ok) throw new Error(String(answer.status));
        draw(histogram, await answer.json());
      })
      .catch((error) => (histogram.textContent = `The records could not be counted: ${error.message}`));
  }

  // --- records as they come ---
  const button = document.getElementById("tail");
  if (button) {
    const rows = document.getElementById("rows");
    const state = document.getElementById("tail-state");
    const pause = document.getElementById("tail-pause");
    let stream = null;
    let paused = false;
    let came = 0;
    let passed = 0;
    let waiting = [];

    const say = (more = "") => {
      const words = [paused ? `Paused; ${waiting.length} records wait` : `Following; ${came} records came`];
      if (passed) words.push(`${passed} came too fast and were passed over: the logs have them`);
      state.textContent = words.join(", ") + "." + more;
    };
    const show = () => {
      rows.prepend(...waiting.reverse());
      waiting = [];
      while (rows.rows.length > KEPT_ROWS) rows.deleteRow(-1);
    };
    const stop = () => {
      stream?.close();
      stream = null;
      button.setAttribute("aria-pressed", "false");
      pause.hidden = true;
    };
    const start = () => {
      came = passed = 0;
      stream = new EventSource(button.dataset.source);
      button.setAttribute("aria-pressed", "true");
      pause.hidden = false;
      state.hidden = false;
      say();
      stream.addEventListener("rows", (event) => {
        const holder = document.createElement("template");
        holder.innerHTML = event.data; // a template of the server, which escaped what is not its own
        const fresh = [...holder.content.querySelectorAll("tr")];
        came += fresh.length;
        waiting.push(...fresh);
        if (waiting.length > KEPT_ROWS) passed += waiting.splice(0, waiting.length - KEPT_ROWS).length;
        if (!paused) requestAnimationFrame(show);
        say();
      });
      stream.addEventListener("passed", (event) => {
        came += Number(event.data);
        passed += Number(event.data);
        say();
      });
      stream.addEventListener("note", (event) => say(" " + event.data));
      stream.addEventListener("error", () => {
        if (stream?.readyState === EventSource.CLOSED) {
          stop();
          state.textContent = "The server ended the stream; too many may follow at once.";
        } else {
          say(" The connection was lost: what comes until it is back is not shown here.");
        }
      });
    };
    button.hidden = false;
    button.addEventListener("click", () => {
      if (stream) {
        stop();
        paused = false;
        pause.setAttribute("aria-pressed", "false");
        show();
        state.textContent = `Followed no longer; ${came} records came.`;
      } else {
        start();
      }
    });
    pause.addEventListener("click", () => {
      paused = !paused;
      pause.setAttribute("aria-pressed", String(paused));
      if (!paused) show();
      say();
    });
  }
})();
