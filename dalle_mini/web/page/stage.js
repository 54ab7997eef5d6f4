// The stage: what is asked for at once, then every painted row, then the gallery. Runs when Gradio has made stage.html.
const [said, stop, pictures] = [".say", ".stop", ".pictures"].map((name) => element.querySelector(name));
let shown = null; // the newest gallery
const end = (text) => {
  drawing.ended();
  report.tell(text);
  past.changed?.();
  if (shown) gallery.show(pictures, shown);
  else gallery.empty(pictures);
};
// What the address names, else the newest that there was.
const restore = () => {
  if (stage.isAsked) return;
  const known = past.find(location.href);
  const named = share.found();
  if (!known && named) drawing.draw(named);
  else if (known ?? past.all()[0]) stage.show(known ?? past.all()[0]);
};
window.stage = {
  trigger,
  isAsked: false, // anything, since the page was loaded
  begin: ({ fields }) => {
    stage.isAsked = true;
    report.drawing(fields[0]);
    gallery.begin(pictures, Number(fields[1]) || 1, shown !== null);
    past.changed?.(true);
    const { top } = pictures.getBoundingClientRect();
    if (top < 0 || top > innerHeight / 2) said.scrollIntoView({ block: "start" });
  },
  stopped: () => end(say("stopped")),
  refuse: ({ refused, setting, lang }) => {
    end("");
    fields.refuse(refused, setting, lang);
  },
  show: (value) => {
    shown = value;
    drawing.ended();
    report.drawn(value);
    gallery.show(pictures, value);
    share.put(value);
    past.add(value);
    past.changed?.();
  },
};
const told = {
  place: report.place,
  row: (value) => {
    report.row(value);
    gallery.paint(pictures, value);
  },
  tiles: stage.show,
  refused: (value) => stage.refuse({ ...value, lang: "en" }),
  stopped: stage.stopped,
};
stop.onclick = () => drawing.stop();
sayAll(element);
report.idle();
gallery.empty(pictures);
watch("value", () => {
  const value = props.value;
  // Nothing is being drawn for this tab; or it is, and a link was opened in the tab.
  if (value?.nothing || (value?.drawing && !stage.isAsked && share.found())) return restore();
  if (!value?.drawing || !drawing.isWanted(value)) return;
  if (!report.isRunning() && !value.tiles) report.drawing(tab.fields()[0]);
  told[Object.keys(told).find((name) => name in value)](value);
});
ready();
// Python listens to "draw", "hear" and "fill".
