// Answers of two models to the same prompt, side by side, with the oracle's verdict.
(() => {
    "use strict";
    const { element, format, differences } = sppo;

    const AT_A_TIME = 8;
    const TIE = 1e-9;

    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
    const win = (verdict) => 0.5 * (verdict.read_first + verdict.read_second);

    /** One entry for each answer of a model, with the first model's answer to the same prompt. */
    function entriesOf(set, model) {
        return set.prompts.flatMap((prompt, position) =>
            (prompt.answers[model] ?? []).map((answer, sample) => ({
                prompt,
                position,
                sample,
                before: prompt.answers[0]?.[sample],
                answer,
                verdict: prompt.verdicts[model]?.[sample],
            })),
        );
    }

    /** The share of words that are in only one of the two answers. */
    function change({ before, answer }) {
        const [left, right] = [before?.text ?? "", answer.text].map((text) => new Set(text.split(/\s+/)));
        const common = [...left].filter((word) => right.has(word)).length;
        return 1 - common / Math.max(left.size + right.size - common, 1);
    }

    const FILTERS = {
        all: () => true,
        won: ({ verdict }) => verdict && win(verdict) > 0.5 + TIE,
        lost: ({ verdict }) => verdict && win(verdict) < 0.5 - TIE,
        tied: ({ verdict }) => verdict && Math.abs(win(verdict) - 0.5) <= TIE,
    };

    const ORDERS = {
        "as given": null,
        "changed most": (entry) => -change(entry),
        "won most clearly": ({ verdict }) => (verdict ? -win(verdict) : 1),
        "lost most clearly": ({ verdict }) => (verdict ? win(verdict) : 2),
        "most dependent on order": ({ verdict }) => (verdict ? -Math.abs(verdict.read_first - verdict.read_second) : 1),
    };

    function select(name, options, chosen, onChange) {
        const node = element(
            "select",
            { "aria-label": name },
            ...options.map(([value, label]) => element("option", { value, selected: value === chosen }, label)),
        );
        node.addEventListener("change", () => onChange(node.value));
        return element("label", { class: "choice" }, element("span", {}, name), node);
    }

    function parts(text, pieces, tag) {
        if (!pieces) return [text];
        return pieces.map((piece) => (piece.isChanged ? element(tag, {}, piece.text) : piece.text));
    }

    function answerBox(title, answer, pieces, tag) {
        if (!answer) return element("div", { class: "answer" }, element("h4", {}, title), element("p", { class: "note" }, "no answer"));
        const length = `${format(answer.tokens, "integer")} tokens${answer.ended ? "" : ", cut off"}`;
        const content = answer.text === "" ? [element("span", { class: "note" }, "(empty)")] : parts(answer.text, pieces, tag);
        return element(
            "div",
            { class: "answer" },
            element("h4", {}, title, element("small", {}, length)),
            element("div", { class: "text", dir: "auto", tabindex: 0 }, ...content),
        );
    }

    function verdictBar(verdict) {
        if (!verdict) return element("p", { class: "verdict note" }, "no verdict was kept");
        const probability = win(verdict);
        const word = probability > 0.5 + TIE ? "won" : probability < 0.5 - TIE ? "lost" : "tied";
        const filled = element("i", {});
        filled.style.width = `${100 * probability}%`;
        const orders = `read first ${format(verdict.read_first, "percent")}, read second ${format(verdict.read_second, "percent")}`;
        return element(
            "p",
            { class: `verdict ${word}` },
            element("b", {}, word),
            element("span", { class: "meter", title: "probability that the new answer is preferred" }, filled),
            element("span", {}, format(probability, "percent")),
            element("small", {}, orders),
        );
    }

    function promptBox(prompt) {
        const turns = prompt.turns.map(({ role, text }) =>
            element(
                "div",
                { class: "turn" },
                prompt.turns.length > 1 && element("span", { class: "role" }, role),
                element("div", { class: "text", dir: "auto" }, text),
            ),
        );
        return element("div", { class: "prompt" }, ...turns);
    }

    function sampleCard(entry, names) {
        const pieces = entry.before ? differences(entry.before.text, entry.answer.text) : null;
        const sides = [
            answerBox(names[0], entry.before, pieces?.[0], "del"),
            answerBox(names[1], entry.answer, pieces?.[1], "ins"),
        ];
        const note = entry.before && !pieces && element("p", { class: "note" }, "Too long to mark the differences.");
        return element("article", { class: "sample" }, promptBox(entry.prompt), verdictBar(entry.verdict), note, element("div", { class: "sides" }, ...sides));
    }

    sppo.blocks.samples = (block) => {
        const state = { set: 0, model: null, filter: "all", order: "as given", text: "", shown: AT_A_TIME };
        const controls = element("div", { class: "controls" });
        const list = element("div", { class: "list" });

        const model = () => state.model ?? block.sets[state.set].models.length - 1;
        const modelName = (set, index) => (index === 0 ? "start" : `iteration ${set.models[index]}`);

        function matching() {
            const wanted = state.text.toLowerCase();
            const holds = ({ prompt, answer, before }) =>
                [...prompt.turns.map((turn) => turn.text), answer.text, before?.text ?? ""].some((text) => text.toLowerCase().includes(wanted));
            const found = entriesOf(block.sets[state.set], model()).filter((entry) => wanted === "" || holds(entry));
            const order = ORDERS[state.order];
            return order ? found.map((entry) => [order(entry), entry]).sort((a, b) => a[0] - b[0]).map(([, entry]) => entry) : found;
        }

        function update(change) {
            Object.assign(state, { shown: AT_A_TIME }, change);
            showControls();
            showList();
        }

        function filterButtons() {
            const entries = matching();
            return Object.entries(FILTERS).map(([name, holds]) => {
                const count = entries.filter(holds).length;
                const button = element("button", { type: "button", "aria-pressed": String(name === state.filter) }, `${name} `, element("small", {}, format(count, "integer")));
                button.addEventListener("click", () => update({ filter: name }));
                return button;
            });
        }

        const search = element("input", { type: "search", placeholder: "find text", "aria-label": "find text" });
        search.addEventListener("input", () => update({ text: search.value }));
        const buttons = element("div", { class: "buttons", role: "group", "aria-label": "filter" });
        const choices = element("div", { class: "choices" });
        controls.append(buttons, choices, search);

        function showControls() {
            const set = block.sets[state.set];
            buttons.replaceChildren(...filterButtons());
            choices.replaceChildren(
                ...[
                    block.sets.length > 1 &&
                        select("run", block.sets.map(({ name }, index) => [String(index), name]), String(state.set), (value) => update({ set: Number(value), model: null })),
                    set.models.length > 2 &&
                        select("model", set.models.map((_, index) => [String(index), modelName(set, index)]).slice(1), String(model()), (value) => update({ model: Number(value) })),
                    select("order", Object.keys(ORDERS).map((name) => [name, name]), state.order, (value) => update({ order: value })),
                ].filter(Boolean),
            );
        }

        function showList() {
            const set = block.sets[state.set];
            const entries = matching().filter(FILTERS[state.filter]);
            const names = [modelName(set, 0), modelName(set, model())];
            const cards = entries.slice(0, state.shown).map((entry) => sampleCard(entry, names));
            const left = entries.length - cards.length;
            const more = element("button", { type: "button", class: "more" }, `show ${Math.min(left, AT_A_TIME)} more of ${format(left, "integer")}`);
            more.addEventListener("click", () => {
                state.shown += AT_A_TIME;
                showList();
            });
            const ends = [left > 0 && more, entries.length === 0 && element("p", { class: "note" }, "No answers match."), set.left_out > 0 && element("p", { class: "note" }, `${set.left_out} further prompts are left out, to keep this page small.`)];
            list.replaceChildren(...cards, ...ends.filter(Boolean));
        }

        update({});
        return element("div", { class: "samples wide" }, controls, list);
    };
})();
