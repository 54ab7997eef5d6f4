// The stage: what is asked for at once, then every painted row, then the gallery. Runs when Gradio has made stage.html.
const [line, said, row, stop, pictures] = [".line", ".say", ".row", ".stop", ".pictures"].map((name) =>
  element.querySelector(name),
);
let shown = null; // the newest gallery
let calm = ""; // what is said while nothing is drawn and nothing unknown is typed
const tellNow = (text, running = false) => {
  said.textContent = calm = text;
  row.textContent = "";
  stop.hidden = !running;
  element.classList.toggle("running", running);
  if (!running) line.value = 0;
  fields.forgive();
};
const back = () => {
  past.changed?.();
  if (shown) gallery.show(pictures, shown);
  else gallery.empty(pictures);
};
const idle = () => tellNow(say(page.examples.some(({ picture }) => picture) ? "idle" : "idle-bare"));
// What the address names, else the newest that there was.
const restore = () => {
  if (stage.isAsked) return;
  const known = past.find(location.href);
  const named = share.found();
  if (!known && named) drawing.draw(named);
  else if (known ?? past.all()[0]) show.tiles(known ?? past.all()[0]);
};
const show = {
  place: ({ place, seconds }) => {
    const wait = seconds === null ? "" : say("wait", { seconds: Math.max(1, Math.round(seconds)) });
    row.textContent = say("place", { place }) + wait;
  },
  row: (value) => {
    line.value = value.row / value.rows;
    row.textContent = say("row", { row: value.painted, rows: value.rows });
    gallery.paint(pictures, value);
  },
  tiles: (value) => {
    shown = value;
    drawing.ended();
    tellNow(gallery.summary(value));
    gallery.show(pictures, value);
    share.put(value);
    past.add(value);
    past.changed?.();
    document.getElementById("pace").textContent = (value.seconds / value.settings.num_candidates).toFixed(2);
  },
  refused: (value) => stage.refuse(value),
  stopped: () => stage.stopped(),
};
window.stage = {
  trigger,
  isAsked: false, // anything, since the page was loaded
  begin: ({ fields }) => {
    stage.isAsked = true;
    tellNow(say("drawing", { prompt: fields[0] }), true);
    gallery.begin(pictures, Number(fields[1]) || 1, shown !== null);
    past.changed?.(true);
    const { top } = pictures.getBoundingClientRect();
    if (top < 0 || top > innerHeight / 2) said.scrollIntoView({ block: "start" });
  },
  stopped: () => {
    drawing.ended();
    tellNow(say("stopped"));
    back();
  },
  refuse: ({ refused, setting }) => {
    drawing.ended();
    tellNow("");
    back();
    fields.refuse(refused, setting);
  },
  show: (value) => show.tiles(value),
  // Before anything is drawn.
  hint: (text) => stop.hidden && (said.textContent = text || calm),
};
stop.onclick = () => drawing.stop();
sayAll(element);
idle();
back();
watch("value", () => {
  const value = props.value;
  // Nothing is being drawn for this tab; or it is, and a link was opened in the tab.
  if (value?.nothing || (value?.drawing && !stage.isAsked && share.found())) return restore();
  if (!value?.drawing || !drawing.isWanted(value)) return;
  if (stop.hidden && !value.tiles) tellNow(say("drawing", { prompt: tab.fields()[0] }), true);
  show[Object.keys(show).find((name) => name in value)](value);
});
ready();
// Python listens to "draw" and "fill".
