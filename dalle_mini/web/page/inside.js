// Look inside: a picture before and after the model's codes. Runs when Gradio has made inside.html.
const [details, input, told, seen, after, before, line, codes, facts] = [
  "details", ".pick input", "[role=alert]", ".seen", ".after", ".before", ".frame input", ".codes", ".seen .facts",
].map((name) => element.querySelector(name));
line.oninput = () => (before.style.clipPath = `inset(0 ${100 - line.value}% 0 0)`);
const show = (picture, found) => {
  const side = Math.sqrt(found.codes.length);
  const number = (value, digits = 0) => value?.toLocaleString(page.lang, { maximumFractionDigits: digits }) ?? "∞";
  const { codebook_size: size, resolution, bits, psnr, ssim, tokenizer } = found;
  const about = { side, size: number(size), bits: number(bits), all: number(24 * resolution ** 2), tokenizer };
  Object.assign(about, { psnr: number(psnr, 1), ssim: number(ssim, 3) });
  [before.src, after.src, codes.src] = [picture, found.picture, found.grid];
  [before.alt, after.alt, codes.alt] = [say("original"), say("rebuilt", about), say("codes", about)];
  facts.textContent = [say("inside-facts", about), say("codes", about)].join(" ");
  line.oninput();
};
window.inside = {
  take: async (file) => {
    details.open = true;
    const picture = await picturesOf.square(file);
    if (!picture) return;
    told.hidden = true;
    try {
      const answer = await post("reconstruct", { picture });
      const found = await answer.json();
      if (answer.ok) show(picture, found);
      Object.assign(told, { lang: "en", textContent: found.detail ?? "" });
    } catch {
      Object.assign(told, { lang: page.lang, textContent: say("no-answer") });
    }
    told.hidden = !told.textContent;
    seen.hidden = !told.hidden;
  },
};
input.onchange = () => inside.take(input.files[0]);
sayAll(element);
