// Start from a picture: what is above the line is kept. All that is shown is what the field says, as JSON:
// {from: a data URL or codes, keep: rows, picture}, or {codes, sha256} of a PNG. Runs when Gradio has made start.html.
const [details, input, given, image, free, line, facts, forget] = [
  "details", ".pick input", ".given", "img", ".free", ".frame input", ".given .facts", ".given button",
].map((name) => element.querySelector(name));
const put = (start) => fields.fill({ start: start ? JSON.stringify(start) : "" });
let now = null;
// Whatever stands in an address: the server says what is wrong with it, and no other host is asked for a picture.
const read = (field) => {
  try {
    const found = field ? JSON.parse(field) : null;
    return found && { ...found, picture: /^data:image\//.test(found.picture) ? found.picture : null };
  } catch {
    return {};
  }
};
window.starting = {
  // A picture that was drawn, or one of somebody's own: the upper half is kept at first.
  from: (picture, codes = null) => {
    put({ from: codes ?? picture, keep: Math.floor(page.side / 2), picture });
    starting.open();
  },
  take: async (file) => {
    const picture = await picturesOf.square(file);
    if (picture) starting.from(picture);
  },
  open: () => {
    details.open = true;
    element.scrollIntoView({ block: "center" });
    line.focus({ preventScroll: true });
  },
  show: (field) => {
    now = read(field);
    given.hidden = !now;
    for (const each of [image, free, line]) each.hidden = !now?.picture;
    image.src = now?.picture ?? "";
    line.value = now?.keep ?? 0;
    facts.textContent = now?.picture ? say("kept", { keep: now.keep, of: page.side }) : say("given");
    free.style.height = `${100 - (100 * (now?.keep ?? 0)) / page.side}%`;
    starting.chip();
  },
  // Beside the prompt, so that nobody starts from a picture without seeing it. A click forgets it.
  chip: () => {
    document.getElementById("from")?.remove();
    if (!now) return;
    const shown = now.picture ? make("img", { src: now.picture, alt: "", width: 34, height: 34 }) : "▦";
    const found = make("button", { type: "button", id: "from", className: "round", ariaLabel: say("forget") }, shown);
    found.onclick = () => put(null);
    document.getElementById("bar")?.prepend(found);
  },
};
line.max = page.side;
line.oninput = () => put({ ...now, keep: Number(line.value) });
forget.onclick = () => put(null);
input.onchange = () => starting.take(input.files[0]);
sayAll(element);
starting.show(tab.fields()[page.fields.indexOf("start")]);
