// The fields of the page: settings are filled into them, a refused value is told at its field, in the words of its label.
window.fields = (() => {
  let filled = [];
  const panel = () => document.querySelector("#settings button");
  return {
    // All that makes the pictures of a drawing; what is not among its settings is as usual.
    recipe: ({ prompt, settings }) => ({ ...page.usual, show: tab.fields()[page.fields.indexOf("show")], ...settings, prompt }),
    fill: (settings) => {
      const before = tab.fields();
      filled = page.fields.map((name, i) => (name in settings ? asText(settings[name] ?? "") : before[i]));
      tab.keep(...filled);
      stage.trigger("fill");
      return filled;
    },
    filled: () => filled,
    open: (then) => {
      if (!panel()) return setTimeout(() => fields.open(then), 50);
      if (!document.getElementById("set-seed")?.offsetParent) panel().click();
      setTimeout(then); // Gradio has the fields of a panel when it is open
    },
    forgive: () => document.querySelectorAll(".refused").forEach((each) => each.remove()),
    refuse: (refused, setting, lang = page.lang) => {
      fields.forgive();
      const told = make("p", { className: "refused", id: "refused", lang });
      told.setAttribute("role", "alert");
      told.textContent = setting ? refused.replace(setting, say(setting)) : refused;
      const own = { prompt: "bar", start: "start", keep: "start", strength: "start" };
      const place = () => document.getElementById(setting ? own[setting] ?? `set-${setting}` : "bar");
      const put = () => {
        if (!place()) return setTimeout(put, 50);
        if (place().id === "bar") place().after(told);
        else place().append(told);
        const input = place().querySelector("textarea, input, select");
        input.setAttribute("aria-describedby", "refused");
        if (setting) input.focus();
      };
      if (setting && !own[setting]) fields.open(put);
      else put();
    },
  };
})();
