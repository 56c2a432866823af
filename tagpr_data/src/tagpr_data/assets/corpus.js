// The corpus browser. Data enters the page as text nodes only; nothing of it is ever parsed as markup.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const ROW = 46;
  const ALL = "all";

  function make(name, className, ...children) {
    const element = document.createElement(name);
    if (className) element.className = className;
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }

  // Let the page paint before a large file is parsed.
  requestAnimationFrame(() => setTimeout(start, 0));

  function start() {
    const data = JSON.parse($("data").textContent);
    const rows = data.rows;
    const marker = new RegExp(`<(/?)(think|${data.tags.map((tag) => tag.replace(/[^\w]/g, "\\$&")).join("|")})>`, "g");
    let shown = [];
    let current = 0;

    // Filters
    const distinct = (values) => [...new Set(values)].sort();
    const filters = ["kind", "split", "task", "teacher", "reason", "user"];
    for (const name of filters) {
      const select = $(`f-${name}`);
      select.append(...[ALL, ...distinct(rows.map((row) => row[name]).filter((value) => value !== null))].map((value) => {
        const option = make("option", "", value);
        option.value = value;
        return option;
      }));
      select.addEventListener("change", apply);
    }
    const haystacks = new Map();
    function haystack(row) {
      if (!haystacks.has(row)) haystacks.set(row, `${row.id}\n${row.example}\n${data.prompts[row.prompt].join("\n")}\n${row.text}`.toLowerCase());
      return haystacks.get(row);
    }
    function apply() {
      const wanted = filters.map((name) => [name, $(`f-${name}`).value]).filter(([, value]) => value !== ALL);
      const words = $("f-text").value.toLowerCase().trim();
      const before = shown[current];
      shown = rows.filter((row) => wanted.every(([name, value]) => row[name] === value) && (!words || haystack(row).includes(words)));
      const drawn = rows.length < data.total ? `, drawn from ${data.total.toLocaleString("en")}` : "";
      $("count").textContent = `${shown.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")}${drawn}`;
      $("rows").style.height = `${shown.length * ROW}px`;
      select(Math.max(0, shown.indexOf(before)));
    }

    // List: only the rows in view exist.
    function paint() {
      const list = $("list");
      const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
      const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
      const painted = [];
      for (let place = first; place < last; place += 1) {
        const row = shown[place];
        const mark = row.reason === null ? make("span", "worth good", row.score.toFixed(2)) : make("span", "worth bad", row.reason);
        const line = make("div", "sample", make("span", "", row.example), mark, make("small", "", `${row.task} · ${row.split} · ${row.teacher}`));
        line.style.top = `${place * ROW}px`;
        line.id = `row-${place}`;
        line.setAttribute("role", "option");
        line.setAttribute("aria-selected", String(place === current));
        line.dataset.place = String(place);
        painted.push(line);
      }
      $("rows").replaceChildren(...painted);
      list.setAttribute("aria-activedescendant", `row-${current}`);
    }
    function select(place) {
      current = Math.min(Math.max(place, 0), Math.max(0, shown.length - 1));
      const list = $("list");
      const top = current * ROW;
      if (top < list.scrollTop) list.scrollTop = top;
      else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
      paint();
      detail(shown[current]);
    }

    // Detail
    function detail(row) {
      const place = $("detail");
      place.scrollTop = 0;
      if (!row) {
        place.replaceChildren(make("p", "facts", "No row passes these filters."));
        return;
      }
      const [before, items, question] = data.prompts[row.prompt];
      const list = make("ol", "items", ...items.split("\n").filter(Boolean).map((line) => itemRow(line, row)));
      const fate = row.reason === null ? `score ${row.score.toFixed(3)} · ${row.grounded} of ${row.claims} claims hold` : `rejected: ${row.reason}`;
      place.replaceChildren(...[
        make("p", "facts", make("b", "", row.example), make("br"), [row.task, row.user, row.split, row.teacher, fate].join(" · ")),
        row.detail ? make("p", "problems", row.detail) : null,
        make("h4", "", "Question"),
        make("p", "pre input", question),
        make("h4", "", "Gold"),
        make("p", "pre gold", row.gold ?? "(none)"),
        make("h4", "", "Completion"),
        trace(row.text, list),
        make("h4", "", items ? "Past items in the prompt" : "No past item in the prompt"),
        list,
        make("h4", "", "Instruction"),
        make("p", "pre facts", before || "(none)"),
        make("h4", "", "Lineage"),
        make("p", "pre facts", row.lineage),
      ].filter((part) => part !== null));
    }
    function itemRow(line, row) {
      const match = /^\[P(\d{1,6})\] /.exec(line);
      const isCited = match && row.text.includes(`[P${match[1]}]`);
      return make("li", isCited ? "cited" : "", make("span", "number", match ? `[P${match[1]}]` : ""), make("p", "", match ? line.slice(match[0].length) : line));
    }
    // Colours only: validity was decided when the corpus was made.
    function trace(text, items) {
      const box = make("div", "trace");
      let open = -1;
      let begin = 0;
      const flush = (end) => {
        const piece = text.slice(begin, end);
        if (open >= 0) {
          const step = make("div", `step t${open % 9}`, make("b", "", data.tags[open]));
          step.append(cited(piece, items));
          box.append(step);
        } else if (piece.trim()) {
          box.append(make("p", "pre answer", piece.trim()));
        }
      };
      for (const match of text.matchAll(marker)) {
        const tag = data.tags.indexOf(match[2]);
        if (open >= 0 && (tag !== open || !match[1])) continue;
        flush(match.index);
        begin = match.index + match[0].length;
        open = open >= 0 || match[1] ? -1 : tag;
      }
      flush(text.length);
      return box;
    }
    function cited(piece, items) {
      const span = make("span", "pre");
      let begin = 0;
      for (const match of piece.matchAll(/\[P(\d{1,6})\]/g)) {
        span.append(piece.slice(begin, match.index));
        const button = make("button", "cite", match[0]);
        button.type = "button";
        button.addEventListener("click", () => {
          const item = [...items.children].find((line) => line.firstChild.textContent === match[0]);
          if (!item) return;
          for (const line of items.children) line.classList.toggle("target", line === item);
          item.scrollIntoView({ block: "nearest" });
        });
        span.append(button);
        begin = match.index + match[0].length;
      }
      span.append(piece.slice(begin));
      return span;
    }

    // Events
    let waiting;
    $("f-text").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(apply, 150); });
    $("filters").addEventListener("submit", (event) => event.preventDefault());
    $("list").addEventListener("scroll", () => requestAnimationFrame(paint), { passive: true });
    $("list").addEventListener("click", (event) => {
      const line = event.target.closest(".sample");
      if (line) select(Number(line.dataset.place));
    });
    new ResizeObserver(paint).observe($("list"));
    const page = () => Math.max(1, Math.floor($("list").clientHeight / ROW) - 1);
    const moves = {
      j: () => current + 1, k: () => current - 1, ArrowDown: () => current + 1, ArrowUp: () => current - 1,
      PageDown: () => current + page(), PageUp: () => current - page(), Home: () => 0, End: () => shown.length - 1,
    };
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target.matches("input, select")) {
        if (event.key === "Escape") event.target.blur();
        return;
      }
      if (event.key in moves && (document.activeElement === $("list") || event.key.length === 1)) {
        event.preventDefault();
        select(moves[event.key]());
      } else if (event.key === "/") {
        event.preventDefault();
        $("f-text").focus();
      }
    });
    apply();
    document.documentElement.dataset.ready = "true";
  }
})();
