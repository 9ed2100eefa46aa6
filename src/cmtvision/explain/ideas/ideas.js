"use strict";
// The choice of a position: content and bias come packed, softmax is computed here, pictures are drawn a pixel a key.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("attention-data").textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  const colours = { sizes: bytes(data.sizes), signed: bytes(data.signed) };
  const now = { ...data.opening };
  const picker = byId("picker");

  function row(table, head, query, numQueries, numKeys) {
    table.values ??= new Uint16Array(bytes(table.data).buffer);
    const start = (head * numQueries + query) * numKeys;
    return Array.from(table.values.subarray(start, start + numKeys), (level) => table.low + table.step * level);
  }

  function softmax(values) {
    const most = Math.max(...values);
    const powers = values.map((value) => Math.exp(value - most));
    const sum = powers.reduce((a, b) => a + b, 0);
    return powers.map((power) => power / sum);
  }

  const centred = (values) => {
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    return values.map((value) => value - mean);
  };
  const meanOf = (rows) => rows[0].map((_, key) => rows.reduce((sum, one) => sum + one[key], 0) / rows.length);

  function chosen() {
    const stage = data.stages[now.choice];
    const block = stage.blocks[now.block];
    const query = now.row * stage.columns.length + now.column;
    const queries = stage.rows.length * stage.columns.length;
    const keys = stage.keys[0] * stage.keys[1];
    const heads = now.head < 0 ? [...Array(stage.heads).keys()] : [now.head];
    const table = block.bias === null ? null : stage.biases[block.bias];
    const scores = heads.map((head) => row(block.scores, head, query, queries, keys));
    const biases = table && heads.map((head) => row(table, head, query, queries, keys));
    return {
      stage, block,
      scores: centred(meanOf(scores)),
      bias: biases && centred(meanOf(biases)),
      content: meanOf(scores.map(softmax)),
      weights: meanOf(scores.map((one, i) => softmax(biases ? one.map((value, key) => value + biases[i][key]) : one))),
    };
  }

  function draw(id, values, [height, width], map, low, high, alt) {
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(width, height);
    values.forEach((value, key) => {
      const level = Math.round(255 * Math.min(1, Math.max(0, (value - low) / Math.max(high - low, 1e-12))));
      for (let channel = 0; channel < 3; channel++) pixels.data[4 * key + channel] = colours[map][3 * level + channel];
      pixels.data[4 * key + 3] = 255;
    });
    context.putImageData(pixels, 0, 0);
    const image = byId(id);
    image.src = canvas.toDataURL();
    image.alt = alt;
  }

  const percent = (share) => {
    if (share === 0) return "0%";
    return share < 0.001 ? "<0.1%" : (100 * share).toFixed(share < 0.1 ? 1 : 0) + "%";
  };

  function place(element, top, left, height, width) {
    element.style.top = 100 * top + "%";
    element.style.left = 100 * left + "%";
    element.style.height = 100 * height + "%";
    element.style.width = 100 * width + "%";
  }

  function show() {
    const { stage, block, scores, bias, content, weights } = chosen();
    const [height, width] = stage.grid;
    const [keysHigh, keysWide] = stage.keys;
    const [queryRow, queryColumn] = [stage.rows[now.row], stage.columns[now.column]];
    const limit = Math.max(...scores.map(Math.abs), ...(bias ?? []).map(Math.abs));
    const most = Math.max(...weights, ...content);
    const best = weights.indexOf(Math.max(...weights));
    const [bestRow, bestColumn] = [Math.floor(best / keysWide) + 1, (best % keysWide) + 1];
    const moved = weights.reduce((sum, share, key) => sum + Math.abs(share - content[key]), 0) / 2;
    const grid = `${keysHigh} by ${keysWide} keys`;
    draw("map-scores", scores, stage.keys, "signed", -limit, limit, `Content scores of ${grid}`);
    draw("map-content", content, stage.keys, "sizes", 0, most, `Attention without B over ${grid}`);
    if (bias) {
      draw("map-bias", bias, stage.keys, "signed", -limit, limit, `Position bias B of ${grid}`);
      draw("map-weights", weights, stage.keys, "sizes", 0, most, `Attention over ${grid}, most at row ${bestRow}, column ${bestColumn}`);
    }
    document.querySelectorAll("[data-limit]").forEach((one) => { one.textContent = one.dataset.limit + limit.toFixed(2); });
    document.querySelectorAll("[data-most]").forEach((one) => { one.textContent = percent(most); });

    const [cellHigh, cellWide] = stage.cell.map((cell) => cell * stage.stride);
    const [imageHigh, imageWide] = data.image;
    place(byId("marker"), now.row * cellHigh / imageHigh, now.column * cellWide / imageWide,
      Math.min(cellHigh, imageHigh - now.row * cellHigh) / imageHigh,
      Math.min(cellWide, imageWide - now.column * cellWide) / imageWide);
    byId("grid").style.backgroundSize = `${100 * cellWide / imageWide}% ${100 * cellHigh / imageHigh}%`;
    const [ownRow, ownColumn] = [Math.floor(queryRow / stage.kvStride), Math.floor(queryColumn / stage.kvStride)];
    document.querySelectorAll(".own").forEach((one) => {
      place(one, ownRow / keysHigh, ownColumn / keysWide, 1 / keysHigh, 1 / keysWide);
    });

    const who = now.head < 0 ? `mean of ${stage.heads} heads` : `head ${now.head + 1} of ${stage.heads}`;
    byId("where").textContent = `Row ${queryRow + 1}, column ${queryColumn + 1} of ${height} × ${width}; `
      + `stage ${stage.stage}, block ${block.place}, ${who}.`;
    byId("what").textContent = `It looks most at key row ${bestRow}, column ${bestColumn} of ${keysHigh} × ${keysWide}: `
      + `${percent(weights[best])}` + (bias ? ` with B, ${percent(content[best])} without` : "")
      + `; even attention would be ${percent(1 / weights.length)}.`
      + (bias ? ` B moves ${percent(moved)} of the attention to other keys.` : "");
  }

  function choose(rowNow, columnNow) {
    const { rows, columns } = data.stages[now.choice];
    now.row = Math.min(rows.length - 1, Math.max(0, rowNow));
    now.column = Math.min(columns.length - 1, Math.max(0, columnNow));
    show();
  }

  function offerHeads() {
    const box = byId("heads");
    const { heads } = data.stages[now.choice];
    const wanted = heads > 1 ? [...Array(heads).keys(), -1] : [0];
    box.replaceChildren(...wanted.map((head) => {
      const label = document.createElement("label");
      const input = document.createElement("input");
      Object.assign(input, { type: "radio", name: "head", value: head, checked: head === now.head });
      input.addEventListener("change", () => { now.head = head; show(); });
      label.append(input, document.createTextNode(head < 0 ? "mean" : head + 1));
      return label;
    }));
  }

  byId("block").addEventListener("change", (event) => {
    const before = data.stages[now.choice];
    const [row, column] = [(now.row + 0.5) / before.rows.length, (now.column + 0.5) / before.columns.length];
    [now.choice, now.block] = event.target.value.split(" ").map(Number);
    const after = data.stages[now.choice];
    if (now.head >= after.heads) now.head = 0;
    offerHeads();
    choose(Math.floor(row * after.rows.length), Math.floor(column * after.columns.length));
  });

  picker.addEventListener("click", (event) => {
    const box = picker.getBoundingClientRect();
    const { cell, stride } = data.stages[now.choice];
    const [y, x] = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
    choose(Math.floor(y * data.image[0] / (cell[0] * stride)), Math.floor(x * data.image[1] / (cell[1] * stride)));
  });

  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  picker.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    choose(now.row + step[0], now.column + step[1]);
  });

  document.documentElement.classList.add("scripted");
  picker.tabIndex = 0;
  picker.setAttribute("role", "application"); // so that screen readers hand over the arrow keys
  picker.setAttribute("aria-label", "Position on the photo; choose it with the arrow keys");
  offerHeads();
  show();
})();
