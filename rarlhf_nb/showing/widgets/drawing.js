// A figure that Python has made, drawn anew whenever it changes. What the reader has zoomed or switched off stays so.

async function render({ model, el }) {
  await plotly(model);
  const redraw = () => {
    const { data, layout } = structuredClone(model.get("content"));
    draw(el, data, { ...layout, uirevision: true }, layout.height);
  };
  model.on("change:content", redraw);
  new ResizeObserver(redraw).observe(el);
}

export default { render };
