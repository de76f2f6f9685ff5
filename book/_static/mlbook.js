// The front page's film plays by itself, unless the reader has asked for less motion.
document.addEventListener("DOMContentLoaded", () => {
  const film = document.querySelector(".opening video");
  if (film && !matchMedia("(prefers-reduced-motion: reduce)").matches) film.play().catch(() => {});
});

// A claim's line leads to its check, the code of the cell that it stands in, which is folded; so does its address.
const codeOf = (claim) => claim.closest(".cell")?.querySelector("details.hide, .cell_input");

function openCheck(claim) {
  const code = codeOf(claim);
  if (code?.matches("details")) code.open = true;
  return code;
}

function follow() {
  const id = decodeURIComponent(location.hash.slice(1));
  const claim = id.startsWith("claim-") && document.getElementById(id);
  if (!claim) return;
  openCheck(claim);
  claim.scrollIntoView({ block: "center" });
}

document.addEventListener("DOMContentLoaded", () => {
  for (const claim of document.querySelectorAll(".claim[id]")) {
    if (!codeOf(claim)) continue;
    const link = document.createElement("a");
    link.className = "claim-check";
    link.href = `#${claim.id}`;
    link.textContent = "check";
    link.setAttribute("aria-label", `How this is checked: ${claim.id.slice("claim-".length)}`);
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const code = openCheck(claim);
      history.replaceState(null, "", link.href);
      code.scrollIntoView({ block: "start" });
      code.querySelector("summary")?.focus({ preventScroll: true });
    });
    claim.append(" ", link);
  }
});
window.addEventListener("hashchange", follow);
// Formulas and pictures move what stands beneath them, so the line is sought when they are there.
window.addEventListener("load", () => (window.MathJax?.startup?.promise ?? Promise.resolve()).then(follow));
