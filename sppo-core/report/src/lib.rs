//! Reports to look at: one HTML file each, without a network, in any browser, on paper too.
//!
//! A page is data. A command describes it with the blocks of [`page`] (tables, lines over time, intervals,
//! bars, heatmaps, answers side by side), and [`Page::to_html`] puts them, as JSON, into one file with the style
//! and the scripts that draw them. Text never becomes HTML on its way: scripts insert it as text.
//!
//! [`RunReport`] gathers the numbers of a run from its directory, and [`run_page`] lays out one run or several
//! side by side; [`comparison_page`] shows a comparison of runs, and [`game_page`] a game. [`win_rate_picture`] is an
//! image of a run's win rates, for model cards.
//!
//! ```
//! use sppo_report::page::{Block, Column, Format, Page, Section, Table};
//!
//! let mut table = Table::new([Column::text("model"), Column::number("win rate", Format::Percent)]);
//! table.row(["small".into(), 0.625.into()]);
//! let page = Page::new("A comparison", "small wins 62.5 % of the prompts")
//!     .section(Section::new("results", "Results").block(Block::Table(table)));
//! let html: String = page.to_html();
//! # assert!(html.contains("62.5 %"));
//! ```

mod comparison;
mod game;
mod html;
pub mod page;
mod picture;
mod run;
mod view;

pub use comparison::comparison_page;
pub use game::{drawn_rounds, game_page, is_told};
pub use page::Page;
pub use picture::win_rate_picture;
pub use run::{RunReader, RunReport, shell_quoted};
pub use view::run_page;
