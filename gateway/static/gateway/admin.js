// Buttons with data-copy put the text of the named field onto the clipboard.
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const field = document.getElementById(button.dataset.copy);
  field.select();
  try {
    await navigator.clipboard.writeText(field.value);
  } catch {
    document.execCommand("copy"); // the clipboard object exists on https and localhost only
  }
  button.textContent = button.dataset.copied;
});

// What the theme leaves without a name: the page's main part, and boxes that stand for a <select>.
const nameBoxes = () => {
  for (const box of document.querySelectorAll(".select2:not([data-named])")) {
    const label = box.parentElement.querySelector("select")?.labels?.[0];
    if (!label) continue;
    box.dataset.named = "";
    for (const part of box.querySelectorAll("[role=combobox], [role=textbox]")) {
      part.removeAttribute("aria-labelledby"); // names the box by what is chosen: by nothing
      part.setAttribute("aria-label", label.textContent.trim());
    }
  }
};
window.addEventListener("load", () => {
  document.getElementById("main")?.setAttribute("role", "main");
  nameBoxes();
  // Boxes are made by scripts, also for rows that are added later.
  new MutationObserver(nameBoxes).observe(document.body, { childList: true, subtree: true });
});
