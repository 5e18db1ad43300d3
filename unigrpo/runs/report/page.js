"use strict";
// A slider over the steps in which an answer was written. Without this script everything is shown as written.
for (const article of document.querySelectorAll(".denoised")) {
  const slider = article.querySelector("input"), button = article.querySelector("button"), output = article.querySelector("output");
  const pieces = [...article.querySelectorAll("[data-step]")].map(piece => [piece, Number(piece.dataset.step)]);
  const last = Number(slider.max);
  let timer = null;
  const show = () => {
    const now = Number(slider.value);
    for (const [piece, step] of pieces) {
      piece.classList.toggle("unwritten", step > now);
      piece.classList.toggle("now", step === now && now < last);
    }
    output.textContent = `step ${now + 1} of ${last + 1}`;
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  };
  slider.addEventListener("input", () => { stop(); show(); });
  button.addEventListener("click", () => {
    if (timer !== null) { stop(); return; }
    if (Number(slider.value) === last) slider.value = 0;
    show();
    button.textContent = "Stop";
    timer = setInterval(() => {
      if (Number(slider.value) === last) { stop(); return; }
      slider.value = Number(slider.value) + 1;
      show();
    }, Math.min(400, 6000 / (last + 1)));
  });
  show();
}
