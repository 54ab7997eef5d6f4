// What can be done with a picture of a gallery, as buttons.
window.actions = (() => {
  const button = (name, action, className = "") => {
    const found = make("button", { type: "button", className, textContent: say(name) });
    found.onclick = () => action(found);
    return found;
  };
  const copy = (text) => async (found) => {
    try {
      await navigator.clipboard.writeText(text);
      found.textContent = say("copied");
    } catch {
      prompt(say("copy"), text); // a frame may have no clipboard
    }
  };
  // Gradio takes the clicks of links in the page for its own.
  const save = ({ picture, name }) => make("a", { href: picture, download: name }).click();
  const again = (of, settings) => {
    opened.close();
    drawing.draw({ ...fields.recipe(of), seed: "", ...settings });
  };
  const more = (of, codes) => {
    again(of, { start: { from: codes, strength: page.strength } });
    fields.fill({ start: "" }); // the next one does not start from it
  };
  const complete = (of, { picture, codes }) => {
    opened.close();
    fields.fill({ ...fields.recipe(of), seed: "" });
    starting.from(picture, codes);
  };
  const keepSeed = (of) => {
    opened.close();
    fields.open(() => fields.fill({ ...fields.recipe(of), seed: String(of.seed) }));
  };
  return {
    button,
    of: (value, tile) => [
      button("download", () => save(tile), "main"),
      button("more", () => more(value, tile.codes)),
      button("complete", () => complete(value, tile)),
      button("again", () => again(value, {})),
      button("keep-seed", () => keepSeed(value)),
      button("link", copy(share.link(value))),
      button("credit", copy(say("credit-text", value))),
    ],
    // And with all of them.
    all: ({ tiles }) => (tiles.length > 1 ? [button("all", () => tiles.forEach(save))] : []),
  };
})();
