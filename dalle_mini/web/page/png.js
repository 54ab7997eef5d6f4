// A picture of ours that is dropped anywhere, or pasted, brings back its prompt, its settings and its seed; any other is
// one to start from. Both are read here, and no file is uploaded. What a PNG says of itself is in its tEXt and iTXt chunks (PNG specification, 11.3.4).
window.png = (() => {
  const chunks = function* (bytes) {
    const view = new DataView(bytes);
    const name = (at, length) => new TextDecoder("latin1").decode(new Uint8Array(bytes, at, length));
    for (let at = 8; at + 12 <= bytes.byteLength; at += view.getUint32(at) + 12) {
      const length = view.getUint32(at);
      if (at + 12 + length > bytes.byteLength) return;
      yield [name(at + 4, 4), new Uint8Array(bytes, at + 8, length)];
    }
  };
  const read = (bytes) => {
    const found = {};
    for (const [kind, data] of chunks(bytes)) {
      if (kind !== "tEXt" && kind !== "iTXt") continue;
      const end = data.indexOf(0);
      let text = end + 1;
      // Of an iTXt: two flags, the language and the translated keyword; ours is not compressed.
      if (kind === "iTXt") text = data.indexOf(0, data.indexOf(0, text + 2) + 1) + 1;
      const decoder = new TextDecoder(kind === "iTXt" ? "utf-8" : "latin1");
      found[new TextDecoder("latin1").decode(data.subarray(0, end))] = decoder.decode(data.subarray(text));
    }
    return found;
  };
  const bring = async (files) => {
    const file = [...files].find(({ type }) => type === "image/png") ?? files[0];
    const text = read(await file.slice(0, 1 << 24).arrayBuffer());
    if (!text.prompt || !text.settings) return starting.take(file);
    if (text.model !== page.model) return fields.refuse(say("other-model", text), null);
    const settings = JSON.parse(text.settings);
    const foreign = Object.keys(settings).filter((name) => !page.fields.includes(name));
    if (foreign.length) return fields.refuse(say("other-settings", { names: foreign.join(", ") }), null);
    drawing.draw({ ...fields.recipe({ prompt: text.prompt, settings }), seed: text.seed });
  };
  // Where it falls: a picture to be looked into, or else one that brings its prompt, or else one to start from.
  const take = (files, where) =>
    where?.closest?.("#inside") ? inside.take(files[0]) : bring(files).catch(() => starting.take(files[0]));
  const hasFiles = (data) => [...(data?.types ?? [])].includes("Files");
  addEventListener("dragover", (event) => {
    if (!hasFiles(event.dataTransfer)) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  for (const name of ["dragleave", "drop"]) addEventListener(name, () => document.body.classList.remove("dropping"));
  addEventListener("drop", (event) => {
    if (!hasFiles(event.dataTransfer)) return;
    event.preventDefault();
    take(event.dataTransfer.files, event.target);
  });
  addEventListener("paste", ({ clipboardData: data, target }) => hasFiles(data) && take(data.files, target));
  return { take };
})();
