"use strict";
document.documentElement.classList.add("script");

// Tables: a click on a heading sorts by that column: numbers by value, empty cells last.
const value = (row, column) => row.cells[column]?.textContent.trim() ?? "";
for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].filter((row) => !row.classList.contains("missing"));
      const last = [...table.tBodies[0].rows].filter((row) => row.classList.contains("missing"));
      rows.sort((a, b) => {
        const [x, y] = [value(a, column), value(b, column)];
        if (!x || !y) return !x - !y;
        const [m, n] = [parseFloat(x), parseFloat(y)];
        const order = Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y) : m - n;
        return down ? -order : order;
      });
      table.tBodies[0].append(...rows, ...last);
    });
  });
}

// Pictures: two panels of a photograph on one stage, divided by a slider.
const section = document.querySelector("#pictures");
const examples = [...section.querySelectorAll(".example")];
if (examples.length) {
  const names = [...new Set(examples.flatMap((e) => [...e.querySelectorAll("figure")].map((f) => f.dataset.name)))];
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const choose = (label, options, chosen) => {
    const select = make("select", {}, ...options.map(([text, at]) => make("option", { textContent: text, value: at })));
    select.value = chosen;
    select.addEventListener("change", show);
    return [make("label", { textContent: label + " " }, select), select];
  };
  const tick = (label, checked) => {
    const box = make("input", { type: "checkbox", checked });
    box.addEventListener("change", show);
    return [make("label", {}, box, " " + label), box];
  };
  const methods = names.filter((name) => !["photo", "truth"].includes(name));
  const panels = names.map((name) => [name, name]);
  const [whichLabel, which] = choose("photograph", examples.map((e, i) => [e.querySelector("h3").textContent, i]), 0);
  const [leftLabel, left] = choose("left", panels, "truth");
  const [rightLabel, right] = choose("right", panels, methods.at(-1) ?? "photo");
  const [overLabel, over] = tick("over the photograph", false);
  const [differsLabel, differs] = tick("only where it differs from float32", false);
  const step = (by) => () => { which.value = (+which.value + by + examples.length) % examples.length; show(); };
  const back = make("button", { textContent: "‹", title: "previous", ariaLabel: "previous photograph", onclick: step(-1) });
  const next = make("button", { textContent: "›", title: "next", ariaLabel: "next photograph", onclick: step(1) });
  const slider = make("input", { type: "range", min: 0, max: 100, value: 50, step: 0.5, ariaLabel: "border between left and right" });
  const stage = make("div", { className: "stage" });
  const legend = make("div");
  const all = make("button", { textContent: "all panels", ariaPressed: "false" });
  all.addEventListener("click", () => { all.ariaPressed = String(section.classList.toggle("all")); });
  const place = () => stage.style.setProperty("--at", slider.value + "%");
  slider.addEventListener("input", place);
  const drag = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const box = stage.getBoundingClientRect();
    slider.value = (100 * (event.clientX - box.left)) / box.width;
    place();
  };
  stage.addEventListener("pointerdown", drag);
  stage.addEventListener("pointermove", drag);
  const browser = make(
    "div", { className: "browser" },
    make("div", { className: "controls" }, back, whichLabel, next, leftLabel, rightLabel, overLabel, differsLabel, all),
    stage, slider, legend,
  );
  section.querySelector("h2").after(browser);

  function half(example, name, side) {
    const panel = [...example.querySelectorAll("figure")].find((figure) => figure.dataset.name === name);
    const layer = make("div", { className: "half " + side });
    if (!panel) return layer;
    const image = (source, className = "") => make("img", { src: source.src, className, alt: name, draggable: false });
    const [map, mask] = panel.querySelectorAll("img");
    if (over.checked && name !== "photo") layer.append(image(example.querySelector("img")), image(map, "over"));
    else layer.append(image(map));
    if (differs.checked && mask) layer.append(image(mask, "mask"));
    return layer;
  }
  function show() {
    const example = examples[+which.value];
    const { width, height } = example.dataset;
    stage.style.aspectRatio = width + " / " + height;
    stage.style.maxWidth = slider.style.maxWidth = `min(44rem, ${(75 * width) / height}vh)`;
    const tag = (name, side) => make("span", { className: "tag " + side, textContent: name });
    stage.replaceChildren(
      half(example, left.value, "left"), half(example, right.value, "right"), make("div", { className: "bar" }),
      tag(left.value, "a"), tag(right.value, "b"),
    );
    legend.replaceChildren(example.querySelector(".legend").cloneNode(true));
    place();
  }
  show();
}
