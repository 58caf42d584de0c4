//! What crosses the boundary stays as it is, or gets another version.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use abi_stable::StableAbi;
use abi_stable::type_layout::TypeLayout;

use super::*;

/// The interface as it is recorded for its version, type by type.
const RECORDED: &str = include_str!("interface-6.txt");

#[test]
fn a_changed_layout_comes_with_another_interface_version() {
    let layout = interface();
    if let Some(file) = std::env::var_os("SPPO_RECORD_INTERFACE") {
        std::fs::write(file, &layout).unwrap();
        return;
    }
    assert!(
        layout == RECORDED,
        "what crosses the plugin boundary has changed. Raise INTERFACE_VERSION, and record the layout \
         under its number with SPPO_RECORD_INTERFACE=FILE:\n{layout}"
    );
}

#[test]
fn the_version_is_the_same_in_the_manifest_and_in_the_record_s_name() {
    assert_eq!(INTERFACE_VERSION_TEXT, INTERFACE_VERSION.to_string());
    let record = format!("src/abi/interface-{INTERFACE_VERSION}.txt");
    assert!(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(record).is_file());
}

#[test]
fn manifests_are_read_as_written() {
    const PAIRS: &[(&str, &str)] = &[
        ("interface", "7"),
        ("core", "1.2.3"),
        ("kind", "oracle"),
        ("name", "x"),
        ("version", "0.1.0"),
        ("a key of the future", "=1"),
        ("summary", "a = b"),
        ("missing_library_hint", "build it"),
    ];
    const BYTES: [u8; manifest_length(PAIRS)] = manifest_bytes(PAIRS);
    let text = ManifestText::parse(&BYTES).unwrap();
    assert_eq!((text.interface_version, text.core_version), (7, "1.2.3"));
    assert_eq!((text.kind, text.name, text.version), ("oracle", "x", "0.1.0"));
    assert_eq!((text.summary, text.missing_library_hint), ("a = b", "build it"));
    for end in 0..BYTES.len() {
        assert!(ManifestText::parse(&BYTES[..end]).is_none(), "cut at {end}");
    }
}

/// The layouts that the modules of all kinds lead to, and the declarations of the traits and of the data, which
/// no layout shows: objects hide their methods, and lists what they hold.
fn interface() -> String {
    let mut seen = BTreeSet::new();
    let mut described = BTreeMap::new();
    visit(<PluginModuleRef<OracleBox> as StableAbi>::LAYOUT, &mut seen, &mut described);
    visit(<PluginModuleRef<BackendBox> as StableAbi>::LAYOUT, &mut seen, &mut described);
    visit(<PluginModuleRef<SamplerBox> as StableAbi>::LAYOUT, &mut seen, &mut described);
    for layout in mirror::flat_layouts() {
        visit(layout, &mut seen, &mut described);
    }
    let layouts: String = described.into_values().collect();
    let kinds = ["pub trait", "pub type", "pub struct Abi", "pub enum Abi", "mirror!("];
    let sources = [
        include_str!("backend.rs"),
        include_str!("mirror.rs"),
        include_str!("oracle.rs"),
        include_str!("policy.rs"),
        include_str!("progress.rs"),
        include_str!("sampler.rs"),
        include_str!("texts.rs"),
    ];
    layouts + &sources.map(|source| declarations(source, &kinds)).concat()
}

/// The items of a source file that begin in one of these ways, without comments.
fn declarations(source: &str, beginnings: &[&str]) -> String {
    let mut declarations = String::new();
    let mut is_inside = false;
    for line in source.lines().filter(|line| !line.trim_start().starts_with("//")) {
        let begins = beginnings.iter().any(|beginning| line.starts_with(beginning));
        if begins || is_inside {
            declarations += line;
            declarations.push('\n');
        }
        let ends = if begins { line.ends_with([';', '}']) } else { line.starts_with(['}', ')']) };
        is_inside = (begins || is_inside) && !ends;
    }
    declarations
}

fn visit(
    layout: &'static TypeLayout,
    seen: &mut BTreeSet<String>,
    described: &mut BTreeMap<String, String>,
) {
    let name = layout.full_type().to_string();
    if !seen.insert(format!("{name} {}", layout.mod_path())) {
        return;
    }
    let mut text = format!("{name}: {} bytes, aligned to {}\n", layout.size(), layout.alignment());
    let fields = layout.get_fields().map(|fields| fields.to_vec()).unwrap_or_default();
    for field in &fields {
        let functions = field.function_range();
        if functions.is_empty() {
            let _ = writeln!(text, "    {}: {}", field.name(), field.full_type());
        }
        for function in functions.iter() {
            let signature = function.to_string();
            let _ = writeln!(text, "    {}: {}", field.name(), signature.replace('\n', " "));
        }
    }
    if layout.package().as_str() == env!("CARGO_PKG_NAME") {
        described.insert(name, text);
    }
    for field in fields.into_iter().chain(layout.phantom_fields().to_vec()) {
        visit(field.layout(), seen, described);
        for function in field.function_range().iter() {
            for parameter in function.param_type_layouts.iter() {
                visit(parameter(), seen, described);
            }
            if let Some(returned) = function.return_type_layout() {
                visit(returned(), seen, described);
            }
        }
    }
}
