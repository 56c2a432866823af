// The sample browser. Data enters the page as text nodes only; nothing of it is ever parsed as markup.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const ROW = 46;
  const ALL = "all";

  $("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = isDark ? "light" : "dark";
  });

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
    const at = Object.fromEntries(data.fields.map((name, place) => [name, place]));
    const cellOf = (sample) => data.cells[sample[at.cell]];
    const exampleOf = (sample) => data.examples[sample[at.example]];
    const key = (cell, example, seed) => `${cell} ${example} ${seed}`;
    const byKey = new Map(data.samples.map((sample) => [key(sample[at.cell], sample[at.example], sample[at.seed]), sample]));
    const marker = new RegExp(`<(/?)(think|${data.tags.map((tag) => tag.replace(/[^\w]/g, "\\$&")).join("|")})>`, "g");
    let shown = [];
    let current = 0;

    // Filters
    const distinct = (values) => [...new Set(values)];
    function fill(id, first, options) {
      const select = $(id);
      const before = select.value;
      select.replaceChildren(...[[ALL, first], ...options].map(([value, text]) => {
        const option = make("option", "", text);
        option.value = value;
        return option;
      }));
      if ([...select.options].some((option) => option.value === before)) select.value = before;
    }
    fill("f-task", "all tasks", distinct(data.cells.map((cell) => cell.task)).map((task) => [task, task]));
    fill("f-model", "all models", distinct(data.cells.map((cell) => cell.model)).map((model) => [model, model]));
    fill("f-setting", "all settings", distinct(data.cells.map((cell) => cell.setting)).map((setting) => [setting, setting]));
    fill("f-score", "any score", [
      ["1", "1: right"], ["partly", "between 0 and 1"], ["0", "0: wrong or worst"], ["none", "not scored"],
      ["better", "better than the other"], ["worse", "worse than the other"], ["strict", "right only when parsed"],
    ]);
    fill("f-tag", "any tag", data.tags.map((tag, place) => [String(place), tag]));
    fill("f-flag", "any", [["clean", "no problem"], ["invalid", "invalid trace"], ["ungrounded", "a claim that fails"],
      ...data.flags.map((flag, bit) => [String(bit), flag])]);

    function fillOthers() {
      const task = $("f-task").value;
      fill("f-other", "nothing", data.cells.map((cell, place) => [String(place), cell])
        .filter(([, cell]) => task === ALL || cell.task === task)
        .map(([place, cell]) => [place, (task === ALL ? `${cell.task}: ` : "") + `${cell.model} · ${cell.setting}`]));
    }
    fillOthers();

    // With all tasks shown, the other cell is the one of the same model and setting in the sample's own task.
    function otherOf(sample) {
      const chosen = $("f-other").value;
      if (chosen === ALL) return undefined;
      const wanted = data.cells[Number(chosen)];
      const task = cellOf(sample).task;
      const place = wanted.task === task ? Number(chosen)
        : data.cells.findIndex((cell) => cell.task === task && cell.model === wanted.model && cell.setting === wanted.setting);
      return byKey.get(key(place, sample[at.example], sample[at.seed]));
    }

    const scoreTests = {
      "1": (worth) => worth === 1,
      "0": (worth) => worth === 0,
      partly: (worth) => worth > 0 && worth < 1,
      none: (worth) => worth === null,
      strict: (worth, sample) => worth === 1 && sample[at.strict] < 1,
      better: (worth, sample) => { const other = otherOf(sample); return other !== undefined && worth > other[at.parsed]; },
      worse: (worth, sample) => { const other = otherOf(sample); return other !== undefined && worth < other[at.parsed]; },
    };
    function hasProblem(sample, wanted) {
      if (wanted === "clean") return (sample[at.flags] & ~(1 << (data.flags.length - 1))) === 0 && sample[at.valid] !== false;
      if (wanted === "invalid") return sample[at.valid] === false;
      if (wanted === "ungrounded") return sample[at.claims] > sample[at.grounded];
      return (sample[at.flags] & (1 << Number(wanted))) !== 0;
    }
    const haystacks = new Map();
    function haystack(sample) {
      if (!haystacks.has(sample)) {
        const example = exampleOf(sample);
        haystacks.set(sample, `${example.id}\n${example.user}\n${example.input ?? ""}\n${sample[at.text]}`.toLowerCase());
      }
      return haystacks.get(sample);
    }

    function apply() {
      const [task, model, setting, score, tag, flag] = ["task", "model", "setting", "score", "tag", "flag"].map((name) => $(`f-${name}`).value);
      const words = $("f-text").value.toLowerCase().trim();
      const before = shown[current];
      shown = data.samples.filter((sample) => {
        const cell = cellOf(sample);
        return (task === ALL || cell.task === task) && (model === ALL || cell.model === model)
          && (setting === ALL || cell.setting === setting)
          && (score === ALL || scoreTests[score](sample[at.parsed], sample))
          && (tag === ALL || sample[at.tags].includes(Number(tag)))
          && (flag === ALL || hasProblem(sample, flag))
          && (!words || haystack(sample).includes(words));
      });
      const drawn = data.samples.length < data.total ? `, drawn from ${data.total.toLocaleString("en")}` : "";
      $("count").textContent = `${shown.length.toLocaleString("en")} of ${data.samples.length.toLocaleString("en")}${drawn}`;
      $("rows").style.height = `${shown.length * ROW}px`;
      select(Math.max(0, shown.indexOf(before)));
    }

    // List: only the rows in view exist.
    function paint() {
      const list = $("list");
      const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
      const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
      const rows = [];
      for (let place = first; place < last; place += 1) {
        const sample = shown[place];
        const cell = cellOf(sample);
        const row = make("div", "sample", make("span", "", exampleOf(sample).id), worth(sample[at.parsed]),
          make("small", "", `${cell.model} · ${cell.setting}`));
        row.style.top = `${place * ROW}px`;
        row.id = `row-${place}`;
        row.setAttribute("role", "option");
        row.setAttribute("aria-selected", String(place === current));
        row.dataset.place = String(place);
        rows.push(row);
      }
      $("rows").replaceChildren(...rows);
      list.setAttribute("aria-activedescendant", `row-${current}`);
    }
    function worth(value) {
      if (value === null) return make("span", "worth", "–");
      return make("span", `worth ${value >= 0.999 ? "good" : value <= 0.001 ? "bad" : ""}`, value.toFixed(2));
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
    function detail(sample) {
      const place = $("detail");
      place.scrollTop = 0;
      if (!sample) {
        place.replaceChildren(make("p", "facts", "No sample passes these filters."));
        return;
      }
      const example = exampleOf(sample);
      const other = otherOf(sample);
      const facts = [cellOf(sample).task, example.user, `${example.size} items in the profile`, example.date].filter(Boolean).join(" · ");
      place.replaceChildren(
        make("p", "facts", make("b", "", example.id), make("br"), facts),
        make("h4", "", "Input"),
        make("p", "pre input", [example.question, example.input ?? "(the data set was not at hand)"].filter(Boolean).join(" ")),
        make("h4", "", "Gold"),
        make("p", "pre gold", example.gold ?? "(withheld)"),
        make("div", "sides", side(sample), other && other !== sample ? side(other) : null),
      );
    }
    function side(sample) {
      const cell = cellOf(sample);
      const cited = new Set([...sample[at.text].matchAll(/\[P(\d{1,6})\]/g)].map((match) => Number(match[1])));
      // the last flag, unreadable if strict, is the rule for traces and no news here
      const problems = data.flags.slice(0, -1).filter((_, bit) => sample[at.flags] & (1 << bit)).concat(sample[at.violations]);
      const items = make("ol", "items", ...sample[at.items].map((item, place) => itemRow(item, place + 1, cited.has(place + 1))));
      const number = (value) => (value === null ? "–" : value.toFixed(3));
      const claims = sample[at.claims] ? `, ${sample[at.grounded]} of ${sample[at.claims]} claims hold` : "";
      return make("div", "side",
        make("h5", "", cell.model),
        make("p", "facts", `${cell.setting} · parsed ${number(sample[at.parsed])} · strict ${number(sample[at.strict])}${claims}`),
        problems.length ? make("p", "problems", problems.join(", ")) : null,
        make("h4", "", "Answer"),
        make("p", "pre answer", sample[at.answer] ?? `(none: ${sample[at.problem]})`),
        make("h4", "", "Completion"),
        trace(sample[at.text], items),
        make("h4", "", sample[at.items].length ? "Profile items in the prompt" : "No profile item in the prompt"),
        items);
    }
    function itemRow(item, number, isCited) {
      const body = typeof item === "number" ? data.items[item] : [null, `item ${item} (text not at hand)`, null, null];
      const [title, text, label, date] = body;
      return make("li", isCited ? "cited" : "", make("span", "number", `[P${number}]`),
        make("p", "", label === null ? null : make("span", "label", label, " "), title === null ? null : make("b", "", title, " "),
          text, date === null ? null : make("span", "date", ` ${date}`)));
    }
    // Colours only: validity was decided where the scores were made.
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
          box.append(make("p", "pre stray", piece.trim()));
        }
      };
      for (const match of text.matchAll(marker)) {
        const tag = data.tags.indexOf(match[2]);
        if (open >= 0 && tag !== open) continue;
        if (open >= 0 && !match[1]) continue;
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
          const item = items.children[Number(match[1]) - 1];
          if (!item) return;
          for (const row of items.children) row.classList.toggle("target", row === item);
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
    for (const name of ["model", "setting", "score", "tag", "flag", "other"]) $(`f-${name}`).addEventListener("change", apply);
    $("f-task").addEventListener("change", () => { fillOthers(); apply(); });
    $("f-text").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(apply, 150); });
    $("filters").addEventListener("submit", (event) => event.preventDefault());
    $("list").addEventListener("scroll", () => requestAnimationFrame(paint), { passive: true });
    $("list").addEventListener("click", (event) => {
      const row = event.target.closest(".sample");
      if (row) select(Number(row.dataset.place));
    });
    new ResizeObserver(paint).observe($("list"));

    function cycleOther() {
      const options = $("f-other").options;
      if (options.length < 2) return;
      const sample = shown[current];
      for (let step = 1; step <= options.length; step += 1) {
        const place = ($("f-other").selectedIndex + step) % options.length;
        const cell = data.cells[Number(options[place].value)];
        if (place === 0 || (sample && cell.task === cellOf(sample).task && Number(options[place].value) !== sample[at.cell])) {
          $("f-other").selectedIndex = place;
          break;
        }
      }
      apply();
    }
    function swap() {
      const sample = shown[current];
      const other = sample && otherOf(sample);
      if (!other) return;
      const cell = cellOf(other);
      $("f-other").value = String(sample[at.cell]);
      if ($("f-model").value !== ALL) $("f-model").value = cell.model;
      if ($("f-setting").value !== ALL) $("f-setting").value = cell.setting;
      apply();
      select(shown.indexOf(other));
    }
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
      const isInList = document.activeElement === $("list");
      if (event.key in moves && (isInList || event.key.length === 1)) {
        event.preventDefault();
        select(moves[event.key]());
      } else if (event.key === "/") {
        event.preventDefault();
        $("f-text").focus();
      } else if (event.key === "c") {
        cycleOther();
      } else if (event.key === "x") {
        swap();
      }
    });
    apply();
    document.documentElement.dataset.ready = "true";
  }
})();
