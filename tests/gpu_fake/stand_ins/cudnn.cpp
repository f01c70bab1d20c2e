// Stands in for cuDNN 9: every plan is possible and needs no workspace, and running one is one node of the handle's stream.
//
// On a GPU a plan may launch several kernels; here what it does is one thing.
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "device.h"

namespace {

// Numbers of the backend's own header, cudnn_backend.h.
enum AttributeType { boolean = 2, int64 = 3, numerical_note = 11, descriptor = 15, behavior_note = 19, int32 = 23 };
constexpr int engine_global_index = 1301;
constexpr int failed = 5000;  // CUDNN_STATUS_EXECUTION_FAILED

struct Handle {
    void *stream = nullptr;
};

int made(void **descriptor) {
    *descriptor = std::calloc(1, 256);
    return 0;
}

}  // namespace

#define CREATES(name) \
    extern "C" int name(void **descriptor) { return made(descriptor); }
#define COMPUTES(name) \
    extern "C" int name(Handle *handle, ...) { return stand_in::enqueue(#name, handle->stream) ? 0 : failed; }

extern "C" {

int cudnnCreate(Handle **handle) {
    *handle = new Handle;
    return 0;
}
int cudnnDestroy(Handle *handle) {
    delete handle;
    return 0;
}
int cudnnSetStream(Handle *handle, void *stream) {
    handle->stream = stream;
    return 0;
}
int cudnnGetStream(Handle *handle, void **stream) {
    *stream = handle->stream;
    return 0;
}
std::size_t cudnnGetVersion() { return 91400; }
const char *cudnnGetErrorString(int) { return "refused by the stand-in"; }
void cudnnGetLastErrorString(char *text, std::size_t size) {
    if (size) *text = '\0';
}

int cudnnBackendCreateDescriptor(int, void **descriptor) { return made(descriptor); }

// What the frontend asks of engines and plans: they have no notes, one of each else, and numbers are 0.
int cudnnBackendGetAttribute(void *, int name, int type, std::int64_t room, std::int64_t *count, void *values) {
    const bool noted = type == numerical_note || type == behavior_note;
    if (count) *count = noted ? 0 : 1;
    if (noted || !values || room < 1) return 0;
    switch (type) {
        case int32:
            *static_cast<std::int32_t *>(values) = 0;
            break;
        case int64:
            *static_cast<std::int64_t *>(values) = name == engine_global_index ? 1 : 0;
            break;
        case boolean:
            *static_cast<bool *>(values) = false;
            break;
        case descriptor:
            if (void **place = static_cast<void **>(values); !*place) made(place);
            break;
        default:
            break;
    }
    return 0;
}

int cudnnGetConvolutionForwardWorkspaceSize(void *, void *, void *, void *, void *, int, std::size_t *bytes) {
    *bytes = 0;
    return 0;
}

}  // extern "C"

CREATES(cudnnCreateActivationDescriptor)
CREATES(cudnnCreateConvolutionDescriptor)
CREATES(cudnnCreateDropoutDescriptor)
CREATES(cudnnCreateFilterDescriptor)
CREATES(cudnnCreateLRNDescriptor)
CREATES(cudnnCreatePoolingDescriptor)
CREATES(cudnnCreateRNNDataDescriptor)
CREATES(cudnnCreateRNNDescriptor)
CREATES(cudnnCreateReduceTensorDescriptor)
CREATES(cudnnCreateTensorDescriptor)

COMPUTES(cudnnActivationForward)
COMPUTES(cudnnAddTensor)
COMPUTES(cudnnBackendExecute)
COMPUTES(cudnnBatchNormalizationForwardInference)
COMPUTES(cudnnBatchNormalizationForwardTraining)
COMPUTES(cudnnConvolutionBiasActivationForward)
COMPUTES(cudnnConvolutionForward)
COMPUTES(cudnnLRNCrossChannelForward)
COMPUTES(cudnnPoolingForward)
COMPUTES(cudnnRNNForward)
COMPUTES(cudnnReduceTensor)
COMPUTES(cudnnSoftmaxForward)

SUCCEEDS(cudnnBackendDestroyDescriptor)
SUCCEEDS(cudnnBackendFinalize)
SUCCEEDS(cudnnBackendSetAttribute)
SUCCEEDS(cudnnDeriveBNTensorDescriptor)
SUCCEEDS(cudnnDestroyActivationDescriptor)
SUCCEEDS(cudnnDestroyConvolutionDescriptor)
SUCCEEDS(cudnnDestroyDropoutDescriptor)
SUCCEEDS(cudnnDestroyFilterDescriptor)
SUCCEEDS(cudnnDestroyLRNDescriptor)
SUCCEEDS(cudnnDestroyPoolingDescriptor)
SUCCEEDS(cudnnDestroyRNNDataDescriptor)
SUCCEEDS(cudnnDestroyRNNDescriptor)
SUCCEEDS(cudnnDestroyReduceTensorDescriptor)
SUCCEEDS(cudnnDestroyTensorDescriptor)
SUCCEEDS(cudnnDropoutGetStatesSize)
SUCCEEDS(cudnnFindConvolutionForwardAlgorithmEx)
SUCCEEDS(cudnnGetConvolutionForwardAlgorithm_v7)
SUCCEEDS(cudnnGetRNNTempSpaceSizes)
SUCCEEDS(cudnnGetRNNWeightParams)
SUCCEEDS(cudnnGetReductionIndicesSize)
SUCCEEDS(cudnnGetReductionWorkspaceSize)
SUCCEEDS(cudnnGetTensorNdDescriptor)
SUCCEEDS(cudnnSetActivationDescriptor)
SUCCEEDS(cudnnSetConvolutionGroupCount)
SUCCEEDS(cudnnSetConvolutionMathType)
SUCCEEDS(cudnnSetConvolutionNdDescriptor)
SUCCEEDS(cudnnSetDropoutDescriptor)
SUCCEEDS(cudnnSetFilterNdDescriptor)
SUCCEEDS(cudnnSetLRNDescriptor)
SUCCEEDS(cudnnSetPoolingNdDescriptor)
SUCCEEDS(cudnnSetRNNDataDescriptor)
SUCCEEDS(cudnnSetRNNDescriptor_v8)
SUCCEEDS(cudnnSetReduceTensorDescriptor)
SUCCEEDS(cudnnSetTensorNdDescriptor)
