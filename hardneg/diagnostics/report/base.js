"use strict";
// All texts of the dataset become text nodes: nothing here parses HTML.
const data = JSON.parse(document.getElementById("data").textContent);

function node(kind, name, text) {
  const element = document.createElement(kind);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}

function option(value, text) {
  const element = node("option", "", text);
  element.value = value;
  return element;
}

function fixed(value, digits) {
  return value === null ? "–" : value.toFixed(digits);
}

// What was judged, kept by the browser for each run (or file), so that a reload or a crash loses nothing.
class Marks {
  constructor(name) {
    this.name = "hardneg judgements " + name;
    this.values = new Map();
    this.unsaved = false;
    try {
      const kept = JSON.parse(window.localStorage.getItem(this.name) || "[]");
      for (const [key, value] of Array.isArray(kept) ? kept : []) {
        if (typeof key === "string" && (value === 0 || value === 1)) this.values.set(key, value);
      }
    } catch (error) {
      console.info("judgements are not kept by this browser: " + error);
    }
  }
  set(key, value) {
    if (value === null) this.values.delete(key); else this.values.set(key, value);
    this.unsaved = true;
    this.keep();
  }
  clear() {
    this.values.clear();
    this.unsaved = false;
    this.keep();
  }
  keep() {
    try {
      window.localStorage.setItem(this.name, JSON.stringify([...this.values]));
    } catch (error) {
      console.info("judgements are not kept by this browser: " + error);
    }
  }
}

// Spreadsheets run a cell that starts with one of these; a single quote in front keeps them from it.
function asCell(text) {
  return /^'*[=+\-@\t\r]/.test(text) ? "'" + text : text;
}

function csv(rows) {
  return rows.map((row) => row.map((cell) => /[",\r\n]/.test(cell) ? '"' + cell.replaceAll('"', '""') + '"' : cell).join(",")).join("\r\n") + "\r\n";
}

function download(name, text) {
  const link = node("a"), address = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  link.href = address;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  window.setTimeout(() => URL.revokeObjectURL(address), 10000);
}

const unsaved = [];  // the marks that leaving the page would leave unsaved
window.addEventListener("beforeunload", (event) => {
  if (unsaved.some((marks) => marks.unsaved)) event.preventDefault();
});

// Keys that work anywhere but where people type.
const keys = [];
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  for (const handler of keys) {
    if (handler(event.key)) {
      event.preventDefault();
      return;
    }
  }
});
