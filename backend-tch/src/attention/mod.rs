//! Attention: over a packed batch, over the key-value cache, and in encoders.
//!
//! The keys that a query sees are attended to in parts, each by itself; parts are then merged by their
//! log-sum-exps. With the parts' outputs `o_i` and log-sum-exps `l_i`:
//!
//! ```text
//! l = log(sum_i exp(l_i))        o = sum_i exp(l_i - l) o_i
//! ```
//!
//! So no key is copied. Backward, a part needs only the whole's `o` and `l`.
//!
//! The key-value cache is one pair of tensors per layer, each `[slots, key-value heads * size]`. Each
//! decoding row takes pages of slots for its own keys as it grows (`CachedRow::own`), beginning at a multiple of
//! `d` slots; prompts follow, and all responses to a prompt see the same slots of it (`CachedRow::prefix`). Where
//! the pages of all rows follow each other:
//!
//! ```text
//! slot  0            d            2 d          3 d                    r d
//!       | row 0      | row 1      | (unused)   | row 3      | ...     | prompt | prompt   | free
//!         own | free   own | free                own | free
//!
//! own keys of all rows as one strided view:  [span, head, key, size]
//! with the strides                           [d heads size, size, heads size, 1]
//! ```

pub(crate) mod cached;
pub(crate) mod disentangled;
pub(crate) mod packed;
mod part;
mod slots;
mod varlen;
