// The page: one state, `view`; everything drawn follows from it.

async function start() {
  const source = document.getElementById("data");
  if (source === null) return;
  const data = JSON.parse(source.textContent);
  const find = (id) => document.getElementById(id);
  const controls = Object.fromEntries(["mode", "scale", "colormap", "opacity", "outline", "columns", "sort", "speed"].map((id) => [id, find(id)]));
  const slider = find("position");
  const last = data.positions.length - 1;

  const view = {
    runs: data.runs.map((run, index) => new Run(run, index)),
    labels: data.positions,
    perImage: data.perImage,
    position: last,
    mode: "positive",
    scale: "own",
    columns: "spread",
    outline: false,
    table: null,
    tile: 128,
    thumb: 56,
    style: {},
    go, open,
  };
  await Promise.all(view.runs.map(async (run) => {
    const load = (uri) => { const image = new Image(); image.src = uri; return image.decode().then(() => image); };
    const loadSlices = async (slices) => Object.fromEntries(await Promise.all(Object.entries(slices).map(async ([k, uri]) => [k, await load(uri)])));
    run.pictures = await Promise.all(run.images.map(loadSlices));
    run.outlines = run.masks && (await Promise.all(run.masks.map(loadSlices)));
    run.meanPicture = await load(run.mean);
  }));

  const rows = Array.from({ length: Math.max(...view.runs.map((r) => r.images.length)) }, (_, i) => new Row(i, view));
  find("rows").append(...rows.map((row) => row.node));
  const charts = makeCharts();
  const chosen = { positive: data.colormaps.positive[0].name, signed: data.colormaps.signed[0].name };
  let opened = null, timer = null, waiting = false, remembering = null;

  // Snapshots in which more than a tenth of the images moved beyond their floor: a few do by chance.
  const moved = data.positions.map((_, p) => Math.max(0, ...view.runs.map((run) => {
    const snapshot = run.shown(p);
    return snapshot !== null && snapshot.position === p ? (snapshot.share ?? 0) : 0;
  })));
  const jumps = moved.flatMap((share, p) => (share > 0.1 ? [p] : []));
  find("marks").append(...moved.map((share, p) => {
    const mark = element("i", { class: share > 0.1 ? "moved" : null });
    mark.style.left = `${last ? (100 * p) / last : 50}%`;
    mark.style.height = `${Math.round(100 * share)}%`;
    return mark;
  }));

  function makeCharts() {
    const made = data.metrics.map((facts) => makeChart({
      ...facts,
      labels: view.labels,
      onPick: go,
      series: view.runs.map((run) => ({
        run: run.index,
        points: run.snapshots.map((s) => ({
          position: s.position,
          value: s.metrics[facts.key] ?? null,
          floor: ["drift/previous", "drift/reference"].includes(facts.key) ? (s.metrics["drift/noise_floor"] ?? null) : null,
        })),
      })),
    }));
    document.querySelector("#charts .grid").append(...made.map((c) => c.node));
    return made;
  }

  /** Draw everything, once a frame however often it is asked for. */
  function redraw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; drawNow(); });
  }

  function drawNow() {
    document.documentElement.dataset.position = view.position;
    slider.value = view.position;
    const when = sayWhen();
    slider.setAttribute("aria-valuetext", when);
    find("when").textContent = when;
    if (timer === null) find("status").textContent = when;
    for (const row of rows) row.draw();
    for (const chart of charts) chart.move(view.position);
    drawMeans();
    find("previous-moved").disabled = !jumps.some((p) => p < view.position);
    find("next-moved").disabled = !jumps.some((p) => p > view.position);
    // Browsers limit how often an address may change, so it waits until things are still.
    clearTimeout(remembering);
    remembering = setTimeout(remember, 250);
  }

  function sayWhen() {
    const run = view.runs.find((r) => r.shown(view.position)?.position === view.position) ?? view.runs[0];
    const snapshot = run.shown(view.position);
    if (snapshot === null) return DASH;
    const place = `${view.position + 1} of ${last + 1}`;
    if (snapshot.when === "start") return `before training (${place})`;
    return `epoch ${snapshot.epoch}` + (view.runs.length === 1 ? `, step ${snapshot.step}` : "") + ` (${place})`;
  }

  function drawMeans() {
    for (const figure of document.querySelectorAll(".mean")) {
      const run = view.runs[figure.closest(".summary").dataset.run];
      const snapshot = run.shown(view.position), shape = fitInto(run, window.innerWidth < 700 ? 92 : 140);
      const { context, w, h } = fitCanvas(figure.querySelector("canvas"), shape.width, shape.height);
      drawPicture(context, run.meanPicture, 0, 0, w, h);
      if (snapshot !== null) drawMap(context, 0, 0, w, h, run.meanMap(snapshot), snapshot.grid, Math.max(...run.meanMap(snapshot)), view.meanTable, false);
      figure.querySelector(".mean-when").textContent = snapshot === null ? DASH : snapshot.when === "start" ? "before training" : `epoch ${snapshot.epoch}`;
    }
  }

  function go(position) {
    const to = Math.min(last, Math.max(0, position));
    if (to === view.position) return;
    view.position = to;
    if (timer === null) sortRows();
    redraw();
  }

  function open(row) {
    if (opened) opened.close();
    opened = row;
    if (row) row.open();
    redraw();
  }

  function sortRows() {
    const by = controls.sort.value;
    const order = [...rows];
    if (by === "class") order.sort((a, b) => a.className.localeCompare(b.className, undefined, { numeric: true }) || a.index - b.index);
    else if (by !== "index") order.sort((a, b) => a.sortKey(by) - b.sortKey(by) || a.index - b.index);
    const list = find("rows"), focused = document.activeElement;
    if (order.every((row, i) => list.children[i] === row.node)) return;
    list.append(...order.map((row) => row.node));
    if (focused && focused !== document.activeElement) focused.focus({ preventScroll: true });
  }

  function play(on) {
    clearTimeout(timer);
    timer = null;
    const button = find("play");
    button.setAttribute("aria-label", on ? "Pause" : "Play");
    button.querySelector("path").setAttribute("d", on ? "M6 4h4v16H6zM14 4h4v16h-4z" : "M7 4v16l13-8z");
    if (!on) { sortRows(); redraw(); return; }
    if (view.position === last) { timer = 0; go(0); }
    const tick = () => {
      if (view.position >= last) { play(false); return; }
      go(view.position + 1);
      timer = setTimeout(tick, Number(controls.speed.value));
    };
    timer = setTimeout(tick, Number(controls.speed.value));
  }

  function jump(direction) {
    const to = direction > 0 ? jumps.find((p) => p > view.position) : jumps.findLast((p) => p < view.position);
    if (to !== undefined) go(to);
  }

  /** Read the controls into the view: colours are looked up in a table made once for each choice. */
  function readControls() {
    const mode = controls.mode.value, changed = mode !== view.mode || !controls.colormap.options.length;
    if (changed) {
      controls.colormap.replaceChildren(...data.colormaps[mode].map((m) => element("option", { value: m.name }, m.name.replace("_r", ""))));
      controls.colormap.value = chosen[mode];
    }
    chosen[mode] = controls.colormap.value;
    Object.assign(view, { mode, scale: controls.scale.value, columns: controls.columns.value, outline: controls.outline?.checked ?? false });
    const tableOf = (m) => data.colormaps[m].find((entry) => entry.name === chosen[m]).table;
    view.table = lookupTable(tableOf(mode), mode === "signed", Number(controls.opacity.value));
    view.meanTable = lookupTable(tableOf("positive"), false, 0.8);
    drawLegend(tableOf(mode));
    redraw();
  }

  function drawLegend(table) {
    const rgb = decodeBytes(table), context = find("legend").querySelector("canvas").getContext("2d");
    const image = new ImageData(256, 1);
    for (let i = 0; i < 256; i++) image.data.set([rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2], 255], 4 * i);
    context.putImageData(image, 0, 0);
    const [low, , high] = find("legend").children;
    low.textContent = view.mode === "signed" ? "against" : "0";
    high.textContent = view.mode === "signed" ? "for" : "most";
  }

  function readStyle() {
    const of = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
    view.style = { accent: of("--accent"), muted: of("--muted"), rule: of("--rule"), moved: of("--moved"), paper: of("--paper"), font: "system-ui, sans-serif" };
    const narrow = window.innerWidth < 700;
    view.tile = narrow ? 96 : 124;
    view.thumb = last < 3 ? view.tile : narrow ? 46 : 60; // few snapshots have room
    for (const run of view.runs) run.room = undefined;
    redraw();
  }

  // The state lives in the address, so that a page reloaded while training goes on stays as it was. Inside a frame
  // without an address of its own that is refused, and nothing is lost but the memory.
  function remember() {
    const state = new URLSearchParams();
    if (view.position !== last) state.set("at", view.position);
    if (opened) state.set("open", opened.index);
    for (const [id, control] of Object.entries(controls)) if (control) state.set(id, control.type === "checkbox" ? Number(control.checked) : control.value);
    try { history.replaceState(null, "", `#${state}`); } catch { /* see above */ }
  }

  function recall() {
    const state = new URLSearchParams(location.hash.slice(1));
    for (const [id, control] of Object.entries(controls)) {
      const value = state.get(id);
      if (!control || value === null || id === "colormap") continue;
      if (control.type === "checkbox") control.checked = value === "1";
      else if (control.tagName !== "SELECT" || [...control.options].some((o) => o.value === value)) control.value = value;
    }
    const map = state.get("colormap");
    if (data.colormaps[controls.mode.value].some((m) => m.name === map)) chosen[controls.mode.value] = map;
    view.position = Math.min(last, Math.max(0, Number(state.get("at") ?? last) || 0));
    return rows[state.get("open") ?? -1] ?? null;
  }

  slider.addEventListener("input", () => { if (timer !== null) play(false); go(Number(slider.value)); });
  for (const control of Object.values(controls)) control?.addEventListener("input", readControls);
  controls.sort.addEventListener("input", sortRows);
  find("play").addEventListener("click", () => play(timer === null));
  find("previous-moved").addEventListener("click", () => jump(-1));
  find("next-moved").addEventListener("click", () => jump(1));
  find("more").addEventListener("click", () => {
    const shown = find("settings").classList.toggle("shown");
    find("more").setAttribute("aria-expanded", String(shown));
  });
  find("numbers").addEventListener("toggle", fillNumbers, { once: true });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    // Controls keep their own keys; the time slider's are the page's.
    const inside = event.target.closest("select, input, textarea, summary");
    if (inside && inside !== slider) return;
    if (event.key === " " && event.target.closest("button")) return;
    const act = {
      ArrowLeft: () => go(view.position - 1),
      ArrowRight: () => go(view.position + 1),
      Home: () => go(0),
      End: () => go(last),
      " ": () => play(timer === null),
      n: () => jump(1),
      p: () => jump(-1),
      Escape: () => { const row = opened; open(null); row?.cells[0].button.focus(); },
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });

  function fillNumbers() {
    const several = view.runs.length > 1;
    const head = element("tr", {}, ...[several ? "run" : null, "epoch", "step", ...data.metrics.map((m) => m.key)]
      .filter((name) => name !== null).map((name) => element("th", { scope: "col" }, name)));
    const body = view.runs.flatMap((run) => run.snapshots.map((s) => {
      const line = element("tr", {}, ...(several ? [element("td", {}, run.name)] : []),
        element("th", { scope: "row" }, s.when === "start" ? "start" : String(s.epoch)), element("td", {}, String(s.step)),
        ...data.metrics.map((m) => element("td", {}, format(s.metrics[m.key], 5))));
      line.addEventListener("click", () => go(s.position));
      return line;
    }));
    find("numbers").querySelector(".scroll").append(element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
  }

  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const row = rows[target.dataset.index];
      row.visible = isIntersecting;
      if (isIntersecting) row.draw();
    }
  }, { rootMargin: "300px" });

  const before = recall();
  readStyle();
  readControls();
  sortRows();
  if (before) open(before);
  for (const row of rows) watcher.observe(row.node);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", readStyle);
  window.addEventListener("resize", readStyle);
  drawNow();
  document.documentElement.dataset.ready = "true";
}

start();
