// What the widgets in the browser share: Plotly, and a figure in the width that there is.

// The module that brings Plotly, once per page. A widget's own module is small without it: anywidget delivers no message
// to a widget whose module takes more than two seconds to load.
function plotly(model) {
  window.rarlhfPlotly ??= import(URL.createObjectURL(new Blob([model.get("plotlyjs")], { type: "text/javascript" })));
  return window.rarlhfPlotly;
}

function draw(div, data, layout, height) {
  window.Plotly.react(div, data, { ...layout, height, width: Math.max(div.clientWidth, 240) },
    { displayModeBar: false, responsive: false });
}
