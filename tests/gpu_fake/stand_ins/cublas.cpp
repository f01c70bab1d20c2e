// Stands in for cuBLAS: a product is one node of the handle's stream.
#include <cstdlib>

#include "device.h"

namespace {

struct Handle {
    void *stream = nullptr;
};

}  // namespace

// The handle is what every function takes first; the rest does not matter here.
#define COMPUTES(name)                                     \
    extern "C" int name(Handle *handle, ...) {             \
        return stand_in::enqueue(#name, handle->stream) ? 0 : 13; /* CUBLAS_STATUS_EXECUTION_FAILED */ \
    }

extern "C" {

int cublasCreate_v2(Handle **handle) {
    *handle = new Handle;
    return 0;
}
int cublasDestroy_v2(Handle *handle) {
    delete handle;
    return 0;
}
int cublasSetStream_v2(Handle *handle, void *stream) {
    handle->stream = stream;
    return 0;
}
const char *cublasGetStatusName(int) { return "CUBLAS_STATUS_OF_THE_STAND_IN"; }
const char *cublasGetStatusString(int) { return "refused by the stand-in"; }

}  // extern "C"

COMPUTES(cublasDgeam)
COMPUTES(cublasDgemmBatched)
COMPUTES(cublasDgemmStridedBatched)
COMPUTES(cublasDgemm_v2)
COMPUTES(cublasDgetrfBatched)
COMPUTES(cublasDgetriBatched)
COMPUTES(cublasGemmBatchedEx)
COMPUTES(cublasGemmEx)
COMPUTES(cublasGemmStridedBatchedEx)
COMPUTES(cublasScopy_v2)
COMPUTES(cublasSgeam)
COMPUTES(cublasSgemmBatched)
COMPUTES(cublasSgemmStridedBatched)
COMPUTES(cublasSgemm_v2)
COMPUTES(cublasSgetrfBatched)
COMPUTES(cublasSgetriBatched)
COMPUTES(cublasSscal_v2)

SUCCEEDS(cublasGetMathMode)
SUCCEEDS(cublasSetMathMode)
