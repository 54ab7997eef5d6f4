// What a tab knows of itself: an id, and what is in its fields. It survives a reload, and goes with the tab.
window.tab = (() => {
  const kept = store("sessionStorage");
  const random = () => {
    const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID() is for https alone
    return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  };
  kept.tab ??= random();
  let usual = null; // the fields as the server has them
  let now = [];
  addEventListener("pagehide", () => {
    navigator.sendBeacon(`${window.gradio_config.root}/leave`, JSON.stringify({ tab: kept.tab }));
  });
  addEventListener("pageshow", (event) => event.persisted && location.reload()); // its connections were cut
  return {
    id: kept.tab,
    random,
    isBack: false,
    fields: () => now,
    // The address that the tab has put there itself says nothing that its fields do not know better.
    put: (address) => (kept.address = address),
    isOwn: (address) => kept.address === address,
    // A field whose usual value has changed belongs to another model.
    back: (_, ...fields) => {
      usual = fields;
      const { before, now: then } = JSON.parse(kept.fields ?? '{"before": [], "now": []}');
      now = fields.map((value, i) => (before[i] === value ? then[i] : value));
      const named = share.found();
      if (named) now = page.fields.map((name, i) => named[name] ?? now[i]);
      return [kept.tab, ...now];
    },
    // The next event of Gradio: only now are they in the fields.
    settled: (id) => {
      tab.isBack = true;
      return id;
    },
    keep: (...fields) => {
      now = fields;
      window.starting?.show(now[page.fields.indexOf("start")]);
      if (usual) kept.fields = JSON.stringify({ before: usual, now });
    },
  };
})();
