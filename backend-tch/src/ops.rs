//! The op vocabulary on libtorch.

use sppo_model::Result;
use sppo_model::ops::Activation as ActivationFunction;
use sppo_model::ops::{
    AttentionOutput, AttentionSegment, AttentionShape, CachedRow, DeviceDraw, Draw, Ops,
    RotaryFrequencies, UpdateRule,
};
use tch::{Device, Kind, Tensor};

use crate::attention::{attention, attention_backward};
use crate::cached_attention::{KeyValueCache, cached_attention};
use crate::draw::draw;
use crate::engine::{Direction, TchOps};
use crate::parameter::{Accumulation, Parameter};
use crate::tensors::{Activation, TorchError, TorchResult, dimensions, download, index, upload};

impl Ops for TchOps {
    type Tensor = Activation;
    type Parameter = Parameter;
    type Cache = KeyValueCache;

    fn describe(&self) -> (String, String) {
        let device = match self.device {
            Device::Cuda(number) => format!("cuda:{number}"),
            _ => "cpu".into(),
        };
        (device, if self.matrix_kind == Kind::Float { "f32" } else { "bf16" }.into())
    }

    fn tensor(&self, values: Vec<f32>, rows: usize, columns: usize) -> Result<Activation> {
        Ok(Activation(upload(&values, &[rows as i64, columns as i64], self.device)?))
    }

    fn values(&self, tensor: &Activation) -> Result<Vec<f32>> {
        Ok(download(&tensor.0)?)
    }

    fn shape(&self, tensor: &Activation) -> (usize, usize) {
        dimensions(&tensor.0).map_or((0, 0), |(rows, columns)| (rows as usize, columns as usize))
    }

    fn parameter(&self, values: Vec<f32>, shape: &[usize], trainable: bool) -> Result<Parameter> {
        // What is trained is f32, and so are norms. A frozen matrix is only ever multiplied with.
        let narrow = !trainable && shape.len() == 2;
        let kind = if narrow { self.matrix_kind } else { Kind::Float };
        Ok(Parameter::new(&values, shape, trainable, (kind, self.device))?)
    }

    fn parameter_values(&self, parameter: &Parameter) -> Result<Vec<f32>> {
        Ok(download(parameter.value())?)
    }

    fn parameter_gradient(&self, parameter: &Parameter) -> Result<Option<Vec<f32>>> {
        Ok(parameter.gradient().map(download).transpose()?)
    }

    fn gradient_square_sum(&self, parameter: &Parameter) -> Result<f64> {
        Ok(parameter.gradient_square_sum()?)
    }

    fn clear_gradient(&self, parameter: &mut Parameter) -> Result<()> {
        parameter.clear_gradient();
        Ok(())
    }

    fn update(&self, parameter: &mut Parameter, rule: &UpdateRule) -> Result<()> {
        Ok(parameter.update(rule)?)
    }

    fn optimizer_state(&self, parameter: &Parameter) -> Result<Vec<Vec<f32>>> {
        Ok(parameter.state().iter().map(download).collect::<TorchResult<_>>()?)
    }

    fn set_optimizer_state(&self, parameter: &mut Parameter, state: Vec<Vec<f32>>) -> Result<()> {
        Ok(parameter.set_state(&state)?)
    }

    fn embedding(&self, table: &Parameter, tokens: &[u32]) -> Result<Activation> {
        let rows = select(table.value(), tokens)?.f_to_kind(Kind::Float);
        Ok(Activation(rows.map_err(TorchError::from)?))
    }

    fn linear(
        &self,
        x: &Activation,
        weight: &Parameter,
        bias: Option<&Parameter>,
    ) -> Result<Activation> {
        let product = self.product(&x.0, weight, bias)?;
        Ok(Activation(product))
    }

    fn rms_norm(
        &self,
        x: &Activation,
        weight: &Parameter,
        epsilon: f32,
        offset: f32,
    ) -> Result<Activation> {
        if self.device.is_cuda() {
            return Ok(Activation(self.operand(&fused_norm(&x.0, weight, epsilon, offset)?)?));
        }
        let norm = Norm::of(&x.0, weight, epsilon, offset)?;
        Ok(Activation(self.operand(&norm.output()?)?))
    }

    fn rotary(
        &self,
        x: &Activation,
        positions: &[u32],
        frequencies: &RotaryFrequencies,
    ) -> Result<Activation> {
        Ok(Activation(self.turn(&x.0, positions, frequencies, Direction::Forward)?))
    }

    fn attention(
        &self,
        queries: &Activation,
        keys: &Activation,
        values: &Activation,
        shape: &AttentionShape,
        segments: &[AttentionSegment],
    ) -> Result<AttentionOutput<Activation>> {
        let operands = [&queries.0, &keys.0, &values.0];
        let (output, log_sum_exp) = attention(self, operands, shape, segments)?;
        Ok(AttentionOutput { output: Activation(output), log_sum_exp: Activation(log_sum_exp) })
    }

    fn gated_activation(
        &self,
        gate: &Activation,
        up: &Activation,
        activation: ActivationFunction,
    ) -> Result<Activation> {
        Ok(Activation(gated(&gate.0, &up.0, activation)?))
    }

    fn add(&self, a: &Activation, b: &Activation) -> Result<Activation> {
        Ok(Activation(a.0.f_add(&b.0).map_err(TorchError::from)?))
    }

    fn scale(&self, x: &Activation, factor: f32) -> Result<Activation> {
        let scaled = x.0.f_mul_scalar(f64::from(factor));
        Ok(Activation(scaled.map_err(TorchError::from)?))
    }

    fn select_rows(&self, x: &Activation, rows: &[u32]) -> Result<Activation> {
        Ok(Activation(select(&x.0, rows)?))
    }

    fn token_log_probs(
        &self,
        hidden: &Activation,
        head: &Parameter,
        targets: &[u32],
        soft_cap: Option<f32>,
        keep: bool,
    ) -> Result<(Vec<f32>, Option<Activation>)> {
        Ok(self.log_probs(&hidden.0, head, targets, soft_cap, keep)?)
    }

    fn logits(
        &self,
        hidden: &Activation,
        head: &Parameter,
        soft_cap: Option<f32>,
    ) -> Result<Activation> {
        Ok(Activation(self.capped_logits(&hidden.0, head, soft_cap)?))
    }

    fn draws(&self) -> bool {
        self.device.is_cuda()
    }

    fn draw(&self, logits: &Activation, plan: &DeviceDraw) -> Result<Vec<Draw>> {
        Ok(draw(&logits.0, plan)?)
    }

    fn embedding_backward(
        &self,
        table: &mut Parameter,
        tokens: &[u32],
        gradient: &Activation,
    ) -> Result<()> {
        Ok(table.accumulate(|sum, accumulation| {
            if accumulation == Accumulation::Overwrite {
                let _ = sum.f_zero_()?;
            }
            let gradient = gradient.0.f_to_kind(Kind::Float)?;
            let _ = sum.f_index_add_(0, &index(tokens, gradient.device())?, &gradient)?;
            Ok(())
        })?)
    }

    fn linear_backward(
        &self,
        x: &Activation,
        weight: &mut Parameter,
        bias: Option<&mut Parameter>,
        gradient: &Activation,
    ) -> Result<Activation> {
        let gradient = self.operand(&gradient.0)?;
        if let Some(bias) = bias.filter(|bias| bias.is_trainable()) {
            bias.accumulate_tensor(&column_sums(&gradient)?)?;
        }
        self.add_weight_gradient(weight, &x.0, &gradient)?;
        Ok(Activation(self.input_gradient(weight, &gradient)?))
    }

    fn rms_norm_backward(
        &self,
        x: &Activation,
        weight: &mut Parameter,
        epsilon: f32,
        offset: f32,
        gradient: &Activation,
    ) -> Result<Activation> {
        let norm = Norm::of(&x.0, weight, epsilon, offset)?;
        let (of_x, of_weight) = norm.backward(&gradient.0)?;
        weight.accumulate_tensor(&of_weight)?;
        Ok(Activation(of_x))
    }

    fn rotary_backward(
        &self,
        positions: &[u32],
        frequencies: &RotaryFrequencies,
        gradient: &Activation,
    ) -> Result<Activation> {
        Ok(Activation(self.turn(&gradient.0, positions, frequencies, Direction::Backward)?))
    }

    fn attention_backward(
        &self,
        queries: &Activation,
        keys: &Activation,
        values: &Activation,
        forward: &AttentionOutput<Activation>,
        shape: &AttentionShape,
        segments: &[AttentionSegment],
        gradient: &Activation,
    ) -> Result<[Activation; 3]> {
        let operands = [&queries.0, &keys.0, &values.0];
        let forward = [&forward.output.0, &forward.log_sum_exp.0];
        let gradients = attention_backward(self, operands, forward, &gradient.0, shape, segments)?;
        Ok(gradients.map(Activation))
    }

    fn gated_activation_backward(
        &self,
        gate: &Activation,
        up: &Activation,
        activation: ActivationFunction,
        gradient: &Activation,
    ) -> Result<[Activation; 2]> {
        let gradient = self.operand(&gradient.0)?;
        Ok(gated_backward(&gate.0, &up.0, activation, &gradient)?.map(Activation))
    }

    fn select_rows_backward(
        &self,
        rows: &[u32],
        row_count: usize,
        gradient: &Activation,
    ) -> Result<Activation> {
        Ok(Activation(add_to_rows(rows, row_count, &gradient.0)?))
    }

    fn token_log_probs_backward(
        &self,
        hidden: &Activation,
        head: &mut Parameter,
        targets: &[u32],
        soft_cap: Option<f32>,
        kept: Option<Activation>,
        coefficients: &[f32],
    ) -> Result<Activation> {
        let kept = kept.map(|kept| kept.0);
        Ok(Activation(self.log_probs_backward(
            &hidden.0,
            head,
            targets,
            soft_cap,
            kept,
            coefficients,
        )?))
    }

    fn cache(
        &self,
        layers: usize,
        slots: usize,
        key_value_features: usize,
    ) -> Result<KeyValueCache> {
        let options = (self.matrix_kind, self.device);
        Ok(KeyValueCache::new(layers, slots, key_value_features, options)?)
    }

    fn cache_write(
        &self,
        cache: &mut KeyValueCache,
        layer: usize,
        keys: &Activation,
        values: &Activation,
        slots: &[u32],
    ) -> Result<()> {
        Ok(cache.write(layer, [&keys.0, &values.0], &self.slots(slots)?)?)
    }

    fn cached_attention(
        &self,
        queries: &Activation,
        cache: &KeyValueCache,
        layer: usize,
        shape: &AttentionShape,
        rows: &[CachedRow],
    ) -> Result<Activation> {
        Ok(Activation(cached_attention(self, &queries.0, cache, layer, shape, rows)?))
    }
}

impl TchOps {
    /// Adds `gradient^T x` to the gradient of a linear weight.
    fn add_weight_gradient(
        &self,
        weight: &mut Parameter,
        x: &Tensor,
        gradient: &Tensor,
    ) -> TorchResult<()> {
        if !weight.is_trainable() {
            return Ok(());
        }
        let (x, gradient) = (self.operand(x)?, gradient.f_transpose(0, 1)?);
        if self.matrix_kind != Kind::Float {
            return weight.accumulate_tensor(&gradient.f_mm(&x)?);
        }
        weight.accumulate(|sum, accumulation| {
            match accumulation {
                Accumulation::Overwrite => drop(gradient.f_mm_out(sum, &x)?),
                Accumulation::Add => drop(sum.f_addmm_(&gradient, &x)?),
            }
            Ok(())
        })
    }

    /// `gradient weight`: the gradient of a linear op's input.
    fn input_gradient(&self, weight: &Parameter, gradient: &Tensor) -> TorchResult<Tensor> {
        Ok(gradient.f_mm(&weight.operand(self.matrix_kind)?)?)
    }

    fn log_probs(
        &self,
        hidden: &Tensor,
        head: &Parameter,
        targets: &[u32],
        soft_cap: Option<f32>,
        keep: bool,
    ) -> TorchResult<(Vec<f32>, Option<Activation>)> {
        let (vocabulary, _) = dimensions(head.value())?;
        let (rows, vocabulary) = (targets.len(), vocabulary as usize);
        let keep = keep && rows * vocabulary * size_of::<f32>() <= self.keep_logits_limit;
        let kept = keep.then(|| self.capped_logits(hidden, head, soft_cap)).transpose()?;
        let chunk = self.logits_rows(rows, vocabulary);
        let mut log_probs = Vec::with_capacity(rows);
        for (number, targets) in targets.chunks(chunk).enumerate() {
            let part = |x: &Tensor| x.f_narrow(0, (number * chunk) as i64, targets.len() as i64);
            let logits = match &kept {
                Some(kept) => part(kept)?,
                None => self.capped_logits(&part(hidden)?, head, soft_cap)?,
            };
            let targets = index(targets, self.device)?.f_unsqueeze(1)?;
            let of_targets = logits.f_gather(1, &targets, false)?.f_squeeze_dim(1)?;
            // Takes as much memory as the logits, which is why they go through it in parts.
            let chosen = of_targets.f_sub(&logits.f_logsumexp([1], false)?)?;
            log_probs.extend(download(&chosen)?);
        }
        Ok((log_probs, kept.map(Activation)))
    }

    fn log_probs_backward(
        &self,
        hidden: &Tensor,
        head: &mut Parameter,
        targets: &[u32],
        soft_cap: Option<f32>,
        kept: Option<Tensor>,
        coefficients: &[f32],
    ) -> TorchResult<Tensor> {
        let (vocabulary, _) = dimensions(head.value())?;
        let chunk = self.logits_rows(targets.len(), vocabulary as usize);
        let mut of_hidden = Vec::new();
        for (number, targets) in targets.chunks(chunk).enumerate() {
            let (start, length) = (number * chunk, targets.len());
            let part = |x: &Tensor| x.f_narrow(0, start as i64, length as i64);
            let hidden = part(hidden)?;
            let logits = match &kept {
                Some(kept) => part(kept)?,
                None => self.capped_logits(&hidden, head, soft_cap)?,
            };
            let coefficients = coefficients.get(start..start + length).unwrap_or_default();
            let gradient = self.logit_gradient(&logits, targets, coefficients, soft_cap)?;
            self.add_weight_gradient(head, &hidden, &gradient)?;
            of_hidden.push(self.input_gradient(head, &gradient)?);
        }
        match &of_hidden[..] {
            [] => Ok(hidden.f_zeros_like()?),
            [of_all] => Ok(of_all.shallow_clone()),
            parts => Ok(Tensor::f_cat(parts, 0)?),
        }
    }

    /// `coefficient * (one at the target - probabilities)`, through the cap, as the operand of a
    /// matrix product.
    fn logit_gradient(
        &self,
        logits: &Tensor,
        targets: &[u32],
        coefficients: &[f32],
        soft_cap: Option<f32>,
    ) -> TorchResult<Tensor> {
        let coefficients = upload(coefficients, &[targets.len() as i64, 1], self.device)?;
        let targets = index(targets, self.device)?.f_unsqueeze(1)?;
        let mut gradient = logits.f_softmax(1, Kind::Float)?;
        let _ = gradient.f_mul_(&coefficients.f_neg()?)?;
        let _ = gradient.f_scatter_add_(1, &targets, &coefficients)?;
        if let Some(cap) = soft_cap {
            let mut slope = logits.f_square()?;
            let _ = slope.f_mul_scalar_(-1.0 / f64::from(cap).powi(2))?;
            let _ = slope.f_add_scalar_(1.0)?;
            let _ = gradient.f_mul_(&slope)?;
        }
        self.operand(&gradient)
    }
}

/// [`Norm::output`] in one kernel, which CUDA devices have.
fn fused_norm(x: &Tensor, weight: &Parameter, epsilon: f32, offset: f32) -> TorchResult<Tensor> {
    let weight = norm_weight(weight, offset)?;
    let groups = x.f_to_kind(Kind::Float)?.f_view([-1, weight.numel() as i64])?;
    let output = groups.f_rms_norm(weight.size(), Some(&weight), f64::from(epsilon))?;
    Ok(output.f_view(x.size().as_slice())?)
}

fn norm_weight(weight: &Parameter, offset: f32) -> TorchResult<Tensor> {
    Ok(match offset {
        0.0 => weight.value().shallow_clone(),
        offset => weight.value().f_add_scalar(f64::from(offset))?,
    })
}

/// Root-mean-square normalisation, in f32, over groups of the weight's length.
struct Norm {
    /// `[groups, size]`.
    x: Tensor,
    /// `1 / sqrt(mean(x^2) + epsilon)`, `[groups, 1]`.
    inverse: Tensor,
    /// The weight, its offset added.
    weight: Tensor,
    shape: Vec<i64>,
    kind: Kind,
}

impl Norm {
    fn of(x: &Tensor, weight: &Parameter, epsilon: f32, offset: f32) -> TorchResult<Self> {
        let weight = norm_weight(weight, offset)?;
        let (shape, kind, size) = (x.size(), x.f_kind()?, weight.numel() as i64);
        let x = x.f_to_kind(Kind::Float)?.f_view([-1, size])?;
        let norm = x.f_norm_scalaropt_dim(2.0, [1].as_slice(), true)?;
        let mut inverse = norm.f_square()?;
        let _ = inverse.f_mul_scalar_(1.0 / size as f64)?;
        let _ = inverse.f_add_scalar_(f64::from(epsilon))?;
        let _ = inverse.f_rsqrt_()?;
        Ok(Self { x, inverse, weight, shape, kind })
    }

    fn output(&self) -> TorchResult<Tensor> {
        let mut output = self.x.f_mul(&self.inverse)?;
        let _ = output.f_mul_(&self.weight)?;
        Ok(output.f_view(self.shape.as_slice())?)
    }

    /// Gradients of `x`, in its number format, and of the weight.
    fn backward(&self, gradient: &Tensor) -> TorchResult<(Tensor, Tensor)> {
        let gradient = gradient.f_to_kind(Kind::Float)?.f_view([-1, self.weight.numel() as i64])?;
        let normed = self.x.f_mul(&self.inverse)?;
        let of_weight = column_sums(&gradient.f_mul(&normed)?)?;
        let mut of_x = gradient.f_mul(&self.weight)?;
        let mean = of_x.f_mul(&normed)?.f_mean_dim([1].as_slice(), true, Kind::Float)?;
        let _ = of_x.f_addcmul_(&normed, &mean.f_neg()?)?;
        let _ = of_x.f_mul_(&self.inverse)?;
        Ok((of_x.f_view(self.shape.as_slice())?.f_to_kind(self.kind)?, of_weight))
    }
}

fn activate(gate: &Tensor, activation: ActivationFunction) -> TorchResult<Tensor> {
    Ok(match activation {
        ActivationFunction::Silu => gate.f_silu()?,
        ActivationFunction::GeluTanh => gate.f_gelu("tanh")?,
    })
}

fn gated(gate: &Tensor, up: &Tensor, activation: ActivationFunction) -> TorchResult<Tensor> {
    let mut output = activate(gate, activation)?;
    let _ = output.f_mul_(up)?;
    Ok(output)
}

/// Gradients of the gate and of `up`.
fn gated_backward(
    gate: &Tensor,
    up: &Tensor,
    activation: ActivationFunction,
    gradient: &Tensor,
) -> TorchResult<[Tensor; 2]> {
    let mut of_up = activate(gate, activation)?;
    let _ = of_up.f_mul_(gradient)?;
    let of_activated = gradient.f_mul(up)?;
    let of_gate = match activation {
        ActivationFunction::Silu => gate.f_silu_backward(&of_activated)?,
        ActivationFunction::GeluTanh => gate.f_gelu_backward(&of_activated, "tanh")?,
    };
    Ok([of_gate, of_up])
}

fn select(x: &Tensor, rows: &[u32]) -> TorchResult<Tensor> {
    Ok(x.f_index_select(0, &index(rows, x.device())?)?)
}

/// The sum over the places where each of `row_count` rows was selected.
fn add_to_rows(rows: &[u32], row_count: usize, gradient: &Tensor) -> TorchResult<Tensor> {
    let (_, columns) = dimensions(gradient)?;
    let options = (gradient.f_kind()?, gradient.device());
    let mut sum = Tensor::f_zeros([row_count as i64, columns], options)?;
    let _ = sum.f_index_add_(0, &index(rows, gradient.device())?, gradient)?;
    Ok(sum)
}

fn column_sums(x: &Tensor) -> TorchResult<Tensor> {
    Ok(x.f_sum_dim_intlist([0].as_slice(), false, Kind::Float)?)
}
