// Stands in for the CUDA driver: one device of compute capability 9.0 that can be asked what it is.
#include <cstdlib>
#include <cstring>

#include "device.h"

namespace {

constexpr int capability_major = 75, capability_minor = 76;

std::size_t memory_bytes() {
    const char *text = std::getenv("GPU_MEMORY_BYTES");
    return text ? std::strtoull(text, nullptr, 10) : std::size_t{80} << 30;
}

}  // namespace

extern "C" {

int cuDeviceGetCount(int *count) {
    *count = 1;
    return 0;
}
int cuDeviceGet(int *device, int number) {
    *device = number;
    return 0;
}
int cuDeviceGetName(char *name, int length, int) {
    std::strncpy(name, "Stand-in GPU", length);
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int) {
    *value = attribute == capability_major ? 9 : 0;
    return 0;
}
int cuDeviceTotalMem_v2(std::size_t *bytes, int) {
    *bytes = memory_bytes();
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int) {
    static char only;
    *context = &only;
    return 0;
}
int cuMemGetInfo_v2(std::size_t *free, std::size_t *total) {
    *free = *total = memory_bytes();
    return 0;
}
int cuGetErrorString(int, const char **text) {
    *text = "refused by the stand-in";
    return 0;
}

}  // extern "C"

SUCCEEDS(cuCtxPopCurrent_v2)
SUCCEEDS(cuCtxPushCurrent_v2)
SUCCEEDS(cuDevicePrimaryCtxRelease_v2)
SUCCEEDS(cuInit)
SUCCEEDS(cuTensorMapEncodeTiled)
