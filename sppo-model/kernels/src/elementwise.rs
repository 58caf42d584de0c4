//! Functions of each element, gated activations, sums, copies of rows.

use rayon::prelude::*;
use sppo_model::ops::encoder::Pointwise;
use sppo_model::ops::{Activation, ExpertRows, Routes};

use super::vector::{exp, gelu, multiply_add, sigmoid, tanh, vectorised};
use super::{TASK_ELEMENTS, Uninitialised, copy, produce, rows_per_task};

/// `sqrt(2 / pi)` and the cubic coefficient of GELU's tanh approximation.
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

/// Elements of one task of a gated activation, which takes several times as long as a sum.
const GATED_TASK_ELEMENTS: usize = TASK_ELEMENTS / 4;

vectorised! {
    fn gelu_slice(x: &[f32], out: &mut Uninitialised) {
        for (out, &x) in out.iter_mut().zip(x) {
            out.write(gelu::<FUSED>(x));
        }
    }
}

vectorised! {
    fn tanh_slice(x: &[f32], out: &mut Uninitialised) {
        for (out, &x) in out.iter_mut().zip(x) {
            out.write(tanh::<FUSED>(x));
        }
    }
}

/// The function of every element.
pub fn pointwise(x: &[f32], function: Pointwise) -> Vec<f32> {
    let kernel = match function {
        Pointwise::Gelu => gelu_slice,
        Pointwise::Tanh => tanh_slice,
    };
    produce(x.len(), |out| {
        out.par_chunks_mut(TASK_ELEMENTS)
            .zip(x.par_chunks(TASK_ELEMENTS))
            .for_each(|(out, x)| kernel(x, out));
    })
}

vectorised! {
    fn silu_times(gate: &[f32], up: &[f32], out: &mut Uninitialised) {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            out.write(gate * up / (1.0 + exp::<FUSED>(-gate)));
        }
    }
}

vectorised! {
    fn gelu_times(gate: &[f32], up: &[f32], out: &mut Uninitialised) {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            let inner = GELU_SCALE * multiply_add::<FUSED>(GELU_CUBIC * gate * gate, gate, gate);
            out.write(0.5 * gate * (1.0 + tanh::<FUSED>(inner)) * up);
        }
    }
}

vectorised! {
    fn silu_times_backward(
        gate: &[f32],
        up: &[f32],
        gradient: &[f32],
        gate_out: &mut Uninitialised,
        up_out: &mut Uninitialised,
    ) {
        let outs = gate_out.iter_mut().zip(up_out);
        for ((((gate_out, up_out), &gate), &up), &gradient) in
            outs.zip(gate).zip(up).zip(gradient)
        {
            let sigmoid = sigmoid::<FUSED>(gate);
            let slope = sigmoid * multiply_add::<FUSED>(gate, 1.0 - sigmoid, 1.0);
            gate_out.write(gradient * up * slope);
            up_out.write(gradient * gate * sigmoid);
        }
    }
}

vectorised! {
    fn gelu_times_backward(
        gate: &[f32],
        up: &[f32],
        gradient: &[f32],
        gate_out: &mut Uninitialised,
        up_out: &mut Uninitialised,
    ) {
        let outs = gate_out.iter_mut().zip(up_out);
        for ((((gate_out, up_out), &gate), &up), &gradient) in
            outs.zip(gate).zip(up).zip(gradient)
        {
            let square = gate * gate;
            let inner = GELU_SCALE * multiply_add::<FUSED>(GELU_CUBIC * square, gate, gate);
            let inner_slope = GELU_SCALE * multiply_add::<FUSED>(3.0 * GELU_CUBIC, square, 1.0);
            let tanh = tanh::<FUSED>(inner);
            let half = 0.5 * (1.0 + tanh);
            let slope = half + 0.5 * gate * (1.0 - tanh * tanh) * inner_slope;
            gate_out.write(gradient * up * slope);
            up_out.write(gradient * gate * half);
        }
    }
}

/// `activation(gate) * up`.
pub fn gated_activation(gate: &[f32], up: &[f32], activation: Activation) -> Vec<f32> {
    produce(gate.len(), |out| write_gated_activation(gate, up, activation, out))
}

/// [`gated_activation`] to memory as long as each operand, all of which it writes.
pub fn write_gated_activation(
    gate: &[f32],
    up: &[f32],
    activation: Activation,
    out: &mut Uninitialised,
) {
    assert_eq!([gate.len(); 2], [up.len(), out.len()], "operands differ in size");
    let kernel = match activation {
        Activation::Silu => silu_times,
        Activation::GeluTanh => gelu_times,
    };
    let inputs = gate.par_chunks(GATED_TASK_ELEMENTS).zip(up.par_chunks(GATED_TASK_ELEMENTS));
    out.par_chunks_mut(GATED_TASK_ELEMENTS)
        .zip(inputs)
        .for_each(|(out, (gate, up))| kernel(gate, up, out));
}

/// Gradients of gate and up.
pub fn gated_activation_backward(
    gate: &[f32],
    up: &[f32],
    activation: Activation,
    gradient: &[f32],
) -> [Vec<f32>; 2] {
    let mut of_up = Vec::new();
    let of_gate = produce(gate.len(), |of_gate| {
        of_up = produce(gate.len(), |of_up| {
            write_gated_activation_backward(gate, up, activation, gradient, [of_gate, of_up]);
        });
    });
    [of_gate, of_up]
}

/// [`gated_activation_backward`] to memory as long as each operand, all of which it writes.
pub fn write_gated_activation_backward(
    gate: &[f32],
    up: &[f32],
    activation: Activation,
    gradient: &[f32],
    [of_gate, of_up]: [&mut Uninitialised; 2],
) {
    let lengths = [up.len(), gradient.len(), of_gate.len(), of_up.len()];
    assert_eq!([gate.len(); 4], lengths, "operands differ in size");
    let kernel = match activation {
        Activation::Silu => silu_times_backward,
        Activation::GeluTanh => gelu_times_backward,
    };
    let inputs = gate.par_chunks(GATED_TASK_ELEMENTS).zip(up.par_chunks(GATED_TASK_ELEMENTS));
    of_gate
        .par_chunks_mut(GATED_TASK_ELEMENTS)
        .zip(of_up.par_chunks_mut(GATED_TASK_ELEMENTS))
        .zip(inputs)
        .zip(gradient.par_chunks(GATED_TASK_ELEMENTS))
        .for_each(|(((of_gate, of_up), (gate, up)), gradient)| {
            kernel(gate, up, gradient, of_gate, of_up);
        });
}

vectorised! {
    fn add_slices(a: &[f32], b: &[f32], out: &mut Uninitialised) {
        for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
            out.write(a + b);
        }
    }
}

vectorised! {
    /// `out += x`.
    pub fn add_to(x: &[f32], out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out += x;
        }
    }
}

vectorised! {
    fn scale_slice(x: &[f32], factor: f32, out: &mut Uninitialised) {
        for (out, &x) in out.iter_mut().zip(x) {
            out.write(factor * x);
        }
    }
}

/// `a + b`.
pub fn add(a: &[f32], b: &[f32]) -> Vec<f32> {
    assert_eq!(a.len(), b.len(), "operands differ in size");
    produce(a.len(), |out| {
        let inputs = a.par_chunks(TASK_ELEMENTS).zip(b.par_chunks(TASK_ELEMENTS));
        out.par_chunks_mut(TASK_ELEMENTS)
            .zip(inputs)
            .for_each(|(out, (a, b))| add_slices(a, b, out));
    })
}

/// `factor * x`.
pub fn scale(x: &[f32], factor: f32) -> Vec<f32> {
    produce(x.len(), |out| {
        out.par_chunks_mut(TASK_ELEMENTS)
            .zip(x.par_chunks(TASK_ELEMENTS))
            .for_each(|(out, x)| scale_slice(x, factor, out));
    })
}

/// The given rows of `x`, which has `features` columns.
pub fn select_rows(x: &[f32], features: usize, rows: &[u32]) -> Vec<f32> {
    let per_task = rows_per_task(features);
    produce(rows.len() * features, |out| {
        out.par_chunks_mut(per_task * features).zip(rows.par_chunks(per_task)).for_each(
            |(out, rows)| {
                for (out, &row) in out.chunks_exact_mut(features).zip(rows) {
                    copy(&x[row as usize * features..][..features], out);
                }
            },
        );
    })
}

/// Adds row `i` of `gradient` to row `rows[i]` of `out`, in order.
pub fn add_to_rows(gradient: &[f32], features: usize, rows: &[u32], out: &mut [f32]) {
    for (gradient, &row) in gradient.chunks_exact(features).zip(rows) {
        add_to(gradient, &mut out[row as usize * features..][..features]);
    }
}

/// Copies row `i` of `values` to row `rows[i]` of `out`.
pub fn write_rows(values: &[f32], features: usize, rows: &[u32], out: &mut [f32]) {
    for (values, &row) in values.chunks_exact(features).zip(rows) {
        out[row as usize * features..][..features].copy_from_slice(values);
    }
}

/// Adds the sum of all rows to `out`, in a fixed order.
pub fn add_row_sums(x: &[f32], out: &mut [f32]) {
    let features = out.len();
    let partial_sums: Vec<Vec<f32>> = x
        .par_chunks(features * rows_per_task(features))
        .map(|rows| {
            let mut sum = vec![0.0; features];
            rows.chunks_exact(features).for_each(|row| add_to(row, &mut sum));
            sum
        })
        .collect();
    partial_sums.iter().for_each(|sum| add_to(sum, out));
}

/// The sum of experts' outputs of `features` columns, each row in the order of the experts.
pub fn mixture(parts: &[&[f32]], features: usize, routes: &Routes) -> Vec<f32> {
    let mut terms: Vec<Vec<(f32, &[f32])>> = vec![Vec::new(); routes.row_count];
    for (part, expert) in parts.iter().zip(&routes.experts) {
        let rows = expert.rows.iter().zip(&expert.weights).zip(part.chunks_exact(features));
        for ((&row, &weight), values) in rows {
            terms[row as usize].push((weight, values));
        }
    }
    let mut sum = vec![0.0; routes.row_count * features];
    sum.par_chunks_exact_mut(features).zip(terms).for_each(|(sum, terms)| {
        for (weight, values) in terms {
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
        }
    });
    sum
}

/// Gradients of an expert's output and of the weights of its rows.
pub fn mixture_backward(
    part: &[f32],
    features: usize,
    expert: &ExpertRows,
    gradient: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let mut of_part = vec![0.0; part.len()];
    let of_weights = of_part
        .par_chunks_exact_mut(features)
        .zip(part.par_chunks_exact(features))
        .zip(expert.rows.par_iter().zip(&expert.weights))
        .map(|((of_part, part), (&row, &weight))| {
            let gradient = &gradient[row as usize * features..][..features];
            of_part.iter_mut().zip(gradient).for_each(|(of, gradient)| *of = weight * gradient);
            let products = part.iter().zip(gradient).map(|(a, b)| f64::from(a * b));
            products.sum::<f64>() as f32
        })
        .collect();
    (of_part, of_weights)
}
