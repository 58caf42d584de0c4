//! A frozen matrix that is kept in the blocks of its file, and dequantised part by part in products.

use std::ops::Range;

use sppo_model::formats::QuantizedMatrix;
use tch::{Device, Kind, Tensor};

use crate::device::Context;
use crate::device_blocks::DeviceBlocks;
use crate::tensors::{TorchResult, upload};

/// Numbers that are dequantised together.
const PART_ELEMENTS: usize = 8 << 20;

/// Bytes of a part: as it is made from its blocks, in f32, and as the operand of a product.
pub(crate) const DEQUANTIZED_BYTES: u64 = 3 * (PART_ELEMENTS * size_of::<f32>()) as u64;

/// A matrix in blocks: in the host's memory, dequantised there, or in that of a device, dequantised by it.
#[derive(Debug)]
pub(crate) enum QuantizedWeight {
    Host(QuantizedMatrix),
    Device(DeviceBlocks),
}

impl QuantizedWeight {
    pub(crate) fn new(matrix: QuantizedMatrix, device: Device) -> TorchResult<Self> {
        match device {
            Device::Cpu => Ok(Self::Host(matrix)),
            device => DeviceBlocks::new(&matrix, device).map(Self::Device),
        }
    }

    /// `[outputs, inputs]`.
    pub(crate) fn dimensions(&self) -> [usize; 2] {
        match self {
            Self::Host(matrix) => matrix.dimensions(),
            Self::Device(blocks) => blocks.dimensions(),
        }
    }

    /// The given rows, in order, f32.
    pub(crate) fn select_rows(&self, rows: &[u32], device: Device) -> TorchResult<Tensor> {
        let [_, columns] = self.dimensions();
        match self {
            Self::Host(matrix) => {
                let mut values = vec![0.0; rows.len() * columns];
                let pairs = rows.iter().zip(values.chunks_exact_mut(columns));
                pairs.for_each(|(&row, out)| matrix.read_row(row as usize, out));
                upload(&values, &[rows.len() as i64, columns as i64], device)
            }
            Self::Device(blocks) => blocks.select_rows(rows),
        }
    }

    /// Some rows in f32.
    fn rows(&self, rows: Range<usize>) -> TorchResult<Tensor> {
        let [_, columns] = self.dimensions();
        match self {
            Self::Host(matrix) => {
                let mut values = vec![0.0; rows.len() * columns];
                matrix.read_rows(rows.start, &mut values);
                upload(&values, &[rows.len() as i64, columns as i64], Device::Cpu)
            }
            Self::Device(blocks) => blocks.rows(rows),
        }
    }

    /// All values, row-major.
    pub(crate) fn values(&self) -> TorchResult<Tensor> {
        let [rows, _] = self.dimensions();
        self.rows(0..rows)
    }

    fn parts(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let [rows, columns] = self.dimensions();
        let most = (PART_ELEMENTS / columns.max(1)).max(1);
        (0..rows).step_by(most).map(move |start| start..(start + most).min(rows))
    }

    /// `x weight^T`, where `product` computes that of a part of the weight's rows.
    pub(crate) fn linear(
        &self,
        context: &Context,
        product: impl Fn(&Tensor) -> TorchResult<Tensor>,
    ) -> TorchResult<Tensor> {
        let parts = self.parts().map(|part| product(&context.operand(&self.rows(part)?)?));
        let mut products = parts.collect::<TorchResult<Vec<_>>>()?;
        match products.len() {
            1 => Ok(products.remove(0)),
            _ => Ok(Tensor::f_cat(&products, 1)?),
        }
    }

    /// `gradient weight`. Sums over outputs are made part by part, and added up in f32.
    pub(crate) fn input_gradient(
        &self,
        context: &Context,
        gradient: &Tensor,
    ) -> TorchResult<Tensor> {
        let mut sum: Option<Tensor> = None;
        for part in self.parts() {
            let (start, length) = (part.start as i64, part.len() as i64);
            let weight = context.operand(&self.rows(part)?)?;
            let of_part = gradient.f_narrow(1, start, length)?.f_mm(&weight)?;
            sum = Some(match sum {
                None => of_part,
                Some(sum) => sum.f_to_kind(Kind::Float)?.f_add(&of_part)?,
            });
        }
        let [_, columns] = self.dimensions();
        let size = [gradient.size()[0], columns as i64];
        let sum = sum.map_or_else(|| Tensor::f_zeros(size, context.f32_options()), Ok)?;
        context.operand(&sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device_blocks::tests::random_blocks;
    use crate::tensors::download;
    use sppo_model::formats::GgufType;

    fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
        a.f_sub(b).unwrap().f_abs().unwrap().f_max().unwrap().f_double_value(&[]).unwrap()
    }

    #[test]
    fn products_of_parts_are_those_of_the_whole_matrix() {
        let context = Context { device: Device::Cpu, compute_dtype: Kind::Float, kernels: None };
        // The second is cut into parts.
        for shape in [[70, 64], [4100, 4096]] {
            let matrix = random_blocks(GgufType::Q8_0, shape);
            let [rows, columns] = shape.map(|length| length as i64);
            let whole = upload(&matrix.values(), &[rows, columns], Device::Cpu).unwrap();
            let quantized = QuantizedWeight::new(matrix, Device::Cpu).unwrap();
            tch::manual_seed(3);
            let x = Tensor::randn([5, columns], (Kind::Float, Device::Cpu));
            let product = |weight: &Tensor| Ok(x.f_linear::<&Tensor>(weight, None)?);
            let (made, expected) =
                (quantized.linear(&context, product).unwrap(), product(&whole).unwrap());
            assert!(largest_difference(&made, &expected) < 1e-4);
            let gradient = Tensor::randn([5, rows], (Kind::Float, Device::Cpu));
            let made = quantized.input_gradient(&context, &gradient).unwrap();
            assert!(largest_difference(&made, &gradient.mm(&whole)) < 1e-4);
            let selected = quantized.select_rows(&[69, 0], Device::Cpu).unwrap();
            let expected = whole.index_select(0, &Tensor::from_slice(&[69_i64, 0]));
            assert_eq!(download(&selected).unwrap(), download(&expected).unwrap());
        }
    }
}
