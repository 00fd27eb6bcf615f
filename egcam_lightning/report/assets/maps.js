"use strict";
// Maps: numbers in, coloured pixels out. Values are interpolated first and coloured afterwards, as the maps themselves
// are: colours in between two colours would be values that nobody computed.

function decodeBytes(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** One run: its snapshots and the cells of its maps. */
class Run {
  constructor(data, index) {
    Object.assign(this, data);
    this.index = index;
    const cells = new Int8Array(decodeBytes(data.maps).buffer);
    let offset = 0;
    const next = (size) => this.images.map(() => cells.subarray(offset, (offset += size)));
    for (const snapshot of this.snapshots) {
      const size = snapshot.grid[0] * snapshot.grid[1];
      snapshot.cells = next(size);
      // Of volumes what is positive comes by itself: at a slice between two planes it is more than what is left of both.
      snapshot.positive = snapshot.slices ? next(size) : snapshot.cells.map((map) => map.map((cell) => Math.max(0, cell)));
      snapshot.positiveScale ??= snapshot.scale;
    }
    // The largest magnitude of an image over the run, and of its positive part: what 'one scale over time' divides by.
    this.largest = { positive: [], signed: [] };
    for (let i = 0; i < this.images.length; i++) {
      this.largest.signed.push(Math.max(0, ...this.snapshots.map((s) => s.scale[i])));
      this.largest.positive.push(Math.max(0, ...this.snapshots.map((s) => peak(s, i))));
    }
  }

  /** The snapshot shown at a position of the slider, or null before the run's first. */
  shown(position) {
    return this.snapshots[this.at[position]] ?? null;
  }

  /** Of what there is a slice (pictures, outlines), the slice on which a snapshot shows an image. */
  sliceOf(stack, snapshot, i) {
    return stack[i][snapshot?.slices?.[i]] ?? Object.values(stack[i])[0];
  }

  /** '5 of 16', or null for images. */
  sliceName(snapshot, i) {
    return snapshot.slices ? `${snapshot.slices[i] + 1} of ${this.depth}` : null;
  }

  className(index) {
    return index < 0 ? "–" : (this.classes[index] ?? String(index));
  }

  /** True or false where the label is known and a class is predicted, else null. */
  isRight(snapshot, i) {
    return this.labels === null || snapshot.prediction[i] < 0 ? null : snapshot.prediction[i] === this.labels[i];
  }

  /** Mean of the positive parts, each by its own maximum. */
  meanMap(snapshot) {
    const mean = new Float32Array(snapshot.grid[0] * snapshot.grid[1]);
    for (const cells of snapshot.positive) {
      const top = Math.max(1, ...cells);
      for (let k = 0; k < mean.length; k++) mean[k] += cells[k] / top / snapshot.positive.length;
    }
    return mean;
  }
}

/** The largest positive value of one map, in units of the score. */
function peak(snapshot, i) {
  return (Math.max(...snapshot.positive[i]) / 127) * snapshot.positiveScale[i];
}

/** 256 colours with opacity: strong values cover the picture, weak ones let it through; near 1 all cover. */
function lookupTable(table, signed, opacity) {
  const rgb = decodeBytes(table);
  const rgba = new Uint8ClampedArray(1024);
  const least = Math.max(0, 4 * opacity - 3);
  for (let i = 0; i < 256; i++) {
    const strength = signed ? Math.abs(i - 127.5) / 127.5 : i / 255;
    const covering = strength * (2 - strength);
    rgba.set(rgb.subarray(3 * i, 3 * i + 3), 4 * i);
    rgba[4 * i + 3] = 255 * opacity * (covering + (1 - covering) * least);
  }
  return new Uint32Array(rgba.buffer);
}

/** Where the pixels of one axis lie between cells, pixel centres to cell centres. */
function axis(cells, pixels) {
  const low = new Int32Array(pixels), high = new Int32Array(pixels), weight = new Float32Array(pixels);
  for (let p = 0; p < pixels; p++) {
    const at = Math.min(Math.max(((p + 0.5) * cells) / pixels - 0.5, 0), cells - 1);
    low[p] = Math.floor(at);
    high[p] = Math.min(low[p] + 1, cells - 1);
    weight[p] = at - low[p];
  }
  return { low, high, weight };
}

const scratch = document.createElement("canvas");
const axes = new Map();

/** Draw cells (rows x columns; none negative unless `signed`) over what stands in a rectangle of `context`; a cell of `full` gets the full colour. */
function drawMap(context, x, y, width, height, cells, grid, full, table, signed) {
  if (!(full > 0)) return;
  // Half the pixels suffice: between neighbours the map is linear anyway.
  const columns = Math.min(256, Math.ceil(width / 2)), lines = Math.min(256, Math.ceil(height / 2));
  const key = `${grid}:${columns}:${lines}`;
  if (!axes.has(key)) axes.set(key, [axis(grid[1], columns), axis(grid[0], lines)]);
  const [across, down] = axes.get(key);
  const image = new ImageData(columns, lines);
  const pixels = new Uint32Array(image.data.buffer);
  const gain = (signed ? 127.5 : 255) / full, zero = signed ? 127.5 : 0;
  for (let row = 0, p = 0; row < lines; row++) {
    const above = down.low[row] * grid[1], below = down.high[row] * grid[1], v = down.weight[row];
    for (let column = 0; column < columns; column++, p++) {
      const left = across.low[column], right = across.high[column], u = across.weight[column];
      const top = cells[above + left] * (1 - u) + cells[above + right] * u;
      const bottom = cells[below + left] * (1 - u) + cells[below + right] * u;
      const value = Math.round(zero + gain * (top * (1 - v) + bottom * v));
      pixels[p] = table[value < 0 ? 0 : value > 255 ? 255 : value];
    }
  }
  scratch.width = columns;
  scratch.height = lines;
  scratch.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = true;
  context.drawImage(scratch, x, y, width, height);
}

/** Draw a picture; small ones keep their pixels, since smoothing would invent some. */
function drawPicture(context, picture, x, y, width, height) {
  context.imageSmoothingEnabled = width < 2 * picture.naturalWidth;
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, x, y, width, height);
}

/** Give a canvas the pixels that its place on the screen has, and return its context. */
function fitCanvas(canvas, width, height) {
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const w = Math.round(width * ratio), h = Math.round(height * ratio);
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, w, h);
  return { context, ratio, w, h };
}
