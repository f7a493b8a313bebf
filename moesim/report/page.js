(() => {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const places = [...document.querySelectorAll("[data-figure]")];
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const axes = (layout) => Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));

  // colours come from the style sheet, so that page and figures never disagree
  const colours = (printing) => {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    return printing
      ? { ink: "#000", soft: "#444", grid: "#ddd", card: "#fff" }
      : { ink: of("--ink"), soft: of("--soft"), grid: of("--grid"), card: of("--card") };
  };
  const theme = (layout, c) => {
    const changes = {
      "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "font.color": c.ink,
      "hoverlabel.bgcolor": c.card, "hoverlabel.font.color": c.ink, "hoverlabel.bordercolor": c.soft,
    };
    for (const axis of axes(layout)) {
      changes[`${axis}.gridcolor`] = c.grid;
      changes[`${axis}.zerolinecolor`] = c.grid;
      changes[`${axis}.linecolor`] = c.soft;
    }
    return changes;
  };
  const narrow = () => window.innerWidth < 640;
  const draw = (place) => {
    const figure = figures[place.dataset.figure];
    const layout = {
      margin: { l: narrow() ? 52 : 62, r: 12, t: 34, b: 48 }, autosize: true, dragmode: false,
      font: { family: "system-ui, sans-serif", size: narrow() ? 11 : 12 }, ...figure.layout,
    };
    return Plotly.newPlot(place, figure.data, layout, { responsive: true, displayModeBar: false, displaylogo: false })
      .then(() => Plotly.relayout(place, theme(figure.layout, colours(false))));
  };
  const paint = (printing) => {
    for (const place of places) {
      // paper has a width of its own, which no resize event tells: 690 px fit A4 and letter
      const paper = place.closest(".two, .three") ? 335 : 690;
      const size = printing ? { autosize: false, width: paper } : { autosize: true, width: null };
      Plotly.relayout(place, { ...theme(figures[place.dataset.figure].layout, colours(printing)), ...size });
    }
  };
  Promise.all(places.map(draw)).then(
    () => { document.documentElement.dataset.drawn = String(places.length); },
    (error) => { document.documentElement.dataset.failed = String(error); },
  );
  dark.addEventListener("change", () => paint(false));
  window.addEventListener("beforeprint", () => paint(true));
  window.addEventListener("afterprint", () => paint(false));
})();
