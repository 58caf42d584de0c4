// What all blocks share: elements, numbers, colours, and drawing anew.
const sppo = (() => {
    "use strict";

    const MINUS = "\u2212";
    const DASH = "\u2013";
    const redraws = [];

    /** An element with attributes and children; strings become text. */
    function element(name, attributes = {}, ...children) {
        return filled(document.createElement(name), attributes, children);
    }

    /** As `element`, of SVG. */
    function shape(name, attributes = {}, ...children) {
        return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
    }

    function filled(node, attributes, children) {
        for (const [name, value] of Object.entries(attributes)) {
            if (value === true) node.setAttribute(name, "");
            else if (value !== false && value != null) node.setAttribute(name, value);
        }
        node.append(...children.flat().filter((child) => child != null && child !== false));
        return node;
    }

    const decimals = (value, digits) =>
        value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });

    function plain(value) {
        const size = Math.abs(value);
        if (size === 0) return "0";
        if (size < 1e-3) return exponential(value);
        if (Number.isInteger(value)) return decimals(value, 0);
        return decimals(value, size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
    }

    function exponential(value) {
        if (value === 0) return "0";
        const [mantissa, power] = value.toExponential(2).split("e");
        return `${Number(mantissa)}e${Number(power)}`;
    }

    function duration(seconds) {
        if (seconds < 1) return `${decimals(seconds, 2)} s`;
        if (seconds < 60) return `${decimals(seconds, 1)} s`;
        const whole = Math.round(seconds);
        const [hours, minutes] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60)];
        if (hours === 0) return `${minutes} min ${whole % 60} s`;
        return `${hours} h ${String(minutes).padStart(2, "0")} min`;
    }

    function bytes(value) {
        const units = ["B", "KiB", "MiB", "GiB", "TiB"];
        let unit = 0;
        while (value >= 1024 && unit + 1 < units.length) {
            value /= 1024;
            unit += 1;
        }
        return `${decimals(value, unit === 0 ? 0 : value < 10 ? 2 : 1)} ${units[unit]}`;
    }

    const FORMATS = {
        number: plain,
        integer: (value) => decimals(value, 0),
        percent: (value) => `${decimals(100 * value, 1)} %`,
        signed: (value) => (value > 0 ? "+" : "") + plain(value),
        scientific: exponential,
        duration,
        bytes,
        time: (value) => new Date(1000 * value).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" }),
    };

    /** A number as text. */
    function format(value, name) {
        if (value == null) return DASH;
        const text = FORMATS[name](value).replace(/^-/, MINUS).replace("e-", `e${MINUS}`);
        // A number and its unit stay on one line.
        return name === "time" ? text : text.replaceAll(" ", "\u00a0");
    }

    /** A number on an axis, where neighbours have the same number of digits. */
    function tick(value, name, step) {
        if (name === "percent") return `${decimals(100 * value, step >= 0.01 ? 0 : 1)} %`;
        if (name === "integer" || name === "scientific" || name === "duration" || name === "bytes") {
            return format(value, name);
        }
        const digits = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
        const sign = name === "signed" && value > 0 ? "+" : "";
        return digits > 4 ? format(value, name) : (sign + decimals(value, digits)).replace(/^-/, MINUS);
    }

    /** The value of a style variable as of now. */
    const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

    const PALETTE = 12;
    const color = (index) => style(`--color-${index % PALETTE}`);

    /** Draws into a node with `redrawAll` once it is in the page, and anew when its width or the colours change. */
    function drawn(node, draw) {
        let width = 0;
        const redraw = () => {
            width = node.clientWidth;
            if (width > 0) node.replaceChildren(...[draw(width, node)].flat().filter(Boolean));
        };
        redraws.push(redraw);
        // In the next frame: drawing changes sizes, of which an observer must not hear while it is called.
        new ResizeObserver(() => requestAnimationFrame(() => node.clientWidth !== width && redraw())).observe(node);
        return node;
    }

    function redrawAll() {
        redraws.forEach((redraw) => redraw());
    }

    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
    // Paper is light.
    addEventListener("beforeprint", () => {
        document.documentElement.classList.add("paper");
        document.querySelectorAll("details").forEach((details) => {
            details.dataset.wasOpen = details.open;
            details.open = true;
        });
        redrawAll();
    });
    addEventListener("afterprint", () => {
        document.documentElement.classList.remove("paper");
        document.querySelectorAll("details").forEach((details) => {
            details.open = details.dataset.wasOpen === "true";
        });
        redrawAll();
    });

    /** A block with its heading. */
    function card(block, ...content) {
        return element(
            "figure",
            { class: block.wide ? "card wide" : "card" },
            block.title && element("figcaption", {}, block.title),
            block.note && element("p", { class: "note" }, block.note),
            ...content,
        );
    }

    /** Names of series with their colours. */
    function legend(series) {
        const entry = ({ name, color, hollow }) =>
            element("li", { class: hollow ? `key hollow key-${color % PALETTE}` : `key key-${color % PALETTE}` }, name);
        return element("ul", { class: "legend" }, ...series.map(entry));
    }

    /** Round numbers that cover a range in about so many steps. */
    function ticks(low, high, count) {
        const raw = (high - low || 1) / count;
        const power = 10 ** Math.floor(Math.log10(raw));
        const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= raw * 0.999);
        const found = [];
        for (let index = Math.ceil(low / step - 1e-9); index * step <= high + 1e-9 * step; index += 1) {
            found.push(index * step);
        }
        return { step, values: found };
    }

    return { element, shape, format, tick, style, color, drawn, redrawAll, card, legend, ticks, blocks: {} };
})();
