// The pairs that hardneg judge drew, one after another. What is judged is written into the file's own rows.
function startDrawn() {
  const drawn = data.drawn, marks = new Marks(drawn.digest), byId = (id) => document.getElementById(id);
  unsaved.push(marks);
  const column = (name) => drawn.columns.indexOf(name), relevant = column("relevant");
  drawn.rows.forEach((row, i) => {
    const kept = row[relevant].trim();
    if ((kept === "0" || kept === "1") && !marks.values.has(String(i))) marks.values.set(String(i), Number(kept));
  });
  let place = Math.max(0, drawn.rows.findIndex((_, i) => !marks.values.has(String(i))));

  function show() {
    const box = byId("drawn-pair");
    if (!drawn.rows.length) { box.textContent = "The file holds no pairs."; return; }
    const [query, positive, text] = drawn.shown[place], value = marks.values.get(String(place));
    const parts = [["Query", query], ["A positive of it", positive], ["Is this document relevant too?", text]];
    box.replaceChildren(...parts.flatMap(([title, words]) => [node("h3", "", title), node("div", "text", words)]),
      node("p", "judged", value === undefined ? "not judged yet" : value ? "✓ relevant" : "✗ not relevant"));
    byId("drawn-count").textContent = "pair " + (place + 1) + " of " + drawn.rows.length + ", " + marks.values.size + " judged" + (marks.unsaved ? ", not saved" : "");
  }

  function step(by) {
    place = Math.max(0, Math.min(drawn.rows.length - 1, place + by));
    show();
  }

  function mark(value) {
    if (!drawn.rows.length) return;
    marks.set(String(place), value);
    if (value !== null && place < drawn.rows.length - 1) place += 1;
    show();
  }

  function save() {
    const rows = drawn.rows.map((row, i) => row.map((cell, j) => j === relevant ? (marks.values.has(String(i)) ? String(marks.values.get(String(i))) : "") : cell));
    download(drawn.saved, csv([drawn.columns, ...rows]));
    marks.unsaved = false;
    show();
  }

  // The keys are for these pairs while the focus is in their section.
  startDrawn.active = () => document.activeElement !== null && document.activeElement.closest("section[aria-labelledby=drawn]") !== null;
  keys.push((key) => {
    if (!startDrawn.active()) return false;
    if (key === "j" || key === "k") step(key === "j" ? 1 : -1);
    else if (key === "1" || key === "0") mark(Number(key));
    else if (key === "u") mark(null);
    else return false;
    return true;
  });
  byId("drawn-before").addEventListener("click", () => step(-1));
  byId("drawn-after").addEventListener("click", () => step(1));
  byId("drawn-yes").addEventListener("click", () => mark(1));
  byId("drawn-no").addEventListener("click", () => mark(0));
  byId("drawn-save").addEventListener("click", save);
  byId("drawn-pair").addEventListener("click", () => byId("drawn-pair").focus());
  show();
}
