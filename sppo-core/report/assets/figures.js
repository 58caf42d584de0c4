// Numbers in large type, intervals and bars, drawn as SVG.
(() => {
    "use strict";
    const { element, shape, format, tick, color, drawn, card, legend, ticks } = sppo;

    const cellText = (value, name) => (typeof value === "number" ? format(value, name) : value ?? "\u2013");

    sppo.blocks.figures = (block) => {
        const figure = (item) =>
            element(
                "div",
                { class: "figure" },
                element("dt", {}, item.label),
                element("dd", { class: "value" }, cellText(item.value, item.format)),
                item.detail && element("dd", { class: "detail" }, item.detail),
            );
        return element("dl", { class: "figures wide" }, ...block.items.map(figure));
    };

    /** The range of the vertical axis: all intervals and the reference, with some room. */
    function range(block) {
        const points = block.series.flatMap((series) => series.points).filter(Boolean);
        const values = points.flatMap(({ low, high }) => [low, high]);
        if (block.reference != null) values.push(block.reference);
        const [low, high] = [Math.min(...values), Math.max(...values)];
        const margin = Math.max(0.1 * (high - low), 0.02);
        const isShare = block.y.format === "percent";
        return isShare ? [Math.max(0, low - margin), Math.min(1, high + 2 * margin)] : [low - margin, high + margin];
    }

    function intervalsDrawing(block, width) {
        const [height, left, right, top, bottom] = [width < 480 ? 250 : 290, 58, 14, 12, 46];
        const [low, high] = range(block);
        const y = (value) => top + ((high - value) / (high - low)) * (height - top - bottom);
        const slot = (width - left - right) / Math.max(block.labels.length, 1);
        const spread = Math.min(34, (0.7 * slot) / block.series.length);
        const x = (group, series) =>
            left + slot * (group + 0.5) + spread * (series - (block.series.length - 1) / 2);
        const drawing = shape("svg", { class: "drawing", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": block.title });
        const grid = ticks(low, high, 5);
        for (const value of grid.values) {
            drawing.append(
                shape("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
                shape("text", { x: left - 8, y: y(value), dy: "0.35em", "text-anchor": "end" }, tick(value, block.y.format, grid.step)),
            );
        }
        if (block.reference != null) {
            const at = y(block.reference);
            drawing.append(shape("line", { class: "reference", x1: left, x2: width - right, y1: at, y2: at }));
        }
        block.labels.forEach((label, group) => {
            drawing.append(shape("text", { x: left + slot * (group + 0.5), y: height - bottom + 18, "text-anchor": "middle" }, label));
        });
        drawing.append(shape("text", { x: left + (width - left - right) / 2, y: height - 8, "text-anchor": "middle" }, "iteration"));
        block.series.forEach((series, index) => drawing.append(seriesDrawing(block, series, index, x, y, slot)));
        return drawing;
    }

    function seriesDrawing(block, series, index, x, y, slot) {
        const paint = color(series.color);
        const group = shape("g", { stroke: paint, fill: paint, class: series.hollow ? "points hollow" : "points" });
        const known = series.points.map((point, at) => point && [x(at, index), y(point.mean)]).filter(Boolean);
        group.append(shape("polyline", { class: "trend", points: known.map((point) => point.join(",")).join(" ") }));
        series.points.forEach((point, at) => {
            if (!point) return;
            const [px, text] = [x(at, index), format(point.mean, block.y.format)];
            const limits = `${format(point.low, block.y.format)} to ${format(point.high, block.y.format)}`;
            const hasWidth = point.high > point.low;
            group.append(
                shape(
                    "g",
                    {},
                    shape("title", {}, `${series.name}: ${text}${hasWidth ? ` (${limits})` : ""}`),
                    hasWidth && shape("path", { class: "whisker", d: whisker(px, y(point.low), y(point.high)) }),
                    shape("circle", { cx: px, cy: y(point.mean), r: series.hollow ? 4.5 : 5 }),
                ),
            );
            // Room for a number above each point.
            if (index === 0 && slot > 60 && block.series.length <= 3) {
                group.append(shape("text", { class: "value", x: px, y: y(point.high) - 8, "text-anchor": "middle" }, text));
            }
        });
        return group;
    }

    const whisker = (x, low, high) => `M${x - 5} ${low}h10M${x} ${low}V${high}M${x - 5} ${high}h10`;

    sppo.blocks.intervals = (block) => {
        const host = element("div", { class: "plot" });
        return card(block, drawn(host, (width) => intervalsDrawing(block, width)), legend(block.series));
    };

    function barsDrawing(block, width) {
        const longest = Math.max(...block.labels.map((label) => label.length));
        const left = Math.min(12 + 7 * longest, 0.42 * width);
        const [right, height, gap] = [96, 24, 10];
        const totals = block.labels.map((_, row) => block.series.reduce((sum, series) => sum + (series.values[row] ?? 0), 0));
        const scale = (width - left - right) / (Math.max(...totals) || 1);
        const whole = block.labels.length * (height + gap);
        const drawing = shape("svg", { class: "drawing", width, height: whole, viewBox: `0 0 ${width} ${whole}`, role: "img", "aria-label": block.title });
        block.labels.forEach((label, row) => {
            const [top, middle] = [row * (height + gap), row * (height + gap) + height / 2];
            drawing.append(shape("text", { x: left - 10, y: middle, dy: "0.35em", "text-anchor": "end" }, label));
            let x = left;
            for (const series of block.series) {
                const value = series.values[row];
                if (!value) continue;
                const [size, text] = [value * scale, format(value, block.format)];
                drawing.append(
                    shape(
                        "g",
                        {},
                        shape("title", {}, `${series.name}: ${text}`),
                        shape("rect", { x, y: top, width: Math.max(size - 1, 0.5), height, fill: color(series.color) }),
                        size > 7.5 * text.length + 8 &&
                            shape("text", { class: "within", x: x + size / 2, y: middle, dy: "0.35em", "text-anchor": "middle" }, text),
                    ),
                );
                x += size;
            }
            drawing.append(shape("text", { class: "value", x: x + 8, y: middle, dy: "0.35em" }, format(totals[row], block.format)));
        });
        return drawing;
    }

    sppo.blocks.bars = (block) => {
        const host = element("div", { class: "plot" });
        const isStacked = block.series.length > 1;
        return card(block, isStacked && legend(block.series), drawn(host, (width) => barsDrawing(block, width)));
    };
})();
