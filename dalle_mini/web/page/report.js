// The lines above the pictures: what is being done, how far it is, and Stop; at last what came of it.
window.report = (() => {
  const part = (name) => document.querySelector(`#stage ${name}`);
  let calm = ""; // what is said while nothing is drawn and nothing unknown is typed
  let told; // the prompt that it is about
  return {
    isRunning: () => !part(".stop").hidden,
    tell: (text, running = false) => {
      part(".say").textContent = calm = text;
      part(".row").textContent = "";
      part(".stop").hidden = !running;
      part(".line").classList.toggle("running", running);
      if (!running) part(".line").value = 0;
      fields.forgive();
    },
    drawing: (prompt) => {
      told = prompt;
      report.tell(say("drawing", { prompt }), true);
    },
    idle: () => report.tell(say(page.examples.some(({ picture }) => picture) ? "idle" : "idle-bare")),
    place: ({ place, seconds }) => {
      const wait = seconds === null ? "" : say("wait", { seconds: Math.max(1, Math.round(seconds)) });
      part(".row").textContent = say("place", { place }) + wait;
    },
    row: ({ row, rows, painted }) => {
      part(".line").value = row / rows;
      part(".row").textContent = say("row", { row: painted, rows });
    },
    drawn: ({ prompt, tiles, settings, seconds, notes }) => {
      told = prompt;
      const shown = tiles.flatMap(({ ranks }) => ranks).length;
      const facts = { drawn: settings.num_candidates, seconds: seconds.toFixed(1), different: tiles.length, shown };
      const kind = tiles.length < shown ? "drawn" : "drawn-all";
      const more = shown < facts.drawn ? [say("shown", facts)] : [];
      report.tell([say(kind, facts), ...more, ...notes.map(sentence)].join(" "));
      document.getElementById("pace").textContent = (seconds / facts.drawn).toFixed(2);
    },
    // Before the prompt is drawn; what comes late is among the notes of its drawing.
    hint: (prompt, text) => report.isRunning() || (part(".say").textContent = (prompt !== told && text) || calm),
  };
})();
