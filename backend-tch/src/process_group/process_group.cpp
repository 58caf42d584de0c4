// torch.distributed's building blocks as libtorch ships them: the store over TCP in which processes find
// each other, and the process group of gloo. All that throws is caught here and becomes a text, to be freed
// by `free`; null means success.

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace {

using std::chrono::milliseconds;
using StoreReference = c10::intrusive_ptr<c10d::Store>;
using EngineReference = c10::intrusive_ptr<c10d::Backend>;
using WorkReference = c10::intrusive_ptr<c10d::Work>;

template <typename Work> char *guarded(Work work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const c10::Error &error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception &error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("an exception of an unknown kind");
  }
}

// Opened by whoever completes an operation.
struct Latch {
  std::mutex mutex;
  std::condition_variable opened;
  bool open = false;

  void release() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      open = true;
    }
    opened.notify_all();
  }

  bool wait(milliseconds patience) {
    std::unique_lock<std::mutex> lock(mutex);
    return opened.wait_for(lock, patience, [&] { return open; });
  }
};

} // namespace

// An operation under way.
struct Operation {
  WorkReference work;
  // Absent on CUDA devices: there the future says only that the kernels are queued.
  std::shared_ptr<Latch> latch;
};

namespace {

Operation *started(WorkReference work, bool on_cpu) {
  if (!on_cpu) {
    return new Operation{std::move(work), nullptr};
  }
  auto latch = std::make_shared<Latch>();
  work->getFuture()->addCallback([latch](c10::ivalue::Future &) { latch->release(); });
  return new Operation{std::move(work), std::move(latch)};
}

bool is_over(const Operation &operation, milliseconds patience) {
  if (operation.latch != nullptr) {
    return operation.latch->wait(patience);
  }
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (!operation.work->isCompleted()) {
    if (std::chrono::steady_clock::now() >= deadline) {
      return false;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return true;
}

std::shared_ptr<::gloo::transport::Device> device_at(const char *address) {
  return c10d::ProcessGroupGloo::createDeviceForHostname(address);
}

} // namespace

extern "C" {

// c10d writes call stacks to standard error while it tries again, although what matters comes back as an
// error. Who wants them sets TORCH_CPP_LOG_LEVEL.
void sppo_quiet_logs() noexcept {
  if (getenv("TORCH_CPP_LOG_LEVEL") == nullptr) {
    setenv("TORCH_CPP_LOG_LEVEL", "FATAL", /*overwrite=*/0);
  }
  (void)guarded([] { c10::initLogging(); });
}

// Serves a store on `listener`, a socket that listens at `host`:`port` and now belongs to the store.
char *sppo_store_serve(c10d::Store **result, const char *host, uint16_t port, int listener,
                       int64_t timeout_ms) noexcept {
  return guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = true;
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout_ms);
    options.masterListenFd = listener;
    *result = c10::make_intrusive<c10d::TCPStore>(host, options).release();
  });
}

char *sppo_store_connect(c10d::Store **result, const char *host, uint16_t port, int64_t timeout_ms) noexcept {
  return guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout_ms);
    *result = c10::make_intrusive<c10d::TCPStore>(host, options).release();
  });
}

char *sppo_store_set(c10d::Store *store, const char *key, const uint8_t *bytes, size_t length) noexcept {
  return guarded([&] { store->set(key, std::vector<uint8_t>(bytes, bytes + length)); });
}

// Adds to a number, which begins as 0, and tells the sum.
char *sppo_store_add(c10d::Store *store, const char *key, int64_t addend, int64_t *sum) noexcept {
  return guarded([&] { *sum = store->add(key, addend); });
}

char *sppo_store_has(c10d::Store *store, const char *key, bool *found) noexcept {
  return guarded([&] { *found = store->check({key}); });
}

// The bytes of a key that is there, to be freed by `free`.
char *sppo_store_get(c10d::Store *store, const char *key, uint8_t **bytes, size_t *length) noexcept {
  return guarded([&] {
    const auto value = store->get(key);
    *bytes = static_cast<uint8_t *>(malloc(value.empty() ? 1 : value.size()));
    if (*bytes == nullptr) {
      throw std::bad_alloc();
    }
    std::memcpy(*bytes, value.data(), value.size());
    *length = value.size();
  });
}

void sppo_store_free(c10d::Store *store) noexcept {
  (void)guarded([&] { StoreReference::reclaim(store).reset(); });
}

// A group of gloo among `size` processes that call this with the same `name`. Connecting may take
// `connect_ms`, each operation later `timeout_ms`. Listens at `address`.
char *sppo_gloo_new(c10d::Backend **result, c10d::Store *store, const char *name, int rank, int size,
                    const char *address, int threads, int64_t connect_ms, int64_t timeout_ms) noexcept {
  return guarded([&] {
    auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(connect_ms));
    options->devices.push_back(device_at(address));
    options->threads = threads;
    auto shared = StoreReference::unsafe_reclaim_from_nonowning(store);
    auto named = c10::make_intrusive<c10d::PrefixStore>(name, std::move(shared));
    EngineReference engine = c10::make_intrusive<c10d::ProcessGroupGloo>(named, rank, size, options);
    engine->setTimeout(milliseconds(timeout_ms));
    *result = engine.release();
  });
}

// Waits for operations under way, and disconnects.
void sppo_engine_free(c10d::Backend *engine) noexcept {
  (void)guarded([&] { EngineReference::reclaim(engine).reset(); });
}

// The tensor becomes the sum of all ranks' tensors.
char *sppo_all_reduce(Operation **result, c10d::Backend *engine, const at::Tensor *tensor) noexcept {
  return guarded([&] {
    std::vector<at::Tensor> tensors{*tensor};
    *result = started(engine->allreduce(tensors), tensor->is_cpu());
  });
}

// `whole` becomes the `shard`s of all ranks, one after another along dimension 0. `shard` may be a part of it.
char *sppo_all_gather(Operation **result, c10d::Backend *engine, const at::Tensor *whole,
                      const at::Tensor *shard) noexcept {
  return guarded([&] {
    at::Tensor output = *whole;
    at::Tensor input = *shard;
    *result = started(engine->_allgather_base(output, input), whole->is_cpu());
  });
}

// The tensor becomes that of `root`.
char *sppo_broadcast(Operation **result, c10d::Backend *engine, const at::Tensor *tensor, int root) noexcept {
  return guarded([&] {
    std::vector<at::Tensor> tensors{*tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    *result = started(engine->broadcast(tensors, options), tensor->is_cpu());
  });
}

// Waits so long at most; `done` tells whether the operation is over, well or badly.
char *sppo_operation_wait(Operation *operation, int64_t patience_ms, bool *done) noexcept {
  return guarded([&] {
    *done = is_over(*operation, milliseconds(patience_ms));
    if (*done) {
      operation->work->wait();
    }
  });
}

// An operation that is still under way goes on, and keeps its tensors' memory as long as it does.
void sppo_operation_free(Operation *operation) noexcept {
  (void)guarded([&] { delete operation; });
}

} // extern "C"
