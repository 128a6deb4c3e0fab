if (data.drawn) startDrawn();
if (data.queries) startTable();
document.documentElement.dataset.ready = "yes";
