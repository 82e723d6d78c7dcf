// The viewer: three linked planes of one case, from the bytes that the page itself holds.
{
  const dialog = document.getElementById("viewer");
  const buttons = [...document.querySelectorAll("button.scroll-case")];
  const part = (name) => document.getElementById("viewer-" + name);
  const RIGHT = "#56b4e9", WRONG = "#ff8c1a", MIXED = [204, 121, 167]; // Okabe and Ito 2008: told apart by everybody
  // Axes of the bytes: 0 to the head, 1 to the back, 2 to the patient's left. Rows run down, columns right.
  const PLANES = {
    axial: { depth: 0, row: 1, column: 2, up: false, edges: ["R", "L", "A", "P"] },
    coronal: { depth: 1, row: 0, column: 2, up: true, edges: ["R", "L", "S", "I"] },
    sagittal: { depth: 2, row: 0, column: 1, up: true, edges: ["A", "P", "S", "I"] },
  };
  const names = Object.keys(PLANES);
  let study = null, at = [0, 0, 0], active = "axial", number = 0, asked = 0;

  const unpack = async (template) => {
    const text = template.content.textContent.trim();
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    const meta = JSON.parse(template.dataset.meta);
    const size = meta.shape[0] * meta.shape[1] * meta.shape[2];
    const grey = meta.grey ? bytes.subarray(0, size) : new Uint8Array(size);
    for (let n = 1; n < size; n++) grey[n] += grey[n - 1]; // the bytes are differences; a byte wraps at 256
    const first = meta.grey ? size : 0;
    return { ...meta, grey, hasGrey: meta.grey, reference: bytes.subarray(first, first + size), mask: bytes.subarray(first + size) };
  };
  const strides = () => [study.shape[1] * study.shape[2], study.shape[2], 1];

  // One slice as the picture shows it: calls back with row, column and the place in the bytes.
  const walk = (plane, visit) => {
    const { depth, row, column, up } = PLANES[plane], step = strides();
    const rows = study.shape[row], columns = study.shape[column];
    for (let r = 0; r < rows; r++) {
      let place = at[depth] * step[depth] + (up ? rows - 1 - r : r) * step[row];
      for (let c = 0; c < columns; c++, place += step[column]) visit(r * columns + c, place);
    }
  };
  const busiest = (axis, wrong) => {
    const sums = new Array(study.shape[axis]).fill(0), step = strides()[axis];
    for (let n = 0; n < study.grey.length; n++) {
      if (wrong ? study.reference[n] !== study.mask[n] : study.reference[n] || study.mask[n]) {
        sums[Math.floor(n / step) % study.shape[axis]]++;
      }
    }
    return sums;
  };
  // The middle of what one slice of the active plane holds, so that the cross starts on it.
  const centre = () => {
    const { depth, row, column } = PLANES[active], step = strides(), sums = [0, 0, 0];
    walk(active, (_, place) => {
      if (!study.reference[place] && !study.mask[place]) return;
      sums[0]++;
      sums[1] += Math.floor(place / step[row]) % study.shape[row];
      sums[2] += Math.floor(place / step[column]) % study.shape[column];
    });
    if (sums[0]) { at[row] = Math.round(sums[1] / sums[0]); at[column] = Math.round(sums[2] / sums[0]); }
  };
  const slice = (values, plane, rows, columns) => {
    const found = new Uint8Array(rows * columns);
    walk(plane, (pixel, place) => { found[pixel] = values[place]; });
    return found;
  };

  // Edges between different labels, as a path in pixels.
  const outline = (labels, rows, columns) => {
    const path = new Path2D();
    const label = (r, c) => (r < 0 || c < 0 || r >= rows || c >= columns ? 0 : labels[r * columns + c]);
    for (let r = 0; r <= rows; r++) {
      for (let c = 0, from = -1; c <= columns; c++) {
        const edge = c < columns && label(r, c) !== label(r - 1, c);
        if (edge && from < 0) from = c;
        if (!edge && from >= 0) { path.moveTo(from, r); path.lineTo(c, r); from = -1; }
      }
    }
    for (let c = 0; c <= columns; c++) {
      for (let r = 0, from = -1; r <= rows; r++) {
        const edge = r < rows && label(r, c) !== label(r, c - 1);
        if (edge && from < 0) from = r;
        if (!edge && from >= 0) { path.moveTo(c, from); path.lineTo(c, r); from = -1; }
      }
    }
    return path;
  };
  const image = (pixels, columns, rows) => {
    const canvas = new OffscreenCanvas(columns, rows);
    canvas.getContext("2d").putImageData(new ImageData(pixels, columns, rows), 0, 0);
    return canvas;
  };
  const shades = () => {
    const width = Number(part("window").value), low = Number(part("level").value) - width / 2;
    return Uint8Array.from({ length: 256 }, (_, v) => Math.max(0, Math.min(255, ((v - low) / width) * 255)));
  };
  const tinted = (reference, mask) => {
    const pixels = new Uint8ClampedArray(4 * reference.length);
    const paint = (n, colour, alpha) => pixels.set([...colour, alpha], 4 * n);
    reference.forEach((r, n) => {
      const m = mask[n];
      if (r && m) { if (r === m) paint(n, [255, 255, 255], 70); else paint(n, MIXED, 230); }
      else if (r) paint(n, [86, 180, 233], 230);
      else if (m) paint(n, [255, 140, 26], 230);
    });
    return pixels;
  };

  // The place of the slice inside the canvas: all three planes at one scale, so that sizes compare.
  const layout = (plane, canvas) => {
    const { row, column } = PLANES[plane], alone = part("planes").dataset.alone;
    const wide = Math.max(...names.filter((p) => !alone || p === plane).map((p) => study.shape[PLANES[p].column] * study.spacing_mm[PLANES[p].column]));
    const high = Math.max(...names.filter((p) => !alone || p === plane).map((p) => study.shape[PLANES[p].row] * study.spacing_mm[PLANES[p].row]));
    const scale = Math.min(canvas.width / wide, canvas.height / high);
    const sx = scale * study.spacing_mm[column], sy = scale * study.spacing_mm[row];
    const left = (canvas.width - sx * study.shape[column]) / 2, top = (canvas.height - sy * study.shape[row]) / 2;
    return { sx, sy, left, top, rows: study.shape[row], columns: study.shape[column] };
  };
  const cross = (plane) => {
    const { row, column, up } = PLANES[plane];
    return [at[column] + 0.5, (up ? study.shape[row] - 1 - at[row] : at[row]) + 0.5];
  };
  const drawPlane = (plane) => {
    const figure = dialog.querySelector(`[data-plane="${plane}"]`), canvas = figure.querySelector("canvas");
    const dense = Math.min(window.devicePixelRatio || 1, 2), box = canvas.getBoundingClientRect();
    canvas.width = Math.max(1, Math.round(box.width * dense));
    canvas.height = Math.max(1, Math.round(box.height * dense));
    const { sx, sy, left, top, rows, columns } = layout(plane, canvas), pen = canvas.getContext("2d");
    const reference = slice(study.reference, plane, rows, columns), mask = slice(study.mask, plane, rows, columns);
    const table = shades(), pixels = new Uint8ClampedArray(4 * rows * columns);
    slice(study.grey, plane, rows, columns).forEach((v, n) => pixels.set([table[v], table[v], table[v], 255], 4 * n));
    pen.save();
    pen.translate(left, top);
    pen.scale(sx, sy);
    if (study.hasGrey) pen.drawImage(image(pixels, columns, rows), 0, 0);
    const overlay = part("overlay").value;
    pen.globalAlpha = Number(part("opacity").value) / 100;
    if (overlay.includes("areas")) {
      pen.imageSmoothingEnabled = false;
      pen.drawImage(image(tinted(reference, mask), columns, rows), 0, 0);
    }
    pen.restore();
    pen.save();
    pen.globalAlpha = Number(part("opacity").value) / 100;
    pen.lineWidth = 2 * dense;
    if (overlay.includes("outlines")) {
      const place = new DOMMatrix([sx, 0, 0, sy, left, top]);
      for (const [labels, colour, dash] of [[reference, RIGHT, []], [mask, WRONG, [5 * dense, 3 * dense]]]) {
        const path = new Path2D();
        path.addPath(outline(labels, rows, columns), place); // lines keep their width, whatever the voxels
        pen.setLineDash(dash);
        pen.strokeStyle = colour;
        pen.stroke(path);
      }
    }
    pen.restore();
    const [x, y] = cross(plane);
    pen.strokeStyle = "rgba(255,255,255,.45)";
    pen.lineWidth = dense;
    pen.beginPath();
    pen.moveTo(0, top + y * sy); pen.lineTo(canvas.width, top + y * sy);
    pen.moveTo(left + x * sx, 0); pen.lineTo(left + x * sx, canvas.height);
    pen.stroke();
    pen.fillStyle = "#d5dbe1";
    pen.font = `600 ${13 * dense}px system-ui, sans-serif`;
    pen.textAlign = "center";
    const { edges, depth } = PLANES[plane], w = canvas.width, h = canvas.height;
    pen.fillText(edges[0], 11 * dense, h / 2 - 8 * dense); pen.fillText(edges[1], w - 11 * dense, h / 2 - 8 * dense);
    pen.fillText(edges[2], w / 2 + 10 * dense, 16 * dense); pen.fillText(edges[3], w / 2 + 10 * dense, h - 7 * dense);
    figure.querySelector("output").textContent = `slice ${study.start[depth] + at[depth] * study.step[depth] + 1} of ${study.full[depth]}`;
    const slider = figure.querySelector("input");
    slider.max = study.shape[depth] - 1;
    slider.value = at[depth];
    figure.classList.toggle("active", plane === active);
  };
  const real = (value) => study.low + (value / 255) * (study.high - study.low);
  const shown = (value) => Number(value.toPrecision(3)).toString().replace("-", "−");
  const named = (byte) => {
    const label = study.numbers[byte];
    const found = label ? dialog.querySelector(`[data-label="${label}"]`) : null;
    return label ? (found ? found.textContent : "label " + label) : "–";
  };
  const draw = () => {
    if (!study || !dialog.open) return;
    names.forEach((plane) => { if (!part("planes").dataset.alone || plane === active) drawPlane(plane); });
    const step = strides(), n = at[0] * step[0] + at[1] * step[1] + at[2] * step[2];
    const grey = study.hasGrey ? `scan ${shown(real(study.grey[n]))}${study.unit ? " " + study.unit : ""} · ` : "";
    part("here").textContent = `At the cross: ${grey}reference ${named(study.reference[n])} · mask ${named(study.mask[n])}`;
    const scale = (study.high - study.low) / 255;
    part("window-value").textContent = shown(Number(part("window").value) * scale) + (study.unit ? " " + study.unit : "");
    part("level-value").textContent = shown(real(Number(part("level").value))) + (study.unit ? " " + study.unit : "");
    part("opacity-value").textContent = part("opacity").value + " %";
  };
  let waiting = false; // wheels and drags come faster than the screen is drawn
  const later = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  };

  const move = (axis, to) => { at[axis] = Math.max(0, Math.min(study.shape[axis] - 1, to)); later(); };
  const activate = (plane) => {
    active = plane;
    if (part("planes").dataset.alone) part("planes").dataset.alone = plane;
    later();
  };
  const reset = () => {
    const unit = 255 / (study.high - study.low);
    const [low, high] = study.window.map((value) => (value - study.low) * unit);
    part("window").value = Math.max(1, high - low);
    part("level").value = (low + high) / 2;
    later();
  };
  const jump = (way) => {
    const axis = PLANES[active].depth, wrong = busiest(axis, true);
    for (let n = at[axis] + way; n >= 0 && n < wrong.length; n += way) if (wrong[n]) return move(axis, n);
  };
  const show = async (which) => {
    number = (which + buttons.length) % buttons.length;
    const mine = ++asked, button = buttons[number];
    part("case").textContent = button.dataset.case;
    part("score").textContent = button.dataset.score;
    if (!dialog.open) dialog.showModal();
    part("here").textContent = "Opening …";
    const found = await unpack(document.getElementById(button.dataset.volume));
    if (mine !== asked) return; // another case was asked for meanwhile
    study = found;
    active = study.plane;
    at = [0, 1, 2].map((axis) => {
      const sums = busiest(axis, false), most = Math.max(...sums);
      return most ? sums.indexOf(most) : Math.floor(sums.length / 2);
    });
    const axis = PLANES[active].depth, wrong = busiest(axis, true), most = Math.max(...wrong);
    if (most) at[axis] = wrong.indexOf(most);
    centre();
    for (const name of ["window", "level"]) part(name).disabled = !study.hasGrey;
    part("planes").dataset.alone = part("planes").dataset.alone ? active : "";
    part("thinned").hidden = study.step.every((step) => step === 1);
    reset();
    dialog.querySelector(`[data-plane="${active}"] canvas`).focus({ preventScroll: true });
    dialog.dataset.ready = button.dataset.case;
  };

  if (dialog && window.DecompressionStream && window.OffscreenCanvas && dialog.showModal) {
    buttons.forEach((button, n) => {
      button.hidden = false;
      button.addEventListener("click", () => show(n));
    });
    for (const figure of dialog.querySelectorAll("[data-plane]")) {
      const plane = figure.dataset.plane, canvas = figure.querySelector("canvas"), { depth, row, column, up } = PLANES[plane];
      figure.querySelector("input").addEventListener("input", (event) => { activate(plane); move(depth, Number(event.target.value)); });
      canvas.addEventListener("wheel", (event) => {
        event.preventDefault();
        activate(plane);
        move(depth, at[depth] + Math.sign(event.deltaY));
      }, { passive: false });
      canvas.addEventListener("focus", () => activate(plane));
      canvas.addEventListener("dblclick", () => { part("planes").dataset.alone = part("planes").dataset.alone ? "" : plane; activate(plane); });
      canvas.addEventListener("contextmenu", (event) => event.preventDefault());
      const touch = (event) => {
        if (!study || !event.buttons) return;
        activate(plane);
        if (event.buttons === 2 || event.shiftKey) {
          part("window").value = Number(part("window").value) + event.movementX;
          part("level").value = Number(part("level").value) - event.movementY;
          return later();
        }
        const box = canvas.getBoundingClientRect(), dense = canvas.width / box.width;
        const { sx, sy, left, top, rows } = layout(plane, canvas);
        const c = Math.floor(((event.clientX - box.left) * dense - left) / sx);
        const r = Math.floor(((event.clientY - box.top) * dense - top) / sy);
        move(column, c);
        move(row, up ? rows - 1 - r : r);
      };
      canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); touch(event); });
      canvas.addEventListener("pointermove", touch);
    }
    for (const name of ["window", "level", "opacity", "overlay"]) part(name).addEventListener("input", later);
    part("reset").addEventListener("click", reset);
    part("previous").addEventListener("click", () => show(number - 1));
    part("next").addEventListener("click", () => show(number + 1));
    part("close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => { study = null; buttons[number].focus(); });
    dialog.addEventListener("keydown", (event) => {
      if (!study || event.ctrlKey || event.metaKey || event.altKey) return;
      const typed = event.target.matches("input, select"), axis = PLANES[active].depth;
      const keys = {
        "1": () => activate("axial"), "2": () => activate("coronal"), "3": () => activate("sagittal"),
        "n": () => show(number + 1), "p": () => show(number - 1), "d": () => jump(1), "D": () => jump(-1), "r": reset,
        "f": () => { part("planes").dataset.alone = part("planes").dataset.alone ? "" : active; later(); },
        "o": () => { const list = part("overlay"); list.selectedIndex = (list.selectedIndex + 1) % list.length; later(); },
        PageUp: () => move(axis, at[axis] + 5), PageDown: () => move(axis, at[axis] - 5),
        ...(typed ? {} : {
          ArrowUp: () => move(axis, at[axis] + 1), ArrowDown: () => move(axis, at[axis] - 1),
          Home: () => move(axis, 0), End: () => move(axis, study.shape[axis] - 1),
        }),
      };
      if (!keys[event.key] || (typed && event.target.matches("select") && event.key.length === 1)) return;
      event.preventDefault();
      keys[event.key]();
    });
    addEventListener("resize", later);
  }
}
