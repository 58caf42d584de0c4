// The one kernel of libtorch that attends over sequences of different lengths and returns their
// log-sum-exps in f32 and bf16. The crate tch leaves it out: its signature has symbolic integers.

#include <cstdint>
#include <cstring>
#include <exception>
#include <optional>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_efficient_attention_forward.h>

namespace {

std::optional<at::Tensor> optional(const at::Tensor *tensor) {
  return tensor == nullptr ? std::nullopt : std::optional<at::Tensor>(*tensor);
}

} // namespace

// Stores new tensors in `results` (output, log-sum-exp) and returns null, or returns what went wrong, to
// be freed by `free`.
extern "C" char *sppo_varlen_attention(at::Tensor **results, const at::Tensor *queries,
                                       const at::Tensor *keys, const at::Tensor *values,
                                       const at::Tensor *query_starts, const at::Tensor *key_starts,
                                       const at::Tensor *key_lengths, int64_t longest_queries,
                                       int64_t longest_keys, bool causal, double scale) noexcept {
  try {
    auto [output, log_sum_exp, seed, offset, most_queries, most_keys] = at::_efficient_attention_forward(
        *queries, *keys, *values, std::nullopt, *query_starts, *key_starts, longest_queries, longest_keys,
        /*dropout_p=*/0.0, /*custom_mask_type=*/causal ? 1 : 0, /*compute_log_sumexp=*/true, scale,
        optional(key_lengths), std::nullopt);
    results[0] = new at::Tensor(std::move(output));
    results[1] = new at::Tensor(std::move(log_sum_exp));
    return nullptr;
  } catch (const std::exception &error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("an exception of an unknown kind");
  }
}
