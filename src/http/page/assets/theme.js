// Before the first paint, hence not a module: the theme chosen here before, else the system's.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("darkroom.theme");
  } catch {
    // Storage is switched off: the system's theme it is.
  }
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
})();
