import { Ratings } from "./ratings.js";

const at = (id) => document.getElementById(id);
const body = at("table").tBodies[0];
const rows = [...body.rows];
const marks = new Map();
for (const mark of document.querySelectorAll("svg [data-i]")) {
  if (!marks.has(mark.dataset.i)) marks.set(mark.dataset.i, []);
  marks.get(mark.dataset.i).push(mark);
}
let chosen = null;

// ratings
const ratingOf = (row) => Ratings.get(row.dataset.name).rating || row.dataset.rating;

function element(tag, attributes, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

function addRating(row) {
  const name = row.dataset.name;
  const select = element("select", { ariaLabel: `Your rating of ${name}` },
    ...["", ...Ratings.WORDS].map((word) => element("option", { value: word }, word || "not rated")));
  const comment = element("input", { type: "text", maxLength: 500, ariaLabel: `Your comment on ${name}` });
  select.addEventListener("change", () => Ratings.set(name, { rating: select.value }));
  comment.addEventListener("change", () => Ratings.set(name, { comment: comment.value }));
  row.querySelector(".own").replaceChildren(select);
  row.querySelector(".comment").replaceChildren(comment);
  row.show = () => {
    const own = Ratings.get(name);
    select.value = own.rating;
    comment.value = own.comment || "";
    row.querySelector(".rating").dataset.v = ratingOf(row);
  };
  row.show();
}

function tellKept() {
  const count = Ratings.count();
  at("kept").textContent = Ratings.isKept()
    ? `${count} rated by you, kept in this browser`
    : `${count} rated by you; this browser keeps nothing, save them`;
}

// choosing a series
function choose(row) {
  if (chosen) {
    chosen.classList.remove("chosen-row");
    chosen.querySelector(".mark").setAttribute("aria-pressed", "false");
    for (const mark of marks.get(chosen.dataset.i) || []) {
      mark.classList.remove("chosen");
      if (mark.hasAttribute("r")) mark.setAttribute("r", "2");
    }
  }
  for (const told of document.querySelectorAll("figure output")) told.textContent = "";
  chosen = chosen === row ? null : row;
  at("marked").textContent = chosen ? `Marked: ${chosen.dataset.name}` : "Choose a series in the table to mark it.";
  if (!chosen) return;
  chosen.classList.add("chosen-row");
  chosen.querySelector(".mark").setAttribute("aria-pressed", "true");
  for (const mark of marks.get(chosen.dataset.i) || []) {
    mark.classList.add("chosen");
    if (mark.hasAttribute("r")) mark.setAttribute("r", "5");
    mark.parentNode.append(mark);
    const figure = mark.closest("figure");
    figure.querySelector("output").textContent = chosen.cells[columnOf(figure.dataset.column)].textContent;
  }
}

const heads = [...at("table").tHead.rows[0].cells];
const named = at("table").dataset.columns.split(" ");
const columnOf = (name) => heads.length - named.length + named.indexOf(name);

function step(row, by) {
  const seen = [...body.rows].filter((other) => !other.hidden);
  const next = seen[seen.indexOf(row) + by];
  if (!next) return;
  if (next !== chosen) choose(next);
  next.querySelector(".mark").focus();
}

body.addEventListener("click", (event) => {
  if (event.target.matches(".mark")) choose(event.target.closest("tr"));
});
body.addEventListener("keydown", (event) => {
  if (!event.target.matches(".mark") || event.ctrlKey || event.metaKey || event.altKey) return;
  const row = event.target.closest("tr");
  const word = { p: "pass", d: "doubt", f: "fail" }[event.key];
  const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  const link = row.querySelector("th a");
  if (word) Ratings.set(row.dataset.name, { rating: word });
  else if (by) step(row, by);
  else if (event.key === "Enter" && row === chosen && link) link.click();
  else return;
  event.preventDefault();
});

// sorting
function sort(head, place) {
  const isUp = head.getAttribute("aria-sort") !== "ascending";
  for (const other of heads) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", isUp ? "ascending" : "descending");
  const isNumber = head.dataset.sort === "number";
  const valueOf = (row) => row.cells[place].dataset.v || "";
  const compare = (a, b) => (isNumber ? a - b : a.localeCompare(b, undefined, { numeric: true }));
  body.append(...[...body.rows].sort((one, two) => {
    const [a, b] = [valueOf(one), valueOf(two)];
    if (a === "" || b === "") return (a === "") - (b === "");
    return (isUp ? 1 : -1) * compare(a, b);
  }));
}
heads.forEach((head, place) => {
  if (!head.dataset.sort) return;
  const button = element("button", { type: "button" }, ...head.childNodes);
  head.replaceChildren(button);
  button.addEventListener("click", () => sort(head, place));
});

// filters
function filter() {
  const wanted = at("search").value.toLowerCase();
  const [state, group, doubts, rated] = ["state", "group", "doubts", "rated"].map((id) => at(id).value);
  let count = 0;
  for (const row of rows) {
    const said = ratingOf(row);
    const isSeen =
      (!wanted || row.textContent.toLowerCase().includes(wanted)) &&
      (!state || (state[0] === "!" ? row.dataset.status !== state.slice(1) : row.dataset.status === state)) &&
      (!group || row.dataset.group === group) &&
      (!doubts || row.dataset.doubts.split(" ").includes(doubts)) &&
      (!rated || (rated === "none" ? !said : said === rated));
    row.hidden = !isSeen;
    count += isSeen;
    for (const mark of marks.get(row.dataset.i) || []) mark.style.display = isSeen ? "" : "none";
  }
  at("count").textContent = `${count} of ${rows.length} series`;
}
at("filters").addEventListener("submit", (event) => event.preventDefault());
at("filters").addEventListener("input", (event) => {
  if (event.target.id === "extra") document.body.classList.toggle("show-extra", event.target.checked);
  else filter();
});

for (const row of rows) {
  row.querySelector(".mark").disabled = false;
  addRating(row);
}
Ratings.onChange((name) => {
  for (const row of rows) if (!name || row.dataset.name === name) row.show();
  at("rater").value = Ratings.rater();
  tellKept();
});
at("rater").value = Ratings.rater();
at("rater").addEventListener("change", () => Ratings.setRater(at("rater").value));
at("save").addEventListener("click", () => {
  at("kept").textContent = `saved as ${Ratings.save()}`;
});
at("read").addEventListener("change", async () => {
  const count = Ratings.read(await at("read").files[0].text());
  at("kept").textContent = count < 0 ? "not a table of ratings" : `${count} ratings read`;
});
at("rating-tools").hidden = at("keys").hidden = false;
tellKept();
filter();
