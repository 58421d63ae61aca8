"use strict";
// A viewer lays two pictures of a strip over each other; its range input is where they meet. The
// pictures are those of the strips on the page, so that the file holds each of them once.
for (const section of document.querySelectorAll("[data-pictures]")) {
  const viewer = section.querySelector(".viewer");
  const strips = section.querySelectorAll(".strip");
  const stage = viewer.querySelector(".stage");
  const range = stage.querySelector("input");
  const [picture, before, after] = viewer.querySelectorAll("select");

  const side = (select, image, caption) => {
    const figure = strips[picture.value].querySelectorAll("figure")[select.value];
    const shown = figure.querySelector("img");
    const text = figure.querySelector("figcaption").innerText.replace(/\s*\n\s*/g, ", ");
    image.src = shown.src;
    image.alt = shown.alt;
    caption.textContent = text;
  };
  const choose = () => {
    const captions = viewer.querySelectorAll(".sides span");
    side(before, stage.querySelector(".before"), captions[0]);
    side(after, stage.querySelector(".after"), captions[1]);
    const original = strips[picture.value].querySelector("img");
    if (original.naturalWidth) {
      stage.style.aspectRatio = `${original.naturalWidth} / ${original.naturalHeight}`;
    }
    move();
  };
  const move = () => {
    stage.style.setProperty("--at", `${range.value}%`);
    const name = before.selectedOptions[0].textContent;
    range.setAttribute("aria-valuetext", `${range.value} % ${name}`);
  };
  for (const select of [picture, before, after]) select.addEventListener("change", choose);
  range.addEventListener("input", move);
  window.addEventListener("load", choose);
  viewer.hidden = false;
  choose();
}
