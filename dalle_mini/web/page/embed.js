// ?embed=1: the page in another one, compact; its height goes to the parent, which may give it the room.
if (new URLSearchParams(location.search).get("embed") === "1") {
  document.documentElement.classList.add("embed");
  const main = () => document.querySelector(".gradio-container > .main");
  const tellHeight = () => parent.postMessage({ type: "dalle-mini", height: Math.ceil(main().scrollHeight) }, "*");
  const wait = () => {
    if (!main()) return requestAnimationFrame(wait);
    new ResizeObserver(tellHeight).observe(main());
  };
  if (parent !== window) wait();
}
