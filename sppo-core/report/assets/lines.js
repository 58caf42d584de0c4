// Lines over a common axis, drawn by uPlot.
(() => {
    "use strict";
    const { element, format, tick, style, color, drawn, card } = sppo;

    const FONT = "12px system-ui, sans-serif";
    const MOST_POINTS = 60;

    /** Draws the marks: a thin line at each place, its name at the top. */
    function drawMarks(plot, marks) {
        const { ctx, bbox } = plot;
        ctx.save();
        ctx.strokeStyle = style("--line");
        ctx.fillStyle = style("--faint");
        ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
        ctx.textAlign = "left";
        ctx.textBaseline = "top";
        let free = -Infinity;
        for (const { x, label } of marks) {
            const at = plot.valToPos(x, "x", true);
            if (at < bbox.left - 1 || at > bbox.left + bbox.width) continue;
            ctx.beginPath();
            ctx.moveTo(at, bbox.top);
            ctx.lineTo(at, bbox.top + bbox.height);
            ctx.stroke();
            const [start, width] = [at + 4 * devicePixelRatio, ctx.measureText(label).width];
            if (start > free && start + width < bbox.left + bbox.width) {
                ctx.fillText(label, start, bbox.top + 3 * devicePixelRatio);
                free = start + width;
            }
        }
        ctx.restore();
    }

    /** Linear axes hold zero, so that a small change looks small. */
    function withZero(low, high) {
        if (low == null) return [0, 1];
        const [bottom, top] = [Math.min(0, low), Math.max(0, high)];
        const margin = 0.12 * (top - bottom || 1);
        return [bottom < 0 ? bottom - margin : 0, top > 0 ? top + margin : bottom < 0 ? 0 : 1];
    }

    /** Whole numbers stand in the middle of their place. */
    const around = (low, high) => (Number.isInteger(low) ? [low - 0.5, Math.floor(high) + 0.5] : [low, high]);

    /** Powers of ten; where these are few, two and five times them as well. */
    function logarithmicTicks(plot, index, low, high) {
        const powers = [];
        for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power += 1) powers.push(10 ** power);
        const factors = powers.length > 3 ? [1] : [1, 2, 5];
        return powers.flatMap((power) => factors.map((factor) => factor * power)).filter((value) => value >= low && value <= high);
    }

    function axis({ label, format: name, logarithmic }, side) {
        const step = (found) => Math.abs(found.length > 1 ? found[1] - found[0] : 1);
        const text = (value, found) => {
            if (value == null) return "";
            return logarithmic ? format(value, name) : tick(value, name, step(found));
        };
        // Room for the longest number of a vertical axis.
        const size = (plot, values) => {
            const longest = Math.max(0, ...(values ?? []).map((value) => String(value ?? "").length));
            return 7.2 * longest + 16;
        };
        return {
            stroke: style("--faint"),
            font: FONT,
            label: label || undefined,
            labelFont: FONT,
            labelSize: side === "x" ? 18 : 20,
            labelGap: side === "x" ? 2 : 0,
            gap: 6,
            size: side === "x" ? 28 : size,
            space: side === "x" ? 44 : 34,
            incrs: name === "integer" ? [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 1e5, 1e6] : undefined,
            splits: logarithmic ? logarithmicTicks : undefined,
            filter: logarithmic ? (plot, found) => found : undefined,
            grid: { stroke: style("--line"), width: 1, show: side === "y" },
            ticks: { stroke: style("--line"), width: 1, size: 4 },
            border: { show: side === "x", stroke: style("--line"), width: 1 },
            values: (plot, found) => found.map((value) => text(value, found)),
        };
    }

    /** Whether a value has no neighbour, so that no line leads to it. */
    const isAlone = (value, index, all) => value != null && all[index - 1] == null && all[index + 1] == null;

    /** Points by themselves are circles; short lines have a dot at each value. */
    function pointsOf(line) {
        const known = line.y.filter((value) => value != null).length;
        if (known > 0 && line.y.filter(isAlone).length === known) {
            return { show: true, size: 9, width: 2, stroke: color(line.color), fill: style("--card") };
        }
        const show = line.y.some(isAlone) || (!line.dashed && line.x.length <= MOST_POINTS);
        return { show, size: 6, fill: color(line.color) };
    }

    function lineOf(line, yFormat) {
        return {
            label: line.name,
            stroke: color(line.color),
            width: line.dashed ? 1.5 : 2,
            dash: line.dashed ? [6, 4] : undefined,
            show: !line.hidden,
            points: pointsOf(line),
            value: (plot, value) => (value == null ? "" : format(value, yFormat)),
        };
    }

    function scale({ logarithmic }, linear) {
        if (logarithmic) return { time: false, distr: 3, log: 10 };
        return { time: false, range: (plot, low, high) => linear(low, high) };
    }

    /** Places of other lines within a gap belong to it: it reaches from the last value to the next. */
    function withWholeGaps(values) {
        for (let start = 0; start < values.length; start += 1) {
            if (values[start] != null) continue;
            let end = start;
            while (end < values.length && values[end] == null) end += 1;
            if (values.slice(start, end).includes(null)) values.fill(null, start, end);
            start = end;
        }
        return values;
    }

    sppo.blocks.lines = (block) => {
        const [places, ...lines] = uPlot.join(block.series.map((line) => [line.x, line.y]));
        const data = [places, ...lines.map(withWholeGaps)];
        let plot = null;
        const draw = (width, host) => {
            // What was hidden or shown by a click stays so.
            const shown = plot?.series.map((line) => line.show);
            plot?.destroy();
            plot = new uPlot(
                {
                    width,
                    height: width < 480 ? 250 : 290,
                    padding: [12, 22, 0, 0],
                    scales: { x: scale(block.x, around), y: scale(block.y, withZero) },
                    axes: [axis(block.x, "x"), axis(block.y, "y")],
                    series: [
                        { label: block.x.label, value: (_, value) => (value == null ? "" : format(value, block.x.format)) },
                        ...block.series.map((line) => lineOf(line, block.y.format)),
                    ],
                    cursor: { drag: { x: true, y: false }, points: { size: 8 } },
                    hooks: { drawAxes: [(drawnPlot) => drawMarks(drawnPlot, block.marks)] },
                },
                data,
            );
            shown?.forEach((show, index) => index > 0 && plot.series[index].show !== show && plot.setSeries(index, { show }));
            return plot.root;
        };
        const name = `${block.title}: ${block.series.map((line) => line.name).join(", ")}`;
        return card(block, drawn(element("div", { class: "plot", role: "img", "aria-label": name }), draw));
    };
})();
