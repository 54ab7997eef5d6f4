// The pictures on the stage: tiles that wait, tiles that are painted, and the ranked gallery, the best one large.
window.gallery = (() => {
  const percent = (score) => Math.max(0, Math.round(score * 100));
  const grid = (box, count, wide) => {
    box.className = "pictures grid";
    box.style.setProperty("--columns", Math.ceil(Math.sqrt(count)));
    box.style.setProperty("--wide-columns", wide ?? (count > 3 ? Math.ceil(count / 2) : count));
  };
  const tile = (value, { picture, score, ranks }, i) => {
    const others = { rank: i + 1, of: value.tiles.length, prompt: value.prompt, percent: percent(score) };
    const match = score === null ? "" : say("match", others);
    const image = make("img", { src: picture, alt: `${say("alt", others)} ${match}`, width: 256, height: 256 });
    const badges = [make("span", { className: "rank", textContent: i || value.tiles.length === 1 ? i + 1 : say("best") })];
    if (ranks.length > 1) badges.push(make("span", { className: "same", textContent: `×${ranks.length}` }));
    const bar = make("span", { className: "bar" });
    bar.style.setProperty("--match", score === null ? 0 : percent(score) / 100);
    const found = make("button", { type: "button", className: "tile", title: match }, image, ...badges, bar);
    found.onclick = () => opened.open(value, i);
    return found;
  };
  return {
    percent,
    // Ready-made pictures, on the stage and beside the examples.
    empty: (box) => {
      grid(box, page.examples.length || 1, 4);
      box.replaceChildren(
        ...page.examples.map(({ prompt, picture }) => {
          const image = picture ? [make("img", { src: picture, alt: "", width: 256, height: 256 })] : [];
          const found = make("button", { type: "button", className: "tile example" }, ...image, make("span", {}, prompt));
          found.dataset.draw = prompt;
          return found;
        }),
      );
    },
    // The gallery before stays, dimmed, until there is something new to see.
    begin: (box, count, isBefore) => {
      box.inert = isBefore;
      if (isBefore) return box.classList.add("before");
      grid(box, count);
      box.replaceChildren(...Array.from({ length: count }, () => make("div", { className: "tile waiting" })));
    },
    paint: (box, { pictures, painted, rows }) => {
      if (!pictures || !painted) return;
      if (box.querySelectorAll(".waiting").length !== pictures.length) gallery.begin(box, pictures.length, false);
      [...box.children].forEach((each, i) => {
        if (!each.firstChild) each.append(make("img", { alt: say("unfinished", { number: i + 1 }) }));
        each.firstChild.src = pictures[i];
        each.firstChild.style.clipPath = `inset(0 0 ${100 - (100 * painted) / rows}% 0)`;
      });
    },
    show: (box, value) => {
      const [best, ...others] = value.tiles.map((each, i) => tile(value, each, i));
      box.inert = false;
      box.className = "pictures ranked";
      const heading = make("h2", { textContent: value.prompt });
      const { score } = value.tiles[0];
      const match = score === null ? [] : [say("match", { percent: percent(score) })];
      const seed = make("p", { className: "facts", textContent: [...match, say("seed-of", value)].join(" · ") });
      const beside = make("div", { className: "others" }, ...others);
      const buttons = make("div", { className: "buttons" }, ...actions.of(value, value.tiles[0]), ...actions.all(value));
      box.replaceChildren(best, make("div", { className: "beside" }, heading, seed, beside, buttons));
    },
  };
})();
