//! The operations that all ranks of a group call together.

use std::time::Duration;

use tch::{Device, Kind, Tensor};

use super::board::Step;
use super::engine::Operation;
use super::fault::{Fault, GroupError};
use super::group::{GroupResult, ProcessGroup};
use super::store::EngineResult;

impl ProcessGroup {
    /// Rank 0's bytes, on all ranks. The other ranks' are ignored.
    ///
    /// # Errors
    /// When the group fails.
    pub fn broadcast_bytes(&self, bytes: &[u8]) -> GroupResult<Vec<u8>> {
        let step = self.begin("broadcast of bytes".into())?;
        let control = self.control();
        let length = Tensor::from_slice(&[bytes.len() as i64]);
        self.complete(&step, None, control.broadcast(&length, 0))?;
        let length = length.int64_value(&[0]);
        if self.rank() == 0 {
            if length > 0 {
                let tensor = Tensor::from_slice(bytes);
                self.complete(&step, None, control.broadcast(&tensor, 0))?;
            }
            return Ok(bytes.to_vec());
        }
        let tensor = self.bytes_tensor(&step, length)?;
        if length > 0 {
            self.complete(&step, None, control.broadcast(&tensor, 0))?;
        }
        self.to_bytes(&step, &tensor)
    }

    /// The bytes of all ranks, on all ranks, by rank. Their lengths may differ.
    ///
    /// # Errors
    /// When the group fails.
    pub fn all_gather_bytes(&self, bytes: &[u8]) -> GroupResult<Vec<Vec<u8>>> {
        let step = self.begin("gathering of bytes".into())?;
        let control = self.control();
        let lengths = Tensor::zeros([self.size() as i64], (Kind::Int64, Device::Cpu));
        let own = Tensor::from_slice(&[bytes.len() as i64]);
        self.complete(&step, None, control.all_gather(&lengths, &own))?;
        let lengths: Vec<usize> = (0..self.size() as i64)
            .map(|rank| usize::try_from(lengths.int64_value(&[rank])).unwrap_or(0))
            .collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if longest == 0 {
            return Ok(vec![Vec::new(); self.size()]);
        }
        let mut padded = bytes.to_vec();
        padded.resize(longest, 0);
        let whole = self.bytes_tensor(&step, (self.size() * longest) as i64)?;
        self.complete(&step, None, control.all_gather(&whole, &Tensor::from_slice(&padded)))?;
        let all = self.to_bytes(&step, &whole)?;
        Ok(all
            .chunks(longest)
            .zip(&lengths)
            .map(|(part, &length)| part[..length].to_vec())
            .collect())
    }

    /// Waits for all ranks.
    ///
    /// # Errors
    /// When one does not come within `timeout`; the error names those ranks.
    pub fn barrier(&self, timeout: Duration) -> GroupResult<()> {
        let step = self.begin("the barrier".into())?;
        let count = Tensor::from_slice(&[1_i64]);
        self.complete(&step, Some(timeout), self.control().all_reduce(&count))
    }

    /// Makes sure that all ranks have the same, for instance a model of the same shape.
    ///
    /// # Errors
    /// When a rank has something else than rank 0; the error names both. Also when the group fails.
    pub fn agree(&self, own: &str) -> GroupResult<()> {
        let all = self.all_gather_bytes(own.as_bytes())?;
        let Some(rank) = all.iter().position(|other| *other != all[0]) else { return Ok(()) };
        let [theirs, first] = [rank, 0].map(|rank| String::from_utf8_lossy(&all[rank]));
        let message = format!("{} has {theirs}, and {} has {first}", self.name(rank), self.name(0));
        Err(self.fail(GroupError::new(Fault::Mismatch, Some(rank), message)))
    }

    /// Begins to make a tensor the sum of all ranks' tensors, in its memory.
    ///
    /// # Errors
    /// When the group has failed or the engine refuses the tensor.
    pub fn begin_sum(&self, tensor: Tensor) -> GroupResult<UnderWay> {
        let step = self.begin(described("all_reduce", &tensor))?;
        let operation = self.data(&tensor)?.all_reduce(&tensor);
        self.under_way(step, operation, tensor)
    }

    /// Begins to make a tensor that of the rank `root`, in its memory.
    ///
    /// # Errors
    /// As [`Self::begin_sum`].
    pub fn begin_broadcast(&self, tensor: Tensor, root: usize) -> GroupResult<UnderWay> {
        let step = self.begin(described(&format!("broadcast from rank {root}"), &tensor))?;
        let operation = self.data(&tensor)?.broadcast(&tensor, root);
        self.under_way(step, operation, tensor)
    }

    /// Waits for an operation, and returns its tensor.
    ///
    /// # Errors
    /// When it fails, or does not end within the group's time-out.
    pub fn finish(&self, under_way: UnderWay) -> GroupResult<Tensor> {
        let UnderWay { step, operation, tensor } = under_way;
        self.complete(&step, Some(self.timeout()), Ok(operation))?;
        Ok(tensor)
    }

    fn under_way(
        &self,
        step: Step,
        operation: EngineResult<Operation>,
        tensor: Tensor,
    ) -> GroupResult<UnderWay> {
        match operation {
            Ok(operation) => Ok(UnderWay { step, operation, tensor }),
            Err(text) => Err(self.judge(step, None, text)),
        }
    }

    fn bytes_tensor(&self, step: &Step, length: i64) -> GroupResult<Tensor> {
        Tensor::f_empty([length], (Kind::Uint8, Device::Cpu))
            .map_err(|error| self.judge(step.clone(), None, error.to_string()))
    }

    fn to_bytes(&self, step: &Step, tensor: &Tensor) -> GroupResult<Vec<u8>> {
        let mut bytes = vec![0; tensor.numel()];
        let length = bytes.len();
        tensor
            .f_copy_data_u8(&mut bytes, length)
            .map_err(|error| self.judge(step.clone(), None, error.to_string()))?;
        Ok(bytes)
    }
}

/// An operation under way on a tensor, to be ended by [`ProcessGroup::finish`]. Dropped before, it goes on by
/// itself, and keeps the tensor's memory as long as it does.
#[must_use = "an operation must be waited for"]
pub struct UnderWay {
    step: Step,
    operation: Operation,
    tensor: Tensor,
}

/// An operation in words that are the same on all ranks exactly if it fits together.
fn described(operation: &str, tensor: &Tensor) -> String {
    format!("{operation} of {} {:?}", tensor.numel(), tensor.kind())
}
