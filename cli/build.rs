//! With the backend tch linked in, lets the program find its libtorch.

fn main() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    if std::env::var_os("CARGO_FEATURE_TCH").is_some()
        && let Ok(libtorch) = std::env::var("LIBTORCH")
    {
        for place in ["$ORIGIN/libtorch/lib", "$ORIGIN/../libtorch/lib", &format!("{libtorch}/lib")]
        {
            println!("cargo::rustc-link-arg=-Wl,-rpath,{place}");
        }
    }
}
