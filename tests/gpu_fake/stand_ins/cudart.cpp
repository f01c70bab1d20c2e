// Stands in for the CUDA 13 runtime, as far as ONNX Runtime's CUDA provider calls it.
//
// Memory is there and holds what is copied to it. Kernels are known by name and do nothing. Captures are counted, and
// what CUDA refuses while a stream captures is refused here, too: the capture is lost, as it is there.
//
//   GPU_JOURNAL=FILE       what happened; see journal.h
//   GPU_MEMORY_BYTES=N     how much memory the device has, by default 80 GiB
//   GPU_COPIED_BYTES=N     larger copies and fills are counted and not made, so that gigabytes of weights cost nothing
#include <cxxabi.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "device.h"
#include "driver_types.h"
#include "journal.h"

namespace {

std::size_t number_from(const char *variable, std::size_t otherwise) {
    const char *text = std::getenv(variable);
    return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

// What a stream was given to do between the two ends of a capture.
struct Graph {
    int number = 0;
    long nodes = 0;
    std::map<std::string, long> operations;
};

struct Capture {
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    bool lost = false;
    Graph graph;
};

class Device {
public:
    cudaError_t allocate(void **place, std::size_t bytes) {
        std::lock_guard lock(mutex_);
        if (is_refused("cudaMalloc")) return cudaErrorStreamCaptureUnsupported;
        bytes = bytes ? bytes : 1;
        if (used_ + bytes > memory_bytes) {
            journal_.note("full", ", \"bytes\": %zu, \"used_bytes\": %zu", bytes, used_);
            return cudaErrorMemoryAllocation;
        }
        void *block = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (block == MAP_FAILED) return cudaErrorMemoryAllocation;
        blocks_[static_cast<char *>(block)] = bytes;
        used_ += bytes;
        journal_.note("allocate", ", \"bytes\": %zu, \"used_bytes\": %zu", bytes, used_);
        *place = block;
        return cudaSuccess;
    }

    cudaError_t release(void *place) {
        std::lock_guard lock(mutex_);
        if (!place) return cudaSuccess;
        if (is_refused("cudaFree")) return cudaErrorStreamCaptureUnsupported;
        auto block = blocks_.find(static_cast<char *>(place));
        if (block == blocks_.end()) return cudaErrorInvalidValue;
        munmap(place, block->second);
        used_ -= block->second;
        journal_.note("release", ", \"bytes\": %zu, \"used_bytes\": %zu", block->second, used_);
        blocks_.erase(block);
        return cudaSuccess;
    }

    std::size_t free_bytes() {
        std::lock_guard lock(mutex_);
        return memory_bytes - used_;
    }

    bool holds(const void *place) {
        std::lock_guard lock(mutex_);
        return is_mine(place);
    }

    // Waits for nothing, since nothing is ever under way. `stream` null: of the whole device, or the legacy stream.
    cudaError_t synchronize(const char *what, void *stream) {
        std::lock_guard lock(mutex_);
        if (stream && captures_.count(stream)) {
            refuse(what, captures_.at(stream));
            return cudaErrorStreamCaptureUnsupported;
        }
        if (!stream && is_refused(what)) return cudaErrorStreamCaptureImplicit;
        journal_.note("synchronize", ", \"what\": \"%s\", \"stream\": %d", what, number_of(stream));
        return cudaSuccess;
    }

    // A copy that the caller waits for, in the legacy stream.
    cudaError_t copy(void *to, const void *from, std::size_t bytes) {
        std::lock_guard lock(mutex_);
        if (is_refused("cudaMemcpy")) return cudaErrorStreamCaptureImplicit;
        journal_.note("copy", ", \"way\": \"%s\", \"bytes\": %zu, \"waits\": true", way(to, from), bytes);
        if (bytes <= copied_bytes) std::memmove(to, from, bytes);
        return cudaSuccess;
    }

    cudaError_t enqueue_copy(void *to, const void *from, std::size_t bytes, void *stream) {
        std::lock_guard lock(mutex_);
        if (!add(way(to, from), stream)) return cudaErrorStreamCaptureImplicit;
        if (!captures_.count(stream)) {
            journal_.note("copy", ", \"way\": \"%s\", \"bytes\": %zu, \"waits\": false", way(to, from), bytes);
        }
        if (bytes <= copied_bytes) std::memmove(to, from, bytes);
        return cudaSuccess;
    }

    cudaError_t enqueue_fill(void *place, int value, std::size_t bytes, void *stream) {
        std::lock_guard lock(mutex_);
        if (!add("fill", stream)) return cudaErrorStreamCaptureImplicit;
        if (bytes <= copied_bytes) std::memset(place, value, bytes);
        return cudaSuccess;
    }

    bool enqueue(const char *what, void *stream) {
        std::lock_guard lock(mutex_);
        return add(what, stream);
    }

    cudaError_t enqueue_kernel(const void *function, void *stream) {
        std::lock_guard lock(mutex_);
        auto name = kernels_.find(function);
        return add(name == kernels_.end() ? "kernel" : name->second.c_str(), stream) ? cudaSuccess
                                                                                       : cudaErrorStreamCaptureImplicit;
    }

    void name_kernel(const void *function, const char *name) {
        std::lock_guard lock(mutex_);
        int failed = 0;
        char *plain = abi::__cxa_demangle(name, nullptr, nullptr, &failed);
        kernels_[function] = failed ? name : plain;
        std::free(plain);
    }

    void *stream() {
        std::lock_guard lock(mutex_);
        void *made = std::malloc(1);
        numbers_[made] = static_cast<int>(numbers_.size()) + 1;
        return made;
    }

    cudaError_t begin(void *stream, cudaStreamCaptureMode mode) {
        std::lock_guard lock(mutex_);
        if (!stream) return cudaErrorStreamCaptureUnsupported;
        if (captures_.count(stream)) return cudaErrorIllegalState;
        captures_[stream] = Capture{mode, std::this_thread::get_id(), false, {}};
        return cudaSuccess;
    }

    bool is_capturing(void *stream) {
        std::lock_guard lock(mutex_);
        return captures_.count(stream) != 0;
    }

    cudaError_t end(void *stream, Graph **graph) {
        std::lock_guard lock(mutex_);
        auto found = captures_.find(stream);
        if (found == captures_.end()) return cudaErrorIllegalState;
        Capture capture = found->second;
        captures_.erase(found);
        *graph = nullptr;
        if (capture.lost) return cudaErrorStreamCaptureInvalidated;
        *graph = new Graph(capture.graph);
        (*graph)->number = ++graphs_;
        std::string operations;
        for (const auto &[name, count] : (*graph)->operations) {
            operations += (operations.empty() ? "\"" : ", \"") + plain(name) + "\": " + std::to_string(count);
        }
        journal_.note("graph", ", \"graph\": %d, \"stream\": %d, \"nodes\": %ld, \"operations\": {%s}", graphs_,
                      number_of(stream), (*graph)->nodes, operations.c_str());
        return cudaSuccess;
    }

    cudaError_t launch(const Graph *graph, void *stream) {
        std::lock_guard lock(mutex_);
        journal_.note("launch", ", \"graph\": %d, \"stream\": %d", graph->number, number_of(stream));
        return cudaSuccess;
    }

    const std::size_t memory_bytes = number_from("GPU_MEMORY_BYTES", std::size_t{80} << 30);
    const std::size_t copied_bytes = number_from("GPU_COPIED_BYTES", SIZE_MAX);

private:
    // Whether some capture forbids what could break it, whoever asks; it is lost by the asking.
    bool is_refused(const char *what) {
        bool refused = false;
        for (auto &[stream, capture] : captures_) {
            if (capture.mode == cudaStreamCaptureModeRelaxed) continue;
            if (capture.mode == cudaStreamCaptureModeThreadLocal && capture.thread != std::this_thread::get_id()) continue;
            refuse(what, capture);
            refused = true;
        }
        return refused;
    }

    void refuse(const char *what, Capture &capture) {
        capture.lost = true;
        journal_.note("refused", ", \"what\": \"%s\"", what);
    }

    bool add(const char *what, void *stream) {
        if (!stream) {
            // The legacy stream would wait for all others, which cannot be captured.
            if (is_refused(what)) return false;
        } else if (auto found = captures_.find(stream); found != captures_.end()) {
            found->second.graph.nodes++;
            found->second.graph.operations[what]++;
        }
        return true;
    }

    bool is_mine(const void *place) const {
        auto next = blocks_.upper_bound(static_cast<char *>(const_cast<void *>(place)));
        if (next == blocks_.begin()) return false;
        --next;
        return static_cast<const char *>(place) < next->first + next->second;
    }

    const char *way(const void *to, const void *from) const {
        if (is_mine(to)) return is_mine(from) ? "copy on the device" : "copy from the host";
        return is_mine(from) ? "copy to the host" : "copy on the host";
    }

    int number_of(void *stream) const {
        auto found = numbers_.find(stream);
        return found == numbers_.end() ? 0 : found->second;
    }

    static std::string plain(const std::string &name) {
        std::string safe;
        for (char letter : name) safe += letter == '"' || letter == '\\' ? '\'' : letter;
        return safe;
    }

    std::mutex mutex_;
    Journal journal_;
    std::map<char *, std::size_t> blocks_;
    std::size_t used_ = 0;
    std::map<void *, Capture> captures_;
    std::map<void *, int> numbers_;
    std::map<const void *, std::string> kernels_;
    int graphs_ = 0;
};

Device &device() {
    static Device *only = new Device;  // for good: libraries let go of what they have while the process ends
    return *only;
}

struct Extent {
    unsigned x, y, z;
};

// What a kernel is launched with: the head of cudaLaunchConfig_t.
struct Configuration {
    Extent grid, block;
    std::size_t shared_bytes;
    void *stream;
};
thread_local Configuration configuration;  // between <<<…>>> and the launch, which the compiler parts

cudaError_t host_memory(void **place, std::size_t bytes) {
    return posix_memalign(place, 4096, bytes ? bytes : 1) ? cudaErrorMemoryAllocation : cudaSuccess;
}

template <typename T>
cudaError_t handle(T *made) {
    *made = reinterpret_cast<T>(std::malloc(16));
    return cudaSuccess;
}

}  // namespace

bool stand_in::enqueue(const char *what, void *stream) { return device().enqueue(what, stream); }

extern "C" {

// --- Memory

cudaError_t cudaMalloc(void **place, std::size_t bytes) { return device().allocate(place, bytes); }
cudaError_t cudaFree(void *place) { return device().release(place); }
cudaError_t cudaMallocHost(void **place, std::size_t bytes) { return host_memory(place, bytes); }
cudaError_t cudaHostAlloc(void **place, std::size_t bytes, unsigned) { return host_memory(place, bytes); }
cudaError_t cudaFreeHost(void *place) {
    std::free(place);
    return cudaSuccess;
}
cudaError_t cudaMallocFromPoolAsync(void **place, std::size_t bytes, void *, cudaStream_t) {
    return device().allocate(place, bytes);
}
cudaError_t cudaFreeAsync(void *place, cudaStream_t) { return device().release(place); }
cudaError_t cudaMemPoolCreate(void **pool, const void *) { return handle(pool); }
cudaError_t cudaMemGetInfo(std::size_t *free, std::size_t *total) {
    *free = device().free_bytes();
    *total = device().memory_bytes;
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *place) {
    std::memset(attributes, 0, sizeof *attributes);
    const bool mine = device().holds(place);
    attributes->type = mine ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
    attributes->devicePointer = mine ? const_cast<void *>(place) : nullptr;
    attributes->hostPointer = mine ? nullptr : const_cast<void *>(place);
    return cudaSuccess;
}

// --- Copies

cudaError_t cudaMemcpy(void *to, const void *from, std::size_t bytes, cudaMemcpyKind) {
    return device().copy(to, from, bytes);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    return device().enqueue_copy(to, from, bytes, stream);
}
cudaError_t cudaMemcpy2DAsync(void *to, std::size_t, const void *from, std::size_t, std::size_t width,
                              std::size_t, cudaMemcpyKind, cudaStream_t stream) {
    return device().enqueue_copy(to, from, width, stream);
}
cudaError_t cudaMemset(void *place, int value, std::size_t bytes) {
    return device().enqueue_fill(place, value, bytes, nullptr);
}
cudaError_t cudaMemsetAsync(void *place, int value, std::size_t bytes, cudaStream_t stream) {
    return device().enqueue_fill(place, value, bytes, stream);
}

// --- The device

cudaError_t cudaGetDeviceCount(int *count) {
    *count = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *number) {
    *number = 0;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int) {
    std::memset(properties, 0, sizeof *properties);
    std::strcpy(properties->name, "Stand-in GPU");
    properties->totalGlobalMem = device().memory_bytes;
    properties->major = 9;
    properties->multiProcessorCount = 132;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->maxBlocksPerMultiProcessor = 32;
    properties->sharedMemPerBlock = 48 << 10;
    properties->sharedMemPerBlockOptin = 227 << 10;
    properties->sharedMemPerMultiprocessor = 228 << 10;
    properties->regsPerBlock = properties->regsPerMultiprocessor = 64 << 10;
    properties->l2CacheSize = 50 << 20;
    properties->concurrentKernels = 1;
    properties->maxGridSize[0] = 2147483647;
    properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
    properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
    properties->maxThreadsDim[2] = 64;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, int attribute, int) {
    static const std::map<int, int> known = {
        {cudaDevAttrMaxThreadsPerBlock, 1024},
        {cudaDevAttrMaxSharedMemoryPerBlock, 48 << 10},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, 227 << 10},
        {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 228 << 10},
        {cudaDevAttrWarpSize, 32},
        {cudaDevAttrMaxRegistersPerBlock, 64 << 10},
        {cudaDevAttrMaxRegistersPerMultiprocessor, 64 << 10},
        {cudaDevAttrMultiProcessorCount, 132},
        {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
        {cudaDevAttrComputeCapabilityMajor, 9},
        {cudaDevAttrComputeCapabilityMinor, 0},
    };
    auto found = known.find(attribute);
    *value = found == known.end() ? 1 : found->second;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}
const char *cudaGetErrorName(cudaError_t) { return "cudaErrorOfTheStandIn"; }
const char *cudaGetErrorString(cudaError_t code) {
    return code == cudaErrorMemoryAllocation ? "out of memory" : "refused by the stand-in";
}
cudaError_t cudaGetDriverEntryPointByVersion(const char *, void **function, unsigned, unsigned long long, void *found) {
    *function = nullptr;
    if (found) *static_cast<int *>(found) = 1;
    return cudaErrorSymbolNotFound;
}

// --- Streams, captures, graphs

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    *stream = static_cast<cudaStream_t>(device().stream());
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) { return cudaStreamCreate(stream); }
cudaError_t cudaEventCreate(cudaEvent_t *event) { return handle(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) { return handle(event); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return device().synchronize("cudaStreamSynchronize", stream); }
cudaError_t cudaDeviceSynchronize() { return device().synchronize("cudaDeviceSynchronize", nullptr); }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    *status = device().is_capturing(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    return device().begin(stream, mode);
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    return device().end(stream, reinterpret_cast<Graph **>(graph));
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long) {
    *executable = reinterpret_cast<cudaGraphExec_t>(graph);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    return device().launch(reinterpret_cast<Graph *>(executable), stream);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t, void (*function)(void *), void *given) {
    function(given);
    return cudaSuccess;
}

// --- Kernels

void **__cudaRegisterFatBinary(void *) { return static_cast<void **>(std::malloc(16)); }
void __cudaRegisterFunction(void **, const char *function, char *, const char *name, int, void *, void *, void *, void *,
                            int *) {
    device().name_kernel(function, name);
}
cudaError_t __cudaGetKernel(void **kernel, const void *function) {
    *kernel = const_cast<void *>(function);
    return cudaSuccess;
}
unsigned __cudaPushCallConfiguration(Extent grid, Extent block, std::size_t shared_bytes, void *stream) {
    configuration = {grid, block, shared_bytes, stream};
    return 0;
}
cudaError_t __cudaPopCallConfiguration(Extent *grid, Extent *block, std::size_t *shared_bytes, void *stream) {
    *grid = configuration.grid;
    *block = configuration.block;
    *shared_bytes = configuration.shared_bytes;
    *static_cast<void **>(stream) = configuration.stream;
    return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void *function, Extent, Extent, void **, std::size_t, cudaStream_t stream) {
    return device().enqueue_kernel(function, stream);
}
cudaError_t __cudaLaunchKernel(const void *function, Extent, Extent, void **, std::size_t, cudaStream_t stream) {
    return device().enqueue_kernel(function, stream);
}
cudaError_t cudaLaunchCooperativeKernel(const void *function, Extent, Extent, void **, std::size_t, cudaStream_t stream) {
    return device().enqueue_kernel(function, stream);
}
cudaError_t cudaLaunchKernelExC(const Configuration *launch, const void *function, void **) {
    return device().enqueue_kernel(function, launch->stream);
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *) {
    std::memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 64;
    attributes->binaryVersion = attributes->ptxVersion = 90;
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *, int, std::size_t, unsigned) {
    *blocks = 2;
    return cudaSuccess;
}

}  // extern "C"

SUCCEEDS(__cudaRegisterFatBinaryEnd)
SUCCEEDS(__cudaRegisterVar)
SUCCEEDS(__cudaUnregisterFatBinary)
SUCCEEDS(cudaEventDestroy)
SUCCEEDS(cudaEventElapsedTime)
SUCCEEDS(cudaEventRecord)
SUCCEEDS(cudaEventRecordWithFlags)
SUCCEEDS(cudaEventSynchronize)
SUCCEEDS(cudaFuncSetAttribute)
SUCCEEDS(cudaGetLastError)
SUCCEEDS(cudaGraphDestroy)
SUCCEEDS(cudaGraphExecDestroy)
SUCCEEDS(cudaKernelSetAttributeForDevice)
SUCCEEDS(cudaLibraryGetKernel)
SUCCEEDS(cudaLibraryLoadData)
SUCCEEDS(cudaLibraryUnload)
SUCCEEDS(cudaMemPoolDestroy)
SUCCEEDS(cudaMemPoolGetAttribute)
SUCCEEDS(cudaMemPoolSetAttribute)
SUCCEEDS(cudaMemPoolTrimTo)
SUCCEEDS(cudaMemcpyFromSymbol)
SUCCEEDS(cudaPeekAtLastError)
SUCCEEDS(cudaSetDevice)
SUCCEEDS(cudaStreamDestroy)
SUCCEEDS(cudaStreamWaitEvent)
