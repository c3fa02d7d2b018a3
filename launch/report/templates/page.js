// What moves on a page of Rootstock. Everything that it needs stands in the page; without it the page is complete, and still.
(() => {
  "use strict";
  const root = document.documentElement;
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const make = (tag, given = {}, ...inner) => {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(given)) {
      if (key in made && !key.includes("-")) made[key] = value;
      else made.setAttribute(key, value);
    }
    made.append(...inner);
    return made;
  };
  const shade = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const series = (index) => shade(`--c${((index % 10) + 10) % 10}`);

  // Dark and light: the system's choice, until the button says otherwise.
  const KEY = "rootstock-theme", redraw = [];
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  try { if (["dark", "light"].includes(localStorage.getItem(KEY))) root.dataset.theme = localStorage.getItem(KEY); } catch { /* no storage */ }
  const theme = make("button", { type: "button", className: "theme" });
  const restyle = () => {
    theme.textContent = isDark() ? "Light colours" : "Dark colours";
    for (const again of redraw) again();
  };
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem(KEY, root.dataset.theme); } catch { /* no storage */ }
    restyle();
  });
  system.addEventListener("change", restyle);
  document.querySelector("main > header").prepend(theme);
  restyle();

  // Tables: a column's heading sorts its rows, within each group.
  const numeral = (text) => {
    const found = text.replace(/\u2212/g, "-").replace(/(\d),(?=\d{3}\b)/g, "$1").match(/[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?/i);
    return found ? parseFloat(found[0]) : null;
  };
  const compare = (a, b) => {
    if (!a.text !== !b.text) return a.text ? -1 : 1; // cells without a value come last, whichever way
    if (a.number !== null && b.number !== null) return a.number - b.number;
    return a.text.localeCompare(b.text, "en", { numeric: true });
  };
  const cellOf = (row, column) => {
    const cell = row.cells[column], text = (cell ? cell.firstChild?.nodeType === 3 ? cell.firstChild.data : cell.textContent : "").trim();
    return { text: text === "–" ? "" : text, number: column ? numeral(text) : null };
  };
  const sort = (table, column, way) => {
    for (const body of table.tBodies) {
      body.kept ??= [...body.rows];
      const head = body.kept.filter((row) => row.classList.contains("group")), blocks = [];
      for (const row of body.kept.slice(head.length)) {
        if (row.querySelector("td[colspan]") && blocks.length) blocks.at(-1).push(row); // it belongs to the row above
        else blocks.push([row]);
      }
      if (way) {
        const keyed = blocks.map((rows, order) => ({ rows, order, cell: cellOf(rows[0], column) }));
        const turn = (a, b) => (!a.cell.text !== !b.cell.text ? 1 : way);
        keyed.sort((a, b) => turn(a, b) * compare(a.cell, b.cell) || a.order - b.order);
        body.append(...head, ...keyed.flatMap((one) => one.rows));
      } else body.append(...body.kept);
    }
  };
  for (const table of all("table.results, table.scores")) {
    const heads = [...(table.tHead?.rows[0]?.cells ?? [])];
    if (all("tbody tr", table).length < 2) continue;
    heads.forEach((head, column) => {
      if (head.getAttribute("aria-hidden")) return;
      const button = make("button", { type: "button", className: "sort", title: "Sort by this column" });
      button.append(...head.childNodes);
      if (!button.textContent.trim()) button.append("name");
      head.append(button);
      button.addEventListener("click", () => {
        const next = { none: "descending", descending: "ascending", ascending: "none" }[head.getAttribute("aria-sort") ?? "none"];
        for (const other of heads) other.removeAttribute("aria-sort");
        if (next !== "none") head.setAttribute("aria-sort", next);
        sort(table, column, { none: 0, descending: -1, ascending: 1 }[next]);
      });
    });
  }

  // A link to a meaning opens the list that it stands in.
  const unfold = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let inside = target; inside; inside = inside.parentElement) if (inside.tagName === "DETAILS") inside.open = true;
    target?.scrollIntoView?.();
  };
  addEventListener("hashchange", unfold);
  unfold();

  // Commands and configs are copied by a button.
  const copy = async (text) => {
    try { await navigator.clipboard.writeText(text); return true; } catch { /* an old browser, or a page without the right */ }
    const area = make("textarea", { value: text, className: "unseen" });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  };
  for (const source of all("pre, .command code")) {
    const button = make("button", { type: "button", className: "copy" }, "Copy");
    button.addEventListener("click", async () => {
      button.textContent = (await copy(source.textContent)) ? "Copied" : "Press Ctrl+C";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    if (source.tagName === "PRE") {
      const frame = make("div", { className: "copied" });
      source.replaceWith(frame);
      frame.append(source, button);
    } else source.after(button);
  }

  // Numbers and library are compressed; the library is read when the first figure comes into view.
  const unpack = async (id) => {
    const packed = document.getElementById(id)?.textContent.trim();
    if (!packed || !("DecompressionStream" in window)) return null;
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };
  let loading;
  const library = () => (loading ??= unpack("live-library").then((code) => {
    document.head.append(make("script", { textContent: code }));
    return window.Bokeh;
  }));
  const onSight = (element, act) => {
    const watch = new IntersectionObserver((seen) => {
      if (!seen.some((one) => one.isIntersecting)) return;
      watch.disconnect();
      act();
    }, { rootMargin: "150px" });
    watch.observe(element);
  };

  const dress = (Bokeh, figure, across) => {
    for (const axis of [...figure.below, ...figure.left]) {
      axis.axis_line_color = shade("--muted");
      axis.major_tick_line_color = axis.minor_tick_line_color = null;
      axis.major_label_text_color = axis.axis_label_text_color = shade("--muted");
      axis.major_label_text_font = axis.axis_label_text_font = "sans-serif";
      axis.major_label_text_font_size = axis.axis_label_text_font_size = "11px";
      axis.axis_label_text_font_style = "normal";
      axis.formatter = new Bokeh.PrintfTickFormatter({ format: "%.6g" });
    }
    if (across) figure.below[0].axis_label = across;
    for (const grid of figure.center) grid.grid_line_color = grid.dimension === 1 ? shade("--rule") : null;
    figure.background_fill_color = figure.border_fill_color = shade("--paper");
    figure.outline_line_color = null;
  };
  const smoothed = (values, weight) => {
    let sum = 0, mass = 0;
    return values.map((value) => {
      sum = weight * sum + (1 - weight) * value;
      mass = weight * mass + (1 - weight);
      return sum / mass;
    });
  };
  const coarse = matchMedia("(pointer: coarse)").matches;
  const blank = (Bokeh, height, more = {}) => {
    const figure = Bokeh.Plotting.figure({
      height, sizing_mode: "stretch_width", tools: [], toolbar_location: "above", min_border: 2, ...more,
    });
    const tools = [new Bokeh.BoxZoomTool(), new Bokeh.PanTool(), new Bokeh.WheelZoomTool(), new Bokeh.ResetTool()];
    figure.add_tools(...tools);
    figure.toolbar.logo = null;
    figure.toolbar.active_drag = coarse ? null : tools[0]; // a finger scrolls the page
    figure.toolbar.active_scroll = null;
    return figure;
  };

  // Curves. lines: {name, colour, x, y, thin}; returns {smooth(weight)}, and draws again when the colours change.
  const curves = async (host, { lines, across, levels = [], height = 240 }) => {
    const Bokeh = await library();
    let weight = 0, view = null, sources = [];
    const build = async () => {
      view?.remove();
      host.replaceChildren();
      const figure = blank(Bokeh, height), ends = [Infinity, -Infinity];
      sources = [];
      const hovered = [];
      for (const line of lines) {
        const colour = series(line.colour), name = line.x.map(() => line.name);
        for (const x of line.x) { ends[0] = Math.min(ends[0], x); ends[1] = Math.max(ends[1], x); }
        const raw = new Bokeh.ColumnDataSource({ data: { x: line.x, y: line.y } });
        const source = new Bokeh.ColumnDataSource({ data: { x: line.x, y: smoothed(line.y, weight), raw: line.y, name } });
        const at = [{ field: "x" }, { field: "y" }];
        const faint = figure.line(...at, { source: raw, line_color: colour, line_alpha: 0.28, line_width: 1, visible: weight > 0 });
        const drawn = figure.line(...at, { source, line_color: colour, line_width: line.thin ? 1.3 : 2, line_alpha: line.thin ? 0.8 : 1,
          line_dash: line.colour >= 10 ? [2, 3] : [] });
        if (line.x.length <= 25) figure.scatter(...at, { source, size: 5, fill_color: colour, line_color: null });
        hovered.push(drawn);
        sources.push({ line, source, faint });
      }
      for (const [, value] of levels)
        figure.line([...ends], [value, value], { line_color: shade("--muted"), line_dash: [5, 4], line_width: 1 });
      const tooltips = [["", "@name"], [across, "@x{%.10g}"], ["value", "@raw{%.5g}"]];
      const formatters = { "@x": "printf", "@raw": "printf" };
      const mode = lines.length > 6 ? "mouse" : "vline";
      figure.add_tools(new Bokeh.HoverTool({ tooltips, formatters, renderers: hovered, mode, line_policy: "nearest" }));
      dress(Bokeh, figure, across);
      view = host.view = await Bokeh.Plotting.show(figure, host);
    };
    await build();
    redraw.push(() => host.isConnected && build());
    return {
      lines: () => sources.map(({ source }) => [...source.data.y]),
      smooth: (given) => {
        weight = given;
        for (const { line, source, faint } of sources) {
          source.data = { ...source.data, y: smoothed(line.y, weight) };
          faint.visible = weight > 0;
        }
      },
    };
  };
  let labels = 0;
  const slider = (act) => {
    const id = `smoothing-${++labels}`, told = make("output", { htmlFor: id }, "0");
    const input = make("input", { type: "range", id, min: "0", max: "0.98", step: "0.02", value: "0" });
    input.addEventListener("input", () => { told.textContent = input.value; act(parseFloat(input.value)); });
    return make("div", { className: "controls" }, make("label", { htmlFor: id }, "Smoothing"), input, told);
  };
  const named = (line) => [line.key, line.run].filter(Boolean).join(", ");

  const drawPanels = (plots) => {
    for (const panels of all(".panels")) {
      const figures = all(":scope > figure[data-plot]", panels);
      if (!figures.length) continue;
      const charts = [];
      let weight = 0;
      if (figures.some((figure) => plots[figure.dataset.plot].smooth))
        panels.before(slider((given) => { weight = given; for (const { chart } of charts) chart.smooth(weight); }));
      for (const figure of figures) {
        const plot = plots[figure.dataset.plot];
        const lines = plot.lines.map((line) => ({ ...line, name: named(line) || plot.title, colour: line.c, thin: plot.lines.length > 4 }));
        onSight(figure, async () => {
          const host = make("div", { className: "live", role: "group", "aria-label": plot.title });
          figure.querySelector("svg").after(host);
          figure.classList.add("is-live");
          const chart = (host.chart = await curves(host, { lines, across: plot.across, levels: plot.levels }));
          if (plot.smooth) {
            charts.push({ chart });
            if (weight) chart.smooth(weight);
          }
        });
      }
    }
  };

  // One figure for the curves of all runs of the page.
  const drawOverlay = (plots) => {
    const place = document.querySelector("[data-overlay]"), groups = new Map();
    for (const plot of plots.filter((one) => one.smooth))
      for (const line of plot.lines) {
        const name = plot.title === "Online evaluation" || new Set(plot.lines.map((one) => one.key)).size > 1
          ? `${plot.title}: ${line.key}` : plot.title;
        if (!groups.has(name)) groups.set(name, []);
        groups.get(name).push({ ...line, stage: plot.stage, across: plot.across, levels: plot.levels });
      }
    const order = [...groups.keys()].filter((name) => new Set(groups.get(name).map((line) => line.stage)).size > 1);
    if (!place || !order.length) return;
    order.sort((a, b) => b.startsWith("Online evaluation") - a.startsWith("Online evaluation"));
    const stages = [...new Set(order.flatMap((name) => groups.get(name).map((line) => line.stage)))];
    const chosen = new Set(stages.slice(0, 8));
    const host = make("div", { className: "live", role: "group", "aria-label": "Curves of several runs" });
    const select = make("select", { id: "overlay-metric" }, ...order.map((name) => make("option", { value: name }, name)));
    let weight = 0, chart = null, turn = 0;
    const draw = async () => {
      const mine = ++turn, having = new Set(groups.get(select.value).map((line) => line.stage));
      boxes.forEach((box, index) => { box.hidden = !having.has(stages[index]); });
      const given = groups.get(select.value).filter((line) => chosen.has(line.stage));
      const lines = given.map((line) => ({ ...line, name: [line.stage, line.run].filter(Boolean).join(", "),
        colour: stages.indexOf(line.stage), thin: given.length > 6 }));
      const inner = make("div");
      const made = await curves(inner, { lines, across: "step", levels: given[0]?.levels ?? [], height: 360 });
      if (mine !== turn) return;
      host.replaceChildren(inner);
      chart = host.chart = made;
      if (weight) chart.smooth(weight);
    };
    const boxes = stages.map((stage, index) => {
      const box = make("input", { type: "checkbox", checked: chosen.has(stage) });
      box.addEventListener("change", () => { if (box.checked) chosen.add(stage); else chosen.delete(stage); draw(); });
      return make("label", { className: "tick" }, box, make("i", { style: `background:var(--c${index % 10})` }), stage);
    });
    select.addEventListener("change", draw);
    const controls = slider((given) => { weight = given; chart?.smooth(weight); });
    controls.prepend(make("label", { htmlFor: "overlay-metric" }, "Metric"), select);
    place.append(make("h2", {}, "Curves of several runs"), controls, make("div", { className: "ticks" }, ...boxes), host);
    place.hidden = false;
    onSight(host, draw);
  };

  // Maps of features: the nearest point to the pointer tells its picture, a click its neighbours.
  const MARKERS = ["circle", "triangle", "square", "diamond", "inverted_triangle"];
  const thumb = (thumbs, number, size) => {
    const made = make("span", { className: "thumb" });
    const row = Math.floor(number / thumbs.columns), column = number % thumbs.columns;
    made.style.cssText = `width:${size}px;height:${size}px;background-size:${thumbs.columns * size}px auto;`
      + `background-position:${-column * size}px ${-row * size}px`;
    return made;
  };
  const drawMap = async (place, map, thumbs) => {
    const Bokeh = await library(), { label, domain, right, guess, thumb: pictures } = map.points;
    const count = label.length, hasClass = label.some((one) => one >= 0), hasRight = right.some((one) => one >= 0);
    const nameOf = (one) => (one < 0 ? "unlabelled" : map.classes[one] ?? String(one));
    const where = (one) => map.domains[one] ?? String(one);
    const switches = [
      ...(hasClass ? [["class", "Class"]] : []),
      ...(map.domains.length > 1 ? [["domain", "Domain"]] : []),
      ...(hasRight ? [["right", "Right or wrong"]] : []),
    ];
    let by = switches[0]?.[0] ?? "domain", when = "after", current = -1, pinned = -1, view = null;
    const host = make("div", { className: "live", tabIndex: 0, role: "application" });
    host.setAttribute("aria-label", `${map.title}: map of ${count} pictures. Arrow keys walk from point to point, Enter shows neighbours.`);
    const tip = make("div", { className: "tip", hidden: true, role: "status" });
    const side = make("div", { className: "side", "aria-live": "polite" });
    const legend = make("ul", { className: "legend" });
    const radio = (name, given, value, act) => {
      const group = `${name}-${++labels}`;
      return make("fieldset", {}, make("legend", {}, name), ...given.map(([key, text]) => {
        const input = make("input", { type: "radio", name: group, value: key, checked: key === value });
        input.addEventListener("change", () => act(key));
        return make("label", {}, input, text);
      }));
    };
    const xs = () => (when === "before" ? map.before.x : map.points.x), ys = () => (when === "before" ? map.before.y : map.points.y);
    const colourOf = (i) => {
      if (by === "class") return label[i] < 0 ? shade("--muted") : series(label[i]);
      if (by === "domain") return series(domain[i]);
      return right[i] < 0 ? shade("--muted") : series(right[i] ? 2 : 1);
    };
    const explain = () => {
      const entries = new Map();
      for (let i = 0; i < count; i++) {
        const text = by === "class" ? nameOf(label[i]) : by === "domain" ? where(domain[i]) : ["not known", "wrong", "right"][right[i] + 1];
        if (!entries.has(text)) entries.set(text, [by === "class" ? label[i] : by === "domain" ? domain[i] : -right[i], colourOf(i)]);
      }
      const rows = [...entries].sort((a, b) => a[1][0] - b[1][0]).slice(0, 24);
      legend.replaceChildren(...rows.map(([text, [, colour]]) => make("li", {}, make("i", { style: `background:${colour}` }), text)));
      if (map.domains.length > 1 && by !== "domain")
        legend.append(make("li", {}, map.domains.map((name, i) => `${MARKERS[i % 5].replace("_", " ")}: ${name}`).join(", ")));
    };
    const facts = (i) => [
      hasClass ? nameOf(label[i]) : "", map.domains.length > 1 ? where(domain[i]) : "",
      right[i] < 0 ? "" : right[i] ? "right" : `wrong: taken for ${nameOf(guess[i])}`,
    ].filter(Boolean).join(" · ") || `picture ${i + 1}`;
    let points, ring;
    const build = async () => {
      view?.remove();
      host.replaceChildren();
      const figure = blank(Bokeh, 420, { match_aspect: true });
      for (const axis of [...figure.below, ...figure.left]) axis.visible = false;
      const at = [{ field: "x" }, { field: "y" }];
      points = new Bokeh.ColumnDataSource({ data: { x: xs(), y: ys(), colour: label.map((_, i) => colourOf(i)),
        marker: domain.map((one) => MARKERS[one % 5]) } });
      ring = new Bokeh.ColumnDataSource({ data: { x: [], y: [], colour: [], size: [] } });
      figure.scatter(...at, { source: points, size: 7, marker: { field: "marker" }, fill_color: { field: "colour" }, fill_alpha: 0.8, line_color: null });
      figure.scatter(...at, { source: ring, size: { field: "size" }, fill_color: null, line_color: { field: "colour" }, line_width: 2 });
      dress(Bokeh, figure, "");
      for (const grid of figure.center) grid.grid_line_color = null;
      figure.outline_line_color = shade("--rule");
      view = host.view = await Bokeh.Plotting.show(figure, host);
      host.append(tip);
      explain();
      mark();
    };
    const pixel = (i) => {
      const box = view.el.getBoundingClientRect(), { x_scale, y_scale } = view.frame;
      return [box.left + x_scale.compute(xs()[i]), box.top + y_scale.compute(ys()[i])];
    };
    const nearest = (x, y) => {
      let best = -1, least = 18 ** 2;
      for (let i = 0; i < count; i++) {
        const [px, py] = pixel(i), far = (px - x) ** 2 + (py - y) ** 2;
        if (far < least) { best = i; least = far; }
      }
      return best;
    };
    const mark = () => {
      const shown = pinned >= 0 ? [pinned, ...(map.near[pinned] ?? [])] : [];
      if (current >= 0 && !shown.includes(current)) shown.push(current);
      ring.data = { x: shown.map((i) => xs()[i]), y: shown.map((i) => ys()[i]),
        colour: shown.map((i) => shade(i === pinned ? "--ink" : "--muted")), size: shown.map((i) => (i === pinned ? 17 : 13)) };
    };
    const hover = (i) => {
      if (i !== current) { current = i; mark(); }
      tip.hidden = i < 0;
      if (i < 0) return;
      tip.replaceChildren(...(pictures[i] >= 0 ? [thumb(thumbs, pictures[i], 80)] : []), make("span", {}, facts(i)));
      const box = host.getBoundingClientRect(), [x, y] = pixel(i);
      tip.style.left = `${Math.max(0, Math.min(x - box.left + 12, box.width - tip.offsetWidth - 4))}px`;
      tip.style.top = `${Math.max(0, y - box.top + (y - box.top > box.height - tip.offsetHeight - 16 ? -tip.offsetHeight - 10 : 12))}px`;
    };
    const pin = (i) => {
      pinned = i;
      mark();
      if (i < 0) { side.replaceChildren(make("p", { className: "lead" }, hint)); return; }
      const near = (map.near[i] ?? []).map((j) => {
        const button = make("button", { type: "button", title: facts(j), "aria-label": facts(j) },
          ...(pictures[j] >= 0 ? [thumb(thumbs, pictures[j], 56)] : [facts(j)]));
        button.addEventListener("click", () => { pin(j); });
        button.addEventListener("mouseenter", () => { current = j; mark(); });
        return make("li", { className: hasClass && label[j] !== label[i] ? "other" : "" }, button, make("span", {}, hasClass ? nameOf(label[j]) : where(domain[j])));
      });
      side.replaceChildren(
        make("div", { className: "pinned" }, ...(pictures[i] >= 0 ? [thumb(thumbs, pictures[i], 96)] : []), make("p", {}, facts(i))),
        ...(near.length ? [make("p", { className: "lead" }, `Nearest of the map's ${count} pictures by cosine of the features, nearest first${hasClass ? "; other classes are framed" : ""}.`),
          make("ol", { className: "near" }, ...near)] : []));
    };
    const hint = "Point at a dot for its picture, click it for its nearest neighbours. By keyboard: arrow keys, then Enter.";
    let pressed = null;
    host.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") hover(nearest(event.clientX, event.clientY)); });
    host.addEventListener("pointerleave", () => hover(-1));
    host.addEventListener("blur", () => hover(-1));
    host.addEventListener("pointerdown", (event) => { pressed = [event.clientX, event.clientY]; }, true);
    host.addEventListener("click", (event) => {
      if (pressed && Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) > 4) return; // a zoom, not a click
      const found = nearest(event.clientX, event.clientY);
      if (found >= 0) { hover(found); pin(found); }
    });
    host.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (event.key === "Enter" && current >= 0) pin(current);
      else if (event.key === "Escape") { hover(-1); pin(-1); }
      else if (!way) return;
      else {
        const from = current >= 0 ? current : pinned >= 0 ? pinned : 0, x = xs(), y = ys();
        let best = from, least = Infinity;
        for (let i = 0; i < count; i++) {
          const along = (x[i] - x[from]) * way[0] + (y[i] - y[from]) * way[1], off = Math.abs((x[i] - x[from]) * way[1]) + Math.abs((y[i] - y[from]) * way[0]);
          const far = Math.hypot(along, off);
          if (along > 0 && off <= along && far < least) { best = i; least = far; }
        }
        hover(best);
      }
      event.preventDefault();
    });
    const recolour = () => { points.data = { ...points.data, x: xs(), y: ys(), colour: label.map((_, i) => colourOf(i)) }; explain(); mark(); };
    const controls = make("div", { className: "controls" });
    if (switches.length > 1) controls.append(radio("Colour", switches, by, (key) => { by = key; recolour(); }));
    if (map.before.x)
      controls.append(radio("Training", [["before", "before"], ["after", "after"]], when, (key) => { when = key; recolour(); }));
    const told = map.scored && hasRight ? [make("p", { className: "lead" }, `Right and wrong are those of ${map.scored}.`)] : [];
    place.classList.add("is-live");
    place.append(controls, make("div", { className: "atlas" }, make("div", {}, host, legend, ...told), side));
    side.append(make("p", { className: "lead" }, hint));
    Object.assign(host, { pixel, count });
    await build();
    redraw.push(() => host.isConnected && build());
  };

  unpack("live-data").then((text) => {
    if (!text || !document.getElementById("live-library")) return;
    const { plots, maps, thumbs } = JSON.parse(text);
    if (thumbs.src) root.style.setProperty("--sheet", `url(${thumbs.src})`);
    drawPanels(plots);
    drawOverlay(plots);
    for (const place of all("[data-map]")) onSight(place, () => drawMap(place, maps[place.dataset.map], thumbs));
    root.dataset.live = "ready";
  });
})();
