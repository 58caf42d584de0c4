// The words in which two texts differ.
sppo.differences = (() => {
    "use strict";

    const WORDS = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]|\s+|[\p{L}\p{M}\p{N}_'’-]+|./gsu;
    /** The most pairs of words that are compared; more would take too long for a page. */
    const MOST_PAIRS = 3e6;

    const words = (text) => text.match(WORDS) ?? [];

    /** Lengths of the longest common subsequences of all ends of two lists, row by row. */
    function lengths(before, after) {
        const width = after.length + 1;
        const table = new Uint16Array((before.length + 1) * width);
        for (let i = before.length - 1; i >= 0; i -= 1) {
            for (let j = after.length - 1; j >= 0; j -= 1) {
                const at = i * width + j;
                table[at] =
                    before[i] === after[j] ? table[at + width + 1] + 1 : Math.max(table[at + width], table[at + 1]);
            }
        }
        return table;
    }

    /** Adds a word to the last part if that is of the same kind. */
    function add(parts, isChanged, word) {
        const last = parts.at(-1);
        if (last && last.isChanged === isChanged) last.text += word;
        else parts.push({ isChanged, text: word });
    }

    /** Both texts in parts that are changed or not; `null` where they are too long to compare. */
    return (beforeText, afterText) => {
        const [before, after] = [words(beforeText), words(afterText)];
        let start = 0;
        while (start < before.length && start < after.length && before[start] === after[start]) start += 1;
        let end = 0;
        while (end < Math.min(before.length, after.length) - start && before.at(-1 - end) === after.at(-1 - end)) end += 1;
        const [left, right] = [before.slice(start, before.length - end), after.slice(start, after.length - end)];
        if (left.length * right.length > MOST_PAIRS || Math.min(left.length, right.length) > 65000) return null;
        const table = lengths(left, right);
        const width = right.length + 1;
        const parts = [[], []];
        const addSame = (list) => list.forEach((word) => parts.forEach((side) => add(side, false, word)));
        addSame(before.slice(0, start));
        let [i, j] = [0, 0];
        while (i < left.length || j < right.length) {
            if (i < left.length && j < right.length && left[i] === right[j]) {
                addSame([left[i]]);
                i += 1;
                j += 1;
            } else if (j >= right.length || (i < left.length && table[(i + 1) * width + j] >= table[i * width + j + 1])) {
                add(parts[0], true, left[i]);
                i += 1;
            } else {
                add(parts[1], true, right[j]);
                j += 1;
            }
        }
        addSame(before.slice(before.length - end));
        return parts;
    };
})();
