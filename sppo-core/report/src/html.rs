//! A page as one HTML file.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use sha2::{Digest, Sha256};
use sppo_core::Error;

use crate::page::Page;

/// Everything that the browser needs to draw a page, in the order in which it is read.
const SCRIPTS: [&str; 8] = [
    include_str!("../assets/uplot/uPlot.iife.min.js"),
    include_str!("../assets/base.js"),
    include_str!("../assets/lines.js"),
    include_str!("../assets/figures.js"),
    include_str!("../assets/tables.js"),
    include_str!("../assets/differences.js"),
    include_str!("../assets/samples.js"),
    include_str!("../assets/main.js"),
];
const STYLES: [&str; 2] =
    [include_str!("../assets/uplot/uPlot.min.css"), include_str!("../assets/style.css")];
const UPLOT_LICENSE: &str = include_str!("../assets/uplot/LICENSE");

static SCRIPT: LazyLock<String> = LazyLock::new(|| {
    format!("/*! uPlot 1.6.32\n{}\n*/\n{}", UPLOT_LICENSE.trim(), SCRIPTS.join("\n"))
});

impl Page {
    /// The page as one file that needs no other and sends nothing anywhere.
    #[must_use]
    pub fn to_html(&self) -> String {
        let script = &*SCRIPT;
        let mut html = String::with_capacity(script.len() + (64 << 10));
        html.push_str("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
        let _ = writeln!(
            html,
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src \
             'unsafe-inline'; script-src 'sha256-{}'; img-src data:; base-uri 'none'; form-action 'none'\">",
            base64(&Sha256::digest(script.as_bytes()))
        );
        html.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
        html.push_str("<meta name=\"color-scheme\" content=\"light dark\">\n");
        html.push_str("<link rel=\"icon\" href=\"data:,\">\n");
        let _ = write!(html, "<title>{}</title>\n<style>\n", escaped(&self.title));
        for style in STYLES {
            html.push_str(style);
            html.push('\n');
        }
        html.push_str("</style>\n</head>\n<body>\n<noscript>This page draws its numbers with a script \
                       that it holds itself. Please allow scripts.</noscript>\n<div id=\"page\"></div>\n");
        let _ = writeln!(
            html,
            "<script type=\"application/json\" id=\"data\">{}</script>",
            self.to_json()
        );
        let _ = write!(html, "<script>{script}</script>\n</body>\n</html>\n");
        html
    }

    /// Writes the page so that whoever opens the file meanwhile sees the old page or the new one.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, file: &Path) -> sppo_core::Result<()> {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let partial = file.with_file_name(format!(".partial-{name}"));
        let written = fs::write(&partial, self.to_html()).and_then(|()| fs::rename(&partial, file));
        written.map_err(|error| {
            // The first error is the one to report.
            let _ = fs::remove_file(&partial);
            Error::input(file, format!("cannot write this page: {error}"))
                .with_hint("choose a file that this user may write")
        })
    }

    /// The page as JSON that may stand within HTML: without a `<`, nothing in it ends the element that holds it.
    fn to_json(&self) -> String {
        // A page is made of strings, numbers and lists: no part of it can refuse.
        let json = serde_json::to_string(self).unwrap_or_else(|_| "null".into());
        json.replace('<', "\\u003c")
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::{Block, Section};

    /// RFC 4648, section 10.
    #[test]
    fn base64_is_that_of_the_standard() {
        let encoded =
            ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|text| base64(text.as_bytes()));
        assert_eq!(encoded, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"]);
    }

    #[test]
    fn no_text_leaves_its_place() {
        let evil = "</script><img src=x onerror=alert(1)><!--";
        let page = Page::new(evil, evil)
            .section(Section::new("a", evil).block(Block::Text { text: evil.into() }));
        let html = page.to_html();
        assert!(!html.contains("<img"));
        assert_eq!(html.matches("</script>").count(), 2);
        let data = html.split_once("id=\"data\">").unwrap().1.split_once("</script>").unwrap().0;
        let read: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(read["sections"][0]["blocks"][0]["text"], evil);
    }

    #[test]
    fn a_page_without_samples_is_small() {
        assert!(Page::new("", "").to_html().len() < 150_000);
    }
}
