"use strict";
document.documentElement.classList.add("js");
const screen_ = document.getElementById("screen");
const key = document.getElementById("raw");
if (screen_ && key) {
  const show = (isRaw) => {
    screen_.classList.toggle("is-raw", isRaw);
    key.setAttribute("aria-pressed", String(isRaw));
  };
  key.addEventListener("click", () => show(!screen_.classList.contains("is-raw")));
  document.addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() === "r" && !event.ctrlKey && !event.metaKey && !event.altKey) {
      show(!screen_.classList.contains("is-raw"));
    }
  });
}
