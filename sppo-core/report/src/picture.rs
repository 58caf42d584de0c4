//! A picture of win rates that needs no browser to draw it: an SVG file, for places that show images and no scripts.

use std::fmt::Write as _;

use sppo_core::observer::IterationReport;
use sppo_core::statistics::Interval;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
/// Space around the points: for the numbers of the axis, and for the names of iterations.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 52.0;

/// The light colours of a page, on a ground of their own: where the image is shown may be dark.
const STYLE: &str = "text{font:13px sans-serif;fill:#5d6670}.value{font-weight:600;fill:#1f6fb4}\
                     .grid{stroke:#dfe1e0}.even{stroke:#5d6670;stroke-dasharray:4 4}\
                     .rate{stroke:#1f6fb4;stroke-width:2;fill:none}circle{fill:#1f6fb4}";

/// Win rates against the starting model with their intervals, iteration by iteration, as an SVG image; `None`
/// where none was measured.
#[must_use]
pub fn win_rate_picture(reports: &[IterationReport]) -> Option<String> {
    let rate = |report: &IterationReport| Some((report.iteration, report.win_rate?));
    let rates: Vec<(u32, Interval)> = reports.iter().filter_map(rate).collect();
    let frame = Frame::around(&rates)?;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} \
         {HEIGHT}\" role=\"img\" aria-label=\"Win rate against the starting model by iteration\">\n\
         <style>{STYLE}</style>\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"6\" fill=\"#fff\"/>\n"
    );
    frame.draw_axes(&mut svg);
    let line: Vec<String> = (0..rates.len())
        .map(|index| format!("{:.1},{:.1}", frame.x(index), frame.y(rates[index].1.mean)))
        .collect();
    let _ =
        writeln!(svg, "<polyline class=\"rate\" opacity=\"0.35\" points=\"{}\"/>", line.join(" "));
    for (index, (iteration, rate)) in rates.iter().enumerate() {
        frame.draw_rate(&mut svg, index, *iteration, *rate);
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

/// The place of numbers in the picture.
struct Frame {
    low: f64,
    high: f64,
    iterations: usize,
}

impl Frame {
    /// Room for all intervals and for one half, which is that of the starting model; `None` where there are none.
    fn around(rates: &[(u32, Interval)]) -> Option<Self> {
        let low = rates.iter().map(|(_, rate)| rate.low).reduce(f64::min)?.min(0.5);
        let high = rates.iter().map(|(_, rate)| rate.high).fold(0.5, f64::max);
        let margin = (0.1 * (high - low)).max(0.02);
        let (low, high) = ((low - margin).max(0.0), (high + 2.0 * margin).min(1.0));
        Some(Self { low, high, iterations: rates.len() })
    }

    fn x(&self, index: usize) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * (index as f64 + 0.5) / self.iterations as f64
    }

    fn y(&self, rate: f64) -> f64 {
        TOP + (HEIGHT - TOP - BOTTOM) * (self.high - rate) / (self.high - self.low)
    }

    fn draw_axes(&self, svg: &mut String) {
        // Percent points between two lines: about five lines.
        let spread = 100.0 * (self.high - self.low);
        let step = [1, 2, 5, 10, 20].into_iter().find(|step| spread / f64::from(*step) <= 6.0);
        for percent in (0..=100).step_by(step.unwrap_or(25) as usize) {
            let rate = f64::from(percent) / 100.0;
            if (self.low..=self.high).contains(&rate) {
                self.draw_line(svg, "grid", rate);
                let (x, y) = (LEFT - 8.0, self.y(rate) + 4.5);
                let _ = writeln!(
                    svg,
                    "<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{percent} %</text>"
                );
            }
        }
        self.draw_line(svg, "even", 0.5);
        let (x, y) = (f64::midpoint(LEFT, WIDTH - RIGHT), HEIGHT - 10.0);
        let _ = writeln!(svg, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">iteration</text>");
    }

    fn draw_line(&self, svg: &mut String, class: &str, rate: f64) {
        let (right, y) = (WIDTH - RIGHT, self.y(rate));
        let _ = writeln!(
            svg,
            "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"
        );
    }

    fn draw_rate(&self, svg: &mut String, index: usize, iteration: u32, rate: Interval) {
        let [x, mean, low, high] =
            [self.x(index), self.y(rate.mean), self.y(rate.low), self.y(rate.high)];
        let _ = writeln!(
            svg,
            "<path class=\"rate\" d=\"M{:.1} {low:.1}h10m-5 0V{high:.1}m-5 0h10\"/><circle cx=\"{x:.1}\" \
             cy=\"{mean:.1}\" r=\"5\"/>",
            x - 5.0
        );
        let _ = writeln!(
            svg,
            "<text class=\"value\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.1} %</text>",
            high - 7.0,
            100.0 * rate.mean
        );
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{iteration}</text>",
            HEIGHT - BOTTOM + 20.0
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(iteration: u32, win_rate: Option<Interval>) -> IterationReport {
        let report = serde_json::json!({
            "iteration": iteration, "checkpoint": "checkpoint", "win_rate": win_rate, "examples": 0,
            "skipped_identical": 0, "skipped_equal": 0, "seconds": 0.0,
        });
        serde_json::from_value(report).unwrap()
    }

    #[test]
    fn every_measured_iteration_has_its_point_and_interval() {
        let interval = |mean| Some(Interval { mean, low: mean - 0.04, high: mean + 0.04 });
        let reports = [report(0, None), report(1, interval(0.607)), report(2, interval(0.71))];
        let svg = win_rate_picture(&reports).unwrap();
        assert_eq!(svg.matches("<circle").count(), 2);
        assert_eq!(svg.matches("<path").count(), 2);
        for part in [">60.7 %<", ">71.0 %<", ">1<", ">2<", ">50 %<", "class=\"even\""] {
            assert!(svg.contains(part), "no {part} in\n{svg}");
        }
        // 75 %, the top of the second interval, lies above 67 %, that of the first.
        let frame = Frame::around(&[(1, interval(0.607).unwrap()), (2, interval(0.71).unwrap())]);
        let frame = frame.unwrap();
        assert!(
            TOP < frame.y(0.75) && frame.y(0.75) < frame.y(0.647) && frame.y(0.647) < frame.y(0.5)
        );
        assert!(frame.y(0.5) < HEIGHT - BOTTOM);
        assert_eq!(win_rate_picture(&reports[..1]), None);
    }
}
