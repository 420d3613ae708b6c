// Ratings of series, kept in this browser by the folder of the page, and saved as a table that the group level reads.
export const Ratings = (() => {
  const WORDS = ["pass", "doubt", "fail"];
  const COLUMNS = ["series", "rating", "comment", "rater", "rated"];
  const folder = location.href.replace(/[?#].*$/, "").replace(/[^/]*$/, "");
  const key = "shd_bids ratings " + folder;
  const listeners = [];
  let held = { rater: "", series: {} };
  let isKept = true;

  function load() {
    try {
      const found = JSON.parse(localStorage.getItem(key));
      if (found && typeof found.series === "object") held = found;
    } catch (error) {
      isKept = false;
    }
  }

  function store(name) {
    try {
      localStorage.setItem(key, JSON.stringify(held));
    } catch (error) {
      isKept = false;
    }
    for (const listener of listeners) listener(name);
  }

  const plain = (text) => String(text || "").replace(/\s+/g, " ").trim();

  function set(name, changes) {
    const own = held.series[name] || { rating: "", comment: "" };
    held.series[name] = { ...own, ...changes, rated: new Date().toISOString().slice(0, 19) + "Z" };
    store(name);
  }

  const rated = () => Object.entries(held.series).filter(([, own]) => WORDS.includes(own.rating));

  function table() {
    const rows = rated().sort(([a], [b]) => (a < b ? -1 : 1));
    const cells = rows.map(([name, own]) => [name, own.rating, own.comment, held.rater, own.rated]);
    return [COLUMNS, ...cells].map((row) => row.map((cell) => plain(cell) || "n/a").join("\t")).join("\n") + "\n";
  }

  function read(text) {
    const [head, ...rows] = text.replace(/\r/g, "").trimEnd().split("\n").map((line) => line.split("\t"));
    const place = COLUMNS.map((name) => head.indexOf(name));
    if (place[0] < 0 || place[1] < 0) return -1;
    let count = 0;
    for (const row of rows) {
      const [name, rating, comment, rater, when] = place.map((at) => (at < 0 || row[at] === "n/a" ? "" : row[at] || ""));
      if (!WORDS.includes(rating) || (rater && held.rater && rater !== held.rater)) continue;
      held.series[name] = { rating, comment, rated: when };
      held.rater = held.rater || rater;
      count += 1;
    }
    store();
    return count;
  }

  function save() {
    const rater = held.rater.replace(/[^A-Za-z0-9]/g, "") || "anonymous";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([table()], { type: "text/tab-separated-values" }));
    link.download = `desc-${rater}_ratings.tsv`;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    return link.download;
  }

  load();
  window.addEventListener("storage", (event) => {
    if (event.key === key) {
      load();
      for (const listener of listeners) listener();
    }
  });
  return {
    WORDS, get: (name) => held.series[name] || { rating: "", comment: "" }, set, read, save, table,
    count: () => rated().length, isKept: () => isKept, onChange: (listener) => listeners.push(listener),
    rater: () => held.rater, setRater: (name) => { held.rater = plain(name); store(); },
  };
})();
