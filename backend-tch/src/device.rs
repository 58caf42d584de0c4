//! Choice of the device, and the dtypes that it computes in.

use std::path::Path;

use sppo_model::ops::AttentionShape;
use sppo_plugin::PluginError;
use tch::{Cuda, Device, Kind, Tensor};

use crate::kernels::Kernels;
use crate::libraries;
use crate::tensors::TorchResult;

/// The device of a setting: `auto`, `cpu`, `cuda` or `cuda:N`. CUDA's library is looked for in `libtorch`
/// first. The first call in a process decides whether CUDA can be used in it.
///
/// # Errors
/// When there is no such device; the message says why.
pub fn choose_device(setting: &str, libtorch: Option<&Path>) -> Result<Device, PluginError> {
    match setting.split_once(':').unwrap_or((setting, "0")) {
        ("cpu", _) if setting == "cpu" => {
            libraries::settle_for_cpu();
            Ok(Device::Cpu)
        }
        ("auto", _) if setting == "auto" => Ok(automatic(libtorch)),
        ("cuda", number) => match number.parse() {
            Ok(number) => cuda(setting, number, libtorch),
            Err(_) => Err(unknown(setting)),
        },
        _ => Err(unknown(setting)),
    }
}

fn automatic(libtorch: Option<&Path>) -> Device {
    match cuda("auto", 0, libtorch) {
        Ok(device) => device,
        Err(reason) => {
            tracing::debug!(%reason, "computing on the CPU");
            Device::Cpu
        }
    }
}

fn cuda(setting: &str, number: usize, libtorch: Option<&Path>) -> Result<Device, PluginError> {
    let absent = |reason: String| {
        PluginError::unsupported(format!("device: `{setting}` cannot be used: {reason}"))
    };
    libraries::open_cuda(libtorch).map_err(|reason| {
        absent(reason).with_hint(
            "install the Python package torch==2.11.0 and set `libtorch` in [backend.tch] to its \
             directory, or set device = \"cpu\"",
        )
    })?;
    let count = usize::try_from(Cuda::device_count()).unwrap_or(0);
    if number < count {
        return Ok(Device::Cuda(number));
    }
    if count > 0 {
        return Err(absent(format!("the CUDA devices here are 0 to {}", count - 1))
            .with_hint("choose one of them, or set device = \"auto\""));
    }
    // Only an attempt tells why there is none.
    let reason = match Tensor::f_zeros([1], (Kind::Float, Device::Cuda(0))) {
        Ok(_) => "libtorch counts no CUDA device".into(),
        Err(error) => {
            sppo_model::ModelError::from(crate::tensors::TorchError::from(error)).to_string()
        }
    };
    Err(absent(reason).with_hint("check the driver with nvidia-smi, or set device = \"cpu\""))
}

fn unknown(setting: &str) -> PluginError {
    PluginError::configuration(format!("device: there is no device `{setting}`"))
        .with_hint("choose \"auto\", \"cpu\", \"cuda\" or \"cuda:N\"")
}

/// Whether the device has instructions for bf16. A CPU without them converts every operand to f32.
pub(crate) fn has_bf16_units(device: Device) -> bool {
    match device {
        #[cfg(target_arch = "x86_64")]
        Device::Cpu => std::arch::is_x86_feature_detected!("avx512bf16"),
        #[cfg(target_arch = "aarch64")]
        Device::Cpu => std::arch::is_aarch64_feature_detected!("bf16"),
        _ => device.is_cuda(),
    }
}

/// The device, and the dtype of matrix products and of what they return.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) device: Device,
    pub(crate) compute_dtype: Kind,
    /// Kernels on the CPU in f32.
    pub(crate) kernels: Option<Kernels>,
}

impl Context {
    /// As the operand of a matrix product.
    pub(crate) fn operand(&self, tensor: &Tensor) -> TorchResult<Tensor> {
        Ok(tensor.f_to_kind(self.compute_dtype)?)
    }

    /// As the operands of attention: queries, keys and values.
    pub(crate) fn operands(
        &self,
        [queries, keys, values]: [&Tensor; 3],
    ) -> TorchResult<[Tensor; 3]> {
        Ok([self.operand(queries)?, self.operand(keys)?, self.operand(values)?])
    }

    /// Options of a new f32 tensor on the device.
    pub(crate) fn f32_options(&self) -> (Kind, Device) {
        (Kind::Float, self.device)
    }

    /// Whether the device attends over sequences of different lengths in one kernel
    /// ([`crate::attention`]): CUDA devices do, for heads of whole words and without a soft cap.
    pub(crate) fn has_varlen_kernel(&self, shape: &AttentionShape) -> bool {
        let numbers_per_word: usize = if self.compute_dtype == Kind::Float { 4 } else { 8 };
        self.device.is_cuda()
            && shape.soft_cap.is_none()
            && shape.head_size.is_multiple_of(numbers_per_word)
    }
}
