// Stands in for cuBLASLt: it knows of no algorithm beforehand, and a product is one node of the stream it is given.
#include <cstddef>
#include <cstdlib>

#include "device.h"

namespace {

int descriptor(void **made) {
    *made = std::calloc(1, 256);
    return 0;
}

}  // namespace

extern "C" {

int cublasLtCreate(void **handle) { return descriptor(handle); }
int cublasLtMatmulDescCreate(void **made, int, int) { return descriptor(made); }
int cublasLtMatrixLayoutCreate(void **made, int, unsigned long long, unsigned long long, long long) {
    return descriptor(made);
}
int cublasLtMatmulPreferenceCreate(void **made) { return descriptor(made); }
int cublasLtMatrixTransformDescCreate(void **made, int) { return descriptor(made); }
int cublasLtMatmulAlgoGetHeuristic(void *, void *, void *, void *, void *, void *, void *, int, void *, int *found) {
    *found = 0;
    return 0;
}
int cublasLtMatmul(void *, void *, const void *, const void *, void *, const void *, void *, const void *, const void *,
                   void *, void *, void *, const void *, void *, std::size_t, void *stream) {
    return stand_in::enqueue("cublasLtMatmul", stream) ? 0 : 13;
}
int cublasLtMatrixTransform(void *, void *, const void *, const void *, void *, const void *, const void *, void *, void *,
                            void *, void *stream) {
    return stand_in::enqueue("cublasLtMatrixTransform", stream) ? 0 : 13;
}

}  // extern "C"

SUCCEEDS(cublasLtDestroy)
SUCCEEDS(cublasLtMatmulAlgoConfigSetAttribute)
SUCCEEDS(cublasLtMatmulAlgoInit)
SUCCEEDS(cublasLtMatmulDescDestroy)
SUCCEEDS(cublasLtMatmulDescSetAttribute)
SUCCEEDS(cublasLtMatmulPreferenceDestroy)
SUCCEEDS(cublasLtMatmulPreferenceSetAttribute)
SUCCEEDS(cublasLtMatrixLayoutDestroy)
SUCCEEDS(cublasLtMatrixLayoutSetAttribute)
SUCCEEDS(cublasLtMatrixTransformDescDestroy)
