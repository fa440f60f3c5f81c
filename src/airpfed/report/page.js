const root = document.documentElement;
const bar = document.querySelector('[role="tablist"]');
const tabs = [...bar.children];
const toggle = document.getElementById("theme");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
let across = "round";

const kept = {  // a browser may refuse storage to files
  get() { try { return localStorage.getItem("airpfed-theme"); } catch { return null; } },
  set(value) { try { localStorage.setItem("airpfed-theme", value); } catch { /* not kept */ } },
};

const isDark = () => (root.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
const panelOf = (tab) => document.getElementById(tab.getAttribute("aria-controls"));

// Black lines and rules take the text's colour: black on a dark page cannot be seen.
function inked(value, ink) {
  if (Array.isArray(value)) return value.map((item) => inked(item, ink));
  if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, inked(v, ink)]));
  return value === "#000000" ? ink : value;
}

function draw(box) {
  const stamp = `${isDark()} ${across}`;
  if (box.dataset.stamp === stamp) return;
  box.dataset.stamp = stamp;
  const { data, layout, across: choices } = figures[box.id.replace("figure-", "")];
  const ink = getComputedStyle(document.body).color;
  const line = getComputedStyle(bar).borderBottomColor;
  const narrow = box.clientWidth < 480;
  const axis = (own) => ({ ...own, nticks: own.type === "log" ? 4 : 0, gridcolor: line, linecolor: line, automargin: true });
  const chosen = choices?.[across];
  const xaxis = chosen ? { ...layout.xaxis, title: { text: chosen.title } } : layout.xaxis;
  const traces = inked(data, ink).map((trace, i) => (chosen ? { ...trace, x: chosen.x[i] } : trace));
  const look = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, family: "system-ui, sans-serif", size: narrow ? 11 : 12 },
    margin: { t: 10, r: 10, l: 10, b: 10 }, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, xanchor: "left" },
    showlegend: traces.some((trace) => trace.name),
  };
  Plotly.react(box, traces, { ...layout, ...look, xaxis: axis(xaxis), yaxis: axis(layout.yaxis) },
    { responsive: true, displayModeBar: false });
}

const drawShown = () => document.querySelectorAll("section:not([hidden]) .figure").forEach(draw);

function show(tab) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", chosen);
    other.tabIndex = chosen ? 0 : -1;
    panelOf(other).hidden = !chosen;
  }
  drawShown();
}

function choose(tab) {
  show(tab);
  try { history.replaceState(null, "", `#${tab.dataset.name}`); } catch { /* the address stays */ }
}

const named = () => tabs.find((tab) => `#${tab.dataset.name}` === location.hash);

bar.addEventListener("click", (event) => { if (tabs.includes(event.target)) choose(event.target); });
bar.addEventListener("keydown", (event) => {
  const now = tabs.indexOf(document.activeElement);
  const next = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (now < 0 || next === undefined) return;
  event.preventDefault();
  const tab = tabs[(next + tabs.length) % tabs.length];
  tab.focus();
  choose(tab);
});
document.querySelectorAll('input[name="across"]').forEach((input) => input.addEventListener("change", () => {
  across = input.value;
  drawShown();
}));

function paint() {
  toggle.textContent = isDark() ? "Light" : "Dark";
  drawShown();
}
toggle.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  kept.set(root.dataset.theme);
  paint();
});
prefersDark.addEventListener("change", paint);
addEventListener("hashchange", () => named() && show(named()));
addEventListener("beforeprint", () => document.querySelectorAll(".figure").forEach(draw));

if (kept.get()) root.dataset.theme = kept.get();
document.body.classList.add("tabbed");
show(named() ?? tabs[0]);
paint();
