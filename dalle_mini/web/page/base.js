// What the scripts of the page build on: its language, elements whose text is text, and the sentences of words.json.
// Gradio asks the browser for its language: it is told the one that the page has, so that `lang` is true for all of it.
Object.defineProperty(navigator, "language", { value: page.lang });
Object.defineProperty(navigator, "languages", { value: [page.lang] });
document.documentElement.lang = page.lang;
window.make = (tag, properties = {}, ...children) => {
  const found = Object.assign(document.createElement(tag), properties);
  found.append(...children);
  return found;
};
window.say = (name, values = {}) => page.words[name].replace(/\{(\w+)\}/g, (_, key) => values[key] ?? "");
// A note of the server; see dalle_mini/notes.py.
window.sentence = ({ name, facts }) => {
  const { unknown = [], more, note } = facts;
  const words = unknown.map(([word, near]) => (near ? say("nearest", { word, near }) : word));
  if (more) words.push(say("others", { more: more.toLocaleString(page.lang) }));
  return say(name, { ...facts, unknown: words.join(", "), note: note && sentence(note) });
};
// The elements with data-say hold sentences in the language of the page.
window.sayAll = (within) => {
  for (const each of within.querySelectorAll("[data-say]")) each.textContent = say(each.dataset.say);
  for (const each of within.querySelectorAll("[data-label]")) each.ariaLabel = say(each.dataset.label);
};
// localStorage and sessionStorage; a frame of another site may have none, and then nothing is kept.
window.store = (name) => {
  try {
    return window[name];
  } catch {
    return {};
  }
};
// To our own server; what is told need not be answered.
window.post = (path, sent, more = {}) => {
  const headers = { "Content-Type": "application/json" };
  return fetch(`${gradio_config.root}/${path}`, { method: "POST", headers, body: JSON.stringify(sent), ...more });
};
window.tell = (path, sent) => post(path, sent, { keepalive: true }).catch(() => {});
// A setting as a field and an address have it.
window.asText = (value) => (typeof value === "object" ? JSON.stringify(value) : value);
