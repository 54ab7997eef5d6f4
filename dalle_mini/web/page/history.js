// A thumbnail of every drawing of the tab. Runs when Gradio has made history.html.
const [section, strip, kept, clear] = ["section", ".strip", "input", ".clear"].map((name) => element.querySelector(name));
// Before the first is drawn there is a place for it, so that nothing moves when it comes.
const show = (isComing = false) => {
  section.hidden = !isComing && !past.all().length;
  strip.replaceChildren(
    ...past.all().map((value) => {
      const image = make("img", { src: value.tiles[0].picture, alt: value.prompt, width: 72, height: 72 });
      const found = make("button", { type: "button", className: "thumb", title: value.prompt }, image);
      found.onclick = () => {
        drawing.stop();
        stage.show(value);
        fields.fill({ ...fields.recipe(value), seed: String(value.seed) });
        document.querySelector("#stage .told").scrollIntoView({ block: "start" });
      };
      return found;
    }),
  );
};
sayAll(element);
kept.checked = past.isKept();
kept.onchange = () => past.keepHere(kept.checked);
clear.onclick = () => {
  past.clear();
  show();
  document.querySelector("#prompt textarea").focus();
};
past.load();
show();
past.changed = show;
