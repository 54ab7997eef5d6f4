// A drawing as a link: what is in the address after each, and what an address brings back.
window.share = (() => {
  const OURS = ["prompt", ...page.fields.slice(1)];
  const isUsual = (name, value) => name !== "prompt" && name !== "seed" && value === page.usual[name];
  return {
    link: ({ prompt, settings, seed }) => {
      const found = new URL(location.href);
      for (const name of OURS) found.searchParams.delete(name);
      for (const [name, value] of Object.entries({ prompt, ...settings, seed })) {
        if (!isUsual(name, value)) found.searchParams.set(name, asText(value));
      }
      found.hash = "";
      return found.href;
    },
    put: (value) => {
      try {
        history.replaceState(history.state, "", share.link(value));
        tab.put(location.href);
      } catch {} // a frame that was written in its place has no address
    },
    // The settings that the address names, if it names a prompt.
    found: () => {
      const named = [...new URLSearchParams(location.search)].filter(([name]) => OURS.includes(name));
      const settings = Object.fromEntries(
        named.map(([name, value]) => [name, typeof page.usual[name] === "number" ? Number(value) : value]),
      );
      return settings.prompt && !tab.isOwn(location.href) ? settings : null;
    },
  };
})();
