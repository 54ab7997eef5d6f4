// A tap puts a word where it belongs; a pause in typing asks what of it is not known.
const known = props.value.known;
const prompt = () => document.querySelector("#prompt textarea");
const article = (name) => `${/^(?!uni|ufo)[aeiou]/.test(name) ? "an" : "a"} ${name}`;
const ends = (text, phrases) => phrases.find((phrase) => text === phrase || text.endsWith(` ${phrase}`));
const put = (text) => {
  fields.fill({ prompt: text });
  ask();
};
const isOpen = (text) => ends(text, [...known.before, ...known.between]);
const tap = {
  // A number wants many of a thing; a size, like nothing, wants one.
  things: (text, [name, plural]) => {
    const before = ends(text, known.before) ?? "";
    if (/^(two|three|four)$/.test(before)) return `${text} ${plural}`;
    return before ? `${text} ${name}` : `${isOpen(text) ? `${text} ` : ""}${article(name)}`;
  },
  before: (text, [word]) => {
    const one = /^(two|three|four)$/.test(word) ? word : `a ${word}`;
    return ends(text, known.between) ? `${text} ${one}` : one;
  },
  between: (text, [word]) => (text && !isOpen(text) ? `${text} ${word}` : text),
  after: (text, [word]) => (text && !isOpen(text) ? `${text.replace(/ on an? \w+ background$/, "")} ${word}` : text),
};
let pause;
const ask = () => {
  clearTimeout(pause);
  pause = setTimeout(() => trigger("typed"), 300);
};
if (known) {
  for (const [place, words] of Object.entries(known)) {
    const buttons = words.map((word) => {
      const [name, , picture] = [].concat(word);
      const parts = picture ? [make("span", { ariaHidden: "true", textContent: picture }), " "] : [];
      const found = make("button", { type: "button", title: name }, ...parts, name);
      found.onclick = () => put(tap[place](prompt().value.trim(), [].concat(word)));
      return found;
    });
    element.querySelector(`.${place}`).replaceChildren(...buttons);
  }
  document.addEventListener("input", (event) => event.target === prompt() && ask());
}
element.querySelector("details").hidden = !known;
watch("value", () => {
  const { prompt: asked, notes } = props.value;
  if (notes && asked === prompt().value) report.hint(asked, notes.map(sentence).join(" "));
});
const any = (list) => list[Math.floor(Math.random() * list.length)];
window.surprise = () => {
  if (!known?.things.length) return any(page.examples).prompt;
  const one = () => article(any(known.things)[0]);
  const ways = [one];
  if (known.between.length) ways.push(() => `${one()} ${any(known.between)} ${one()}`);
  if (known.after.length) ways.push(() => `${one()} ${any(known.after)}`);
  if (known.before.includes("two")) ways.push(() => `two ${any(known.things)[1]}`);
  return any(ways)();
};
