// The head of the page, and what is done once, when Gradio has made all parts of it.
addEventListener("click", ({ target }) => {
  if (target.id === "surprise") drawing.draw({ prompt: surprise() });
  if (target.id === "theme") store("localStorage").theme = document.body.classList.toggle("dark") ? "dark" : "light";
  if (target.closest?.("a[href='#card']")) document.querySelector("#card details").open = true;
});
addEventListener("change", ({ target }) => {
  if (target.id !== "language") return;
  const address = new URL(location.href);
  address.searchParams.set("lang", target.value);
  tab.put(address.href);
  location.assign(address);
});
window.ready = () => {
  const parts = ["title", "bar", "examples", "stage", "history", "tray", "settings", "start", "inside", "card", "about"];
  const found = parts.map((name) => document.getElementById(name));
  // Nobody types before the fields are as they were left: what comes later would write over it.
  if (!tab.isBack || !found.every((part) => part?.firstElementChild)) return requestAnimationFrame(ready);
  found.forEach(sayAll);
  const { theme } = store("localStorage"); // else Gradio's, which is the browser's
  if (theme) document.body.classList.toggle("dark", theme === "dark");
  document.getElementById("language").value = page.lang;
  for (const each of document.querySelectorAll("#examples [data-draw]")) {
    const src = page.examples.find(({ prompt }) => prompt === each.dataset.draw)?.picture;
    if (src) each.prepend(make("img", { src, alt: "", width: 34, height: 34 }));
  }
  requestAnimationFrame(() => document.querySelector(".gradio-container").classList.add("there"));
};
