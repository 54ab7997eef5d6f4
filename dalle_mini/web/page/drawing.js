// What is asked for: one drawing at a time, which has a name from here. The stage shows it before the server has heard
// of it; what the server tells of another drawing than the newest is not shown.
window.drawing = (() => {
  let now = null; // the one that is being drawn: { name, former, fields }
  let stopped = ""; // the name of the last one that is not wanted any more
  const asking = []; // those that Gradio has not sent yet
  // Gradio closes the stream of a tab when all of its events have ended, and may do so after it has taken a new one,
  // which then is not heard of (6.31). To ask for the visit of the tab opens the stream again.
  const listen = (one) =>
    setTimeout(() => {
      if (one !== now || one.isHeard) return;
      stage.trigger("hear");
      listen(one);
    }, 3000);
  const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
  document.addEventListener("keydown", (event) => {
    // Enter alone is Gradio's.
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.closest?.("#prompt")) {
      document.querySelector("#draw button").click();
    }
    if (event.key === "Escape" && now && !document.querySelector("dialog[open]")) drawing.stop();
  });
  document.addEventListener("click", (event) => {
    const found = event.target.closest?.("[data-draw]");
    if (found) drawing.draw({ prompt: found.dataset.draw });
  });
  return {
    // Fields as the page has them. A second click, while just this is being drawn, is one too many.
    start: (given) => {
      const wanted = given.map((field) => field ?? "");
      if (!wanted[0].trim()) return fields.refuse(say("empty"), "prompt");
      if (now && same(now.fields, wanted)) return;
      now = { name: tab.random(), former: now?.name ?? "", fields: wanted };
      asking.push(now);
      stage.begin(now);
      stage.trigger("draw");
      listen(now);
    },
    asked: () => {
      const next = asking.shift();
      return [[tab.id, next.name, next.former].join(" "), ...next.fields];
    },
    // Settings by name, the others as they are: into the fields, and drawn. Seed and start are one picture's, never the
    // next one's.
    draw: (settings) => drawing.start(fields.fill({ seed: "", start: "", ...settings })),
    stop: () => {
      if (!now) return;
      tell("stop", { tab: tab.id, drawing: now.name });
      stopped = now.name;
      now = null;
      stage.stopped();
    },
    // Whether a value of the server is about the drawing that is shown. A page that was left and came back takes it up.
    isWanted: (value) => {
      if (!now && value.drawing !== stopped && !stage.isAsked) now = { name: value.drawing, fields: tab.fields() };
      if (now?.name !== value.drawing) return false;
      now.isHeard = true;
      return true;
    },
    ended: () => (now = null),
    lost: () => now && stage.refuse({ refused: say("lost"), setting: null }),
  };
})();
