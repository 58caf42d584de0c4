//! Forms in which data crosses. Flat data crosses as it is; texts, lists and options as those of
//! abi_stable; structs that hold them as mirrors, whose fields are named once.

use std::path::{Path, PathBuf};

use abi_stable::StableAbi;
use abi_stable::std_types::{ROption, RResult, RSlice, RString, RVec};

use crate::{
    DeviceMemory, FinishReason, FrozenWeights, GradientDtype, MemoryEstimate, Optimizer,
    PlannedSampling, PlannedTraining, PluginError, PluginErrorKind, SamplingParameters, Sharding,
    StepReport, TeamPlace,
};

/// A value that crosses the boundary.
pub trait Crosses: Sized {
    /// Its form on the way, of a stable layout.
    type Abi;

    /// Leaves this side.
    fn cross(self) -> Self::Abi;

    /// Arrives on this side.
    fn receive(abi: Self::Abi) -> Self;
}

/// Types of a stable layout.
macro_rules! cross_as_they_are {
    ($($type:ty),* $(,)?) => {
        $(impl Crosses for $type {
            type Abi = Self;

            fn cross(self) -> Self {
                self
            }

            fn receive(abi: Self) -> Self {
                abi
            }
        })*

        /// Layouts of these types, for the record of the interface.
        #[cfg(test)]
        pub(super) fn flat_layouts() -> Vec<&'static abi_stable::type_layout::TypeLayout> {
            vec![$(<$type as StableAbi>::LAYOUT),*]
        }
    };
}

cross_as_they_are!(
    (),
    bool,
    u32,
    u64,
    usize,
    f32,
    f64,
    DeviceMemory,
    FinishReason,
    FrozenWeights,
    GradientDtype,
    MemoryEstimate,
    Optimizer,
    PlannedSampling,
    PlannedTraining,
    PluginErrorKind,
    SamplingParameters,
    Sharding,
    StepReport,
    TeamPlace,
);

impl Crosses for String {
    type Abi = RString;

    fn cross(self) -> RString {
        self.into()
    }

    fn receive(abi: RString) -> Self {
        abi.into()
    }
}

impl<T: Crosses> Crosses for Vec<T> {
    type Abi = RVec<T::Abi>;

    fn cross(self) -> RVec<T::Abi> {
        self.into_iter().map(T::cross).collect()
    }

    fn receive(abi: RVec<T::Abi>) -> Self {
        abi.into_iter().map(T::receive).collect()
    }
}

impl<T: Crosses> Crosses for Option<T> {
    type Abi = ROption<T::Abi>;

    fn cross(self) -> ROption<T::Abi> {
        self.map(T::cross).into()
    }

    fn receive(abi: ROption<T::Abi>) -> Self {
        abi.into_option().map(T::receive)
    }
}

/// Sequences of tokens on their way, lent.
pub(super) fn lent_sequences(sequences: &[Vec<u32>]) -> RVec<RSlice<'_, u32>> {
    sequences.iter().map(|tokens| RSlice::from(tokens.as_slice())).collect()
}

/// Batches of sequences that arrived.
pub(super) fn owned_sequences(batches: &[RVec<RSlice<'_, u32>>]) -> Vec<Vec<Vec<u32>>> {
    let owned = |sequences: &RVec<RSlice<'_, u32>>| {
        sequences.iter().map(|tokens| tokens.to_vec()).collect()
    };
    batches.iter().map(owned).collect()
}

/// A path as the system has it, which need not be UTF-8.
impl Crosses for PathBuf {
    #[cfg(not(windows))]
    type Abi = RVec<u8>;
    #[cfg(windows)]
    type Abi = RVec<u16>;

    #[cfg(not(windows))]
    fn cross(self) -> Self::Abi {
        use std::os::unix::ffi::OsStringExt;
        self.into_os_string().into_vec().into()
    }

    #[cfg(windows)]
    fn cross(self) -> Self::Abi {
        use std::os::windows::ffi::OsStrExt;
        self.as_os_str().encode_wide().collect()
    }

    #[cfg(not(windows))]
    fn receive(abi: Self::Abi) -> Self {
        use std::os::unix::ffi::OsStringExt;
        std::ffi::OsString::from_vec(abi.into()).into()
    }

    #[cfg(windows)]
    fn receive(abi: Self::Abi) -> Self {
        use std::os::windows::ffi::OsStringExt;
        std::ffi::OsString::from_wide(&abi).into()
    }
}

/// A path on its way.
pub type AbiPath = <PathBuf as Crosses>::Abi;

pub(super) fn path(path: &Path) -> AbiPath {
    path.to_owned().cross()
}

/// Mirrors a struct field by field. The fields are named with the types that authors see.
macro_rules! mirror {
    ($mirror:ident of $original:ident { $($field:ident: $type:ty),* $(,)? }) => {
        #[repr(C)]
        #[derive(abi_stable::StableAbi)]
        pub struct $mirror {
            $(pub $field: <$type as $crate::abi::mirror::Crosses>::Abi,)*
        }

        impl $crate::abi::mirror::Crosses for $crate::$original {
            type Abi = $mirror;

            fn cross(self) -> $mirror {
                $mirror { $($field: $crate::abi::mirror::Crosses::cross(self.$field),)* }
            }

            fn receive(abi: $mirror) -> Self {
                Self { $($field: $crate::abi::mirror::Crosses::receive(abi.$field),)* }
            }
        }
    };
}
pub(super) use mirror;

/// Sequences of tokens, lent, in batches.
pub(super) type AbiSequences<'a> = RVec<RVec<RSlice<'a, u32>>>;

/// The result of a call into the other side.
pub type AbiResult<T> = RResult<T, AbiError>;

/// An error on its way. Who raised it is known to the side that called.
#[repr(C)]
#[derive(StableAbi)]
pub struct AbiError {
    pub kind: PluginErrorKind,
    pub message: RString,
    pub hint: ROption<RString>,
}

impl Crosses for PluginError {
    type Abi = AbiError;

    fn cross(self) -> AbiError {
        AbiError { kind: self.kind, message: self.message.cross(), hint: self.hint.cross() }
    }

    fn receive(abi: AbiError) -> Self {
        let mut error = Self::new(abi.kind, abi.message);
        error.hint = Crosses::receive(abi.hint);
        error
    }
}

/// The result of a call, on the side that called the object of `plugin`.
pub(super) fn received<T: Crosses>(
    plugin: &'static str,
    result: AbiResult<T::Abi>,
) -> Result<T, PluginError> {
    received_object(plugin, result).map(T::receive)
}

/// As [`received`], for the results of several batches, one of each.
pub(super) fn received_each<T: Crosses>(
    plugin: &'static str,
    batches: usize,
    results: AbiResult<RVec<T::Abi>>,
) -> Result<Vec<T>, PluginError> {
    let each = received::<Vec<T>>(plugin, results)?;
    if each.len() == batches {
        return Ok(each);
    }
    let message = format!("it returned {} results for {batches} batches", each.len());
    Err(PluginError::failed(message).of_plugin(plugin))
}

/// The result of the one batch that was given.
pub(super) fn only<T>(plugin: &'static str, each: Vec<T>) -> Result<T, PluginError> {
    let nothing = || PluginError::failed("it returned no result").of_plugin(plugin);
    each.into_iter().next().ok_or_else(nothing)
}

/// As [`received`], for an object, which stays in its form.
pub(super) fn received_object<O>(
    plugin: &'static str,
    result: AbiResult<O>,
) -> Result<O, PluginError> {
    result.into_result().map_err(|error| PluginError::receive(error).of_plugin(plugin))
}
