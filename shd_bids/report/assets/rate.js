import { Ratings } from "./ratings.js";

for (const card of document.querySelectorAll("section.rate")) {
  const name = card.dataset.series;
  const [comment, rater, told] = [".comment", ".rater", "[role=status]"].map((part) => card.querySelector(part));
  const words = [...card.querySelectorAll("input[type=radio]")];
  const show = () => {
    const own = Ratings.get(name);
    for (const word of words) word.checked = word.value === own.rating;
    comment.value = own.comment || "";
    rater.value = Ratings.rater();
    const kept = Ratings.isKept() ? "kept in this browser" : "not kept by this browser, save them";
    told.textContent = `${Ratings.count()} series of this folder rated by you, ${kept}. Put the saved table into the folder, ` +
      "or give it to the group level by --ratings.";
  };
  for (const word of words) word.addEventListener("change", () => Ratings.set(name, { rating: word.value }));
  comment.addEventListener("change", () => Ratings.set(name, { comment: comment.value }));
  rater.addEventListener("change", () => Ratings.setRater(rater.value));
  card.querySelector("button").addEventListener("click", () => Ratings.save());
  Ratings.onChange(show);
  card.hidden = false;
  show();
}
