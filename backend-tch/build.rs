//! Says what to do where libtorch is missing, and lets programs find the one they were built with.

use std::path::Path;

const VERSION: &str = "2.11.0";
const COMMAND: &str = "run cargo with LIBTORCH=$(backend-tch/fetch-libtorch), which provides it, or \
                       `backend-tch/install`";

fn main() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    if std::env::var_os("CARGO_FEATURE_LIBTORCH").is_none() {
        return;
    }
    let Ok(libtorch) = std::env::var("LIBTORCH") else {
        fail(&format!("the backend tch needs libtorch {VERSION}; {COMMAND}"));
    };
    let found = std::fs::read_to_string(Path::new(&libtorch).join("build-version"));
    match found.as_deref().map(|version| version.split('+').next().unwrap_or_default().trim()) {
        Ok(VERSION) => {}
        Ok(other) => {
            fail(&format!("LIBTORCH={libtorch} is version {other}, not {VERSION}; {COMMAND}"));
        }
        Err(_) => fail(&format!("LIBTORCH={libtorch} holds no libtorch {VERSION}; {COMMAND}")),
    }
    println!("cargo::rustc-env=SPPO_LIBTORCH_VERSION={VERSION}");
    compile_calls(Path::new(&libtorch));
    // Beside the plugin first, so that it can be shipped with its libtorch.
    let beside = ["$ORIGIN/libtorch/lib", "$ORIGIN/../libtorch/lib"].map(String::from);
    let at_build = [format!("{libtorch}/lib")];
    for place in beside.into_iter().chain(python_environments()).chain(at_build) {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{place}");
    }
}

/// The libraries of the Python package torch, as seen from `lib/sppo` of the same environment.
fn python_environments() -> impl Iterator<Item = String> {
    const VERSIONS: std::ops::RangeInclusive<u32> = 10..=14;
    VERSIONS.map(|minor| format!("$ORIGIN/../python3.{minor}/site-packages/torch/lib"))
}

/// Compiles the calls that the crate tch lacks. The feature brings the crate that calls the compiler.
#[cfg(feature = "libtorch")]
fn compile_calls(libtorch: &Path) {
    const GLOO_DECLARATIONS: &str = "src/process_group/gloo_declarations";
    compile(libtorch, "src/attention/varlen.cpp", "sppo_varlen_attention", |_| {});
    println!("cargo::rerun-if-changed={GLOO_DECLARATIONS}");
    compile(libtorch, "src/process_group/process_group.cpp", "sppo_process_group", |build| {
        build.define("USE_C10D_GLOO", None).include(GLOO_DECLARATIONS);
    });
}

#[cfg(feature = "libtorch")]
fn compile(libtorch: &Path, source: &str, library: &str, set: impl FnOnce(&mut cc::Build)) {
    println!("cargo::rerun-if-changed={source}");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .includes([libtorch.join("include"), libtorch.join("include/torch/csrc/api/include")])
        // libtorch's headers are not ours to mend.
        .warnings(false)
        .file(source);
    set(&mut build);
    build.compile(library);
}

#[cfg(not(feature = "libtorch"))]
fn compile_calls(_libtorch: &Path) {}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    std::process::exit(1);
}
