// A picture that is opened: a dialog over the page. Arrows and swipes go on, Escape closes; the focus returns to its tile.
window.opened = (() => {
  let value = null;
  let at = 0;
  const dialog = () => document.querySelector("dialog.opened");
  const show = (next) => {
    const { tiles, prompt: asked } = value;
    at = (next + tiles.length) % tiles.length;
    const { picture, score, ranks } = tiles[at];
    const [image, heading, facts, buttons] = ["img", "h2", ".facts", ".buttons"].map((name) => dialog().querySelector(name));
    image.src = picture;
    image.alt = say("alt", { rank: at + 1, of: tiles.length, prompt: asked });
    heading.textContent = asked;
    const parts = [say("rank", { rank: at + 1, of: tiles.length }), say("seed-of", value)];
    if (score !== null) parts.splice(1, 0, say("match", { percent: gallery.percent(score) }));
    if (ranks.length > 1) parts.push(say("same", { number: ranks.length }));
    facts.textContent = parts.join(" · ");
    buttons.replaceChildren(...actions.of(value, tiles[at]), ...looks(value, picture));
    for (const each of dialog().querySelectorAll(".previous, .next")) each.hidden = tiles.length < 2;
  };
  // How it is looked at: its pixels as they are, and beside copies of itself.
  const looks = ({ settings }, picture) => {
    const frame = dialog().querySelector(".frame");
    frame.style.backgroundImage = `url(${picture})`;
    const toggle = (name) => {
      const found = actions.button(name, () => found.setAttribute("aria-pressed", frame.classList.toggle(name)));
      found.setAttribute("aria-pressed", frame.classList.contains(name));
      return found;
    };
    if (!settings.seamless) frame.classList.remove("tiled");
    return [toggle("crisp"), ...(settings.seamless ? [toggle("tiled")] : [])];
  };
  const prepare = (found) => {
    let from = null;
    found.querySelector(".close").onclick = () => found.close(); // a form with method="dialog" does nothing in Gradio
    found.querySelector(".previous").onclick = () => show(at - 1);
    found.querySelector(".next").onclick = () => show(at + 1);
    found.onkeydown = ({ key }) => ({ ArrowLeft: () => show(at - 1), ArrowRight: () => show(at + 1) })[key]?.();
    found.onclick = (event) => event.target === found && found.close(); // beside it
    found.onpointerdown = (event) => (from = event.clientX);
    found.onpointerup = (event) => {
      const way = event.clientX - (from ?? event.clientX);
      if (Math.abs(way) > 40) show(at + (way < 0 ? 1 : -1));
      from = null;
    };
  };
  return {
    open: (gallery, i) => {
      value = gallery;
      if (!dialog().onkeydown) prepare(dialog());
      show(i);
      dialog().showModal();
    },
    close: () => dialog().close(),
  };
})();
