// What the widgets in the browser share: Plotly, and a figure in the width that there is.

// Another widget that `model` names.
const part = (model, name) => model.widget_manager.get_model(model.get(name).replace("IPY_MODEL_", ""));

// Loads Plotly, once per page.
async function loadPlotly(model) {
  const source = (await part(model, "plotlyjs")).get("value");
  window.rarlhfPlotly ??= import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  await window.rarlhfPlotly;
}

function draw(div, data, layout, height) {
  window.Plotly.react(div, data, { ...layout, height, width: Math.max(div.clientWidth, 240) },
    { displayModeBar: false, responsive: false });
}
