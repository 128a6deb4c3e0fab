// An opened query: its positives, its negatives and what filters rejected, side by side, and a map of them.
function chance(value) {
  const band = Math.min(4, Math.floor(value * 5));
  return node("span", "chance p" + band, "P(relevant) " + value.toFixed(2));
}

function verdictWords(negative, verdict) {
  if (negative) return "negative";
  if (verdict === "kept") return "kept, not drawn";
  if (verdict === "known") return "known positive";
  return "rejected by " + verdict.split("#")[0];
}

function documentItem(document_, facts, score, key) {
  const item = node("div", "item"), head = node("div", "facts");
  for (const fact of facts) head.append(typeof fact === "string" ? node("span", "", fact) : fact);
  item.append(head);
  if (score !== null) {
    const outer = node("div", "bar"), inner = node("span");
    inner.style.width = Math.max(0, Math.min(1, score)) * 100 + "%";
    outer.append(inner);
    item.append(outer);
  }
  addPicture(item, data.documents.pictures[document_], data.documents.texts[document_]);
  item.append(node("div", "text", data.documents.texts[document_]));
  if (key !== undefined) item.dataset.key = key;
  return item;
}

function addPicture(element, place, text) {
  if (place === null) return;
  const image = node("img", "picture");
  image.src = data.pictures[place];
  image.alt = text;
  element.append(image);
}

function mapOf(row) {
  const found = data.queries.map[row];
  if (!found) return null;
  const space = "http://www.w3.org/2000/svg", size = 240, middle = size / 2;
  const make = (kind, attributes) => {
    const element = document.createElementNS(space, kind);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const picture = make("svg", { viewBox: `0 0 ${size} ${size}`, class: "map", role: "img", "aria-label": "Map of the neighborhood of the query" });
  const at = (point) => [middle + point[0] * (middle - 18), middle - point[1] * (middle - 18)];
  const positives = data.queries.positives[row].length, candidates = data.queries.candidates[row];
  found.points.forEach((point, i) => {
    const [x, y] = at(point);
    const candidate = i > positives ? candidates[i - 1 - positives] : null;
    const kind = i === 0 ? "query" : i <= positives ? "positive" : candidate[4] ? "negative" : "other";
    if (candidate && data.verdicts[candidate[3]] === "known") return;
    picture.append(make("circle", { cx: x, cy: y, r: i === 0 ? 6 : 4.5, class: kind }));
    if (candidate) {
      const label = make("text", { x: x + 6, y: y + 3 });
      label.textContent = candidate[1];
      picture.append(label);
    }
  });
  const figure = node("figure");
  figure.append(picture, node("figcaption", "", "Map: query (dark), positives, negatives and rejected ones (rings), with their ranks. It shows " +
    Math.round(found.share * 100) + " % of the squared distances."));
  return figure;
}

function details(row, marks) {
  const queries = data.queries, id = queries.id[row];
  const box = node("div"), sides = node("div", "sides");
  box.append(node("div", "soft", id + " · " + queries.why[row]));
  addPicture(box, queries.picture[row], queries.text[row]);
  box.append(node("div", "text whole", queries.text[row]));
  const columns = { positives: ["Positives", node("div", "positives")], negatives: ["Negatives", node("div", "negatives")],
    rejected: ["Rejected, or kept and not drawn", node("div", "rejected")] };
  for (const [title, column] of Object.values(columns)) column.append(node("h3", "", title));
  const ranked = new Map();
  for (const candidate of queries.candidates[row]) {
    if (data.verdicts[candidate[3]] === "known") ranked.set(candidate[0], candidate);
  }
  for (const positive of queries.positives[row]) {
    const found = ranked.get(positive);
    const facts = found ? ["rank " + found[1], "score " + found[2].toFixed(3)] : ["not among the candidates shown"];
    columns.positives[1].append(documentItem(positive, [...facts, data.documents.ids[positive]], found ? found[2] : null));
  }
  if (queries.more_positives[row]) columns.positives[1].append(node("p", "soft", "and " + queries.more_positives[row] + " more"));
  if (queries.positive[row] !== null) columns.positives[1].append(node("p", "soft", "lowest score of a positive: " + queries.positive[row].toFixed(3)));
  for (const [document_, rank, score, verdict, negative, probability] of queries.candidates[row]) {
    if (data.verdicts[verdict] === "known") continue;
    const facts = ["rank " + rank, "score " + score.toFixed(3), verdictWords(negative, data.verdicts[verdict])];
    if (probability !== null) facts.push(chance(probability));
    const key = JSON.stringify([id, data.documents.ids[document_]]);
    facts.push(data.documents.ids[document_], node("span", "judged"));
    (negative ? columns.negatives : columns.rejected)[1].append(documentItem(document_, facts, score, key));
  }
  for (const [, column] of Object.values(columns)) {
    if (column.children.length === 1) column.append(node("p", "soft", "none"));
    sides.append(column);
  }
  box.append(sides);
  const picture = mapOf(row);
  if (picture) columns.positives[1].append(picture);
  for (const item of box.querySelectorAll("[data-key]")) showMark(item, marks);
  return box;
}

function showMark(item, marks) {
  const value = marks.values.get(item.dataset.key);
  item.querySelector(".judged").textContent = value === undefined ? "" : value ? "✓ relevant" : "✗ not relevant";
}
