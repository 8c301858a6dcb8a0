// Shows the values of a chart's curves at the step nearest to the pointer.
for (const chart of document.querySelectorAll(".chart:not(.reliability)")) {
  const { range, series } = JSON.parse(chart.querySelector("script").textContent);
  const field = chart.querySelector(".field"), cursor = chart.querySelector(".cursor"), tip = chart.querySelector(".tip");
  const nearest = (steps, step) => steps.reduce((best, candidate, i) => Math.abs(candidate - step) < Math.abs(steps[best] - step) ? i : best, 0);
  field.addEventListener("pointermove", (event) => {
    const box = field.getBoundingClientRect(), share = (event.clientX - box.left) / box.width;
    const wanted = range[0] + share * (range[1] - range[0]);
    const longest = series.reduce((a, b) => (b.steps.length > a.steps.length ? b : a));
    const step = longest.steps[nearest(longest.steps, wanted)];
    const place = (100 * (step - range[0])) / (range[1] - range[0]);
    tip.replaceChildren(...[`step ${Math.round(step)}`, ...series.map((s) => `${s.name} ${s.values[nearest(s.steps, step)]}`)].map((text) => {
      const row = document.createElement("div");
      row.textContent = text;
      return row;
    }));
    cursor.style.left = `${place}%`;
    tip.style.left = place < 50 ? `calc(${place}% + .6rem)` : "auto";
    tip.style.right = place < 50 ? "auto" : `calc(${100 - place}% + .6rem)`;
    cursor.style.display = tip.style.display = "block";
  });
  field.addEventListener("pointerleave", () => { cursor.style.display = tip.style.display = "none"; });
}
