// Shows an element's <title> at once and beside the pointer; without scripts the browser shows it itself.
(() => {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);
  document.querySelectorAll("svg title").forEach((title) => {
    title.parentNode.dataset.tip = title.textContent;
    title.parentNode.setAttribute("aria-label", title.textContent);
    title.remove();
  });
  addEventListener("pointermove", (event) => {
    const owner = event.target.closest && event.target.closest("[data-tip]");
    tip.hidden = !owner;
    if (!owner) return;
    if (tip.textContent !== owner.dataset.tip) tip.textContent = owner.dataset.tip;
    const { width, height } = tip.getBoundingClientRect();
    const left = event.clientX + 14 + width > innerWidth ? event.clientX - width - 14 : event.clientX + 14;
    tip.style.left = `${Math.max(6, left)}px`;
    tip.style.top = `${Math.min(event.clientY + 14, innerHeight - height - 6)}px`;
  });
  addEventListener("scroll", () => { tip.hidden = true; }, true);
})();
