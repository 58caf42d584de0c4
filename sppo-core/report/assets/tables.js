// Tables, and matrices of probabilities.
(() => {
    "use strict";
    const { element, format, card } = sppo;

    /** Dates read like words. */
    const kind = ({ format: name }) => (name == null || name === "time" ? "words" : "number");

    function cell(value, column) {
        const attributes = { class: kind(column) };
        if (value == null) return element("td", attributes, "\u2013");
        if (typeof value === "number") return element("td", attributes, format(value, column.format ?? "number"));
        if (typeof value === "string") return element("td", { ...attributes, dir: "auto" }, value);
        const limits = `${format(value.low, column.format)} to ${format(value.high, column.format)}`;
        return element("td", attributes, format(value.mean, column.format), element("small", {}, limits));
    }

    sppo.blocks.table = (block) => {
        const hasNames = block.columns.some(({ name }) => name !== "");
        const head = block.columns.map((column) =>
            element("th", { scope: "col", class: kind(column) }, column.name),
        );
        const rows = block.rows.map((row) =>
            element("tr", {}, ...row.map((value, index) => cell(value, block.columns[index]))),
        );
        const size = block.columns.length > 6 ? "many-columns" : "few-columns";
        const table = element("table", { class: size }, hasNames && element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
        return card(block, rows.length > 0 && element("div", { class: "scroll", tabindex: 0 }, table));
    };

    /** Blue where the row wins, orange where it loses, the stronger the surer. */
    function shaded(value, isDiagonal) {
        if (isDiagonal) return element("td", { class: "cell same" }, "\u00b7");
        if (value == null) return element("td", { class: "cell unknown", title: "not judged" }, "");
        const node = element("td", { class: value >= 0.5 ? "cell wins" : "cell loses" }, format(value, "percent"));
        node.style.setProperty("--strength", `${Math.round(Math.min(2 * Math.abs(value - 0.5), 1) * 100)}%`);
        return node;
    }

    sppo.blocks.heatmap = (block) => {
        const corner = element("th", { class: "corner" }, `${block.axis}, against`);
        const head = block.columns.map((name) => element("th", { scope: "col" }, name));
        const rows = block.rows.map((name, row) =>
            element(
                "tr",
                {},
                element("th", { scope: "row" }, name),
                ...block.cells[row].map((value, column) => shaded(value, row === column)),
            ),
        );
        const table = element("table", { class: "heatmap" }, element("thead", {}, element("tr", {}, corner, ...head)), element("tbody", {}, ...rows));
        return card(block, element("div", { class: "scroll", tabindex: 0 }, table));
    };
})();
