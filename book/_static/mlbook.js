// The front page's film plays by itself, unless the reader has asked for less motion.
document.addEventListener("DOMContentLoaded", () => {
  const film = document.querySelector(".opening video");
  if (film && !matchMedia("(prefers-reduced-motion: reduce)").matches) film.play().catch(() => {});
});
