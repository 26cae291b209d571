// A click on a head sorts, the better first; again: the other way round.
function sortable(table) {
  for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
    head.querySelector("button")?.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort"), start = head.dataset.better === "higher" ? "descending" : "ascending";
      const order = before === null ? start : before === "ascending" ? "descending" : "ascending", sign = order === "ascending" ? 1 : -1;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent, none = (text) => text === "";
      const compared = (a, b) => (none(a) || none(b) ? none(a) - none(b) : sign * (column ? Number(a) - Number(b) : a.localeCompare(b)));
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => compared(value(a), value(b))));
    });
  }
}
