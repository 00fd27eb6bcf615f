// Charts: a line a run over the positions of the slider, a band for the noise floor, a cursor.

const DASH = "–";

/** A number for reading: three digits, a dash where there is none. */
function format(value, digits = 3) {
  if (value === null || value === undefined) return DASH;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return Number(value.toPrecision(digits)).toExponential().replaceAll("-", "−");
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

/** Build an element: text as text, never as markup. */
function element(tag, attributes = {}, ...children) {
  const drawn = ["svg", "path", "line", "circle", "text", "g", "rect"].includes(tag);
  const node = drawn ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Round steps between two values, at most `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high + step / 1e6; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

/**
 * A chart that knows where the slider stands.
 * @param options.title, options.arrow, options.reading, options.hint: what is said above it.
 * @param options.series: per run `{name, points: [{position, value, floor?, moved?}]}`; null values break the line.
 * @param options.high: the axis reaches at least this far; options.labels: names of the positions.
 * @param options.onPick: called with the position that was clicked.
 */
function makeChart({ key, title, arrow, reading, hint, series, high, labels, onPick }) {
  const count = labels.length;
  const readout = element("span", { class: "readout" });
  const svg = element("svg", { role: "img", class: "plot" });
  const node = element(
    "figure", { class: "chart", "data-key": key },
    element("figcaption", { title: hint || null },
      element("span", { class: "title" }, title),
      readout,
      element("span", { class: "reading" }, [arrow, reading].filter(Boolean).join(" "))),
    svg,
  );
  if (hint) node.append(element("p", { class: "hint" }, hint));

  const values = series.flatMap((s) => s.points.flatMap((p) => [p.value, p.floor])).filter(Number.isFinite);
  let low = Math.min(0, ...values), top = Math.max(...values);
  if (!values.length) top = 1;
  // An axis that reaches its bound only where the values come near it: a curve pressed flat says nothing.
  if (high && top > 0.5 * high) top = Math.max(high, top);
  else top += 0.06 * (top - low);
  if (low < 0) low -= 0.06 * (top - low);
  if (top === low) top = low + 1;

  const box = { left: 38, right: 10, top: 8, bottom: 18, width: 300, height: 112 };
  const x = (position) => box.left + (count > 1 ? position / (count - 1) : 0.5) * (box.width - box.left - box.right);
  const y = (value) => box.height - box.bottom - ((value - low) / (top - low)) * (box.height - box.top - box.bottom);
  let cursor, dots, position = 0;

  function draw() {
    svg.setAttribute("viewBox", `0 0 ${box.width} ${box.height}`);
    svg.setAttribute("height", box.height);
    const parts = [];
    for (const tick of ticks(low, top, 3)) {
      parts.push(element("line", { class: "rule", x1: box.left, x2: box.width - box.right, y1: y(tick), y2: y(tick) }));
      parts.push(element("text", { class: "tick", x: box.left - 5, y: y(tick) + 3.5, "text-anchor": "end" }, format(tick)));
    }
    const every = Math.max(1, Math.ceil(count / Math.max(2, Math.floor(box.width / 52))));
    for (let p = 0; p < count; p += every) {
      const anchor = count > 1 && p === count - 1 ? "end" : "middle";
      parts.push(element("text", { class: "tick", x: x(p), y: box.height - 4, "text-anchor": anchor }, labels[p]));
    }
    for (const s of series) {
      const runs = unbroken(s.points, "floor");
      for (const run of runs) {
        const edge = run.map((p) => `${x(p.position)},${y(p.floor)}`).join("L");
        const base = y(Math.max(low, 0));
        const [first, last] = [x(run[0].position), x(run.at(-1).position)];
        // One snapshot alone still has a floor: a band as wide as a finger.
        parts.push(element("path", { class: `band run-${s.run}`, d: run.length > 1
          ? `M${first},${base}L${edge}L${last},${base}Z`
          : `M${first - 5},${base}V${y(run[0].floor)}H${first + 5}V${base}Z` }));
      }
    }
    for (const s of series) {
      for (const run of unbroken(s.points, "value")) {
        parts.push(element("path", { class: `line run-${s.run}`, d: `M${run.map((p) => `${x(p.position)},${y(p.value)}`).join("L")}` }));
        if (run.length === 1) parts.push(element("circle", { class: `point run-${s.run}`, cx: x(run[0].position), cy: y(run[0].value), r: 2.2 }));
      }
      for (const p of s.points) {
        if (p.moved && Number.isFinite(p.value)) parts.push(element("circle", { class: "moved", cx: x(p.position), cy: y(p.value), r: 3 }));
      }
    }
    cursor = element("line", { class: "cursor", y1: box.top - 4, y2: box.height - box.bottom });
    dots = series.map((s) => element("circle", { class: `now run-${s.run}`, r: 3.6 }));
    svg.replaceChildren(...parts, cursor, ...dots);
    move(position);
  }

  function move(to) {
    position = to;
    cursor.setAttribute("x1", x(to));
    cursor.setAttribute("x2", x(to));
    const said = series.map((s, i) => {
      const point = s.points.findLast((p) => p.position <= to) ?? { value: null };
      dots[i].setAttribute("visibility", Number.isFinite(point.value) ? "visible" : "hidden");
      if (Number.isFinite(point.value)) {
        dots[i].setAttribute("cx", x(point.position));
        dots[i].setAttribute("cy", y(point.value));
      }
      return element("data", { value: point.value ?? "", class: `run-${s.run}` }, format(point.value));
    });
    readout.replaceChildren(...said);
    const finite = series.flatMap((s) => s.points.map((p) => p.value)).filter(Number.isFinite);
    svg.setAttribute("aria-label", `${title} at ${labels[to]}: ${said.map((s) => s.textContent).join(" and ")}`
      + (finite.length ? `; lowest ${format(Math.min(...finite))}, highest ${format(Math.max(...finite))}` : ""));
  }

  function pick(event) {
    const area = svg.getBoundingClientRect();
    const share = ((event.clientX - area.left) / area.width * box.width - box.left) / (box.width - box.left - box.right);
    onPick(Math.min(count - 1, Math.max(0, Math.round(share * (count - 1)))));
  }
  svg.addEventListener("pointerdown", (event) => { event.preventDefault(); svg.setPointerCapture(event.pointerId); pick(event); });
  svg.addEventListener("pointermove", (event) => { if (event.buttons) pick(event); });
  draw();
  // Drawn at its own width, so that text and lines keep their size.
  new ResizeObserver(() => {
    const width = Math.round(svg.getBoundingClientRect().width);
    if (width > 0 && width !== box.width) { box.width = width; draw(); }
  }).observe(svg);
  return { node, move };
}

/** Stretches of points that all have a value. */
function unbroken(points, field) {
  const found = [];
  let open = false;
  for (const point of points) {
    if (!Number.isFinite(point[field])) { open = false; continue; }
    if (!open) found.push([]);
    found.at(-1).push(point);
    open = true;
  }
  return found;
}
