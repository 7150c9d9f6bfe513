// A figure that Python has made, drawn anew whenever it changes. What the reader has zoomed or switched off stays so.

async function render({ model, el }) {
  const mail = await part(model, "mail");
  await loadPlotly(model);
  const redraw = () => {
    const { data, layout } = JSON.parse(mail.get("value"));
    draw(el, data, { ...layout, uirevision: true }, layout.height);
  };
  mail.on("change:value", redraw);
  new ResizeObserver(redraw).observe(el);
}

export default { render };
