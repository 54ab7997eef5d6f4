// What a tab knows of itself: an id, and what is in its fields. It survives a reload, and goes with the tab.
window.tab = (() => {
  let kept = {};
  try {
    kept = sessionStorage;
  } catch {} // a frame of another site may have none
  const random = crypto.getRandomValues(new Uint8Array(16)); // randomUUID() is for https alone
  kept.tab ??= Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
  let usual = null; // the fields as the server has them
  addEventListener("pagehide", () => {
    navigator.sendBeacon(`${window.gradio_config.root}/leave`, JSON.stringify({ tab: kept.tab }));
  });
  addEventListener("pageshow", (event) => event.persisted && location.reload()); // its connections were cut
  return {
    // A field whose usual value has changed belongs to another model.
    back: (_, ...fields) => {
      usual = fields;
      const { before, now } = JSON.parse(kept.fields ?? '{"before": [], "now": []}');
      return [kept.tab, ...fields.map((value, i) => (before[i] === value ? now[i] : value))];
    },
    keep: (...now) => {
      if (usual) kept.fields = JSON.stringify({ before: usual, now });
    },
  };
})();
