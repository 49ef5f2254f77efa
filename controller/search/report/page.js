"use strict";
// Filters, sorts, zooms and selects what the page already holds; nothing is fetched or computed anew
// but positions on another stage.
(() => {
  const $ = (s, root = document) => root.querySelector(s);
  const $$ = (s, root = document) => [...root.querySelectorAll(s)];
  const entries = JSON.parse($("#data").textContent);
  const byId = new Map(entries.map((e) => [e.id, e]));
  const root = document.documentElement;
  root.classList.add("js");
  const card = (id) => document.getElementById("f" + id);
  const row = (id) => document.getElementById("r" + id);
  const mark = (id) => $(`.mark[data-id="${id}"]`);
  let order = entries.slice(), selected = null, sortKey = "rank", there = null;

  // theme and print
  const keep = (value) => { try { localStorage.setItem("scopeloop-theme", value); } catch { /* file: may refuse */ } };
  try { const kept = localStorage.getItem("scopeloop-theme"); if (kept) root.dataset.theme = kept; } catch { /* same */ }
  $("#theme").onclick = () => {
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    keep(root.dataset.theme = isDark ? "light" : "dark");
  };
  $("#print").onclick = () => print();
  addEventListener("beforeprint", () => { $$("details").forEach((d) => { d.open = true; }); fit(); });
  const flag = (id, name, on) => { const box = $(id); if (box) box.onchange = () => document.body.classList.toggle(name, box.checked === on); };
  flag("#outlines", "no-outlines", false);
  flag("#boost", "boost", true);

  // selection
  function select(id, { scroll = false } = {}) {
    if (!byId.has(id)) return;
    $$(".sel").forEach((e) => e.classList.remove("sel"));
    selected = id;
    [mark(id), card(id), row(id)].forEach((e) => e && e.classList.add("sel"));
    const m = mark(id);
    if (m) m.parentNode.append(m); // drawn last, on top
    inspect(id);
    if (scroll && card(id)) card(id).scrollIntoView({ block: "nearest" });
    if ($("#zoom").open) enlarge(id);
    tellThere();
  }
  function copyOf(id) { // a card's copy must not repeat ids
    const source = card(id);
    if (source) { const copy = source.cloneNode(true); copy.removeAttribute("id"); copy.classList.remove("sel"); return copy; }
    const copy = document.createElement("article"), heads = $$(".all th"), cells = $$("td", row(id));
    copy.className = "card";
    copy.dataset.id = id;
    const list = document.createElement("dl");
    list.className = "terms";
    cells.forEach((cell, i) => {
      if (!cell.textContent) return;
      const name = document.createElement("dt"), value = document.createElement("dd");
      name.textContent = heads[i].textContent;
      value.textContent = cell.textContent;
      list.append(name, value);
    });
    copy.append(list);
    return copy;
  }
  function inspect(id) { const box = $("#inspector"); if (box) box.replaceChildren(copyOf(id)); }
  function enlarge(id) {
    const source = card(id), box = $("#zoom");
    if (!source || !$(".shot", source)) return;
    const bar = document.createElement("div"), close = document.createElement("button"), place = document.createElement("p");
    bar.className = "bar-top";
    close.textContent = "Close";
    close.onclick = () => box.close();
    close.autofocus = true;
    const title = $("h3", source).cloneNode(true);
    $("a", title).remove();
    bar.append(title, close);
    const pictures = document.createElement("div");
    pictures.className = "shots";
    pictures.append(...$$(".shot", source).map((s) => s.cloneNode(true)));
    place.className = "hint";
    place.textContent = $$(".terms", source).map((l) => $$("dt", l).map((d) => `${d.textContent} ${d.nextSibling.textContent}`).join(" · ")).join(" · ");
    box.replaceChildren(bar, pictures, place);
    if (!box.open) box.showModal();
  }
  $("#zoom").addEventListener("click", (event) => { if (event.target === $("#zoom")) $("#zoom").close(); });
  document.addEventListener("click", (event) => {
    const from = event.target.closest("[data-id]");
    if (!from || event.target.closest("dialog") || (moved && from.closest("#mapsvg"))) { if (from && moved) event.preventDefault(); return; }
    const id = Number(from.dataset.id), link = event.target.closest("a");
    if (link) event.preventDefault();
    select(id, { scroll: Boolean(link) && !link.closest("#mapsvg") });
    if (link && !link.closest("#mapsvg") && mark(id)) centre(id);
    if (event.target.closest("button.shots")) enlarge(id);
    if (event.target.closest("tr")) centre(id);
  });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input,select,textarea,pre,.scroll")) return;
    const step = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 }[event.key];
    if (step && order.length) {
      event.preventDefault();
      const at = order.findIndex((e) => e.id === selected);
      select(order[Math.min(Math.max(at + step, 0), order.length - 1)].id, { scroll: !atMap() });
    } else if (event.key === "Enter" && selected && !event.target.closest("a,button,summary")) enlarge(selected);
  });
  const atMap = () => { const box = $("#mapbox"); if (!box) return false; const r = box.getBoundingClientRect(); return r.bottom > 200 && r.top < innerHeight - 200; };

  // filter and sort: one order for cards, rows and keys
  const form = $("#filters");
  function arrange() {
    if (!form) return;
    const f = form.elements, layers = new Set($$("[name=layers]:checked", form).map((b) => Number(b.value)));
    const passes = (e) => (!f.material.value || e.material === f.material.value) && layers.has(Math.min(Math.max(e.layers, 1), 5))
      && (e.area ?? 0) >= (Number(f.area.value) || 0) && 100 * (e.probability ?? 0) >= (Number(f.probability.value) || 0)
      && (!f.wanted.checked || e.rank !== null) && (!f.revisited.checked || e.revisited) && (!f.differs?.checked || e.differs);
    const down = sortKey.startsWith("-") ? -1 : 1, key = sortKey.replace("-", "");
    const sorted = entries.slice().sort((a, b) => {
      const x = a[key], y = b[key];
      if (x === null || y === null) return (x === null) - (y === null); // unknown last, either way
      return down * (typeof x === "string" ? x.localeCompare(y) : x - y);
    });
    order = sorted.filter(passes);
    const shown = new Set(order.map((e) => e.id)), cards = $("#cards"), rows = $("#rows");
    for (const e of sorted) {
      const hidden = !shown.has(e.id), c = card(e.id), r = row(e.id), m = mark(e.id);
      if (c) { c.hidden = hidden; cards.append(c); }
      if (r) { r.hidden = hidden; rows.append(r); }
      if (m) m.toggleAttribute("hidden", hidden);
    }
    $("#none").hidden = order.length > 0;
    $("#shown").textContent = `${order.length} of ${entries.length} shown`;
    $$(".all th").forEach((th) => {
      if ($("button", th).dataset.sort === key) th.setAttribute("aria-sort", down > 0 ? "ascending" : "descending");
      else th.removeAttribute("aria-sort");
    });
  }
  if (form) {
    form.oninput = () => { sortKey = form.elements.sort.value || sortKey; arrange(); };
    form.onreset = () => setTimeout(() => { sortKey = "rank"; arrange(); });
    form.onsubmit = (event) => event.preventDefault();
    $$(".all th button").forEach((b) => { b.onclick = () => { sortKey = sortKey === b.dataset.sort ? "-" + sortKey : b.dataset.sort; form.elements.sort.value = sortKey; arrange(); }; });
  }

  // map: the viewBox is the camera
  const svg = $("#mapsvg"), fingers = new Map();
  let home = null, view = null, moved = false;
  const unit = (v) => { const r = svg.getBoundingClientRect(); return Math.max(v[2] / (r.width || 1), v[3] / (r.height || 1)); };
  const fit = () => { if (svg) { view = home.slice(); show(); } };
  function show() {
    const u = unit(view);
    svg.setAttribute("viewBox", view.join(" "));
    svg.style.setProperty("--u", u);
    svg.classList.toggle("near", u < unit(home) * 0.5);
    svg.classList.toggle("close", u < 0.9);
    const power = 10 ** Math.floor(Math.log10(u * 160)), length = [5, 2, 1].find((s) => s * power <= u * 160) * power;
    $("#mapscale i").style.width = `${length / u}px`;
    $("#mapscale span").textContent = length >= 1000 ? `${length / 1000} mm` : `${+length.toPrecision(2)} µm`;
  }
  const toStage = (event) => { const p = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()); return [p.x, p.y]; };
  function zoom(factor, [x, y]) {
    const u = unit(view) * factor;
    if (u < 0.02 || u > unit(home) * 1.6) return;
    view = [x + (view[0] - x) * factor, y + (view[1] - y) * factor, view[2] * factor, view[3] * factor];
    show();
  }
  function centre(id) {
    if (!svg || unit(view) > unit(home) * 0.8) return; // the whole chip is in view anyway
    const e = byId.get(id);
    view = [e.sx - view[2] / 2, -e.sy - view[3] / 2, view[2], view[3]];
    show();
  }
  if (svg) {
    home = svg.getAttribute("viewBox").split(" ").map(Number);
    fit();
    new ResizeObserver(() => show()).observe(svg);
    svg.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !svg.contains(document.activeElement)) return;
      event.preventDefault();
      zoom(Math.exp(Math.max(-60, Math.min(60, event.deltaY)) * 0.004), toStage(event));
    }, { passive: false });
    svg.addEventListener("dblclick", (event) => zoom(0.4, toStage(event)));
    svg.addEventListener("pointerdown", (event) => { fingers.set(event.pointerId, event); moved = false; svg.focus({ preventScroll: true }); });
    addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (before) {
        const u = unit(view), dx = event.clientX - before.clientX, dy = event.clientY - before.clientY;
        if (!moved && Math.hypot(dx, dy) < 4) return;
        moved = true;
        const other = [...fingers.values()].find((f) => f.pointerId !== event.pointerId);
        if (other) {
          const span = (f) => Math.hypot(f.clientX - other.clientX, f.clientY - other.clientY) || 1;
          zoom(span(before) / span(event), toStage(other));
        } else { view[0] -= dx * u; view[1] -= dy * u; show(); }
        fingers.set(event.pointerId, event);
      } else if (svg.contains(event.target)) read(event);
    });
    for (const end of ["pointerup", "pointercancel"]) addEventListener(end, (event) => fingers.delete(event.pointerId));
    $$("[data-zoom]").forEach((b) => { b.onclick = () => { const way = b.dataset.zoom; if (way === "fit") fit(); else zoom(way === "in" ? 0.6 : 1.6667, [view[0] + view[2] / 2, view[1] + view[3] / 2]); }; });
    $$("[data-layer]").forEach((b) => { b.onchange = () => svg.classList.toggle("no-" + b.dataset.layer, !b.checked); });
  }
  function read(event) {
    const [x, y] = toStage(event), d = svg.dataset, pad = (v) => v.toFixed(0).replace("-", "−").padStart(7);
    let text = `stage ${pad(x)} ${pad(-y)} µm`;
    if (d.rotation !== undefined) {
      const a = d.rotation * Math.PI / 180, dx = x - d.originX, dy = -y - d.originY;
      text = `chip ${pad(dx * Math.cos(a) + dy * Math.sin(a))} ${pad(dy * Math.cos(a) - dx * Math.sin(a))} µm\n` + text;
    }
    $("#mapread").textContent = text;
  }

  // another stage: a turn and a shift (and a mirror) from two corners; the length between them is the check
  const away = $("#elsewhere");
  function solve() {
    const f = away.elements, at = (n) => [f[`x${n}`], f[`y${n}`]].map((i) => (i.value === "" ? NaN : Number(i.value)));
    const flip = f.down.checked ? -1 : 1, [p, q] = [1, 2].map((n) => f[`ref${n}`].value.split(",").map(Number));
    const [s, t] = [at(1), at(2)].map(([x, y]) => [x, y * flip]), cx = q[0] - p[0], cy = q[1] - p[1], sx = t[0] - s[0], sy = t[1] - s[1];
    there = null;
    if (![...s, ...t].every(Number.isFinite) || !Math.hypot(cx, cy)) return "Two corners are enough.";
    const turn = Math.atan2(sy, sx) - Math.atan2(cy, cx), ratio = Math.hypot(sx, sy) / Math.hypot(cx, cy), c = Math.cos(turn), d = Math.sin(turn);
    there = (e) => { const x = e.cx - p[0], y = e.cy - p[1]; return [s[0] + x * c - y * d, flip * (s[1] + x * d + y * c)]; };
    const off = 100 * (ratio - 1), degrees = ((turn * 180 / Math.PI + 540) % 360) - 180;
    return `Turned by ${degrees.toFixed(2)}°; the distance between the corners differs by ${off.toFixed(2)} %${Math.abs(off) > 0.5 ? ": check the corners" : ""}.`;
  }
  function tellThere() {
    if (!away) return;
    const said = solve(), e = byId.get(selected);
    $("#there").textContent = there && e ? `${said}\n#${e.id} lies at x ${there(e)[0].toFixed(1)}, y ${there(e)[1].toFixed(1)} µm there.` : said;
    const head = $(".all thead tr");
    if (!head) return;
    $$(".there").forEach((cell) => cell.remove());
    if (!there) return;
    for (const axis of [0, 1]) {
      const th = document.createElement("th");
      th.className = "there";
      th.textContent = `There ${"xy"[axis]} µm`;
      head.append(th);
      for (const one of entries) {
        const cell = document.createElement("td");
        cell.className = "there";
        cell.textContent = one.cx === null || one.cy === null ? "–" : there(one)[axis].toFixed(1);
        row(one.id).append(cell);
      }
    }
  }
  if (away) { away.oninput = tellThere; away.onsubmit = (event) => event.preventDefault(); }

  arrange();
  const asked = Number((location.hash.match(/^#[fr](\d+)$/) || [])[1]);
  if (order.length) select(byId.has(asked) ? asked : order[0].id, { scroll: byId.has(asked) });
  root.dataset.ready = "1";
})();
