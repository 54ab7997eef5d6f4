// The drawings of this tab, newest first: they survive a reload with it, and its end where that is asked for.
window.past = (() => {
  const MOST = 24;
  let galleries = [];
  const read = (from) => {
    try {
      const found = JSON.parse(from.galleries ?? "[]");
      return found.filter(({ tiles, notes }) => tiles.length && notes.every(({ name }) => name)); // or another version's
    } catch {
      return [];
    }
  };
  const keep = () => {
    for (const name of past.isKept() ? ["localStorage", "sessionStorage"] : ["sessionStorage"]) {
      for (let most = galleries.length; most; most = Math.floor(most / 2)) {
        try {
          store(name).galleries = JSON.stringify(galleries.slice(0, most));
          break;
        } catch {} // it is full
      }
    }
  };
  const id = ({ prompt, settings, seed }) => JSON.stringify([prompt, settings, seed]);
  return {
    isKept: () => store("localStorage").keep === "yes",
    load: () => {
      const all = [...read(store("sessionStorage")), ...read(store("localStorage"))];
      galleries = all.filter((each, i) => all.findIndex((other) => id(other) === id(each)) === i).slice(0, MOST);
      return galleries;
    },
    add: (value) => {
      galleries = [value, ...galleries.filter((each) => id(each) !== id(value))].slice(0, MOST);
      keep();
    },
    keepHere: (wanted) => {
      store("localStorage").keep = wanted ? "yes" : "no";
      if (!wanted) delete store("localStorage").galleries;
      keep();
    },
    clear: () => {
      galleries = [];
      for (const name of ["localStorage", "sessionStorage"]) delete store(name).galleries;
    },
    all: () => galleries,
    // What an address names, as it was drawn.
    find: (link) => galleries.find((each) => share.link(each) === link),
  };
})();
