const dark = window.matchMedia("(prefers-color-scheme: dark)");

function draw() {
  const ink = dark.matches ? "#e7eaf2" : "#1d2433", line = dark.matches ? "#313949" : "#dfe3ec";
  const axis = { labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line };
  const config = {
    background: "transparent", axis, title: { color: ink, anchor: "start" }, legend: { labelColor: ink, titleColor: ink, orient: "top" },
    view: { stroke: "transparent" }, rule: { color: ink }, text: { color: ink },
  };
  for (const [name, spec] of Object.entries(data.charts)) {
    window.vegaEmbed("#chart-" + name, spec, { ast: true, actions: false, renderer: "svg", defaultStyle: false, config })
      .catch((error) => console.error(name, error));
  }
}

// The library is large: it is read once the page is there.
function start() {
  const library = node("script");
  library.textContent = document.getElementById("library").textContent;
  document.head.append(library);
  draw();
  dark.addEventListener("change", draw);
}
if (Object.keys(data.charts).length) window.addEventListener("load", () => window.setTimeout(start, 50));
