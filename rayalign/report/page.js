"use strict";
// Charts take the page's colours, also when it turns dark; samples are shown as text, so that none can become markup.

const dark = window.matchMedia("(prefers-color-scheme: dark)");

function colours() {
  const style = getComputedStyle(document.documentElement);
  const axis = { gridcolor: style.getPropertyValue("--grid").trim(), zerolinecolor: style.getPropertyValue("--grid").trim() };
  return { ink: style.getPropertyValue("--ink").trim(), axis };
}

function themed() {
  const { ink, axis } = colours();
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", "font.color": ink,
    "xaxis.gridcolor": axis.gridcolor, "yaxis.gridcolor": axis.gridcolor,
    "xaxis.zerolinecolor": axis.zerolinecolor, "yaxis.zerolinecolor": axis.zerolinecolor,
  };
}

function draw(holder) {
  if (holder.dataset.drawn) return;
  holder.dataset.drawn = "yes";
  const figure = JSON.parse(holder.querySelector("script").textContent);
  const config = { responsive: true, displayModeBar: false };
  Plotly.newPlot(holder, figure.data, figure.layout, config).then(() => Plotly.relayout(holder, themed()));
}

function drawCharts() {
  const charts = document.querySelectorAll(".chart");
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { draw(entry.target); seen.unobserve(entry.target); }
  }, { rootMargin: "600px" });
  charts.forEach((chart) => seen.observe(chart));
  window.addEventListener("beforeprint", () => charts.forEach(draw));
  dark.addEventListener("change", () => charts.forEach((chart) => chart.dataset.drawn && Plotly.relayout(chart, themed())));
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function mean(answers) {
  const rewards = answers.map((answer) => answer.reward).filter((reward) => reward !== null);
  return rewards.length ? rewards.reduce((a, b) => a + b, 0) / rewards.length : null;
}

// Rewards of two rounds are of two reward models: what can be compared is how far answers are above the demonstration.
function worth(row, place) {
  const own = mean(row.answers[place]), base = row.bases.length ? row.bases[place] : 0;
  return own === null || base === null ? null : own - base;
}

function lastReward(row) {
  return row.answers.length ? worth(row, row.answers.length - 1) : null;
}

function change(row) {
  const known = row.answers.map((_, place) => worth(row, place)).filter((found) => found !== null);
  return known.length > 1 ? known[known.length - 1] - known[0] : null;
}

const ORDERS = {
  "as they come": null,
  "reward at the end, highest first": (row) => lastReward(row),
  "reward at the end, lowest first": (row) => { const found = lastReward(row); return found === null ? null : -found; },
  "change of reward, largest rise first": (row) => change(row),
  "change of reward, largest fall first": (row) => { const found = change(row); return found === null ? null : -found; },
};

function ordered(rows, key) {
  if (!key) return rows;
  const low = (value) => (value === null ? -Infinity : value);
  return rows.map((row, place) => [low(key(row)), place, row]).sort((a, b) => b[0] - a[0] || a[1] - b[1]).map((one) => one[2]);
}

function tokenSpans(tokens, largest) {
  const text = element("div", "text");
  for (const [piece, reward] of tokens) {
    const span = element("span", "token", piece);
    if (reward !== null) {
      span.title = `reward ${reward}`;
      const share = largest ? Math.min(1, Math.abs(reward) / largest) * 0.6 : 0;
      span.style.background = `rgba(var(${reward < 0 ? "--bad" : "--good"}), ${share.toFixed(3)})`;
    }
    text.append(span);
  }
  return text;
}

function answerBox(label, answer, largest) {
  const box = element("div", "answer");
  if (answer.reward !== null) box.append(element("span", "reward", answer.reward.toFixed(3)));
  box.append(element("div", "quiet", label + (answer.ended ? "" : " (did not end)")));
  box.append(answer.tokens ? tokenSpans(answer.tokens, largest) : element("div", "text", answer.text || "(nothing)"));
  return box;
}

function largestToken(source) {
  let largest = 0;
  for (const row of source.rows)
    for (const answer of [row.demonstration, ...row.answers.flat()])
      for (const [, reward] of (answer && answer.tokens) || []) if (reward !== null) largest = Math.max(largest, Math.abs(reward));
  return largest;
}

function sampleBox(source, row, largest) {
  const box = element("article", "sample");
  const moved = change(row);
  if (moved !== null) {
    const what = row.bases.length ? "margin to the demonstration, change" : "last minus first";
    box.append(element("span", `reward ${moved < 0 ? "down" : "up"}`, `${what} ${moved > 0 ? "+" : ""}${moved.toFixed(3)}`));
  }
  box.append(element("div", "prompt", row.prompt));
  const answers = element("div", "answers");
  if (row.demonstration && row.demonstration.text !== null) answers.append(answerBox(`demonstration${row.bases.length ? ", " + source.columns[source.columns.length - 1] : ""}`, row.demonstration, largest));
  row.answers.forEach((drawn, place) => {
    const column = element("div");
    drawn.forEach((answer) => column.append(answerBox(source.columns[place], answer, largest)));
    answers.append(column);
  });
  box.append(answers);
  return box;
}

function option(select, names) {
  names.forEach((name, place) => { const made = element("option", "", name); made.value = place; select.append(made); });
}

function browser(holder) {
  const PAGE = 10;
  const sources = JSON.parse(holder.querySelector("script").textContent);
  const controls = element("div", "controls");
  const which = element("select", "source"), order = element("select", "order"), search = element("input", "search");
  which.setAttribute("aria-label", "which samples");
  order.setAttribute("aria-label", "order");
  search.setAttribute("aria-label", "search");
  search.type = "search";
  search.placeholder = "search";
  option(which, sources.map((source) => source.label));
  option(order, Object.keys(ORDERS));
  const count = element("p", "quiet"), list = element("div", "samples"), more = element("button", "more", "show more");
  let shown = PAGE;

  function matches(row, word) {
    const texts = [row.prompt, row.demonstration && row.demonstration.text, ...row.answers.flat().map((answer) => answer.text)];
    return texts.some((text) => text && text.toLowerCase().includes(word));
  }

  function show() {
    const source = sources[which.value];
    const rows = ordered(source.rows.filter((row) => matches(row, search.value.toLowerCase())), Object.values(ORDERS)[order.value]);
    const largest = largestToken(source);
    list.replaceChildren(...rows.slice(0, shown).map((row) => sampleBox(source, row, largest)));
    count.textContent = `${Math.min(shown, rows.length)} of ${rows.length} prompts`;
    more.hidden = shown >= rows.length;
  }

  const again = () => { shown = PAGE; show(); };
  [which, order].forEach((one) => one.addEventListener("change", again));
  search.addEventListener("input", again);
  more.addEventListener("click", () => { shown += PAGE; show(); });
  controls.append(which, order, search);
  holder.append(controls, count, list, more);
  show();
}

if (window.Plotly) drawCharts();
document.querySelectorAll(".browser").forEach(browser);
