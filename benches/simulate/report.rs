//! Numbers, tables, a CSV file and a picture.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use super::stats::Stats;
use super::world::Policy;

/// Every policy's runs, one a seed, at one load.
pub(super) struct Cell {
    pub(super) family: &'static str,
    pub(super) load: f64,
    pub(super) runs: Vec<[Stats; Policy::ALL.len()]>,
    /// [`super::stats::ideal`] of each run, on one device.
    pub(super) ideals: Vec<[f64; 3]>,
    pub(super) seconds: f64,
}

pub(super) const HEADER: &str = "| load | policy | jobs/s | mean s | p95 s | p99 s | longest s | rows | unfairness |\n\
                                 | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |";

impl Cell {
    fn of(&self, policy: usize) -> impl Iterator<Item = &Stats> {
        self.runs.iter().map(move |run| &run[policy])
    }

    fn average(&self, policy: usize, number: impl Fn(&Stats) -> f64) -> f64 {
        self.of(policy).map(number).sum::<f64>() / self.runs.len() as f64
    }

    /// Averages over the seeds, and the ratios of `continuous` to the others.
    pub(super) fn rows(&self) -> String {
        let mut text = String::new();
        let load = 100.0 * self.load;
        for (index, policy) in Policy::ALL.iter().enumerate() {
            let name = policy.name();
            let throughput = self.average(index, |stats| stats.throughput);
            let rows = self.average(index, |stats| stats.rows);
            if self.of(index).any(|stats| stats.overloaded) {
                let _ = writeln!(text, "| {load:.0} % | {name} | {throughput:.2} | overloaded | | | | {rows:.2} | |");
                continue;
            }
            let [mean, p95, p99] = [0, 1, 2].map(|time| self.average(index, |stats| stats.times()[time]));
            let longest = self.of(index).map(|stats| stats.longest).fold(0.0, f64::max);
            let unfairness = self.average(index, |stats| stats.unfairness);
            let _ = writeln!(
                text,
                "| {load:.0} % | {name} | {throughput:.2} | {mean:.3} | {p95:.3} | {p99:.3} | {longest:.1} | {rows:.2} \
                 | {unfairness:.2} |"
            );
        }
        if !self.ideals.is_empty() {
            let [mean, p95, p99] =
                [0, 1, 2].map(|time| self.ideals.iter().map(|one| one[time]).sum::<f64>() / self.ideals.len() as f64);
            let _ = writeln!(text, "| {load:.0} % | *ideal, in order* | | {mean:.3} | {p95:.3} | {p99:.3} | | | |");
        }
        for (index, policy) in Policy::ALL.iter().enumerate().skip(1) {
            if self.of(index).all(|stats| !stats.overloaded) {
                let ratios = [0, 1, 2].map(|time| self.ratio(index, time).to_string());
                let _ = writeln!(
                    text,
                    "| {load:.0} % | *to {}* | | {} | {} | {} | | | |",
                    policy.name(),
                    ratios[0],
                    ratios[1],
                    ratios[2]
                );
            }
        }
        let _ = write!(text, "<!-- {:.1} s -->", self.seconds);
        text
    }

    /// Of `continuous` to another policy, trace by trace.
    fn ratio(&self, policy: usize, time: usize) -> Ratio {
        Ratio::of(&self.runs.iter().map(|run| run[0].times()[time] / run[policy].times()[time]).collect::<Vec<_>>())
    }
}

/// An average with its 95 % confidence interval, by Student's distribution.
struct Ratio {
    average: f64,
    half_width: f64,
}

/// 97.5th percentiles of Student's distribution of 1, 2, ... degrees of freedom.
const STUDENT: [f64; 19] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093,
];

impl Ratio {
    fn of(ratios: &[f64]) -> Self {
        let count = ratios.len() as f64;
        let average = ratios.iter().sum::<f64>() / count;
        let squares = ratios.iter().map(|ratio| (ratio - average).powi(2)).sum::<f64>();
        let freedom = ratios.len().saturating_sub(1);
        let student = freedom.checked_sub(1).map_or(f64::INFINITY, |at| STUDENT.get(at).copied().unwrap_or(2.0));
        let half_width = if freedom == 0 { 0.0 } else { student * (squares / freedom as f64 / count).sqrt() };
        Self { average, half_width }
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3} ± {:.3}", self.average, self.half_width)
    }
}

/// `simulation.csv` and `simulation.svg`.
pub(super) fn write(folder: &Path, cells: &[Cell]) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut csv =
        "family,load,seed,policy,jobs_per_second,mean_s,p95_s,p99_s,longest_s,rows,unfairness,overloaded\n".to_owned();
    for Cell { family, load, runs, .. } in cells {
        for (seed, run) in (1..).zip(runs) {
            for (policy, stats) in Policy::ALL.iter().zip(run) {
                let Stats { throughput, mean, p95, p99, longest, rows, unfairness, overloaded } = stats;
                let _ = writeln!(
                    csv,
                    "\"{family}\",{load},{seed},\"{}\",{throughput},{mean},{p95},{p99},{longest},{rows},{unfairness},\
                     {overloaded}",
                    policy.name()
                );
            }
        }
    }
    std::fs::write(folder.join("simulation.csv"), csv)?;
    std::fs::write(folder.join("simulation.svg"), svg(cells))
}

const COLOURS: [&str; Policy::ALL.len()] = ["#0b6e4f", "#c8553d", "#588b8b", "#8d99ae"];
const PANEL: (f64, f64) = (380.0, 220.0);
const COLUMNS: usize = 2;
/// Beyond it a queue grows without end.
const LONGEST: f64 = 1000.0;

/// A panel a family: the mean time (line) and the 99th percentile (dashes) over load, on a logarithmic scale.
fn svg(cells: &[Cell]) -> String {
    let mut families: Vec<&str> = cells.iter().map(|cell| cell.family).collect();
    families.dedup();
    let height = PANEL.1 * families.len().div_ceil(COLUMNS) as f64 + 40.0;
    let width = PANEL.0 * COLUMNS as f64;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"10\"><rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"20\" y=\"30\" fill=\"#555\">seconds from a job's coming to its end, over load: mean (line), 99th \
         percentile (dashes)</text>\n"
    );
    for (index, policy) in Policy::ALL.iter().enumerate() {
        let (x, colour) = (20.0 + 145.0 * index as f64, COLOURS[index]);
        let name = policy.name();
        let _ = writeln!(text, "<text x=\"{x}\" y=\"16\" fill=\"{colour}\" font-weight=\"bold\">{name}</text>");
    }
    for (index, family) in families.iter().enumerate() {
        let corner = ((index % COLUMNS) as f64 * PANEL.0, 40.0 + (index / COLUMNS) as f64 * PANEL.1);
        let of_family: Vec<&Cell> = cells.iter().filter(|cell| cell.family == *family).collect();
        panel(&mut text, family, corner, &of_family);
    }
    text.push_str("</svg>\n");
    text
}

fn panel(text: &mut String, family: &str, (left, top): (f64, f64), cells: &[&Cell]) {
    let policies = || 0..Policy::ALL.len();
    let time = |cell: &Cell, policy, which: usize| cell.average(policy, |stats| stats.times()[which]);
    let shown =
        || cells.iter().flat_map(|cell| policies().flat_map(move |policy| [0, 2].map(|t| time(cell, policy, t))));
    let (least, most) = (shown().fold(f64::MAX, f64::min), shown().fold(0.0, f64::max).min(LONGEST));
    let (low, high) = (least.log10().floor(), most.log10().ceil().max(least.log10().floor() + 1.0));
    let (inner, tall) = (PANEL.0 - 70.0, PANEL.1 - 60.0);
    let x = |load: f64| left + 45.0 + inner * load;
    let y = |seconds: f64| top + 25.0 + tall * (1.0 - (seconds.min(LONGEST).log10() - low) / (high - low));
    let _ = writeln!(text, "<text x=\"{}\" y=\"{}\" font-weight=\"bold\">{family}</text>", left + 45.0, top + 15.0);
    for power in low as i32..=high as i32 {
        let seconds = 10f64.powi(power);
        let (at, from, to) = (y(seconds), x(0.0), x(1.0));
        let _ = writeln!(text, "<line x1=\"{from}\" y1=\"{at}\" x2=\"{to}\" y2=\"{at}\" stroke=\"#ddd\"/>");
        let _ = writeln!(text, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{seconds} s</text>", from - 4.0, at + 3.0);
    }
    for load in cells.iter().map(|cell| cell.load) {
        let (at, percent, under) = (x(load), 100.0 * load, top + tall + 38.0);
        let _ = writeln!(text, "<text x=\"{at}\" y=\"{under}\" text-anchor=\"middle\">{percent:.0}%</text>");
    }
    for policy in policies() {
        for (which, dashes) in [(0, "none"), (2, "4 3")] {
            let points = cells.iter().map(|cell| format!("{:.1},{:.1}", x(cell.load), y(time(cell, policy, which))));
            let (points, colour) = (points.collect::<Vec<_>>().join(" "), COLOURS[policy]);
            let _ = writeln!(
                text,
                "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" \
                 stroke-dasharray=\"{dashes}\"/>"
            );
        }
    }
}
