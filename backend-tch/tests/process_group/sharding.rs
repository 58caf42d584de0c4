//! Steps of an optimiser whose state, f32 values and gradients the ranks divide.

use std::rc::Rc;

use sppo_backend_tch::{GroupResult, ProcessGroup, TchOps, TchOptions};
use sppo_model::ops::{Ops, ParameterId, ParameterStore, UpdateRule};
use sppo_plugin::{Optimizer, Sharding};
use tch::{Device, Kind};

/// Rows and columns of the weights: parts of unequal lengths, ranks without a part, and a vector.
const SHAPES: [&[usize]; 4] = [&[37, 31], &[129, 64], &[3, 5], &[31]];
const STEPS: u64 = 3;

/// All bits of the weights and of the optimiser's state, as files would hold them, and the norms.
type Outcome = (Vec<Vec<u32>>, Vec<Vec<u32>>, Vec<u64>);

pub(crate) fn check(group: &Rc<ProcessGroup>) -> GroupResult<()> {
    let adam_w = Optimizer::AdamW { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.1 };
    for optimizer in [Optimizer::default(), adam_w] {
        for kind in [Kind::Float, Kind::BFloat16] {
            let [expected, optimizer_divided, gradients_divided] =
                [Sharding::None, Sharding::Optimizer, Sharding::Gradients]
                    .map(|sharding| trained(group, kind, sharding, &optimizer));
            assert!(optimizer_divided == expected, "{kind:?} {optimizer:?}");
            assert!(gradients_divided == expected, "{kind:?} {optimizer:?}");
        }
    }
    Ok(())
}

fn trained(
    group: &Rc<ProcessGroup>,
    compute_dtype: Kind,
    sharding: Sharding,
    optimizer: &Optimizer,
) -> Outcome {
    let options =
        TchOptions { device: Device::Cpu, compute_dtype, threads: 1, keep_logits_limit: 0 };
    let ops = TchOps::new(&options).unwrap().divided(Rc::clone(group), sharding);
    let mut parameters = ParameterStore::default();
    let ids: Vec<ParameterId> = SHAPES
        .iter()
        .enumerate()
        .map(|(number, shape)| {
            let values = noise(shape.iter().product(), number as u64);
            let (name, shape) = (number.to_string(), shape.to_vec());
            match number {
                0 => parameters.push_table(&ops, name, shape, values, true),
                _ => parameters.push(&ops, name, shape, values, true),
            }
            .unwrap()
        })
        .collect();
    let mut norms = Vec::new();
    for step in 1..=STEPS {
        backward(group, &ops, &mut parameters, &ids, step);
        ops.sum_gradients(&mut parameters).unwrap();
        let squares = parameters.entries().iter();
        let squares: f64 =
            squares.map(|entry| ops.gradient_square_sum(&entry.value).unwrap()).sum();
        norms.push(squares.to_bits());
        // Clipped, so that a norm of other bits changes the weights.
        let gradient_scale = 0.5 / squares.sqrt();
        let optimizer = optimizer.clone();
        let rule = UpdateRule { optimizer, learning_rate: 0.01, gradient_scale, step };
        for entry in parameters.entries_mut() {
            ops.update(&mut entry.value, &rule).unwrap();
            ops.clear_gradient(&mut entry.value).unwrap();
        }
        ops.share_updates(&mut parameters, Ok(())).unwrap();
    }
    require_replicas(group, &ops, &parameters);
    let (mut values, mut state) = (Vec::new(), Vec::new());
    for entry in parameters.entries() {
        values.push(bits(&ops.gather_values(&entry.value).unwrap()));
        state.extend(ops.gather_state(&entry.value).unwrap().iter().map(|state| bits(state)));
    }
    (values, state, norms)
}

/// A backward pass of every rank but the last, which has no part of the batch in the second step.
fn backward(
    group: &Rc<ProcessGroup>,
    ops: &TchOps,
    parameters: &mut ParameterStore<TchOps>,
    ids: &[ParameterId],
    step: u64,
) {
    let rank = group.rank() as u64;
    let is_idle = step == 2 && group.rank() + 1 == group.size();
    for (&id, shape) in ids.iter().zip(SHAPES).rev().filter(|_| !is_idle) {
        let seed = 1000 * step + 100 * rank + id.index() as u64;
        let columns = *shape.last().unwrap();
        let rows = shape.iter().product::<usize>() / columns;
        let gradient = ops.tensor(noise(rows * columns, seed), rows, columns).unwrap();
        let weight = parameters.get_mut(id);
        if shape.len() == 1 {
            let x = ops.tensor(noise(columns, seed + 50), 1, columns).unwrap();
            ops.rms_norm_backward(&x, weight, 1e-6, 0.0, &gradient).unwrap();
        } else {
            let tokens: Vec<u32> = (0..rows as u32).collect();
            ops.embedding_backward(weight, &tokens, &gradient).unwrap();
        }
        ops.gradient_is_complete(parameters, id).unwrap();
    }
    ops.end_backward(parameters, Ok(())).unwrap();
}

/// All ranks compute with the same weights.
fn require_replicas(group: &ProcessGroup, ops: &TchOps, parameters: &ParameterStore<TchOps>) {
    let mut own = Vec::new();
    for entry in parameters.entries() {
        let columns = *entry.shape.last().unwrap();
        let x = ops.tensor(noise(columns, 9), 1, columns).unwrap();
        let made = match entry.shape.len() {
            1 => ops.rms_norm(&x, &entry.value, 1e-6, 0.0),
            _ => ops.linear(&x, &entry.value, None),
        };
        own.extend(
            ops.values(&made.unwrap()).unwrap().iter().flat_map(|value| value.to_le_bytes()),
        );
    }
    let all = group.all_gather_bytes(&own).unwrap();
    assert!(all.iter().all(|other| *other == own));
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Numbers from -1 to 1 that look drawn at random.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let number = |place: u64| {
        let mixed = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ place.wrapping_mul(0xd6e8_feb8_6659_fd93);
        let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        (mixed >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count as u64).map(number).collect()
}
