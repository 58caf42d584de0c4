// NCCL's process group, in a library of its own that is opened after libtorch_cuda: so the plugin itself
// needs no CUDA to be built or loaded. `backend-tch/build-nccl` compiles it.

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

// Stores a new group in `result` and returns null, or returns what went wrong, to be freed by `free`.
extern "C" char *sppo_nccl_new(c10d::Backend **result, c10d::Store *store, int rank, int size, int device,
                               int64_t timeout_ms) noexcept {
  try {
    // The plugin itself waits, with time-outs, and tells what happened; NCCL's watchdog would end the
    // process. Who wants that sets the variables.
    setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0", /*overwrite=*/0);
    setenv("TORCH_NCCL_ENABLE_MONITORING", "0", /*overwrite=*/0);
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = std::chrono::milliseconds(timeout_ms);
    auto shared = c10::intrusive_ptr<c10d::Store>::unsafe_reclaim_from_nonowning(store);
    auto named = c10::make_intrusive<c10d::PrefixStore>("cuda", std::move(shared));
    auto group = c10::make_intrusive<c10d::ProcessGroupNCCL>(std::move(named), rank, size, options);
    const at::Device bound(at::kCUDA, static_cast<c10::DeviceIndex>(device));
    group->setBoundDeviceId(bound);
    // All ranks are here now; at the first operation one of them may be gone.
    group->eagerConnectSingleDevice(bound);
    *result = group.release();
    return nullptr;
  } catch (const c10::Error &error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception &error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("an exception of an unknown kind");
  }
}
