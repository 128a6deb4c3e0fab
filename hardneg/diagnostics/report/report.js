"use strict";
// All texts of the dataset become text nodes: nothing here parses HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function draw() {
  const ink = dark.matches ? "#e7eaf2" : "#1d2433", line = dark.matches ? "#313949" : "#dfe3ec";
  const axis = { labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line };
  const config = {
    background: "transparent", axis, title: { color: ink, anchor: "start" }, legend: { labelColor: ink, titleColor: ink, orient: "top" },
    view: { stroke: "transparent" }, rule: { color: ink },
  };
  for (const [name, spec] of Object.entries(data.charts)) {
    window.vegaEmbed("#chart-" + name, spec, { ast: true, actions: false, renderer: "svg", defaultStyle: false, config })
      .catch((error) => console.error(name, error));
  }
}

function node(kind, name, text) {
  const element = document.createElement(kind);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}

function item(name, entry, text) {
  const element = node("div", name, text);
  if (entry.picture !== undefined) {
    const image = node("img", "picture");
    image.src = data.pictures[entry.picture];
    image.alt = text;
    element.prepend(image);
  }
  return element;
}

function bar(score, kind) {
  const outer = node("div", "bar " + kind), inner = node("span");
  inner.style.width = Math.max(0, Math.min(1, score)) * 100 + "%";
  outer.append(inner);
  return outer;
}

function card(example) {
  const element = node("article", "card example");
  element.append(node("div", "soft", example.id + " · " + example.why), item("text query", example, example.query));
  const sides = node("div", "sides"), left = node("div"), right = node("div");
  left.append(node("div", "verdict", "positive" + (example.positive_score === null ? "" : " " + example.positive_score.toFixed(3))));
  if (example.positive_score !== null) left.append(bar(example.positive_score, "positive"));
  for (const positive of example.positives) left.append(item("text", positive, positive.text));
  for (const candidate of example.candidates) {
    const side = candidate.negative ? right : left;
    let label = "rank " + candidate.rank + " · " + candidate.score.toFixed(3) + " · ";
    label += candidate.negative ? "negative" : candidate.verdict === "kept" ? "kept, but not sampled" : "rejected: " + candidate.verdict;
    if (candidate.probability !== null) label += " · P(relevant) " + candidate.probability.toFixed(2);
    side.append(node("div", candidate.negative ? "verdict kept" : "verdict", label + " · " + candidate.id));
    side.append(bar(candidate.score, ""), item("text", candidate, candidate.text));
  }
  sides.append(left, right);
  element.append(sides);
  return element;
}

const cards = data.examples.map((example) => ({ element: null, example, text: JSON.stringify(example).toLowerCase() }));
const list = document.getElementById("examples"), search = document.getElementById("search"), count = document.getElementById("count");

function show() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = cards.filter((entry) => words.every((word) => entry.text.includes(word)));
  for (const entry of found) entry.element = entry.element || card(entry.example);
  list.replaceChildren(...found.map((entry) => entry.element));
  count.textContent = found.length + " of " + cards.length + " queries";
}

search.addEventListener("input", show);
dark.addEventListener("change", draw);
draw();
show();
document.documentElement.dataset.ready = "yes";
