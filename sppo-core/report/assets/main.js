// The page: its outcome, warnings, and sections.
(() => {
    "use strict";
    const { element, format, redrawAll, blocks } = sppo;
    const page = JSON.parse(document.getElementById("data").textContent);

    blocks.text = ({ text }) => element("p", { class: "wide paragraph" }, text);
    blocks.code = ({ text }) => element("pre", { class: "wide code", tabindex: 0 }, element("code", {}, text));
    blocks.details = ({ summary, blocks: inner }) =>
        element("details", { class: "card wide" }, element("summary", {}, summary), ...inner.map(show));

    function show(block) {
        return blocks[block.kind](block);
    }

    function header() {
        const written = `written ${format(page.written, "time")} by sppo ${page.version}`;
        return element(
            "header",
            {},
            element("p", { class: "kicker" }, element("span", {}, "sppo"), written, reloading()),
            element("h1", {}, page.title),
            element("p", { class: "sentence" }, page.sentence),
            page.badges.length > 0 && element("ul", { class: "badges" }, ...page.badges.map(({ level, text }) => element("li", { class: level }, text))),
            page.facts.length > 0 && element("ul", { class: "facts" }, ...page.facts.map((fact) => element("li", {}, fact))),
        );
    }

    /** While a run is played, the page is loaded anew every now and then, unless that is switched off. */
    function reloading() {
        if (page.reload_seconds == null) return null;
        const box = element("input", { type: "checkbox", checked: location.hash !== "#still" });
        box.addEventListener("change", () => history.replaceState(null, "", box.checked ? "#" : "#still"));
        setInterval(() => box.checked && !document.hidden && location.reload(), 1000 * page.reload_seconds);
        return element("label", { class: "reload" }, box, `reload every ${page.reload_seconds} s`);
    }

    /** Three narrow blocks share a row. */
    function layout(inner) {
        const narrow = inner.filter(({ kind, wide }) => ["lines", "intervals"].includes(kind) && !wide).length;
        return narrow === 3 ? "blocks three" : "blocks";
    }

    function section({ id, title, note, blocks: inner }) {
        return element(
            "section",
            { id },
            element("h2", {}, title),
            note && element("p", { class: "note" }, note),
            element("div", { class: layout(inner) }, ...inner.map(show)),
        );
    }

    const links = page.sections.map(({ id, title }) => element("a", { href: `#${id}` }, title));
    const host = document.getElementById("page");
    host.append(header(), links.length > 1 ? element("nav", { "aria-label": "sections" }, ...links) : "", element("main", {}));
    page.sections.forEach((one) => host.lastChild.append(section(one)));
    redrawAll();
})();
