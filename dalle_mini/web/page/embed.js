// ?embed=1: the page in another one, compact; its height goes to the parent, which may give it the room.
if (new URLSearchParams(location.search).get("embed") === "1") {
  document.documentElement.classList.add("embed");
  const last = () => document.getElementById("about"); // what is around it is as high as the frame
  const tellHeight = () => {
    const height = Math.ceil(last().getBoundingClientRect().bottom + scrollY) + 16;
    parent.postMessage({ type: "dalle-mini", height }, "*");
  };
  const wait = () => {
    if (!last()) return requestAnimationFrame(wait);
    for (const each of last().parentElement.children) new ResizeObserver(tellHeight).observe(each);
  };
  if (parent !== window) wait();
}
