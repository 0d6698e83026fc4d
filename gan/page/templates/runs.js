"use strict";
const slider = document.getElementById("step");
if (slider) {
  const steps = slider.dataset.steps.split(" ").map(Number);
  const button = document.getElementById("play"), output = document.getElementById("shown");
  const say = (step) => "step " + step.toLocaleString("en");
  let timer = 0;
  function show() {
    const step = steps[slider.value];
    output.value = say(step);
    slider.setAttribute("aria-valuetext", say(step));
    for (const label of document.querySelectorAll(".at")) {
      const images = [...label.closest("figure").querySelectorAll("img")];
      const shown = images.findLast((image) => image.dataset.step <= step);
      for (const image of images) image.hidden = image !== shown;
      label.textContent = shown ? say(Number(shown.dataset.step)) : "no picture yet";
    }
    for (const line of document.querySelectorAll(".now")) {
      const { left, width, last } = line.dataset, at = Number(left) + Number(width) * Math.min(1, step / last);
      line.setAttribute("x1", at);
      line.setAttribute("x2", at);
    }
  }
  function stop() {
    clearInterval(timer);
    timer = 0;
    button.textContent = "Play";
  }
  slider.addEventListener("input", () => { stop(); show(); });
  button.addEventListener("click", () => {
    if (timer) return stop();
    if (slider.value === slider.max) slider.value = 0;
    button.textContent = "Pause";
    show();
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show();
      if (slider.value === slider.max) stop();
    }, 300);
  });
  show();
}
