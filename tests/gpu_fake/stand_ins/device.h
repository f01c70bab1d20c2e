// A GPU that keeps the books and computes nothing: memory, streams, and the graphs that streams capture.
//
// libcudart holds the one there is; the stand-ins of the other libraries tell it what they give a stream to do.
#pragma once

namespace stand_in {

// A kernel, a copy or a call of a library is given to a stream: a node of the graph, if the stream captures.
// Returns false where CUDA would refuse it.
bool enqueue(const char *what, void *stream);

}  // namespace stand_in

// What a library offers without anybody here depending on what it does.
#define SUCCEEDS(name) \
    extern "C" int name() { return 0; }
