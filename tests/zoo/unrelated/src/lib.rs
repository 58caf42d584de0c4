//! A library that has nothing to do with sppo. Opening it leaves a file, which must never appear.

#[used]
#[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
#[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
static CONSTRUCTOR: extern "C" fn() = leave_a_trace;

extern "C" fn leave_a_trace() {
    if let Some(file) = std::env::var_os("SPPO_ZOO_TRACE") {
        let _ = std::fs::write(file, "opened");
    }
}

/// Something to export.
#[unsafe(no_mangle)]
pub extern "C" fn sppo_zoo_unrelated_answer() -> u32 {
    42
}
