// The table of queries: searched, sorted and filtered in the page, 50 at once.
const PAGE = 50;
const COLUMNS = [
  { name: "Query", title: "query", key: "text", kind: "text" },
  { name: "P(relevant)", title: "highest probability that a negative is relevant", key: "probability", digits: 2 },
  { name: "Margin", title: "lowest positive minus nearest negative", key: "margin", digits: 3 },
  { name: "Hardness", title: "mean score of the negatives", key: "hardness", digits: 3, extra: true },
  { name: "Negatives", title: "number of negatives", key: "negatives", digits: 0, extra: true },
];

function startTable() {
  const queries = data.queries, count = queries.id.length, marks = new Marks(data.digest);
  unsaved.push(marks);
  const byId = (id) => document.getElementById(id);
  const texts = queries.id.map((id, row) => [id, queries.text[row], queries.why[row],
    ...[...queries.positives[row], ...queries.candidates[row].map((c) => c[0])].map((d) => data.documents.ids[d] + " " + data.documents.texts[d]),
    ...queries.candidates[row].map((c) => data.verdicts[c[3]])].join("\n").toLowerCase());
  const state = { sort: null, down: true, page: 0, open: null, pair: null, found: [] };
  const columns = COLUMNS.filter((column) => column.key === "text" || queries[column.key].some((value) => value !== null));

  const head = document.querySelector("#table thead tr");
  for (const column of columns) {
    const cell = node("th", (column.kind === "text" ? "" : "number") + (column.extra ? " extra" : "")), button = node("button", "", column.name);
    cell.scope = "col";
    button.type = "button";
    button.title = "Sort by " + column.title;
    button.addEventListener("click", () => {
      state.down = state.sort === column ? !state.down : column.kind !== "text" && column.key !== "margin";
      state.sort = column;
      state.page = 0;
      show();
    });
    cell.append(button);
    column.cell = cell;
    head.append(cell);
  }
  data.findings.forEach((finding, i) => byId("by-finding").append(option(i, finding.code + " (" + finding.shown + ")")));
  Object.entries(data.slices).forEach(([by, slice]) => slice.names.forEach((name, i) => byId("by-slice").append(option(by + "\n" + i, by + ": " + name))));
  if (!Object.keys(data.slices).length) byId("by-slice").closest("label").hidden = true;
  if (!data.findings.length) byId("by-finding").closest("label").hidden = true;

  const keysOf = (row) => queries.candidates[row].map((c) => JSON.stringify([queries.id[row], data.documents.ids[c[0]]]));
  const judged = (row) => keysOf(row).some((key) => marks.values.has(key));

  function select() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const finding = byId("by-finding").value, slice = byId("by-slice").value.split("\n"), wanted = byId("by-judged").value;
    state.found = [...texts.keys()].filter((row) => words.every((word) => texts[row].includes(word)) &&
      (finding === "" || queries.flags[row].includes(Number(finding))) &&
      (slice[0] === "" || data.slices[slice[0]].of[row] === Number(slice[1])) &&
      (wanted === "" || judged(row) === (wanted === "yes")));
    if (state.sort) {
      const key = state.sort.key, sign = state.down ? -1 : 1, values = queries[key];
      state.found.sort((a, b) => {
        const x = values[a], y = values[b];
        if (x === null || y === null) return (x === null) - (y === null) || a - b;  // what is not known comes last
        const order = key === "text" ? x.localeCompare(y) : x - y;
        return order * sign || a - b;
      });
    }
  }

  function show() {
    select();
    state.page = Math.max(0, Math.min(state.page, Math.ceil(state.found.length / PAGE) - 1));
    const start = state.page * PAGE, rows = state.found.slice(start, start + PAGE);
    if (!rows.includes(state.open)) state.open = state.pair = null;
    const body = document.querySelector("#table tbody");
    body.replaceChildren(...rows.flatMap(rowOf));
    for (const column of columns) {
      column.cell.setAttribute("aria-sort", state.sort === column ? (state.down ? "descending" : "ascending") : "none");
    }
    byId("count").textContent = state.found.length + " of " + count + " queries" + (state.found.length > PAGE ? ", " + (start + 1) + " to " + (start + rows.length) + " shown" : "");
    byId("page").textContent = "page " + (state.page + 1) + " of " + Math.max(1, Math.ceil(state.found.length / PAGE));
    byId("before").disabled = state.page === 0;
    byId("after").disabled = start + PAGE >= state.found.length;
    showPair();
  }

  function rowOf(row) {
    const line = node("tr", "row"), open = state.open === row;
    line.dataset.row = row;
    for (const column of columns) {
      const cell = node("td", (column.kind === "text" ? "query" : "number") + (column.extra ? " extra" : "")), value = queries[column.key][row];
      if (column.kind === "text") {
        const button = node("button", "", value.length > 160 ? value.slice(0, 160) + " …" : value || queries.id[row]);
        button.type = "button";
        button.setAttribute("aria-expanded", String(open));
        cell.append(button);
        if (judged(row)) cell.append(node("span", "judged", " ✓"));
      } else if (column.key === "probability" && value !== null) {
        cell.append(node("span", "chance p" + Math.min(4, Math.floor(value * 5)), value.toFixed(2)));
      } else cell.textContent = fixed(value, column.digits);
      line.append(cell);
    }
    line.addEventListener("click", () => openRow(open ? null : row));
    if (!open) return [line];
    const below = node("tr"), cell = node("td", "detail");
    cell.colSpan = columns.length;
    cell.append(details(row, marks));
    below.append(cell);
    below.addEventListener("click", (event) => {
      const item = event.target.closest("[data-key]");
      if (item) choose(items().indexOf(item));
    });
    return [line, below];
  }

  const items = () => [...document.querySelectorAll("#table [data-key]")];

  function openRow(row, pair) {
    state.open = row;
    state.pair = null;
    show();
    if (row !== null) {
      document.querySelector(`#table tr[data-row="${row}"] button`).focus({ preventScroll: true });
      if (pair !== undefined) choose(pair < 0 ? items().length - 1 : pair);
      else document.querySelector(`#table tr[data-row="${row}"]`).scrollIntoView({ block: "nearest" });
    }
  }

  function choose(place) {
    state.pair = place;
    showPair();
    const item = items()[place];
    if (item) item.scrollIntoView({ block: "nearest" });
  }

  function showPair() {
    items().forEach((item, i) => {
      item.classList.toggle("now", i === state.pair);
      if (i === state.pair) item.setAttribute("aria-current", "true"); else item.removeAttribute("aria-current");
    });
    byId("bar").hidden = marks.values.size === 0;
    byId("marked").textContent = marks.values.size + (marks.values.size === 1 ? " pair judged" : " pairs judged") + (marks.unsaved ? ", not saved" : "");
  }

  function step(by) {  // to the next or previous pair, of the next or previous query at the end of this one
    const all = items();
    const place = state.pair === null ? (by > 0 ? 0 : all.length - 1) : state.pair + by;
    if (state.open !== null && place >= 0 && place < all.length) choose(place);
    else stepQuery(by, by > 0 ? 0 : -1);
  }

  function stepQuery(by, pair) {
    const now = state.open === null ? (by > 0 ? state.page * PAGE - 1 : state.page * PAGE) : state.found.indexOf(state.open);
    const next = now + by;
    if (next < 0 || next >= state.found.length) return;
    state.page = Math.floor(next / PAGE);
    openRow(state.found[next], pair);
  }

  function mark(value) {
    const item = items()[state.pair];
    if (!item) return false;
    marks.set(item.dataset.key, value);
    showMark(item, marks);
    showPair();
    return true;
  }

  function save() {
    const rows = [["query_id", "document_id", "relevant", "query", "positive", "document", "score", "rank", "part"]];
    queries.id.forEach((id, row) => queries.candidates[row].forEach(([document_, rank, score]) => {
      const value = marks.values.get(JSON.stringify([id, data.documents.ids[document_]]));
      if (value === undefined) return;
      const positives = queries.positives[row].map((d) => data.documents.texts[d]).join(" | ");
      rows.push([id, data.documents.ids[document_], String(value), queries.text[row], positives, data.documents.texts[document_],
        score.toFixed(6), String(rank), "fit"].map((cell, i) => i === 2 || i > 5 ? cell : asCell(cell)));
    }));
    download("judgements.csv", csv(rows));
    marks.unsaved = false;
    showPair();
  }

  keys.push((key) => {
    if (data.drawn && startDrawn.active()) return false;
    if (key === "j" || key === "k") step(key === "j" ? 1 : -1);
    else if (key === "n" || key === "p") stepQuery(key === "n" ? 1 : -1);
    else if (key === "1" || key === "0") return mark(Number(key));
    else if (key === "u") return mark(null);
    else if (key === "/") byId("search").focus();
    else if (key === "Escape" && state.open !== null) openRow(null);
    else return false;
    return true;
  });
  for (const id of ["search", "by-finding", "by-slice", "by-judged"]) {
    byId(id).addEventListener("input", () => { state.page = 0; show(); });
  }
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("before").addEventListener("click", () => { state.page -= 1; show(); });
  byId("after").addEventListener("click", () => { state.page += 1; show(); });
  byId("save").addEventListener("click", save);
  byId("forget").addEventListener("click", () => {
    if (window.confirm("Forget all judgements of this run?")) { marks.clear(); show(); }
  });
  for (const button of document.querySelectorAll("button.only")) {
    button.addEventListener("click", () => {
      byId("by-finding").value = String(data.findings.findIndex((finding) => finding.code === button.dataset.code));
      state.page = 0;
      show();
      byId("queries").scrollIntoView();
    });
  }
  show();
}
