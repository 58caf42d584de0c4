//! The forward pass that may be recorded, and the backward pass over the recording.
//!
//! A [`Graph`] runs ops. In inference it only computes. When recording, each op whose result depends
//! on a trainable weight leaves a node that holds what its backward needs; [`Tape::backward`] then
//! walks the nodes in reverse, freeing each as it goes.

use std::sync::Arc;

use super::random::mix;
use super::{
    Activation, AttentionOutput, AttentionSegment, AttentionShape, CachedRow, Ops, ParameterId,
    ParameterStore, Position, RotaryFrequencies, Routes, Routing,
};
use crate::error::{ModelError, Result};

/// The gradient of an activation is kept at this index during the backward pass.
type GradientIndex = usize;

/// The result of an op.
#[derive(Clone, Debug)]
pub struct Variable<T> {
    value: T,
    /// `None` when no gradient is wanted.
    gradient: Option<GradientIndex>,
}

impl<T> Variable<T> {
    /// The computed activation.
    pub fn value(&self) -> &T {
        &self.value
    }
}

/// An op, its operands, and what its backward needs.
enum Operation<O: Ops> {
    Embedding { table: ParameterId, tokens: Arc<[u32]> },
    Linear { x: Value<O>, weight: ParameterId, bias: Option<ParameterId> },
    RmsNorm { x: Value<O>, weight: ParameterId, epsilon: f32, offset: f32 },
    Rotary { x: GradientIndex, positions: Arc<[Position]>, frequencies: Arc<RotaryFrequencies> },
    Attention(Box<AttentionNode<O::Tensor>>),
    GatedActivation { gate: Value<O>, up: Value<O>, activation: Activation },
    Add { a: Option<GradientIndex>, b: Option<GradientIndex> },
    Scale { x: GradientIndex, factor: f32 },
    Mixture { parts: Vec<Value<O>>, logits: Option<GradientIndex>, routes: Arc<Routes> },
    SelectRows { x: GradientIndex, rows: Arc<[u32]>, row_count: usize },
    Dropout { x: GradientIndex, probability: f32, seed: u64 },
    Recomputed { x: Value<O>, adapters: AdapterUse, block: Block<O> },
}

type Value<O> = Variable<<O as Ops>::Tensor>;

/// Ops that are run once without a recording, and once more when their backward pass comes.
type Block<O> = Box<dyn Fn(&mut Graph<'_, O>, &Value<O>) -> Result<Value<O>> + Send + Sync>;

struct AttentionNode<T> {
    operands: [Variable<T>; 3],
    forward: AttentionOutput<T>,
    shape: AttentionShape,
    segments: Arc<[AttentionSegment]>,
}

struct Node<O: Ops> {
    output: GradientIndex,
    operation: Operation<O>,
}

/// The last op: where the backward pass begins.
struct Head<T> {
    hidden: Variable<T>,
    weight: ParameterId,
    targets: Arc<[u32]>,
    soft_cap: Option<f32>,
    kept: Option<T>,
}

/// A recorded forward pass that ended in log-probabilities.
pub struct Tape<O: Ops> {
    nodes: Vec<Node<O>>,
    gradient_count: usize,
    head: Option<Head<O::Tensor>>,
}

/// Runs ops on the weights of a model, recording them or not.
pub struct Graph<'a, O: Ops> {
    ops: &'a O,
    parameters: &'a ParameterStore<O>,
    tape: Option<Tape<O>>,
    adapters: AdapterUse,
}

/// Use of low-rank adapters in a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterUse {
    /// They are left out: the model is the one that they were made for.
    Off,
    /// They are applied.
    On,
    /// They are applied, and dropout leaves out what this seed draws.
    Training {
        /// Differs between passes.
        dropout_seed: u64,
    },
}

impl<'a, O: Ops> Graph<'a, O> {
    /// A graph that only computes: results are freed as soon as they are dropped.
    pub fn inference(ops: &'a O, parameters: &'a ParameterStore<O>) -> Self {
        Self { ops, parameters, tape: None, adapters: AdapterUse::On }
    }

    /// A graph that records what a backward pass needs.
    pub fn recording(ops: &'a O, parameters: &'a ParameterStore<O>) -> Self {
        let tape = Tape { nodes: Vec::new(), gradient_count: 0, head: None };
        Self { ops, parameters, tape: Some(tape), adapters: AdapterUse::On }
    }

    /// Sets the use of low-rank adapters.
    #[must_use]
    pub fn with_adapters(mut self, adapters: AdapterUse) -> Self {
        self.adapters = adapters;
        self
    }

    /// Whether low-rank adapters are applied.
    #[must_use]
    pub fn uses_adapters(&self) -> bool {
        self.adapters != AdapterUse::Off
    }

    /// The recording, if there is one.
    #[must_use]
    pub fn into_tape(self) -> Option<Tape<O>> {
        self.tape
    }

    /// The op set.
    #[must_use]
    pub fn ops(&self) -> &'a O {
        self.ops
    }

    /// Wraps the result of an op; records the op if its result wants a gradient.
    fn variable(
        &mut self,
        value: O::Tensor,
        wants_gradient: bool,
        operation: impl FnOnce() -> Option<Operation<O>>,
    ) -> Variable<O::Tensor> {
        let recorded = match &mut self.tape {
            Some(tape) if wants_gradient => operation().map(|operation| (tape, operation)),
            _ => None,
        };
        let Some((tape, operation)) = recorded else { return Variable { value, gradient: None } };
        let output = tape.gradient_count;
        tape.gradient_count += 1;
        tape.nodes.push(Node { output, operation });
        Variable { value, gradient: Some(output) }
    }

    /// Rows of the table, `[tokens, features]`.
    ///
    /// # Errors
    /// When the tensor library fails; so for every op below.
    pub fn embedding(
        &mut self,
        table: ParameterId,
        tokens: &Arc<[u32]>,
    ) -> Result<Variable<O::Tensor>> {
        let value = self.ops.embedding(self.parameters.get(table), tokens)?;
        let trainable = self.parameters.is_trainable(table);
        Ok(self.variable(value, trainable, || {
            Some(Operation::Embedding { table, tokens: tokens.clone() })
        }))
    }

    /// `x weight^T (+ bias)`.
    pub fn linear(
        &mut self,
        x: &Variable<O::Tensor>,
        weight: ParameterId,
        bias: Option<ParameterId>,
    ) -> Result<Variable<O::Tensor>> {
        let bias_value = bias.map(|bias| self.parameters.get(bias));
        let value = self.ops.linear(&x.value, self.parameters.get(weight), bias_value)?;
        Ok(self.linear_variable(value, x, weight, bias))
    }

    /// [`linear`](Self::linear) with each of these weights, and its bias.
    pub fn linears<const N: usize>(
        &mut self,
        x: &Variable<O::Tensor>,
        weights: [(ParameterId, Option<ParameterId>); N],
    ) -> Result<[Variable<O::Tensor>; N]> {
        let parameters = self.parameters;
        let values = weights
            .map(|(weight, bias)| (parameters.get(weight), bias.map(|bias| parameters.get(bias))));
        let products = self.ops.linears(&x.value, &values)?;
        let products: [O::Tensor; N] = products.try_into().map_err(|products: Vec<_>| {
            let made = products.len();
            ModelError::Backend(format!("{made} products were made with {N} weights"))
        })?;
        let mut weights = weights.into_iter();
        Ok(products.map(|product| match weights.next() {
            Some((weight, bias)) => self.linear_variable(product, x, weight, bias),
            // there are as many weights as products
            None => Variable { value: product, gradient: None },
        }))
    }

    fn linear_variable(
        &mut self,
        product: O::Tensor,
        x: &Variable<O::Tensor>,
        weight: ParameterId,
        bias: Option<ParameterId>,
    ) -> Variable<O::Tensor> {
        let trainable = self.parameters.is_trainable(weight)
            || bias.is_some_and(|bias| self.parameters.is_trainable(bias));
        self.variable(product, trainable || x.gradient.is_some(), || {
            Some(Operation::Linear { x: x.clone(), weight, bias })
        })
    }

    /// Root-mean-square normalisation over groups of the weight's length.
    pub fn rms_norm(
        &mut self,
        x: &Variable<O::Tensor>,
        weight: ParameterId,
        epsilon: f32,
        offset: f32,
    ) -> Result<Variable<O::Tensor>> {
        let value = self.ops.rms_norm(&x.value, self.parameters.get(weight), epsilon, offset)?;
        let trainable = self.parameters.is_trainable(weight);
        Ok(self.variable(value, trainable || x.gradient.is_some(), || {
            Some(Operation::RmsNorm { x: x.clone(), weight, epsilon, offset })
        }))
    }

    /// Turns every head of every row by its position's angles.
    pub fn rotary(
        &mut self,
        x: &Variable<O::Tensor>,
        positions: &Arc<[Position]>,
        frequencies: &Arc<RotaryFrequencies>,
    ) -> Result<Variable<O::Tensor>> {
        let value = self.ops.rotary(&x.value, positions, frequencies)?;
        Ok(self.variable(value, true, || {
            let (positions, frequencies) = (positions.clone(), frequencies.clone());
            x.gradient.map(|x| Operation::Rotary { x, positions, frequencies })
        }))
    }

    /// Causal attention over packed segments; operands are queries, keys and values.
    pub fn attention(
        &mut self,
        operands: [&Variable<O::Tensor>; 3],
        shape: &AttentionShape,
        segments: &Arc<[AttentionSegment]>,
    ) -> Result<Variable<O::Tensor>> {
        let [queries, keys, values] = operands.map(|operand| &operand.value);
        let forward = self.ops.attention(queries, keys, values, shape, segments)?;
        let wants_gradient = operands.iter().any(|operand| operand.gradient.is_some());
        Ok(self.variable(forward.output.clone(), wants_gradient, || {
            let (shape, segments) = (shape.clone(), segments.clone());
            let operands = operands.map(Variable::clone);
            let node = AttentionNode { operands, forward, shape, segments };
            Some(Operation::Attention(Box::new(node)))
        }))
    }

    /// Attention of one query row per entry of `rows` over a cache; not recorded.
    pub fn cached_attention(
        &self,
        queries: &Variable<O::Tensor>,
        cache: &O::Cache,
        layer: usize,
        shape: &AttentionShape,
        rows: &[CachedRow],
    ) -> Result<Variable<O::Tensor>> {
        let value = self.ops.cached_attention(&queries.value, cache, layer, shape, rows)?;
        Ok(Variable { value, gradient: None })
    }

    /// `activation(gate) * up`.
    pub fn gated_activation(
        &mut self,
        gate: &Variable<O::Tensor>,
        up: &Variable<O::Tensor>,
        activation: Activation,
    ) -> Result<Variable<O::Tensor>> {
        let value = self.ops.gated_activation(&gate.value, &up.value, activation)?;
        let wants_gradient = gate.gradient.is_some() || up.gradient.is_some();
        Ok(self.variable(value, wants_gradient, || {
            Some(Operation::GatedActivation { gate: gate.clone(), up: up.clone(), activation })
        }))
    }

    /// `a + b`.
    pub fn add(
        &mut self,
        a: &Variable<O::Tensor>,
        b: &Variable<O::Tensor>,
    ) -> Result<Variable<O::Tensor>> {
        let value = self.ops.add(&a.value, &b.value)?;
        let wants_gradient = a.gradient.is_some() || b.gradient.is_some();
        Ok(self.variable(value, wants_gradient, || {
            Some(Operation::Add { a: a.gradient, b: b.gradient })
        }))
    }

    /// `factor * x`.
    pub fn scale(&mut self, x: &Variable<O::Tensor>, factor: f32) -> Result<Variable<O::Tensor>> {
        let value = self.ops.scale(&x.value, factor)?;
        Ok(self.variable(value, true, || x.gradient.map(|x| Operation::Scale { x, factor })))
    }

    /// The given rows of `x`, in order.
    pub fn select_rows(
        &mut self,
        x: &Variable<O::Tensor>,
        rows: &Arc<[u32]>,
    ) -> Result<Variable<O::Tensor>> {
        let value = self.ops.select_rows(&x.value, rows)?;
        let row_count = self.ops.shape(&x.value).0;
        Ok(self.variable(value, true, || {
            x.gradient.map(|x| Operation::SelectRows { x, rows: rows.clone(), row_count })
        }))
    }

    /// Each row of `x` through the experts that its router's logits choose, `expert` being what one of them
    /// does to its rows. Rows are grouped by expert.
    pub fn mixture(
        &mut self,
        x: &Value<O>,
        logits: &Value<O>,
        routing: Routing,
        mut expert: impl FnMut(&mut Self, usize, &Value<O>) -> Result<Value<O>>,
    ) -> Result<Value<O>> {
        let values = self.ops.values(&logits.value)?;
        let routes = Arc::new(Routes::choose(&values, routing, self.tape.is_some()));
        let mut parts = Vec::with_capacity(routes.experts.len());
        for chosen in &routes.experts {
            let rows = self.select_rows(x, &chosen.rows.as_slice().into())?;
            parts.push(expert(self, chosen.expert, &rows)?);
        }
        let tensors: Vec<&O::Tensor> = parts.iter().map(|part| &part.value).collect();
        let value = self.ops.mixture(&tensors, &routes)?;
        let logits = logits.gradient;
        let wants_gradient = logits.is_some() || parts.iter().any(|part| part.gradient.is_some());
        Ok(self
            .variable(value, wants_gradient, || Some(Operation::Mixture { parts, logits, routes })))
    }

    /// While training, `x` with features left out at random, which ones depending on the pass and on
    /// `place`; otherwise `x`.
    pub fn dropout(
        &mut self,
        x: &Variable<O::Tensor>,
        probability: f32,
        place: u64,
    ) -> Result<Variable<O::Tensor>> {
        let AdapterUse::Training { dropout_seed } = self.adapters else { return Ok(x.clone()) };
        if probability == 0.0 {
            return Ok(x.clone());
        }
        let seed = mix(dropout_seed, place);
        let value = self.ops.dropout(&x.value, probability, seed)?;
        Ok(self.variable(value, true, || {
            x.gradient.map(|x| Operation::Dropout { x, probability, seed })
        }))
    }

    /// Runs `block` on `x`. A recording keeps `x` alone, and runs the block once more when its backward
    /// pass comes: less memory for more time, and the same gradients.
    pub fn recomputed(
        &mut self,
        x: &Value<O>,
        block: impl Fn(&mut Graph<'_, O>, &Value<O>) -> Result<Value<O>> + Send + Sync + 'static,
    ) -> Result<Value<O>> {
        if self.tape.is_none() {
            return block(self, x);
        }
        let adapters = self.adapters;
        let mut inference = Graph::inference(self.ops, self.parameters).with_adapters(adapters);
        let input = Variable { value: x.value.clone(), gradient: None };
        let value = block(&mut inference, &input)?.value;
        Ok(self.variable(value, true, || {
            Some(Operation::Recomputed { x: x.clone(), adapters, block: Box::new(block) })
        }))
    }

    /// Log-probability of `targets[i]` after row `i`; the end of a recording.
    pub fn token_log_probs(
        &mut self,
        hidden: Variable<O::Tensor>,
        weight: ParameterId,
        targets: &Arc<[u32]>,
        soft_cap: Option<f32>,
    ) -> Result<Vec<f32>> {
        let head = self.parameters.get(weight);
        let keep = self.tape.is_some();
        let (log_probs, kept) =
            self.ops.token_log_probs(&hidden.value, head, targets, soft_cap, keep)?;
        if let Some(tape) = &mut self.tape {
            tape.head = Some(Head { hidden, weight, targets: targets.clone(), soft_cap, kept });
        }
        Ok(log_probs)
    }

    /// All logits, `[rows, vocabulary]`; not recorded.
    pub fn logits(
        &self,
        hidden: &Variable<O::Tensor>,
        weight: ParameterId,
        soft_cap: Option<f32>,
    ) -> Result<O::Tensor> {
        self.ops.logits(&hidden.value, self.parameters.get(weight), soft_cap)
    }
}

/// Gradients of activations during a backward pass.
struct Gradients<T>(Vec<Option<T>>);

impl<T: Clone> Gradients<T> {
    /// Adds to the gradient of an activation that wants one.
    fn add<O: Ops<Tensor = T>>(
        &mut self,
        ops: &O,
        index: Option<GradientIndex>,
        gradient: T,
    ) -> Result<()> {
        let Some(slot) = index.and_then(|index| self.0.get_mut(index)) else { return Ok(()) };
        *slot = Some(match slot.take() {
            Some(sum) => ops.add(&sum, &gradient)?,
            None => gradient,
        });
        Ok(())
    }
}

impl<O: Ops> Tape<O> {
    /// Adds the gradient of `sum_i coefficients[i] * log_prob[i]` to every trainable parameter.
    ///
    /// # Errors
    /// When the recording did not end in log-probabilities, the number of coefficients is not theirs,
    /// or the tensor library fails.
    pub fn backward(
        mut self,
        ops: &O,
        parameters: &mut ParameterStore<O>,
        coefficients: &[f32],
    ) -> Result<()> {
        let head = self.head.take().filter(|head| head.targets.len() == coefficients.len());
        let Some(Head { hidden, weight, targets, soft_cap, kept }) = head else {
            return Err(ModelError::Input(format!(
                "{} coefficients do not fit the recorded forward pass",
                coefficients.len()
            )));
        };
        let mut gradients = Gradients((0..self.gradient_count).map(|_| None).collect());
        let mut uses = Uses::default();
        uses.add(weight);
        self.count_uses(&mut uses);
        let head = parameters.get_mut(weight);
        let of_hidden = ops.token_log_probs_backward(
            &hidden.value,
            head,
            &targets,
            soft_cap,
            kept,
            coefficients,
        )?;
        gradients.add(ops, hidden.gradient, of_hidden)?;
        drop(hidden);
        uses.visited(ops, parameters, weight)?;
        self.walk(ops, parameters, &mut gradients, &mut uses)
    }

    fn count_uses(&self, uses: &mut Uses) {
        let weights = self.nodes.iter().flat_map(|node| node.operation.weights());
        weights.flatten().for_each(|weight| uses.add(weight));
    }

    /// Visits the nodes from the last to the first, freeing each.
    fn walk(
        mut self,
        ops: &O,
        parameters: &mut ParameterStore<O>,
        gradients: &mut Gradients<O::Tensor>,
        uses: &mut Uses,
    ) -> Result<()> {
        while let Some(Node { output, operation }) = self.nodes.pop() {
            let weights = operation.weights();
            if let Some(gradient) = gradients.0[output].take() {
                operation.backward(ops, parameters, gradient, gradients, uses)?;
            }
            for weight in weights.into_iter().flatten() {
                uses.visited(ops, parameters, weight)?;
            }
        }
        Ok(())
    }
}

/// Uses of each weight that a backward pass has still to visit.
#[derive(Default)]
struct Uses(Vec<usize>);

impl Uses {
    fn add(&mut self, weight: ParameterId) {
        let index = weight.index();
        if self.0.len() <= index {
            self.0.resize(index + 1, 0);
        }
        self.0[index] += 1;
    }

    /// After the last use of a weight its gradient is complete.
    fn visited<O: Ops>(
        &mut self,
        ops: &O,
        parameters: &mut ParameterStore<O>,
        weight: ParameterId,
    ) -> Result<()> {
        self.0[weight.index()] -= 1;
        if self.0[weight.index()] > 0 || !parameters.is_trainable(weight) {
            return Ok(());
        }
        ops.gradient_is_complete(parameters, weight)
    }
}

impl<O: Ops> Operation<O> {
    /// Weights that the op itself uses; those of a block are known when it is run again.
    fn weights(&self) -> [Option<ParameterId>; 2] {
        match self {
            Self::Embedding { table, .. } => [Some(*table), None],
            Self::Linear { weight, bias, .. } => [Some(*weight), *bias],
            Self::RmsNorm { weight, .. } => [Some(*weight), None],
            _ => [None, None],
        }
    }

    /// Chain rule: given the gradient of the op's output, adds the op's vector-Jacobian products to the
    /// gradients of its operands, and those of weights to the weights themselves.
    fn backward(
        self,
        ops: &O,
        parameters: &mut ParameterStore<O>,
        gradient: O::Tensor,
        gradients: &mut Gradients<O::Tensor>,
        uses: &mut Uses,
    ) -> Result<()> {
        match self {
            Self::Embedding { table, tokens } => {
                ops.embedding_backward(parameters.get_mut(table), &tokens, &gradient)
            }
            Self::Linear { x, weight, bias } => {
                let (weight, bias) = parameters.pair_mut(weight, bias);
                let of_x = ops.linear_backward(&x.value, weight, bias, &gradient)?;
                gradients.add(ops, x.gradient, of_x)
            }
            Self::RmsNorm { x, weight, epsilon, offset } => {
                let weight = parameters.get_mut(weight);
                let of_x = ops.rms_norm_backward(&x.value, weight, epsilon, offset, &gradient)?;
                gradients.add(ops, x.gradient, of_x)
            }
            Self::Rotary { x, positions, frequencies } => gradients.add(
                ops,
                Some(x),
                ops.rotary_backward(&positions, &frequencies, &gradient)?,
            ),
            Self::Attention(node) => node.backward(ops, &gradient, gradients),
            Self::Recomputed { x, adapters, block } => {
                let again = Again { x: &x, adapters, block: &block };
                let of_x = again.backward(ops, parameters, gradient, uses)?;
                of_x.map_or(Ok(()), |of_x| gradients.add(ops, x.gradient, of_x))
            }
            Self::GatedActivation { gate, up, activation } => {
                let [of_gate, of_up] =
                    ops.gated_activation_backward(&gate.value, &up.value, activation, &gradient)?;
                gradients.add(ops, gate.gradient, of_gate)?;
                gradients.add(ops, up.gradient, of_up)
            }
            Self::Add { a, b } => {
                gradients.add(ops, a, gradient.clone())?;
                gradients.add(ops, b, gradient)
            }
            Self::Scale { x, factor } => gradients.add(ops, Some(x), ops.scale(&gradient, factor)?),
            Self::Mixture { parts, logits, routes } => {
                let tensors: Vec<&O::Tensor> = parts.iter().map(|part| &part.value).collect();
                let of_operands = ops.mixture_backward(&tensors, &routes, &gradient)?;
                for (part, of_part) in parts.iter().zip(of_operands.of_parts) {
                    gradients.add(ops, part.gradient, of_part)?;
                }
                if logits.is_some() {
                    let of_logits = routes.logits_gradient(&of_operands.of_weights);
                    let experts = of_logits.len() / routes.row_count.max(1);
                    let of_logits = ops.tensor(of_logits, routes.row_count, experts)?;
                    gradients.add(ops, logits, of_logits)?;
                }
                Ok(())
            }
            Self::SelectRows { x, rows, row_count } => {
                let of_x = ops.select_rows_backward(&rows, row_count, &gradient)?;
                gradients.add(ops, Some(x), of_x)
            }
            Self::Dropout { x, probability, seed } => {
                let of_x = ops.dropout(&gradient, probability, seed)?;
                gradients.add(ops, Some(x), of_x)
            }
        }
    }
}

/// A block that is run again for its gradients.
struct Again<'a, O: Ops> {
    x: &'a Value<O>,
    adapters: AdapterUse,
    block: &'a Block<O>,
}

impl<O: Ops> Again<'_, O> {
    /// Runs the block once more with a tape of its own, whose gradient 0 is that of the input, and walks that
    /// tape back from `gradient`. Returns the gradient of `x`, where one is wanted.
    fn backward(
        &self,
        ops: &O,
        parameters: &mut ParameterStore<O>,
        gradient: O::Tensor,
        uses: &mut Uses,
    ) -> Result<Option<O::Tensor>> {
        const INPUT: GradientIndex = 0;
        let Self { x, adapters, block } = self;
        let mut graph = Graph::recording(ops, parameters).with_adapters(*adapters);
        let input = Variable { value: x.value.clone(), gradient: x.gradient.map(|_| INPUT) };
        if let Some(tape) = &mut graph.tape {
            tape.gradient_count = INPUT + 1;
        }
        let output = block(&mut graph, &input)?.gradient;
        let Some(tape) = graph.tape else { return Ok(None) };
        tape.count_uses(uses);
        let mut gradients = Gradients((0..tape.gradient_count).map(|_| None).collect());
        gradients.add(ops, output, gradient)?;
        tape.walk(ops, parameters, &mut gradients, uses)?;
        Ok(gradients.0[INPUT].take())
    }
}

impl<T: Clone> AttentionNode<T> {
    fn backward<O: Ops<Tensor = T>>(
        self,
        ops: &O,
        gradient: &T,
        gradients: &mut Gradients<T>,
    ) -> Result<()> {
        let [queries, keys, values] = &self.operands;
        let of_operands = ops.attention_backward(
            &queries.value,
            &keys.value,
            &values.value,
            &self.forward,
            &self.shape,
            &self.segments,
            gradient,
        )?;
        for (operand, of_operand) in self.operands.iter().zip(of_operands) {
            gradients.add(ops, operand.gradient, of_operand)?;
        }
        Ok(())
    }
}
