// Rows: an image each; a cell a run with the picture, what is known of it, and its strip of snapshots.

class Row {
  /** @param view: the page's state, see page.js. */
  constructor(index, view) {
    this.index = index;
    this.view = view;
    this.charts = [];
    this.visible = true;
    this.cells = view.runs.filter((run) => index < run.images.length).map((run) => this.makeCell(run));
    this.title = element("h3", { id: `title-${index}` });
    this.node = element("article", { class: "row", "data-index": index, "aria-labelledby": `title-${index}` },
      this.title, element("div", { class: "cells" }, ...this.cells.map((c) => c.node)));
    const named = this.cells[0].run;
    const label = named.labels === null ? null : named.className(named.labels[index]);
    this.title.append(element("span", { class: "number" }, `#${index}`), label === null ? "" : ` ${label}`);
    this.node.addEventListener("click", (event) => {
      if (!event.target.closest(".strip, .detail, select, input")) view.open(this.isOpen ? null : this);
    });
  }

  get isOpen() {
    return this.detail !== undefined;
  }

  makeCell(run) {
    const { view } = this;
    const tile = element("canvas", { role: "img" });
    const button = element("button", { class: "tile", "aria-expanded": "false", title: "Enlarge" }, tile);
    const facts = element("dl", { class: "facts" });
    const strip = element("canvas", { class: "strip", role: "img" });
    const name = element("p", { class: "run-name" }, element("span", { class: `run-key run-${run.index}` }), run.name);
    strip.addEventListener("pointerdown", (event) => {
      const share = event.offsetX / strip.clientWidth;
      const column = Math.min(cell.columns.length - 1, Math.floor(event.offsetX / cell.pitch));
      view.go(event.offsetY > cell.below ? Math.floor(share * view.labels.length) : cell.columns[column]);
    });
    const cell = { run, tile, button, facts, strip, pitch: 1, columns: [], below: 0 };
    cell.node = element("div", { class: "cell", "data-run": run.index }, name, button, facts, strip);
    return cell;
  }

  draw() {
    if (!this.visible) return;
    for (const cell of this.cells) {
      this.drawTile(cell);
      this.drawFacts(cell);
      this.drawStrip(cell);
    }
    this.drawDetail();
  }

  /** The picture (of a volume the snapshot's slice) with the map of one snapshot over it, into a rectangle of a context. */
  paint(context, run, snapshot, x, y, width, height, bare = false) {
    const { view, index: i } = this;
    drawPicture(context, run.sliceOf(run.pictures, snapshot, i), x, y, width, height);
    if (snapshot && !bare) {
      const signed = view.mode === "signed";
      const [cells, scale] = signed ? [snapshot.cells[i], snapshot.scale[i]] : [snapshot.positive[i], snapshot.positiveScale[i]];
      // Cells are in 127ths of the map's own magnitude.
      const full = (127 * this.fullColour(run, snapshot)) / scale;
      drawMap(context, x, y, width, height, cells, snapshot.grid, full, view.table, signed);
    }
    if (view.outline && run.outlines) {
      context.imageSmoothingEnabled = true;
      context.drawImage(run.sliceOf(run.outlines, snapshot, i), x, y, width, height);
    }
  }

  /** The value of a cell that gets the full colour, in units of the score. */
  fullColour(run, snapshot) {
    const { mode, scale } = this.view, i = this.index;
    if (scale === "time") return run.largest[mode][i];
    return mode === "signed" ? snapshot.scale[i] : peak(snapshot, i);
  }

  drawTile({ run, tile, button }) {
    const snapshot = run.shown(this.view.position);
    const side = this.view.tile;
    const shape = fitInto(run, side);
    const { context, w, h } = fitCanvas(tile, shape.width, shape.height);
    this.paint(context, run, snapshot, 0, 0, w, h);
    const right = snapshot && run.isRight(snapshot, this.index);
    button.classList.toggle("wrong", right === false);
    tile.setAttribute("aria-label", this.describe(run, snapshot));
  }

  describe(run, snapshot) {
    if (!snapshot) return `Image ${this.index}: no snapshot of ${run.name} yet`;
    const i = this.index, right = run.isRight(snapshot, i);
    return `Image ${i}: what speaks for ${run.className(snapshot.target[i])}; predicted `
      + run.className(snapshot.prediction[i]) + (right === null ? "" : right ? ", right" : ", wrong")
      + (snapshot.slices ? `; slice ${run.sliceName(snapshot, i)}` : "");
  }

  drawFacts({ run, facts }) {
    const snapshot = run.shown(this.view.position), i = this.index;
    const entry = (name, key, value, ...extra) => {
      const shown = typeof value === "string" ? value : format(value);
      return element("div", { class: key }, element("dt", {}, name),
        element("dd", { title: typeof value === "string" ? value : null },
          element("data", { value: value ?? "" }, shown), ...extra));
    };
    if (!snapshot) {
      facts.replaceChildren(entry("snapshot", "none", null));
      return;
    }
    const right = run.isRight(snapshot, i);
    const verdict = right === null ? "" : element("span", { class: right ? "verdict right" : "verdict wrong" }, right ? "✓ right" : "✗ wrong");
    const drift = snapshot.drift?.[i] ?? null, moved = snapshot.moved?.[i];
    const entries = [
      entry("explained", "target", run.className(snapshot.target[i])),
      entry("predicted", "prediction", run.className(snapshot.prediction[i]), " ", verdict),
      entry("score", "score", snapshot.score[i]),
      entry("drift", "drift", drift, " ", moved ? element("span", { class: "significant", title: `Beyond its noise floor of ${format(snapshot.floor[i])}` }, "● moved") : ""),
    ];
    if (snapshot.slices) entries.push(entry("slice", "slice", run.sliceName(snapshot, i)));
    if (peak(snapshot, i) === 0) entries.push(entry("map", "empty", "nothing positive"));
    if (this.view.runs.length > 1 && snapshot.position !== this.view.position) {
      entries.push(entry("shown", "stale", `epoch ${snapshot.epoch}`));
    }
    facts.replaceChildren(...entries);
  }

  /** As many snapshots as fit, the current one among them; below them the drift of all. */
  drawStrip(cell) {
    const { run, strip } = cell, { view, index: i } = this, { style } = view;
    // Measured once for all rows, since asking makes the browser lay the page out anew.
    run.room ??= Math.floor(cell.node.getBoundingClientRect().width - stripInset(cell));
    const side = fitInto(run, view.thumb), gap = 4, count = view.labels.length;
    cell.pitch = side.width + gap;
    cell.columns = chooseColumns(Math.max(1, Math.min(count, Math.floor((run.room + gap) / cell.pitch))), count, view);
    cell.below = side.height + 22;
    const drifts = run.snapshots.map((s) => s.drift?.[i] ?? 0), floors = run.snapshots.map((s) => s.floor?.[i] ?? 0);
    const most = Math.max(...drifts, ...floors), barHeight = Math.max(...drifts) > 0 ? 30 : 0;
    const width = cell.columns.length * cell.pitch - gap;
    const { context, ratio } = fitCanvas(strip, width, cell.below + barHeight);
    context.scale(ratio, ratio);
    context.font = `10px ${style.font}`;
    context.textAlign = "center";
    context.lineWidth = 3;
    for (const [k, position] of cell.columns.entries()) {
      const snapshot = run.shown(position), now = position === view.position;
      const x = k * cell.pitch, top = 3;
      // A run that took no snapshot here shows nothing rather than an older map that looks like a new one.
      const here = snapshot !== null && snapshot.position === position;
      if (here) this.paint(context, run, snapshot, x, top, side.width, side.height);
      else {
        context.fillStyle = style.rule;
        context.fillRect(x, top, side.width, side.height);
      }
      if (now) {
        context.strokeStyle = style.accent;
        context.strokeRect(x + 1.5, top - 1.5, side.width - 3, side.height + 3);
      }
      context.fillStyle = now ? style.accent : style.muted;
      context.fillText(view.labels[position], x + side.width / 2, top + side.height + 13);
      if (here && snapshot.moved?.[i]) drawDot(context, x + side.width - 7, top + 7, style);
    }
    if (barHeight) {
      const slot = width / count, bottom = cell.below + barHeight;
      const height = (value) => (value / most) * (barHeight - 2);
      for (const [k, s] of run.snapshots.entries()) {
        const x = s.position * slot;
        context.fillStyle = style.rule;
        context.fillRect(x, bottom - height(floors[k]), slot + 0.5, height(floors[k]));
        context.fillStyle = s.moved?.[i] ? style.moved : style.muted;
        const bar = Math.max(1, Math.min(6, slot - 2));
        context.fillRect(x + (slot - bar) / 2, bottom - height(drifts[k]), bar, height(drifts[k]));
      }
      context.fillStyle = style.accent;
      context.fillRect((view.position + 0.5) * slot - 1, cell.below, 2, barHeight);
    }
    strip.title = barHeight ? "Maps over the run. Below, the drift of this image over the whole run: red beyond its noise floor, which is the grey band" : "";
    strip.setAttribute("aria-label", `Maps of image ${i} at snapshots ${cell.columns.map((p) => view.labels[p]).join(", ")}`);
  }

  open() {
    const { view, index: i } = this;
    const points = (run, field, extra = () => ({})) => ({
      run: run.index,
      points: run.snapshots.map((s) => ({ position: s.position, value: s[field]?.[i] ?? null, ...extra(s) })),
    });
    const runs = this.cells.map((c) => c.run);
    const common = { labels: view.labels, onPick: (p) => view.go(p) };
    this.charts = [
      makeChart({ ...common, key: "image/drift", title: "Drift of this image", reading: "beyond the band is significant", hint: "1 minus the rank correlation with the previous snapshot; the band is this image's own noise floor.",
        series: runs.map((run) => points(run, "drift", (s) => ({ floor: s.floor?.[i] ?? null, moved: s.moved?.[i] }))) }),
      makeChart({ ...common, key: "image/score", title: "Score of the explained class", reading: "", hint: "A complete map adds up to this score less that of the baselines.",
        series: runs.map((run) => points(run, "score")) }),
      makeChart({ ...common, key: "image/reference", title: "Drift since the first epoch", reading: "", hint: "1 minus the rank correlation with the first snapshot after an epoch.",
        series: runs.map((run) => points(run, "reference")) }),
    ];
    this.large = runs.map((run) => {
      const bare = element("canvas", { role: "img", "aria-label": `Image ${i} without its map` });
      const mapped = element("canvas", { role: "img", class: "mapped" });
      const more = element("dl", { class: "more facts" });
      const name = element("p", { class: "run-name" }, element("span", { class: `run-key run-${run.index}` }), run.name);
      const node = element("figure", { class: "large" }, name, bare, mapped, more);
      return { run, bare, mapped, more, node };
    });
    const close = element("button", { class: "close" }, "Close");
    close.addEventListener("click", () => view.open(null));
    this.detail = element("div", { class: "detail", role: "region", "aria-label": `Image ${i} enlarged` },
      element("div", { class: "pictures" }, ...this.large.map((l) => l.node)),
      element("div", { class: "own-charts" }, ...this.charts.map((c) => c.node)), close);
    this.node.append(this.detail);
    this.node.classList.add("open");
    for (const cell of this.cells) cell.button.setAttribute("aria-expanded", "true");
    this.draw();
  }

  close() {
    this.detail.remove();
    this.detail = undefined;
    this.charts = [];
    this.node.classList.remove("open");
    for (const cell of this.cells) cell.button.setAttribute("aria-expanded", "false");
  }

  drawDetail() {
    if (!this.isOpen) return;
    const { view, index: i } = this;
    const room = this.detail.querySelector(".pictures").getBoundingClientRect().width / this.large.length;
    for (const { run, bare, mapped, more } of this.large) {
      const snapshot = run.shown(view.position);
      const shape = fitInto(run, 320), shrink = Math.min(1, (room - 26) / 2 / shape.width);
      for (const [canvas, alone] of [[bare, true], [mapped, false]]) {
        const { context, w, h } = fitCanvas(canvas, Math.floor(shape.width * shrink), Math.floor(shape.height * shrink));
        this.paint(context, run, snapshot, 0, 0, w, h, alone);
      }
      mapped.setAttribute("aria-label", this.describe(run, snapshot));
      const of = (field) => snapshot?.[field]?.[i] ?? null;
      const full = snapshot && this.fullColour(run, snapshot);
      const lines = [...view.perImage.map(([title, key]) => [title, of(key)]), ["cell at full colour", full]];
      more.replaceChildren(...lines.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, element("data", { value: value ?? "" }, format(value))))));
    }
    for (const chart of this.charts) chart.move(view.position);
  }

  /** What rows are sorted by, at the current position; of two runs the one that sorts first. */
  sortKey(by) {
    const found = this.cells.map(({ run }) => {
      const snapshot = run.shown(this.view.position), i = this.index;
      if (by === "drift") return -(snapshot?.drift?.[i] ?? -1);
      if (by === "wrong") return snapshot && run.isRight(snapshot, i) === false ? 0 : 1;
      return 0;
    });
    return Math.min(...found);
  }

  get className() {
    const { run } = this.cells[0], snapshot = run.shown(this.view.position);
    const index = run.labels !== null ? run.labels[this.index] : (snapshot?.target[this.index] ?? -1);
    return run.className(index);
  }
}

/** A size for a run's pictures that takes about the room of a square: long pictures may be wider than it. */
function fitInto(run, side) {
  const shrink = Math.min(side / Math.sqrt(run.width * run.height), (1.6 * side) / Math.max(run.width, run.height));
  return { width: Math.max(8, Math.round(run.width * shrink)), height: Math.max(8, Math.round(run.height * shrink)) };
}

/** The positions of `shown` columns out of `count`: neighbours of the current one, or spread over all with it among them. */
function chooseColumns(shown, count, view) {
  const near = view.columns === "near" || shown === 1;
  const first = Math.max(0, Math.min(count - shown, view.position - Math.floor(shown / 2)));
  const columns = Array.from({ length: shown }, (_, k) => (near ? first + k : Math.round((k * (count - 1)) / (shown - 1))));
  const distance = columns.map((p) => Math.abs(p - view.position));
  columns[distance.indexOf(Math.min(...distance))] = view.position;
  return columns;
}

/** The mark of a significant drift. */
function drawDot(context, x, y, style) {
  context.save();
  context.beginPath();
  context.arc(x, y, 4, 0, 2 * Math.PI);
  context.fillStyle = style.moved;
  context.fill();
  context.strokeStyle = style.paper;
  context.lineWidth = 1.2;
  context.stroke();
  context.restore();
}

/** What stands beside a strip in its cell. */
function stripInset(cell) {
  const beside = getComputedStyle(cell.node).gridTemplateColumns.split(" ").length > 2;
  return beside ? cell.strip.offsetLeft - cell.node.offsetLeft : 0;
}
